"""Segments of postings: the documents of each term, as arrays, made from texts and merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kexue.search.lexical import Places, Terms, TextTerms

Rows = npt.NDArray[np.int32]
Counts = npt.NDArray[np.uint8]
_MOST = 255  # times that a term is counted in a document


class Segment(NamedTuple):
    """The postings of some documents: `terms` (v,) ascending; those of term i are `starts[i]` to `starts[i + 1]`.

    `rows` (p,) are places of documents, ascending in each term, `counts` (p,) how often the term is in each.
    """

    terms: Terms
    starts: Places
    rows: Rows
    counts: Counts

    @classmethod
    def make(cls, found: TextTerms, first: int) -> Segment:
        """Return the postings of texts whose places begin with `first`."""
        order = np.lexsort((found.texts, found.terms))
        terms, rows = found.terms[order], found.texts[order] + first
        new_term = np.diff(terms, prepend=~terms[:1]) != 0
        places = np.flatnonzero(new_term | (np.diff(rows, prepend=-1) != 0))
        counts = np.minimum(np.diff(places, append=len(terms)), _MOST)
        starts = np.flatnonzero(new_term[places])
        return cls(
            terms[places[starts]],
            np.append(starts, len(places)),
            rows[places].astype(np.int32),
            counts.astype(np.uint8),
        )

    @classmethod
    def merge(cls, segments: Sequence[Segment]) -> Segment:
        """Return one segment of several, whose places ascend from each to the next."""
        terms, which = np.unique(np.concatenate([one.terms for one in segments]), return_inverse=True)
        lengths = np.concatenate([np.diff(one.starts) for one in segments])
        starts = np.concatenate([[0], np.cumsum(np.bincount(which, lengths, len(terms)).astype(np.int64))])
        rows, counts = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint8)
        free, done = starts[:-1].copy(), 0
        for one in segments:
            mine, length = which[done : done + len(one.terms)], np.diff(one.starts)
            target = np.repeat(free[mine] - one.starts[:-1], length) + np.arange(len(one.rows))
            rows[target], counts[target] = one.rows, one.counts
            free[mine] += length
            done += len(one.terms)
        return cls(terms, starts, rows, counts)

    def find(self, terms: Terms) -> list[slice]:
        """Return where the postings of each term are; an empty slice for a term that does not occur."""
        places = np.searchsorted(self.terms, terms)
        here = places < len(self.terms)
        here[here] = self.terms[places[here]] == terms[here]
        stops = self.starts[places[here] + 1].tolist()
        slices = iter(map(slice, self.starts[places[here]].tolist(), stops))
        return [next(slices) if one else slice(0, 0) for one in here.tolist()]


EMPTY = Segment(np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint8))
