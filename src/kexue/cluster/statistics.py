"""Mean and scatter of vectors in many files: one `Moments` per part, merged in an order that depends on the input only.

Sources: kexue.fm/archives/8069 (the statistics of whitening); Chan, Golub, LeVeque 1979 (merging).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kexue.cluster.pool import Job, Pool
from kexue.cluster.session import RaySession
from kexue.cluster.shards import list_shards, read_shard
from kexue.corpus.vectors import read_vectors
from kexue.similarity import Moments, merge_moments, moments

_ROWS = 16_384  # rows of a part, where the input has no shards


def whitening_moments(vectors: str | os.PathLike[str] | Any, *, ray: str = "local") -> Moments:
    """Compute count, mean and centred scatter of many vectors, in float64, as `kexue.similarity.moments` does.

    Parts 2 i and 2 i + 1 are merged, then pairs of pairs, in any order of completion. So the result does not depend on
    the number of workers; it equals that of one process to 1e-12 relative.

    Args:
        vectors: a folder that `embed_files` wrote, a ``.npy`` file (n, d), or an array (n, d).
        ray: see `embed_files`.

    Returns:
        Moments(n, mean (d,), scatter (d, d)), for `Whitening.merge`.

    Raises:
        DataError: a folder without all of its shards, or a file that is not a matrix.
        ValueError: no rows, or a value that is not finite.
    """
    with RaySession(ray) as session:
        return compute_moments(session, vectors)


def compute_moments(session: RaySession, vectors: str | os.PathLike[str] | Any) -> Moments:
    """Compute `whitening_moments` in a running session."""
    count, jobs = _split(vectors)
    return _merge_tree(Pool(session, _make_function).map(jobs, most=count), count)


def _make_function() -> Any:
    """Return the function of the workers."""
    return moments


def _split(vectors: str | os.PathLike[str] | Any) -> tuple[int, Iterator[Job]]:
    """Return the number of parts, and each part as a matrix."""
    if isinstance(vectors, str | os.PathLike):
        if Path(vectors).is_dir():
            paths = list_shards(vectors)
            return len(paths), ((number, read_shard(path)[1]) for number, path in enumerate(paths))
        vectors = read_vectors(vectors, kinds="fiu")
    matrix = np.asanyarray(vectors)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise ValueError(f"vectors must be a matrix (n, d) of numbers, got shape {matrix.shape} of {matrix.dtype}.")
    count = max(1, -(-len(matrix) // _ROWS))
    return count, ((i, np.asarray(matrix[i * _ROWS : (i + 1) * _ROWS])) for i in range(count))


def _merge_tree(parts: Iterable[tuple[int, Moments]], count: int) -> Moments:
    """Merge parts, which come in any order, in a binary tree by number; few of them are in memory at a time.

    >>> counts = [(i, Moments(1, np.zeros(1), np.zeros((1, 1)))) for i in (4, 0, 2, 1, 3)]
    >>> _merge_tree(counts, 5).n
    5
    """
    widths = [count]  # nodes of each level, leaves first
    while widths[-1] > 1:
        widths.append(-(-widths[-1] // 2))
    waiting: dict[tuple[int, int], Moments] = {}
    for number, one in parts:
        for level, width in enumerate(widths[:-1]):
            sibling = number ^ 1
            if sibling < width:
                other = waiting.pop((level, sibling), None)
                if other is None:
                    waiting[level, number] = one
                    break
                one = merge_moments(*((one, other) if number < sibling else (other, one)))  # noqa: PLW2901
            number //= 2  # noqa: PLW2901
        else:
            return one
    raise AssertionError(f"expected {count} parts, got fewer")
