"""Scores of edited texts by a model of n-grams: only the n-grams that an edit touches are looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kexue.sampling import Proposed
from kexue.sampling.text.laws import Tokens
from kexue.sampling.text.trie import END

Step = Callable[[int, int], tuple[float, int]]


class Change(NamedTuple):
    """What differs between two texts: tokens in the place of others.

    Attributes:
        place: number of tokens before the first one that changes.
        removed: number of tokens that go.
        inserted: tokens that come.
    """

    place: int
    removed: int
    inserted: Tokens


class _Trace(NamedTuple):
    """A text of L tokens as read by the model.

    Attributes:
        text: its tokens.
        states: (L + 1,) of the model, before each token and at the end.
        log_probs: (L + 1,) of the first 0 to L tokens.
        total: log-probability of the whole text and its end.
    """

    text: Tokens
    states: list[int]
    log_probs: list[float]
    total: float


class NGramFollower:
    """Follower of chains: a proposal costs as many steps of the model as an edit has tokens, and n - 1 more at most.

    After the edit, tokens are read until the model is in the state that it had at this place before; from there on the
    old scores hold.

    Args:
        step: of the model: state and token to log-probability and next state.
        start: its state at the beginning of a text.
        texts: one of each chain.
    """

    def __init__(self, step: Step, start: int, texts: Sequence[Tokens]) -> None:
        self._step, self._start = step, start
        self._traces = [self._trace(text) for text in texts]
        self._proposed: list[Tokens] = []

    def score(self, proposals: Sequence[Proposed[Tokens]], /) -> list[float]:
        """Return the log-probability of each chain's proposal."""
        self._proposed = [proposed.state for proposed in proposals]
        return [
            self._trace(one.state).total if one.change is None else self._rescore(trace, one.change)
            for trace, one in zip(self._traces, proposals, strict=True)
        ]

    def move(self, accepted: Sequence[bool], /) -> None:
        """Take over the proposals that were accepted."""
        for chain, (text, taken) in enumerate(zip(self._proposed, accepted, strict=True)):
            if taken:
                self._traces[chain] = self._trace(text)

    def _trace(self, text: Tokens) -> _Trace:
        """Read a whole text."""
        state, total = self._start, 0.0
        states, log_probs = [state], [total]
        for token in text:
            log_prob, state = self._step(state, token)
            total += log_prob
            states.append(state)
            log_probs.append(total)
        return _Trace(text, states, log_probs, total + self._step(state, END)[0])

    def _rescore(self, trace: _Trace, change: Change) -> float:
        """Return the log-probability of a text after a change."""
        step = self._step
        state, total = trace.states[change.place], trace.log_probs[change.place]
        for token in change.inserted:
            log_prob, state = step(state, token)
            total += log_prob
        for place in range(change.place + change.removed, len(trace.text)):
            if state == trace.states[place]:
                return total + trace.total - trace.log_probs[place]
            log_prob, state = step(state, trace.text[place])
            total += log_prob
        return total + step(state, END)[0]
