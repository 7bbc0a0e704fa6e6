"""Rank correlation, and its bootstrap without sorting again.

A resample is a count for every pair. With the order of the scores known once, the average ranks of a resample are
running sums of its counts, so a thousand resamples cost a thousand passes instead of a thousand sorts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kexue._arrays import Array

_BATCH_VALUES = 1 << 20  # counts held at a time, over all resamples of a batch


def average_ranks(x: Array) -> Array:
    """(n,) ranks 1 ... n, tied values sharing the mean of theirs."""
    _values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


class Ranking:
    """Average ranks of one variable in any resample of its n values."""

    def __init__(self, x: Array) -> None:
        _values, inverse = np.unique(x, return_inverse=True)
        self._order = np.argsort(inverse, kind="stable")
        self._starts = np.flatnonzero(np.diff(inverse[self._order], prepend=-1))
        self._back = inverse

    def resampled(self, counts: Array) -> Array:
        """(b, n) ranks, centred, for (b, n) counts whose rows sum to n."""
        n = counts.shape[1]
        groups = counts[:, self._order]
        if len(self._starts) < n:  # ties: one rank for a group of equal values
            groups = np.add.reduceat(groups, self._starts, axis=1)
        middle = np.cumsum(groups, axis=1) - 0.5 * groups - 0.5 * n  # (first + last) / 2 - (n + 1) / 2
        ranks: Array = middle[:, self._back]
        return ranks


def correlation(a: Array, b: Array, counts: Array) -> Array:
    """(r,) Pearson correlation of centred ranks a, b, each (r, n), under counts (r, n); nan where one is constant."""
    weighted = a * counts
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.einsum("ij,ij->i", weighted, b) / np.sqrt(
            np.einsum("ij,ij->i", weighted, a) * np.einsum("ij,ij,ij->i", b, b, counts)
        )
    return found


def resamples(n: int, times: int, generator: np.random.Generator) -> Iterator[Array]:
    """Batches (b, n) of counts, float64, each row one draw of n out of n with replacement; `times` rows in all."""
    step = max(1, _BATCH_VALUES // n)
    for start in range(0, times, step):
        rows = min(step, times - start)
        drawn = generator.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrap_spearman(scores: list[Array], labels: Array, times: int, generator: np.random.Generator) -> Array:
    """(s, times) Spearman of each of s score vectors with the labels; column j uses the same resample for all."""
    rankings = [Ranking(score) for score in scores]
    target = Ranking(labels)
    out = np.empty((len(scores), times))
    start = 0
    for counts in resamples(len(labels), times, generator):
        stop = start + len(counts)
        wanted = target.resampled(counts)
        for row, ranking in zip(out, rankings, strict=True):
            row[start:stop] = correlation(ranking.resampled(counts), wanted, counts)
        start = stop
    return out


def interval(samples: Array) -> tuple[float, float]:
    """95 % percentile interval; nan where no sample is a number."""
    kept = samples[np.isfinite(samples)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, (0.025, 0.975))
    return float(low), float(high)
