"""Probabilities of events in log space: a product of sigmoids and its complement, exact for logits of any size.

A product of sigmoids is no sigmoid of a known logit. `Event` keeps log p and log(1 - p) side by side. With independent
events a and b,

    log p(ab) = log p(a) + log p(b),    1 - p(ab) = (1 - p(a)) + p(a) (1 - p(b)),

so the complement is a sum of positive terms, which loses no digits, where log(1 - e^{log p}) is -inf as soon as p
rounds to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_, mul
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Event(NamedTuple):
    """An event with the logarithms of its probability and of that of its complement."""

    log_yes: Tensor
    log_no: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Event:
        """Return the event with p = sigmoid(logits)."""
        return cls(functional.logsigmoid(logits), functional.logsigmoid(-logits))

    def __and__(self, other: Event) -> Event:
        """Return the event that both happen, by broadcasting."""
        log_yes = self.log_yes + other.log_yes
        return Event(log_yes, torch.logaddexp(self.log_no, self.log_yes + other.log_no))

    def cross_entropy(self, labels: Tensor) -> Tensor:
        """Return -log of the probability of bool labels, elementwise."""
        return -torch.where(labels, self.log_yes, self.log_no)


def joint_event(logits: Sequence[Tensor]) -> Event:
    """Return the event that several independent ones happen, given by the logits of each."""
    return reduce(and_, map(Event.of, logits))


def joint_probability(logits: Sequence[Tensor]) -> Tensor:
    """Return the probability that several independent events happen, given by the logits of each."""
    return reduce(mul, (one.sigmoid() for one in logits))
