"""Application of a whitening: to a set with its own statistics, or to many rows in blocks and threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from kexue._arrays import Array, as_matrix, host, like, raise_non_finite, working_dtype
from kexue.similarity._vectors import unit_rows
from kexue.similarity.whitening.kernel import whitening_kernel
from kexue.similarity.whitening.statistics import moments
from kexue.similarity.whitening.threads import map_blocks

_BLOCK_ROWS = 4_096  # rows of one task of a thread
_CHUNK_ROWS = 512  # rows that stay in the second-level cache


def whiten(
    embeddings: Any,
    *,
    n_components: int | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 0.0,
    rcond: float = 1e-10,
    ddof: int = 0,
    normalize: bool = False,
) -> Any:
    """Whiten a set of vectors by the statistics of that set, in one call: moments, kernel, transform.

    y = (x - beta mu) U Lambda^(-gamma/2) [:, :k]; at beta = gamma = 1 and full rank y has mean 0 and covariance I.

    Source: kexue.fm/archives/8321 and 9079. To apply the same map to other vectors, keep a `Whitening`.

    Args:
        embeddings: (n, d), numpy or torch, finite. The other arguments are those of `Whitening`.
        n_components: k in [1, d]; None keeps d.
        beta: share of the mean to remove.
        gamma: share of the anisotropy to remove.
        eps: ridge on the eigenvalues.
        rcond: relative size below which an eigenvalue counts as zero.
        ddof: divisor n - ddof.
        normalize: scale each row of the result to length 1.

    Returns:
        (n, k), the kind, device and dtype of `embeddings`.

    Raises:
        ValueError: see `moments` and `whitening_kernel`.

    Example:
        >>> import numpy as np
        >>> y = whiten(np.random.default_rng(0).normal(5.0, [1.0, 9.0], size=(100, 2)))
        >>> bool(np.allclose(y.T @ y / 100, np.eye(2)))
        True
    """
    x = as_matrix(embeddings, "embeddings")
    stats = moments(x)
    kernel = whitening_kernel(
        stats, n_components=n_components, beta=beta, gamma=gamma, eps=eps, rcond=rcond, ddof=ddof
    ).kernel
    return like(map_rows(x, kernel, beta * stats.mean, normalize=normalize), x)


def map_rows(x: Any, kernel: Array, shift: Array, *, normalize: bool = False) -> Array:
    """Compute (x - shift) @ kernel, in the precision of `x` (float32 for anything shorter).

    Args:
        x: (n, d), a matrix as `as_matrix` returns it.
        kernel: (d, k).
        shift: (d,).
        normalize: scale each output row to length 1; a row of `x` equal to `shift` up to rounding becomes zero.

    Returns:
        (n, k), float32 or float64.

    Raises:
        ValueError: a value that is not finite, or one too large to transform.
    """
    rows, k = x.shape[0], kernel.shape[1]
    dtype = working_dtype(x)
    if dtype == np.float32 and not 1e-30 < np.abs(kernel).max(initial=0.0) < 1e30:
        dtype = np.dtype(np.float64)
    weights, origin = kernel.astype(dtype), shift.astype(dtype)
    noise = 8 * float(np.finfo(dtype).eps) * float(np.abs(origin).max())
    out = np.empty((rows, k), dtype=dtype)

    def map_block(start: int) -> bool:
        """Fill a block of `out`; return whether all of it is finite."""
        finite = True
        work = np.empty((min(_CHUNK_ROWS, rows), len(origin)), dtype=dtype)
        for i in range(start, min(start + _BLOCK_ROWS, rows), _CHUNK_ROWS):
            chunk, result = host(x[i : i + _CHUNK_ROWS]), out[i : i + _CHUNK_ROWS]
            with np.errstate(invalid="ignore", over="ignore"):
                shifted = np.subtract(chunk, origin, out=work[: len(chunk)], casting="same_kind")
                np.matmul(shifted, weights, out=result)  # eq. 2 (9079), eq. 2 (8069): (x - beta mu) U Lambda^(-gamma/2)
                finite = finite and bool(np.isfinite(result.sum()))
            if normalize:
                result[np.abs(shifted).max(axis=1) <= noise] = 0.0  # a row equal to the shift has no direction
                _scale_to_unit(result)
        return finite

    starts = range(0, rows, _BLOCK_ROWS)
    if not all(map_blocks(map_block, starts) if rows > _CHUNK_ROWS else map(map_block, starts)):
        raise_non_finite(x)
        if not np.isfinite(out).all():
            raise ValueError(f"X holds values too large to transform in {dtype}. Divide by a constant before fitting.")
    return out


def _scale_to_unit(rows: Array) -> None:
    """Scale rows to length 1 in place; zero rows stay zero."""
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows, axis=1, keepdims=True)
    plain = (length > 1e-15) & (length < 1e15)
    np.divide(rows, length, out=rows, where=plain)
    if not plain.all():  # squares may have over- or underflowed
        rows[~plain[:, 0]] = unit_rows(rows[~plain[:, 0]])
