"""Hubness of an index: how often each document is among the nearest of others, and the recorded skewness."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from kexue.search.encoding import IndexEncoder
from kexue.search.hubs import extend_queries, find_distinct
from kexue.search.products import Keys, Vectors
from kexue.search.sample import SAMPLE, require_documents, sample_rows, stack_vectors
from kexue.search.store.base import Store
from kexue.similarity import HubnessReport, k_occurrence
from kexue.similarity.neighbours.selection import k_smallest

_BLOCK = 512  # queries at a time
_TIE = 1e-6  # scores that differ by at most this count as equal (rounding of float32)


def count_occurrences(
    store: Store, encoder: IndexEncoder, k: int, generator: Any
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Count how often each document is among the `k` nearest of another; see `Index.k_occurrence`."""
    require_documents(store, encoder.path, k + 1, f"k = {k} neighbours")
    rows = sample_rows(store, SAMPLE, np.random.default_rng(generator))
    ids, vectors = [row.id for row in rows], stack_vectors(rows)
    if encoder.space.dehub == "csls":
        return count_neighbours(vectors, k, np.random.default_rng(generator)), ids
    return k_occurrence(vectors, k, generator=generator), ids


def record_hubness(store: Store, report: HubnessReport) -> None:
    """Record the skewness of the k-occurrences with the index."""
    record = {name: getattr(report, name) for name in ("n", "k", "k_skewness")}
    store.upsert([], metadata={"hubness": json.dumps(record)})


def count_neighbours(stored: Vectors, k: int, generator: np.random.Generator) -> Keys:
    """Count how often each stored vector of a CSLS index is among the `k` best of another; random order of ties."""
    n = len(stored)
    counts = np.zeros(n, np.int64)
    queries = extend_queries(stored[:, :-1], 1.0)
    firsts, which = find_distinct(stored)
    for start in range(0, n, _BLOCK):
        distances = -(queries[start : start + _BLOCK] @ stored[firsts].T)[:, which]
        distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
        counts += np.bincount(k_smallest(distances, k, generator, tie=_TIE).ravel(), minlength=n)
    return counts
