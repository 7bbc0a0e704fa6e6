"""Hubness counts: how often each vector is among the nearest neighbours of others.

N_k(i), the k-occurrence of a vector, is the number of other vectors that have it among their k nearest. Its mean is k;
in high dimension its distribution has a long right tail (hubs) and many zeros (antihubs).

Sources: kexue.fm/archives/9147; Radovanovic et al. 2010, JMLR 11.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from kexue._arrays import Array, as_matrix
from kexue.similarity.neighbours.knn import Backend, nearest_neighbours

Metric = Literal["euclidean", "cosine"]


def ball_to_cube_ratio(n: int) -> float:
    """Compute the volume of the unit ball over that of the cube around it: pi^(n/2) / (2^n Gamma(n/2 + 1)).

    Source: kexue.fm/archives/9147, eq. 1. It vanishes faster than exponentially: most of a cube lies in its corners.

    Args:
        n: dimension, at least 1.

    Example:
        >>> round(ball_to_cube_ratio(3), 4)
        0.5236
    """
    if n < 1:
        raise ValueError(f"the dimension must be at least 1, got {n}")
    return math.exp(n / 2 * math.log(math.pi) - n * math.log(2) - math.lgamma(n / 2 + 1))  # eq. 1 (9147), over 2^n


def k_occurrence(
    embeddings: Any,
    k: int = 10,
    *,
    metric: Metric = "euclidean",
    queries: Any = None,
    chunk: int = 4096,
    backend: Backend = "exact",
    generator: Any = 0,
) -> Array:
    """Compute N_k: how often each vector is among the k nearest of another (or of the `queries`).

    Source: kexue.fm/archives/9147, the "hub value"; a vector is never counted as its own neighbour.

    Args:
        embeddings: (n, d), numpy or torch.
        k: 1 <= k < n.
        metric: ``"euclidean"`` or ``"cosine"``.
        queries: (m, d), counted instead of the vectors themselves; then k <= n.
        chunk: queries compared at a time.
        backend: ``"exact"``, or ``"approx"`` for large n (FAISS; it misses mostly antihubs).
        generator: breaks ties for the k-th place, separately for each query, so that tied vectors have equal counts
            in the mean; int or numpy Generator.

    Returns:
        (n,) int64; the sum is n k (m k with `queries`).

    Raises:
        ValueError: k out of range, an unknown metric, NaN, a zero vector with cosine.

    Example:
        >>> import numpy as np
        >>> k_occurrence(np.array([[0.0], [1.0], [2.1]]), k=1).tolist()
        [1, 2, 0]

    Cost: O(n^2 d) time, 8 chunk n bytes.
    """
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric must be 'euclidean' or 'cosine', got {metric!r}")
    points = as_matrix(embeddings, "embeddings")
    neighbours, _ = nearest_neighbours(
        points, k, queries=queries, cosine=metric == "cosine", chunk=chunk, backend=backend, generator=generator
    )
    counts = np.bincount(neighbours.ravel(), minlength=len(points))  # section "Hubness现象" (9147): the hub value
    return counts.astype(np.int64)
