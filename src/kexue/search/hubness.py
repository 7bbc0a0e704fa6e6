"""Hubness of an index: how often each document is among the nearest of others, and the recorded skewness."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from kexue.errors import DataError
from kexue.search.encoding import IndexEncoder
from kexue.search.hubs import extend_queries, find_distinct
from kexue.search.products import Keys, Vectors
from kexue.search.sample import PassageVectors, require_documents, sample_rows, sample_size, stack_vectors
from kexue.search.store.base import Store
from kexue.similarity import HubnessReport, k_occurrence
from kexue.similarity.neighbours.selection import k_smallest

_BLOCK = 512  # queries at a time
_TIE = 1e-6  # scores that differ by at most this count as equal (rounding of float32)


def count_occurrences(
    store: Store, encoder: IndexEncoder, k: int, generator: Any
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Count how often each document is among the `k` nearest of another; see `Index.k_occurrence`.

    Two documents are as near as the nearest of their passages.
    """
    require_documents(store, encoder.path, k + 1, f"k = {k} neighbours")
    rows = sample_rows(store, sample_size(store), np.random.default_rng(generator))
    if len(rows) <= k:
        raise DataError(
            f"{len(rows)} of the long documents of {encoder.path} are compared; k = {k} neighbours need more.",
            remedy="Choose a smaller k.",
        )
    ids, stacked = [row.id for row in rows], stack_vectors(rows)
    if encoder.space.dehub == "csls":
        queries = extend_queries(stacked.vectors[:, :-1], 1.0)
    elif len(stacked.vectors) == len(rows):
        return k_occurrence(stacked.vectors, k, generator=generator), ids
    else:
        queries = stacked.vectors
    return count_neighbours(queries, stacked, k, np.random.default_rng(generator)), ids


def record_hubness(store: Store, report: HubnessReport) -> None:
    """Record the skewness of the k-occurrences with the index."""
    record = {name: getattr(report, name) for name in ("n", "k", "k_skewness")}
    store.upsert([], metadata={"hubness": json.dumps(record)})


def count_neighbours(queries: Vectors, stored: PassageVectors, k: int, generator: np.random.Generator) -> Keys:
    """Count how often each document is among the `k` best of another; random order of ties.

    Args:
        queries: (p, d) for the stored vectors as queries.
        stored: the vectors (p, d) of n documents.
        k: < n.
        generator: orders ties.
    """
    n, firsts = len(stored.sizes), stored.firsts
    counts = np.zeros(n, np.int64)
    distinct, which = find_distinct(stored.vectors)
    start = 0
    while start < n:
        stop = start + max(1, int(np.searchsorted(np.cumsum(stored.sizes[start:]), _BLOCK)))
        rows = slice(int(firsts[start]), int(firsts[stop - 1] + stored.sizes[stop - 1]))
        products = (queries[rows] @ stored.vectors[distinct].T)[:, which]
        best = np.maximum.reduceat(np.maximum.reduceat(products, firsts, axis=1), firsts[start:stop] - firsts[start])
        best[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        counts += np.bincount(k_smallest(-best, k, generator, tie=_TIE).ravel(), minlength=n)
        start = stop
    return counts
