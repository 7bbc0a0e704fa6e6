"""Stored vectors ranked for a query: candidates, the correction for hubs, and hits with what their scores mean."""

from __future__ import annotations

from typing import Any, NamedTuple

from kexue.similarity import Explanation, Probability


class Hit(NamedTuple):
    """One answer to a query.

    `score` is the cosine of the stored vectors, in [-1, 1], also where hubs were removed and the order is another; 0
    where one of them has no direction. After `Index.calibrate`, `percentile` (0 to 100) is its rank among random pairs
    of documents, and with labels `probability` (value, low, high) says how likely such a pair belongs together.
    `explanation`, on request, lists which word moved to which, at what cost.
    """

    id: str
    text: str
    score: float
    percentile: float | None
    probability: Probability | None
    metadata: dict[str, Any]
    explanation: Explanation | None
