"""Average ranks of values, and of resamples of them without sorting again."""

from __future__ import annotations

import numpy as np

from kexue._arrays import Array


def average_ranks(x: Array) -> Array:
    """Return the ranks 1 ... n of (n,) values; equal values share the mean of their ranks."""
    _values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


class Ranking:
    """Order of n values, from which the average ranks of any resample follow as running sums of its counts."""

    def __init__(self, x: Array) -> None:
        _values, inverse = np.unique(x, return_inverse=True)
        self._order = np.argsort(inverse, kind="stable")
        self._starts = np.flatnonzero(np.diff(inverse[self._order], prepend=-1))
        self._back = inverse

    def resample_ranks(self, counts: Array) -> Array:
        """Return the centred ranks (b, n) of b resamples, given as counts (b, n) whose rows sum to n."""
        n = counts.shape[1]
        groups = counts[:, self._order]
        if len(self._starts) < n:  # ties: one rank for a group of equal values
            groups = np.add.reduceat(groups, self._starts, axis=1)
        middle = np.cumsum(groups, axis=1) - 0.5 * groups - 0.5 * n  # (first + last) / 2 - (n + 1) / 2
        ranks: Array = middle[:, self._back]
        return ranks


def correlate_ranks(a: Array, b: Array, counts: Array) -> Array:
    """Return Pearson's correlation (r,) of centred ranks a, b (r, n) under counts (r, n); nan where one is constant."""
    weighted = a * counts
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: Array = np.einsum("ij,ij->i", weighted, b) / np.sqrt(
            np.einsum("ij,ij->i", weighted, a) * np.einsum("ij,ij,ij->i", b, b, counts)
        )
    return correlation
