"""Documents drawn from a store, and the matrix of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from kexue.errors import DataError
from kexue.search.documents import Document
from kexue.search.products import Vectors
from kexue.search.space import Space
from kexue.search.store.base import Row, Store

SAMPLE = 20_000  # documents, which form 200 million pairs


def sample_rows(store: Store, most: int, random: np.random.Generator) -> list[Row]:
    """Return all documents of a store with their vectors, or `most` of them drawn at random, oldest first."""
    total = store.count()
    wanted = np.ones(total, bool)
    if total > most:
        wanted[:] = False
        wanted[random.choice(total, most, replace=False)] = True
    stored = zip(wanted, chain.from_iterable(store.iterate()), strict=False)
    return [row for take, row in stored if take]


def require_documents(store: Store, path: str, least: int, what: str) -> None:
    """Raise DataError where the index at `path` holds fewer than `least` documents, which `what` needs."""
    if (n := store.count()) < least:
        raise DataError(f"{path} holds {n} documents; {what} need {least} or more.", remedy="Add more first.")


def stack_vectors(rows: Sequence[Row]) -> Vectors:
    """Return the vectors (n, d) of rows that have one."""
    return np.stack([row.vector for row in rows if row.vector is not None])


def documents_with_vectors(rows: Sequence[Row], space: Space) -> tuple[list[Document], Vectors]:
    """Return rows with vectors as documents, and their vectors (n, k) of length 1, without the offset of CSLS."""
    if not rows:
        return [], np.empty((0, 0), np.float32)
    vectors = stack_vectors(rows)
    unit = vectors[:, :-1] if space.dehub == "csls" else vectors
    return [Document(row.id, row.text, row.metadata) for row in rows], unit
