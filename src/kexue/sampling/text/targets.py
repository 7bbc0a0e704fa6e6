"""Scores of texts: words that must occur, a length, a language model, likeness to a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from kexue._counts import check_count
from kexue.errors import InfeasibleError
from kexue.sampling import ProductTarget
from kexue.sampling.text.laws import LanguageModel, Tokens

_KEPT = 100_000  # similarities that are remembered


class SentenceEncoder(Protocol):
    """Turns texts into vectors (n, d), as `kexue.text.Encoder` and `kexue.text.RoFormerSim` do."""

    def encode(self, texts: list[str], /) -> Any:
        """Return the vectors."""
        ...


class Keywords:
    """Hard constraint: each word occurs in the text; log rho is 0 if so, otherwise -inf.

    Args:
        words: as tokens, each at least one.
        ordered: whether they occur one behind the other in this order, without overlap; otherwise in any order.

    Raises:
        TypeError: a string. ValueError: no word, or one without tokens.
    """

    def __init__(self, words: Sequence[Sequence[int]], *, ordered: bool = False) -> None:
        if any(isinstance(word, str) for word in words):  # of a string, too
            raise TypeError(f"words must be tokens, got {words!r}; use lm.encode(word) for each word")
        self.words, self.ordered = [tuple(word) for word in words], ordered
        if not self.words or () in self.words:
            raise ValueError(f"words: expected one or more, each with tokens, got {self.words}")

    def log_rho(self, states: Sequence[Tokens], /) -> list[float]:
        """Return 0 or -inf for each text."""
        return [0.0 if self._occur(state) else -math.inf for state in states]

    def _occur(self, text: Tokens) -> bool:
        place = 0
        for word in self.words:
            start = _find(text, word, place if self.ordered else 0)
            if start < 0:
                return False
            place = start + len(word)
        return True


def _find(text: Tokens, word: Tokens, start: int) -> int:
    """Return the first place of a word from `start` on, -1 where there is none."""
    first = word[0]
    try:
        while True:
            start = text.index(first, start)
            if text[start : start + len(word)] == word:
                return start
            start += 1
    except ValueError:
        return -1


class Length:
    """Hard constraint: the number of tokens is between two bounds; log rho is 0 if so, otherwise -inf.

    Args:
        low: fewest tokens, >= 0.
        high: most tokens, >= `low`.

    Raises:
        ValueError: a bound that is no whole number >= 0. InfeasibleError: `low` above `high`.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = check_count(low, "low"), check_count(high, "high")
        if low > high:
            raise InfeasibleError(
                f"no text has {low} tokens or more and {high} or fewer.", remedy="Exchange the bounds."
            )

    def log_rho(self, states: Sequence[Tokens], /) -> list[float]:
        """Return 0 or -inf for each text."""
        return [0.0 if self.low <= len(state) <= self.high else -math.inf for state in states]


class LMTarget(ProductTarget[Tokens]):
    """Fluency: log rho = gamma log p(x) by a language model. A gamma below 1 favours short texts less.

    Source: kexue.fm/archives/8194, where gamma is 0.8.

    Args:
        lm: the model.
        gamma: > 0.
    """

    def __init__(self, lm: LanguageModel, gamma: float = 0.8) -> None:
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be > 0 and finite, got {gamma}")
        super().__init__(lm, powers=[gamma])
        self.lm, self.gamma = lm, gamma


class SimilarityTarget:
    """Likeness: log rho = power · log cos(v(x), v(text)), and -inf where the cosine is not above 0.

    Args:
        encoder: turns texts into vectors.
        text: what texts shall mean.
        power: >= 0.
        decode: tokens to text, such as ``lm.decode``.

    Raises:
        ValueError: a power below 0, a blank text, or one whose vector is 0; NaN in a vector.
    """

    def __init__(
        self, encoder: SentenceEncoder, text: str, power: float = 1.0, *, decode: Callable[[Tokens], str]
    ) -> None:
        if not 0 <= power < math.inf:
            raise ValueError(f"power must be >= 0 and finite, got {power}")
        if not text.strip():
            raise ValueError(f"text is blank: {text!r}, expected a sentence")
        self.power = power
        self._encoder, self._decode = encoder, decode
        self._vector = self._encode([text])[0]
        if not self._vector.any():
            raise ValueError(f"the encoder gives {text!r:.60} a vector of zeros, which nothing resembles")
        self._known: dict[Tokens, float] = {}

    def log_rho(self, states: Sequence[Tokens], /) -> list[float]:
        """Return power · log cosine of each text."""
        cosines = self.cosines(states)
        return [self.power * math.log(cosine) if cosine > 0 else -math.inf for cosine in cosines]

    def cosines(self, states: Sequence[Tokens]) -> list[float]:
        """Return the cosine of each text; they are remembered."""
        new = [state for state in dict.fromkeys(states) if state not in self._known]
        if new:
            if len(self._known) + len(new) > _KEPT:
                self._known.clear()
                new = list(dict.fromkeys(states))
            cosines = self._encode([self._decode(state) for state in new]) @ self._vector
            self._known.update(zip(new, cosines.tolist(), strict=True))
        return [self._known[state] for state in states]

    def _encode(self, texts: list[str]) -> Any:
        """Return vectors of length 1, or of zeros."""
        vectors = np.asarray(self._encoder.encode(texts), dtype=np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        for text, length in zip(texts, lengths[:, 0].tolist(), strict=True):
            if not length < math.inf:
                raise ValueError(f"the encoder gives {text!r:.60} a vector of length {length}, expected finite numbers")
        return vectors / np.where(lengths == 0, 1, lengths)
