"""Sentences that mean about the same: those that were written, each once, ordered by their similarity to the text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kexue._counts import check_counts

_ALSO_PUNCTUATION = "~^`"  # symbols in Unicode


class Similar(NamedTuple):
    """Sentence that means about the same as a text.

    Attributes:
        text: the sentence.
        score: cosine of its vector and that of the text, in [-1, 1].
    """

    text: str
    score: float


class SimilarSentences(NamedTuple):
    """Result of `rank_similar`.

    Attributes:
        results: the most similar first.
        samples: number of sentences that were written.
        duplicates: how many of them were the text itself, or one written before, by `fold_text`.
    """

    results: list[Similar]
    samples: int
    duplicates: int


def fold_text(text: str) -> str:
    """Return what of a text distinguishes it: without punctuation and spaces, in one case and width.

    A text of nothing else is kept whole.

    Example:
        >>> fold_text("Ｈow to Return, 退货？") == fold_text("how to return退货")
        True
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (c for c in plain if unicodedata.category(c)[0] not in "PZC" and c not in _ALSO_PUNCTUATION)
    return "".join(kept) or plain


def longest_rewrite(tokens: int) -> int:
    """Return the limit of tokens for a sentence that shall mean the same as one of `tokens`: 16 more, at least 32."""
    return max(32, tokens + 16)


def rank_similar(
    encode: Callable[[list[str]], np.ndarray],
    text: str,
    written: Sequence[str],
    *,
    k: int = 20,
    min_score: float | None = None,
    max_score: float | None = None,
) -> SimilarSentences:
    """Order sentences by their similarity to a text; leave out the text itself and what differs by `fold_text` only.

    Args:
        encode: texts to vectors (n, d) of length 1, such as `RoFormerSim.encode`.
        text: the text.
        written: candidates; of several that are alike the first one stays.
        k: results at most, at least 1.
        min_score: least cosine of a result, in [-1, 1]; None is any.
        max_score: largest cosine of a result, to see sentences that say it otherwise; None is any.

    Raises:
        ValueError: `k` < 1, a score outside [-1, 1], or `min_score` above `max_score`.
    """
    check_counts(k=k)
    low, high = -1.0 if min_score is None else min_score, 1.0 if max_score is None else max_score
    if not -1 <= low <= high <= 1:
        raise ValueError(
            f"min_score and max_score must be cosines, -1 <= min_score <= max_score <= 1, got {low} and {high}"
        )
    distinct: dict[str, str] = {}
    for one in written:
        distinct.setdefault(fold_text(one), one)
    distinct.pop(fold_text(text), None)
    distinct.pop("", None)
    candidates = list(distinct.values())
    results: list[Similar] = []
    if candidates:
        vectors = encode([text, *candidates])
        scores = np.clip(vectors[1:] @ vectors[0], -1.0, 1.0)
        order = np.argsort(-scores, kind="stable")
        results = [Similar(candidates[i], float(scores[i])) for i in order if low <= scores[i] <= high][:k]
    return SimilarSentences(results, len(written), len(written) - len(candidates))
