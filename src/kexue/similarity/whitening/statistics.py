"""Moments: mean and scatter of a stream of vectors, centred, in float64, in one pass, exactly mergeable.

The usual shortcut E[x'x] - mu'mu (eq. 3 and 8 of kexue.fm/archives/8069) cancels when the mean is large beside the
spread: on N(3000, 1) in float32 it returns a covariance with negative variances. Here every block is shifted by a
provisional mean before it is squared, and blocks are joined by the pairwise update of Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array, as_float64, as_matrix, host, raise_non_finite
from kexue.similarity.whitening.threads import map_blocks

_BLOCK_ROWS = 8_192  # largest number of rows that share one provisional mean: one task of a thread
_CHUNK_ROWS = 2_048  # rows copied at a time, where a copy is needed
_SAMPLE_ROWS = 256  # rows from which a provisional mean is computed
_SMALLEST = 1e-303  # a variance below this has lost digits to underflow


class Moments(NamedTuple):
    """Total weight, mean and centred scatter of a set of vectors; see the function `moments`.

    Attributes:
        n: total weight; the number of rows where no weights were given.
        mean: (d,), float64.
        scatter: (d, d), float64, symmetric: sum over rows of w (x - mean)' (x - mean).
    """

    n: float
    mean: Array
    scatter: Array


def moments(embeddings: Any, *, sample_weight: Any = None) -> Moments:
    """Compute count, mean and centred scatter of the rows, in float64 whatever the dtype of the input.

    n = sum w_i,  mean = sum w_i x_i / n,  scatter = sum w_i (x_i - mean)' (x_i - mean).

    Source: kexue.fm/archives/8069 and 8321 (the statistics of whitening); update: Chan, Golub, LeVeque 1979.

    Args:
        embeddings: (n, d), n >= 1, finite; numpy array, memory map or torch tensor. Never copied whole.
        sample_weight: (n,), >= 0, not all zero; None gives every row 1. A weight of 2 equals the row written twice.

    Returns:
        Moments(n, mean (d,), scatter (d, d)).

    Raises:
        ValueError: no rows, wrong shape or weights, a value that is not finite (row and column are named), or values
            whose squares float64 cannot hold: above about 1e154, or differences below about 1e-152.

    Cost: n d^2 multiplications in one pass over the data; a few d^2 + 2,048 d float64 values for each thread.

    Example:
        >>> m = moments([[1.0, 0.0], [3.0, 0.0]])
        >>> m.n, m.mean.tolist(), m.scatter.tolist()
        (2, [2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    x = as_matrix(embeddings, "embeddings")
    rows, d = x.shape
    if rows == 0:
        raise ValueError(f"0 sample(s) (shape={tuple(x.shape)}) while a minimum of 1 is required for the statistics.")
    weight = None if sample_weight is None else _read_weight(sample_weight, rows)
    step = min(_BLOCK_ROWS, max(_CHUNK_ROWS, -(-rows // 16)))  # depends on the shape alone, and so does the sum

    def sum_block(start: int) -> _BlockSums:
        stop = start + step
        return _sum_rows(host(x[start:stop]), None if weight is None else weight[start:stop])

    scatter, counts, shifts, deltas = np.zeros((d, d)), [], [], []
    for part in map_blocks(sum_block, range(0, rows, step)):
        scatter += part.scatter
        counts.append(part.n)
        shifts.append(part.shift)
        deltas.append(part.delta)
    total = _join_blocks(scatter, np.array(counts), np.array(shifts), np.array(deltas))
    # A NaN or infinity in column j reaches scatter[j, j], so d numbers show whether all n d values were finite.
    if not np.isfinite(np.diagonal(total.scatter)).all():
        raise_non_finite(x, "embeddings")
        raise ValueError("embeddings hold values too large to square in float64. Divide them by a constant first.")
    if np.trace(total.scatter) < _SMALLEST * total.n and _rows_differ(x, weight):
        raise ValueError("embeddings differ by too little to square in float64. Multiply them by a constant first.")
    return total


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Compute the moments of the union of two sets from the moments of each; exact and associative up to rounding.

    n = n_a + n_b,  delta = mean_b - mean_a,  mean = mean_a + delta n_b / n,
    scatter = scatter_a + scatter_b + delta' delta n_a n_b / n.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        a: moments of one set, of dimension d.
        b: moments of the other, of the same d.

    Returns:
        New Moments; neither argument is changed.

    Raises:
        ValueError: the dimensions differ.

    Example:
        >>> merge_moments(moments([[1.0]]), moments([[3.0], [5.0]]))
        Moments(n=3, mean=array([3.]), scatter=array([[8.]]))
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot merge moments of {a.mean.shape[0]} and of {b.mean.shape[0]} dimensions.")
    n = a.n + b.n
    if n == 0:
        return a
    with np.errstate(invalid="ignore", over="ignore"):  # `moments` checks the result
        delta = b.mean - a.mean
        part = delta * np.sqrt(a.n * b.n / n)
        scatter = np.multiply.outer(part, part)  # bitwise symmetric
        scatter += a.scatter
        scatter += b.scatter
        return Moments(n, a.mean + delta * (b.n / n), scatter)  # eq. 7, 8 (8069), in centred form


class _BlockSums(NamedTuple):
    """Sums over one block of rows, about its provisional mean `shift`."""

    n: float
    shift: Array  # (d,)
    delta: Array  # (d,): mean - shift
    scatter: Array  # (d, d): sum of w (x - shift)' (x - shift)


def _sum_rows(x: Array, weight: Array | None) -> _BlockSums:
    """Sum a block of rows about a provisional mean; copies it only where shift, weight or dtype need a copy."""
    rows, d = x.shape
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf; the caller checks the result
        # The provisional mean is that of rows with a weight: others may lie anywhere.
        shift = _provisional_mean(x[:_SAMPLE_ROWS] if weight is None else x[np.flatnonzero(weight)[:_SAMPLE_ROWS]])
        if weight is None and x.dtype == np.float64 and not shift.any():
            return _BlockSums(rows, shift, np.add.reduce(x, axis=0) / rows, np.dot(x.T, x))  # a.T @ a: rank-k update
        buffer, product = np.empty((min(rows, _CHUNK_ROWS), d)), np.empty((d, d))
        total, scatter = np.zeros(d), np.zeros((d, d))
        for start in range(0, rows, _CHUNK_ROWS):
            chunk = x[start : start + _CHUNK_ROWS]
            work = np.subtract(chunk, shift, out=buffer[: len(chunk)])
            if weight is None:
                total += np.add.reduce(work, axis=0)
            else:
                root = np.sqrt(weight[start : start + _CHUNK_ROWS])
                work *= root[:, None]
                total += root @ work
            scatter += np.dot(work.T, work, out=product)
        n = rows if weight is None else float(weight.sum())
        return _BlockSums(n, shift, total / n if n else total, scatter)


def _join_blocks(scatter: Array, counts: Array, shifts: Array, deltas: Array) -> Moments:
    """Compute moments from the sums of blocks: `merge_moments` for all blocks at once.

    scatter = sum over blocks of scatter_b - n_b delta_b' delta_b + n_b (mean_b - mean)' (mean_b - mean).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        n = counts.sum()
        means = shifts + deltas
        mean = shifts[0] + counts @ (means - shifts[0]) / n  # eq. 1, 2 (9079): mu; eq. 3 (8069)
        within, between = (np.sqrt(counts)[:, None] * part for part in (deltas, means - mean))
        scatter = scatter - within.T @ within + between.T @ between  # n Sigma: eq. 1 (9079), eq. 3 (8069)
        return Moments(n.item(), mean, scatter)


def _provisional_mean(sample: Array) -> Array:
    """Return the mean of a few rows, or zeros where it is small beside their spread: saves a pass, costs few bits.

    Squares about a point at distance r from the mean lose log2(1 + r^2 / spread) bits. r^2 <= 4 spread in the sample
    keeps the loss below log2(5 rows of block / rows of sample), 8 of 53 bits, even for rows in the worst order. In a
    usual order it is 3 bits of the largest eigenvalue, and the eigensolver loses 3 bits too.
    """
    if not len(sample):
        return np.zeros(sample.shape[1])
    mean = sample.mean(axis=0, dtype=np.float64)
    spread = float(np.square(sample - mean).sum()) / sample.shape[0]
    return mean if not float(mean @ mean) <= 4.0 * spread else np.zeros_like(mean)


def _rows_differ(x: Any, weight: Array | None) -> bool:
    """Return whether rows with a weight differ at all."""
    rows = np.arange(x.shape[0]) if weight is None else np.flatnonzero(weight)
    first = host(x[rows[:1]])
    return any((host(x[rows[i : i + _CHUNK_ROWS]]) != first).any() for i in range(0, len(rows), _CHUNK_ROWS))


def _read_weight(sample_weight: Any, rows: int) -> Array:
    """Return the weights as float64 (rows,); ValueError unless finite, not negative and not all zero."""
    weight = as_float64(sample_weight)
    if weight.shape != (rows,):
        raise ValueError(f"sample_weight must have shape ({rows},), one number per row, got {weight.shape}.")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise ValueError(
            "sample_weight must be finite, not negative and not all zero, "
            f"got values from {weight.min()} to {weight.max()}."
        )
    return weight
