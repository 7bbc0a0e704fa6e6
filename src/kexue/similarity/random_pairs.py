"""Scores of random pairs of a corpus: the distribution of the scores of two unrelated texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows
from kexue.similarity._vectors import unit_rows

_CHUNK = 65_536  # random pairs drawn at a time
_BLOCK = 2048  # of them, whose rows are in memory at a time


def random_pair_scores(embeddings: Any, n: int = 100_000, *, generator: Any = 0) -> Array:
    """Compute cosines of random pairs of different rows: the distribution of scores of unrelated texts.

    Args:
        embeddings: (m, d), m >= 2, numpy or torch.
        n: number of pairs, >= 1, drawn with replacement from the m (m - 1) / 2.
        generator: numpy Generator or seed; None seeds from the system.

    Returns:
        (n,) float64, in [-1, 1]; 0 where a row is zero.

    Raises:
        ValueError: fewer than two rows, n < 1, or NaN.

    Example:
        >>> import numpy as np
        >>> random_pair_scores(np.array([[1.0, 0.0], [0.0, 2.0]]), 3).tolist()
        [0.0, 0.0, 0.0]

    Cost: O(n d) time, memory for 2,048 pairs at a time.
    """
    matrix = as_matrix(embeddings, "embeddings")
    if matrix.shape[0] < 2 or n < 1:
        raise ValueError(f"random pairs need two rows and n >= 1, got {matrix.shape[0]} rows and n = {n}")
    rng = np.random.default_rng(generator)
    scores = np.empty(n)
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        i = rng.integers(matrix.shape[0], size=size)
        j = (i + rng.integers(1, matrix.shape[0], size=size)) % matrix.shape[0]  # any other row, all equally likely
        for first in range(0, size, _BLOCK):
            pairs = (rows[first : first + _BLOCK] for rows in (i, j))
            a, b = (unit_rows(finite_rows(matrix[rows], "embeddings")) for rows in pairs)
            scores[start + first : start + first + len(a)] = np.einsum("ij,ij->i", a, b)
    return np.clip(scores, -1.0, 1.0)


def null_scores(embeddings: Any, n: int, *, generator: Any = 0) -> Array:
    """Compute cosines of `n` random pairs, or of every pair once where there are at most `n`."""
    matrix = as_matrix(embeddings, "embeddings")
    m = int(matrix.shape[0])
    if m < 2 or m * (m - 1) // 2 > n:
        return random_pair_scores(matrix, n, generator=generator)
    unit = unit_rows(finite_rows(matrix, "embeddings"))
    return np.asarray(np.clip((unit @ unit.T)[np.triu_indices(m, 1)], -1.0, 1.0))
