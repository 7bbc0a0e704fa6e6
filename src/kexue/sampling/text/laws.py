"""Law of one token, and what the moves ask of a model of texts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from kexue._arrays import Array
from kexue.sampling import Target

Tokens = tuple[int, ...]
_NEAR = 10.0  # difference of scores


class TokenLaw:
    """Probabilities of candidates for one place of a text.

    Args:
        tokens: (K,) the candidates.
        scores: (K,) log-weights, of any sum; NaN is refused, -inf excludes a candidate.

    Raises:
        ValueError: a NaN, or no candidate left.
    """

    def __init__(self, tokens: Array, scores: Array) -> None:
        if not len(scores) or not math.isfinite(top := scores.max()):  # NaN included
            raise ValueError(f"the model gives no token a finite score, got {scores[:5]}; check its weights for NaN")
        weights = np.exp(scores - top)
        weights /= weights.sum()
        self.tokens: list[int] = tokens.tolist()
        self._below: list[float] = weights.cumsum().tolist()
        self._weights: list[float] = weights.tolist()

    def draw(self, uniform: float) -> int:
        """Return the candidate for a number of [0, 1)."""
        return self.tokens[min(bisect_right(self._below, uniform), len(self.tokens) - 1)]

    def probability(self, token: int) -> float:
        """Return the probability of a token; 0 for one that is no candidate."""
        return self._weights[self.tokens.index(token)] if token in self.tokens else 0.0


def choose(tokens: Array, scores: Array, top: int | None, include: Collection[int] = ()) -> tuple[Array, Array]:
    """Return the likeliest tokens and those to include, with their scores.

    Args:
        tokens: (W,) ids, ascending.
        scores: (W,) log-weights.
        top: number of tokens; None is all.
        include: tokens of `tokens` that are chosen whatever their score.
    """
    if top is None or top >= len(tokens):
        return tokens, scores
    near = np.flatnonzero(scores > scores.max() - _NEAR)  # most often enough, and less to sort
    chosen = (
        near[np.argpartition(-scores[near], top - 1)[:top]]
        if len(near) >= top
        else (np.argpartition(-scores, top - 1)[:top])
    )
    if include:
        chosen = np.union1d(chosen, np.searchsorted(tokens, list(include)))
    return tokens[chosen], scores[chosen]


class TokenModel(Protocol):
    """A model that says which token may stand at a place of a text."""

    @property
    def writable(self) -> Sequence[int]:
        """Tokens of text, none of them special."""
        ...

    def law(self, left: Tokens, right: Tokens | None, top: int | None, include: Collection[int] = ()) -> TokenLaw:
        """Return the law of a token between two parts of a text, which depends on these arguments alone.

        Args:
            left: all tokens before it.
            right: all tokens behind it, to the end of the text; None: not known yet.
            top: number of candidates, the likeliest; None is all that are writable.
            include: tokens that are candidates whatever their score.
        """
        ...


class LanguageModel(TokenModel, Target[Tokens], Protocol):
    """A model that scores whole texts, too: as a target, rho of a text is its probability, its end included."""

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text; ValueError where they would not give the same text again."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        ...
