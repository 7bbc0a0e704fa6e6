"""Hubness report: measures of how unevenly vectors occur among nearest neighbours.

Sources: kexue.fm/archives/9147; Feldbauer et al. 2018 (the measures; names as in scikit-hubness).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array, host
from kexue.similarity.neighbours.occurrence import Metric, k_occurrence


class HubnessReport(NamedTuple):
    """Measures of the counts N_k: how unevenly the n k neighbour places are distributed over the vectors.

    Attributes:
        n: number of vectors; k: neighbours each.
        k_skewness: population skewness of N_k.
        robinhood: share of neighbour slots to move for equality.
        gini: Gini coefficient; atkinson: Atkinson index, epsilon 1/2. Both in [0, 1], 0 when all are equal.
        antihub_occurrence: share of vectors that are nobody's neighbour.
        hub_occurrence: share of places held by hubs (N_k >= hub_size k).
        max: largest N_k.
        top20_share: share of places held by the 20 % most frequent vectors.
        top: the most frequent vectors, as (row, N_k).
    """

    n: int
    k: int
    k_skewness: float
    robinhood: float
    gini: float
    atkinson: float
    antihub_occurrence: float
    hub_occurrence: float
    max: int
    top20_share: float
    top: list[tuple[int, int]]


def hubness_report(
    embeddings_or_counts: Any,
    k: int = 10,
    *,
    hub_size: float = 2.0,
    metric: Metric = "euclidean",
    top: int = 20,
) -> HubnessReport:
    """Measure hubness; see `HubnessReport`.

    Sources: kexue.fm/archives/9147; Feldbauer et al. 2018. Skewness depends on the number of vectors, so state n with
    it.

    Args:
        embeddings_or_counts: (n, d) vectors, or (n,) counts from `k_occurrence` with the same `k`.
        k: 1 <= k < n.
        hub_size: a hub has N_k >= hub_size k.
        metric: for vectors, ``"euclidean"`` or ``"cosine"``.
        top: number of the most frequent vectors to list, >= 0.

    Raises:
        ValueError: see `k_occurrence`; counts that are negative or all zero.

    Example:
        >>> hubness_report([1, 1, 1, 1], k=1).k_skewness
        0.0
    """
    if k < 1 or top < 0:
        raise ValueError(f"expected k >= 1 and top >= 0, got {k} and {top}")
    counts = host(embeddings_or_counts)
    if counts.ndim != 1:
        counts = k_occurrence(counts, k, metric=metric)
    if len(counts) == 0 or not (np.isfinite(counts).all() and counts.min() >= 0 and counts.sum() > 0):
        raise ValueError(f"counts must be finite, non-negative and not all zero, got {counts[:5].tolist()} ...")
    n, total, mean = len(counts), float(counts.sum()), float(counts.mean())
    rising = np.sort(counts)
    most = np.argsort(-counts, kind="stable")[:top]
    return HubnessReport(
        n=n,
        k=int(k),
        k_skewness=_skewness(counts),
        robinhood=float(np.abs(counts - mean).sum() / (2 * total)),
        gini=float((2 * np.arange(1, n + 1) - n - 1) @ rising / (n * total)),
        atkinson=float(1 - np.sqrt(counts).mean() ** 2 / mean),
        antihub_occurrence=float((counts == 0).mean()),
        hub_occurrence=float(counts[counts >= hub_size * k].sum() / total),
        max=int(counts.max()),
        top20_share=float(rising[n - math.ceil(0.2 * n) :].sum() / total),
        top=[(int(row), int(counts[row])) for row in most],
    )


def _skewness(counts: Array) -> float:
    """Return the population skewness; 0 where all counts are equal."""
    centred = counts - counts.mean()
    spread = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean()) / spread**3 if spread > 0 else 0.0
