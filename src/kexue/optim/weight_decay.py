"""Decoupled weight decay: decay apart from the gradient step; kexue.fm/archives/7094; arXiv:1711.05101."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch.optim import Optimizer

from kexue.optim._exclude import Exclude, Excluding
from kexue.optim._fusion import can_include_decay, is_linear, learning_rate
from kexue.optim._tensor_lists import batches
from kexue.optim._update import Update
from kexue.optim.stack import Group, Layer, parameters, unwrap


class DecoupledWeightDecay(Excluding):
    """Wrapper that applies weight decay separately from the gradient, so that adaptive step sizes do not weaken it.

    p <- p_new - lr rate p_old, where the inner optimizer takes p_old to p_new.

    Source: kexue.fm/archives/7094; arXiv:1711.05101, algorithm 2.

    Args:
        inner: any optimizer with a learning rate.
        rate: >= 0. In adaptive methods this is not L2 regularisation, which would be divided by the root of the second
            moment.
        exclude: parameters without decay: parts of names, parameters, or a function of (name, parameter), such as
            ``lambda name, p: p.dim() < 2``. Names need an inner optimizer built from `named_parameters()`.
        allow_double: take an inner optimizer that decays already, as AdamW does unless built with ``weight_decay=0``.

    Raises:
        ValueError: a negative rate; a group that has a `weight_decay` already; names to exclude where there are none.

    Around torch's elementwise optimizers the decay is one factor before the step, or in Adam and AdamW their own decay
    at no cost; with other optimizers the old parameters are kept during the step.
    """

    name: ClassVar[str] = "weight_decay"

    def __init__(
        self, inner: Optimizer, rate: float = 0.01, *, exclude: Exclude = None, allow_double: bool = False
    ) -> None:
        if not (rate >= 0 and math.isfinite(rate)):
            raise ValueError(f"rate must be >= 0, got {rate}")
        self.rate = rate
        self.allow_double = allow_double
        super().__init__(inner, exclude)

    def _check_group(self, group: Group) -> None:
        if group.get("weight_decay") and not self.allow_double:
            raise ValueError(
                f"the inner optimizer decays already, weight_decay={group['weight_decay']}; set it to 0 there, or pass "
                "allow_double=True"
            )
        super()._check_group(group)

    @property
    def is_fused(self) -> bool:
        """Whether the step of the innermost optimizer includes the decay, with only accumulation in between."""
        inner = self.inner
        while isinstance(inner, Layer) and inner.name == "gradient_accumulation":
            inner = inner.inner
        return not isinstance(inner, Layer) and can_include_decay(inner)

    @property
    def is_linear(self) -> bool:
        """Whether the decay is part of a step of the innermost optimizer that is proportional to lr."""
        return self.is_fused and is_linear(self.inner)

    def _advance(self, update: Update) -> None:
        if self.is_fused:
            # section "weight decay": p_new - lr rate p_old, within the step at the bottom
            update.decay.update({p: self.rate for p in parameters(self) if p not in self._excluded})
            self._inner_step(update)
            return
        update.keep(lambda p: p not in self._excluded)
        self._inner_step(update)
        if not update.applied:
            return
        for group, params in update.groups(unwrap(self)):
            moved = [p for p in params if p not in self._excluded]
            for ps, olds in batches(moved, [update.old[p] for p in moved]):
                # section "weight decay": p_new - lr rate p_old
                torch._foreach_add_(ps, olds, alpha=-float(learning_rate(group)) * self.rate)

    def _describe(self) -> str:
        return f"rate={self.rate}"
