"""Selection of the k smallest values of each row, with ties for the last places broken at random."""

from __future__ import annotations

import numpy as np

from kexue._arrays import Array


def k_smallest(values: Array, k: int, generator: np.random.Generator, *, tie: float = 0.0) -> Array:
    """Return the columns (m, k) of the k smallest of each row (m, n), in no order.

    Args:
        values: (m, n), at least k of each row below infinity.
        k: 1 <= k <= n.
        generator: breaks ties, separately for each row; one draw for all rows would favour the same columns.
        tie: >= 0; values that differ by no more count as equal.
    """
    columns = np.argpartition(values, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(values, columns, axis=1).max(axis=1)
    for row in np.flatnonzero((values <= (last + tie)[:, None]).sum(axis=1) > k):
        columns[row] = draw_k_smallest(values[row], last[row], k, tie, generator)
    return columns


def draw_k_smallest(values: Array, last: float, k: int, tie: float, generator: np.random.Generator) -> Array:
    """Return the positions (k,) of all values below `last`, the k-th smallest, and of a random choice of its ties."""
    below = np.flatnonzero(values < last - tie)
    tied = np.flatnonzero(np.abs(values - last) <= tie)
    return np.concatenate([below, generator.choice(tied, k - len(below), replace=False)])
