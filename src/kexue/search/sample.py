"""Documents drawn from a store, and the matrices of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from kexue.errors import DataError
from kexue.search.documents import Document
from kexue.search.products import Keys, Vectors
from kexue.search.space import Space
from kexue.search.store.base import Row, Store

SAMPLE = 20_000  # vectors, which form 200 million pairs


def sample_size(store: Store) -> int:
    """Return the number of documents to draw for about `SAMPLE` vectors."""
    counts = store.count_passages()
    return SAMPLE if not counts.split else max(2, SAMPLE * store.count() // counts.vectors)


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


class PassageVectors(NamedTuple):
    """The vectors of documents one after the other: (p, d), and the number of each document (n,), 1 unless split."""

    vectors: Vectors
    sizes: Keys

    @property
    def firsts(self) -> Keys:
        """(n,), the row of the first vector of each document."""
        return np.cumsum(self.sizes) - self.sizes


def stack_vectors(rows: Sequence[Row]) -> PassageVectors:
    """Return all vectors of rows that have one or more each."""
    vectors = [np.atleast_2d(row.vector) for row in rows if row.vector is not None]
    return PassageVectors(np.concatenate(vectors), np.array([len(some) for some in vectors], np.int64))


def share_vectors(rows: Sequence[Row], vectors: Vectors) -> list[Row]:
    """Return rows with their vectors, as `stack_vectors` has stacked them."""
    sizes = [max(1, len(row.spans)) for row in rows]
    parts = np.split(vectors, np.cumsum(sizes)[:-1]) if rows else []
    return [row._replace(vector=some if row.spans else some[0]) for row, some in zip(rows, parts, strict=True)]


def documents_with_vectors(rows: Sequence[Row], space: Space) -> tuple[list[Document], Vectors]:
    """Return rows with vectors as documents, and one vector of length 1 for each, (n, k), without the offset of CSLS.

    That of a split document is the mean of its passages, scaled.
    """
    if not rows:
        return [], np.empty((0, 0), np.float32)
    stacked = stack_vectors(rows)
    unit = stacked.vectors[:, :-1] if space.dehub == "csls" else stacked.vectors
    if len(unit) > len(rows):
        sums = np.add.reduceat(unit, stacked.firsts)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        split = (stacked.sizes > 1)[:, None]
        unit = np.where(split, sums / np.maximum(lengths, 1e-12), unit[stacked.firsts])
    return [Document(row.id, row.text, row.metadata) for row in rows], unit
