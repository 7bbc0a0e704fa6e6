"""The largest inner products, exactly: matrix products over blocks, and a selection with defined ties.

On the sizes that an index holds in memory this is as fast as FAISS's flat search for one query and several times
faster for many (`benchmarks/search.py`), because the products are one call of the BLAS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
_BLOCK_VALUES = 4_000_000  # scores in memory at a time


def top_k(scores: Scores, k: int) -> tuple[Scores, Keys]:
    """Return the `k` largest of each row, largest first, and their columns; equal ones in order of column.

    Args:
        scores: (m, n). k: >= 1; n when there are fewer.

    >>> top_k(np.array([[1, 3, 2, 3]]), 2)
    (array([[3, 3]]), array([[1, 3]]))

    Cost: O(m n), without a full sort.
    """
    m, n = scores.shape
    if m == 1 and k < n:  # the usual case, with less overhead
        row = scores[0]
        places = np.flatnonzero(row >= np.partition(row, n - k)[n - k])
        best = row[places]
        order = np.argsort(-best, kind="stable")[:k]
        return best[order][None], places[order][None]
    if k < n:
        least = np.partition(scores, n - k, axis=1)[:, n - k, None]  # the k-th largest of each row
        rows, places = np.nonzero(scores >= least)
        if len(rows) > m * k:  # ties at the k-th: keep the first columns
            kept = []
            for row in range(m):
                place = places[rows == row]
                tied = scores[row, place] == least[row]
                kept.append(place[~tied | (np.cumsum(tied) <= k - np.count_nonzero(~tied))])
            places = np.concatenate(kept)
        columns = places.reshape(m, k)
    else:
        columns = np.broadcast_to(np.arange(n), scores.shape)
    every = np.arange(m)[:, None]
    best = scores[every, columns]
    order = np.argsort(-best, axis=1, kind="stable")
    return best[every, order], columns[every, order]


def largest_products(queries: Vectors, blocks: Iterable[tuple[Keys, Vectors]], k: int) -> tuple[Scores, Keys]:
    """Return the `k` vectors of largest inner product with each query, best first, ties in order of key.

    Args:
        queries: (m, d).
        blocks: keys and vectors (n_i, d), all of them in ascending order of key.
        k: >= 1.

    Returns:
        Scores and keys, (m, min(k, n)).
    """
    scores, keys = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for block_keys, vectors in blocks:
        more, columns = top_k(_products(queries, vectors), k)
        scores = np.concatenate([scores, more], axis=1)
        keys = np.concatenate([keys, block_keys[columns]], axis=1)
        if scores.shape[1] > more.shape[1]:  # not the first block: earlier blocks have the smaller keys
            scores, columns = top_k(scores, k)
            keys = np.take_along_axis(keys, columns, axis=1)
    return scores, keys


def slices(m: int, n: int) -> Iterator[slice]:
    """Yield slices of `n` vectors whose scores with `m` queries fit in memory."""
    step = max(1024, _BLOCK_VALUES // max(1, m))
    return (slice(start, start + step) for start in range(0, n, step))


def _products(queries: Vectors, vectors: Vectors) -> Scores:
    products: Scores
    if len(queries) == 1:
        products = (vectors @ queries[0])[None]
    elif len(queries) < 4:  # for two or three, separate products are faster
        products = np.stack([vectors @ query for query in queries])
    else:
        products = queries @ vectors.T
    return products
