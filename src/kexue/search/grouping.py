"""Vectors grouped by document: a document that was split into passages has several, and the best one decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kexue.search.products import Keys, Scores, Vectors

SearchVectors = Callable[[Vectors, int, Keys | None], tuple[Scores, Keys]]
_GROWTH = 4  # factor by which the number of vectors asked for grows until there are enough documents


class Groups(NamedTuple):
    """Keys of the vectors of split documents: document `first` has the keys first, first + 1, ..., `count` of them.

    Both are (s,), with the first keys ascending. Every other document has one vector, whose key is its own.

    >>> groups = Groups(np.array([4]), np.array([3]))
    >>> groups.documents(np.array([2, 4, 5, 6, 7])).tolist()
    [2, 4, 4, 4, 7]
    >>> groups.vectors(np.array([2, 4, 7])).tolist()
    [2, 4, 5, 6, 7]
    """

    firsts: Keys
    counts: Keys

    @property
    def any(self) -> bool:
        """Whether a document was split."""
        return len(self.firsts) > 0

    def documents(self, keys: Keys) -> Keys:
        """Return the document of each vector, in the shape of `keys`."""
        if not self.any:
            return keys
        at = np.maximum(np.searchsorted(self.firsts, keys, side="right") - 1, 0)
        inside = (keys >= self.firsts[at]) & (keys < self.firsts[at] + self.counts[at])
        return np.where(inside, self.firsts[at], keys)

    def sizes(self, documents: Keys) -> Keys:
        """Return the number of vectors of each document."""
        sizes = np.ones(len(documents), np.int64)
        if self.any:
            at = np.minimum(np.searchsorted(self.firsts, documents), len(self.firsts) - 1)
            split = self.firsts[at] == documents
            sizes[split] = self.counts[at[split]]
        return sizes

    def vectors(self, documents: Keys) -> Keys:
        """Return the keys of all vectors of documents (ascending), ascending."""
        sizes = self.sizes(documents)
        starts = np.cumsum(sizes) - sizes
        return np.repeat(documents - starts, sizes) + np.arange(sizes.sum())


NO_GROUPS = Groups(np.empty(0, np.int64), np.empty(0, np.int64))


def group_rows(sizes: Keys) -> Groups:
    """Return the groups of a matrix whose rows are the vectors of documents one after the other.

    Args:
        sizes: (n,) vectors of each document, at least 1.
    """
    firsts, split = np.cumsum(sizes) - sizes, sizes > 1
    return Groups(firsts[split], sizes[split])


def search_documents(
    search: SearchVectors, groups: Groups, queries: Vectors, k: int, allowed: Keys | None, *, total: int
) -> tuple[Scores, Keys]:
    """Return the best `k` documents of each query, each with the score of its best vector; equal ones in order of key.

    Vectors are asked for until they belong to `k` documents, or all of them have been seen.

    Args:
        search: called as search(queries, k, allowed), returns the best vectors, best first, equal ones in order of key.
        groups: which vectors belong together.
        queries: (m, d).
        k: at most the number of documents that may be found.
        allowed: keys of the documents (ascending) that may be found; None: all.
        total: number of all vectors.

    Returns:
        Scores and keys of documents, (m, k).
    """
    if not groups.any:
        return search(queries, k, allowed)
    vectors = None if allowed is None else groups.vectors(allowed)
    total = total if vectors is None else len(vectors)
    scores, keys = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    left, wanted = np.arange(len(queries)), min(total, 2 * k)
    while len(left):
        best, near = search(queries[left], wanted, vectors)
        few = []
        for row, products, owners in zip(left.tolist(), best, groups.documents(near), strict=True):
            first = np.sort(np.unique(owners, return_index=True)[1])[:k]
            if len(first) < k and wanted < total:
                few.append(row)
            else:
                scores[row], keys[row] = products[first], owners[first]
        left, wanted = np.array(few, np.int64), min(total, _GROWTH * wanted)
    return scores, keys
