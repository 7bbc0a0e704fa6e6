"""Fusion of two searches, by vectors and by words, on one scale: how much evidence each score is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue.search.products import Scores

WEIGHT = 0.7  # of the words; measured with benchmarks/hybrid.py
NEAREST = 100  # documents from which the scale of the inner products is taken


def fuse(
    products: Scores, words: Scores, coverage: Scores, *, nearest: Scores, weight: float
) -> npt.NDArray[np.float64]:
    """Return the evidence that each document answers a query; larger is better.

    The inner products of the nearest documents fall off like an exponential tail: a document whose product is larger
    by their mean excess over the last of them is e times as rare. So ``(product - last) / mean excess`` measures
    evidence in the same unit for every query and model. The evidence of the words is ``coverage sqrt(10 BM25)``: what
    a document holds of the query, from its rarest terms on, counts more than how often it repeats common ones.

    Args:
        products: inner products (n,) of n documents with the query.
        words, coverage: BM25 (n,) of the same documents, and the share (n,) of the query that each covers.
        nearest: the largest inner products of all documents, largest first; the first 100 are used.
        weight: of the words, in [0, 1].

    >>> holds = np.array([0.0, 0.8], np.float32)
    >>> fuse(np.array([0.9, 0.5]), 10 * holds, holds, nearest=np.array([0.9, 0.5, 0.4]), weight=0.5).round(2).tolist()
    [1.25, 3.83]
    """
    tail = nearest[:NEAREST].astype(np.float64)
    excess = float(np.mean(tail - tail[-1])) or 1.0
    evidence = coverage * np.sqrt(10 * words.astype(np.float64))
    fused: npt.NDArray[np.float64] = (1 - weight) * (products - tail[-1]) / excess + weight * evidence
    return fused
