"""Documents drawn from a store, and the matrix of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from kexue.search.products import Vectors
from kexue.search.store.base import Row, Store

SAMPLE = 20_000  # documents; 200 million pairs of them


def sample_rows(store: Store, most: int, random: np.random.Generator) -> list[Row]:
    """Return all documents of a store with their vectors, or `most` of them drawn at random, oldest first."""
    total = store.count()
    wanted = np.ones(total, bool)
    if total > most:
        wanted[:] = False
        wanted[random.choice(total, most, replace=False)] = True
    stored = zip(wanted, chain.from_iterable(store.iterate()), strict=False)
    return [row for take, row in stored if take]


def stack_vectors(rows: Sequence[Row]) -> Vectors:
    """Return the vectors (n, d) of rows that have one."""
    return np.stack([row.vector for row in rows if row.vector is not None])
