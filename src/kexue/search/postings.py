"""Postings in memory: the documents of each term, and their scores for a query by BM25."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kexue.search.engine import Position
from kexue.search.fusion import TERM_WEIGHTS, trust_terms
from kexue.search.lexical import TOKENIZER, Places, QueryTerms, read_query, read_terms
from kexue.search.products import Keys, Scores, top_k
from kexue.search.segments import EMPTY, Counts, Rows, Segment
from kexue.search.snapshot import open_snapshot, write_snapshot

_LOG = logging.getLogger("kexue.search")
K1, B = 0.9, 0.4  # saturation of repeated terms, and share of the length that is divided out
_LONG = 16_384  # documents; before more are scored, it is checked whether they can matter
_DEAD = 0.2  # share of removed documents from which they are dropped
_LOOK_UP = 16  # looking up a document in a posting list takes as long as scoring so many
_ROUNDING = 1 + 1e-5  # sums in float32 may differ by less
_FILE_TYPES = ("<i8", "<i8", "<i8", "<u8", "<i8", "<i4", "u1")
_MERGE = 4  # a segment is merged with the one before unless that is so many times longer


def postings_bytes(n: int, tokens: int) -> int:
    """Return about the bytes of the postings of `n` documents of this length, in memory or in a file.

    A posting takes 5 bytes; a document 24, and a term 16, of which there are few.
    """
    return n * (24 + 6 * tokens)


class Term(NamedTuple):
    """A term of a query: its weight (inverse document frequency), kind, documents, and its postings in each segment."""

    weight: float
    kind: int
    documents: int
    postings: list[tuple[Rows, Counts]]


class Postings:
    """Terms of documents by key, ascending; the documents with the best BM25 for a query.

    BM25 of a document is the sum over the terms t of the query of ``idf(t) f (K1 + 1) / (f + K1 (1 - B + B l / L))``:
    f times in the document, l the length of the document, L the mean; ``idf(t) = ln(1 + (n - m + 0.5) / (m + 0.5))``
    for m of the n documents. Scores depend on the documents alone, not on the order in which they came or went.

    Attributes:
        position: the state of the store that these are the documents of; set by the owner.

    >>> postings = Postings()
    >>> postings.add(np.array([3, 5]), np.array([0, 0]), ["the red apple", "the green pear"])
    >>> postings.search("green apples and pears", 2)[1]
    array([5])
    """

    def __init__(self) -> None:
        self.position = Position()
        self._keys: Keys = np.empty(0, np.int64)
        self._checksums: Keys = np.empty(0, np.int64)
        self._lengths: Places = np.empty(0, np.int64)
        self._alive: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self._segments: list[Segment] = [EMPTY]
        self._norms: Scores | None = None
        self._length = 0  # of all documents; set with the norms

    @classmethod
    def restore(cls, arrays: Sequence[np.ndarray[Any, Any]], position: Position) -> Postings:
        """Return postings from the arrays that were saved."""
        made = cls()
        made.position, made._segments = position, [Segment(*arrays[3:])]
        made._keys, made._checksums, made._lengths = arrays[:3]
        made._alive = np.ones(len(made._keys), np.bool_)
        return made

    def __len__(self) -> int:
        return int(np.count_nonzero(self._alive))

    @property
    def checksums(self) -> int:
        """The sum of the checksums of the documents."""
        return int(self._checksums[self._alive].sum())

    @property
    def nbytes(self) -> int:
        """The bytes of the arrays."""
        arrays = [self._keys, self._checksums, self._lengths, self._alive]
        return sum(array.nbytes for array in [*arrays, *(array for one in self._segments for array in one)])

    # Changes

    def add(self, keys: Keys, checksums: Keys, texts: Sequence[str]) -> None:
        """Append documents whose keys are larger than every key here."""
        self.extend([(keys, checksums, texts)])

    def extend(self, blocks: Iterable[tuple[Keys, Keys, Sequence[str]]]) -> None:
        """Append blocks of documents: keys, checksums and texts."""
        columns: list[tuple[Keys, Keys, Places]] = [(self._keys, self._checksums, self._lengths)]
        first = len(self._keys)
        for keys, checksums, texts in blocks:
            found = read_terms(texts)
            self._segments.append(Segment.make(found, first))
            columns.append((keys, checksums, found.lengths))
            first += len(keys)
        self._keys, self._checksums, self._lengths = (np.concatenate(column) for column in zip(*columns, strict=True))
        self._alive = np.concatenate([self._alive, np.ones(first - len(self._alive), np.bool_)])
        self._norms = None
        small = len(self._segments)
        while small > 1 and len(self._segments[small - 2].rows) < _MERGE * sum(
            len(one.rows) for one in self._segments[small - 1 :]
        ):
            small -= 1
        if small < len(self._segments):
            self._segments[small - 1 :] = [Segment.merge(self._segments[small - 1 :])]

    def remove(self, keys: Keys) -> None:
        """Remove the documents with these keys; unknown keys are ignored."""
        self._alive &= ~np.isin(self._keys, keys)
        self._norms = None
        if np.count_nonzero(~self._alive) > _DEAD * len(self._alive):
            self._drop_removed()

    def _drop_removed(self) -> None:
        """Make one segment without the removed documents."""
        merged, alive = Segment.merge(self._segments), self._alive
        self._norms = None
        kept = alive[merged.rows]
        starts = np.concatenate([[0], np.cumsum(kept)])[merged.starts]
        used = np.diff(starts) > 0
        rows = (np.cumsum(alive) - 1)[merged.rows[kept]].astype(np.int32)
        starts = np.append(starts[:-1][used], len(rows))
        self._segments = [Segment(merged.terms[used], starts, rows, merged.counts[kept])]
        self._keys, self._checksums, self._lengths = self._keys[alive], self._checksums[alive], self._lengths[alive]
        self._alive = alive[alive]

    # Search

    def search(self, query: str, k: int, allowed: Keys | None = None) -> tuple[Scores, Keys]:
        """Return scores and keys of the `k` best documents that hold a term of the query, best first, ties by key.

        Args:
            query: a text. k: >= 1. allowed: keys (ascending) that may be found; None: all.
        """
        scored = self.score(query, k, allowed)
        return scored.scores, scored.keys

    def score(self, query: str, k: int, allowed: Keys | None = None) -> WordScores:
        """Return the same with what it takes to score other documents.

        The terms are taken from the rarest on. Once the `k`-th best document is ahead of what the terms left could
        add, only documents that can still reach it are looked up in their postings.
        """
        able = self._alive
        if allowed is not None:
            able = able & np.isin(self._keys, allowed, assume_unique=True)
        wanted = read_query(query)
        terms = self._find(wanted)
        rest = (K1 + 1) * sum(term.weight for term in terms)
        totals, used = np.zeros(len(self._keys), np.float32), 0
        near: Places | None = None
        for term in terms:
            if used and term.documents > _LONG:
                near = _find_leaders(totals, able, k, rest)
                if near is not None and _LOOK_UP * len(near) < term.documents:
                    break
            for rows, counts in term.postings:
                totals[rows] += self._contributions(term.weight, rows, counts)
            rest -= (K1 + 1) * term.weight
            near, used = None, used + 1
        if near is None:
            near = np.flatnonzero(able & (totals > 0))
        self._measure_lengths()
        known, asked = (np.bincount(kinds, minlength=3) for kinds in ([term.kind for term in terms], wanted.kinds))
        trust = trust_terms(known, asked, self._length)
        scored = WordScores(self, totals, terms, used, trust)
        [scores], [places] = top_k(scored.at_rows(near)[None], k)
        scored.scores, scored.keys = scores, self._keys[near[places]]
        return scored

    def rows(self, keys: Keys) -> Places:
        """Return the places of documents."""
        return np.searchsorted(self._keys, keys)

    def contribute(self, term: Term, rows: Places) -> Scores:
        """Return what a term adds to the scores of the documents at `rows`."""
        added = np.zeros(len(rows), np.float32)
        for there, counts in term.postings:
            at, hit = _look_up(there, rows)
            added[hit] = self._contributions(term.weight, there[at[hit]], counts[at[hit]])
        return added

    def _contributions(self, weight: float, rows: Rows, counts: Counts) -> Scores:
        """Return what a term of this weight adds to the scores of the documents that hold it."""
        f = counts.astype(np.float32)
        return np.float32((K1 + 1) * weight) * f / (f + self._measure_lengths()[rows])

    def _measure_lengths(self) -> Scores:
        """Return what the length of each document divides its terms by."""
        if self._norms is None:
            self._length = int(self._lengths[self._alive].sum())
            share = self._lengths / max(1.0, self._length / max(1, len(self)))
            self._norms = (K1 * (1 - B + B * share)).astype(np.float32)
        return self._norms

    def _find(self, wanted: QueryTerms) -> list[Term]:
        """Return the terms that occur, rarest first."""
        n, everyone = len(self), bool(self._alive.all())
        found = []
        finds = zip(*(one.find(wanted.terms) for one in self._segments), strict=True)
        for kind, places in zip(wanted.kinds.tolist(), finds, strict=True):
            postings = [
                (one.rows[at], one.counts[at]) for one, at in zip(self._segments, places, strict=True) if at.stop
            ]
            m = sum(len(rows) if everyone else int(np.count_nonzero(self._alive[rows])) for rows, _ in postings)
            if m:
                found.append(Term(_inverse_frequency(n, m), kind, m, postings))
        return sorted(found, key=lambda term: term.documents)

    # Files

    def same(self, other: Postings) -> bool:
        """Return whether both hold the same documents with the same terms."""
        return all(np.array_equal(a, b) for a, b in zip(self._arrays(), other._arrays(), strict=True))

    def _arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Return all that must be kept, in the types of the file."""
        self._drop_removed()
        columns: list[np.ndarray[Any, Any]] = [self._keys, self._checksums, self._lengths, *self._segments[0]]
        return tuple(array.astype(kind) for array, kind in zip(columns, _FILE_TYPES, strict=True))

    def save(self, path: str | os.PathLike[str], *, mode: int | None = None) -> None:
        """Write a snapshot atomically, with these permissions."""
        arrays = self._arrays()
        header = {**self.position._asdict(), "tokenizer": TOKENIZER, "sizes": [len(array) for array in arrays]}

        def body(write: Callable[[bytes], int]) -> None:
            for array in arrays:
                write(array.tobytes())

        write_snapshot(path, header, body, mode=mode)


class WordScores:
    """Scores of all documents for one query; some terms are only looked up for the documents that are asked for.

    Args:
        postings: of the documents.
        totals: scores (n,) by the first `used` of the terms.
        terms: those of the query that occur.
        trust: of each kind of terms, see `kexue.search.fusion.trust_terms`.

    Attributes:
        scores, keys: of the best documents, best first.
    """

    scores: Scores
    keys: Keys

    def __init__(
        self, postings: Postings, totals: Scores, terms: Sequence[Term], used: int, trust: npt.NDArray[np.float64]
    ) -> None:
        self._postings, self._totals, self._terms, self._used = postings, totals, terms, used
        shares = [TERM_WEIGHTS[term.kind] * term.weight**2 for term in terms]
        self._shares = [share / sum(shares) * trust[term.kind] for term, share in zip(terms, shares, strict=True)]

    def at_rows(self, rows: Places) -> Scores:
        """Return the scores of the documents at these places."""
        scores = self._totals[rows]
        for term in self._terms[self._used :]:
            scores += self._postings.contribute(term, rows)
        return scores

    def at(self, keys: Keys) -> Scores:
        """Return the scores of documents."""
        return self.at_rows(self._postings.rows(keys))

    def coverage(self, keys: Keys) -> Scores:
        """Return which share of the query each document covers, see `kexue.search.fusion.fuse`."""
        rows, covered = self._postings.rows(keys), np.zeros(len(keys), np.float32)
        for term, share in zip(self._terms, self._shares, strict=True):
            for there, _ in term.postings:
                covered[_look_up(there, rows)[1]] += np.float32(share)
        return covered


def _look_up(there: Rows, rows: Places) -> tuple[Places, npt.NDArray[np.bool_]]:
    """Return the places in `there` (ascending, not empty) of those `rows` that are in it, and which these are."""
    at = np.minimum(np.searchsorted(there, rows), len(there) - 1)
    hit = there[at] == rows
    return at, hit


def load_postings(path: str | os.PathLike[str]) -> Postings | None:
    """Read a snapshot; None where there is none, or it is damaged or of another version."""
    try:
        with open_snapshot(path) as snapshot:
            if snapshot is None or snapshot[0]["tokenizer"] != TOKENIZER:
                return None
            header, body = snapshot
            arrays = [
                np.frombuffer(body.read(size * np.dtype(kind).itemsize), kind)
                for kind, size in zip(_FILE_TYPES, header["sizes"], strict=True)
            ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s cannot be used, the texts are read again: %s: %s", path, type(error).__name__, error)
        return None
    return Postings.restore(arrays, Position(*(header[name] for name in Position._fields)))


def _inverse_frequency(n: int, m: int) -> float:
    """Return the weight of a term that `m` of `n` documents hold."""
    return math.log1p((n - m + 0.5) / (m + 0.5))


def _find_leaders(totals: Scores, able: npt.NDArray[np.bool_], k: int, rest: float) -> Places | None:
    """Return the documents that can still be among the best `k` when no score grows by more than `rest`.

    None where that may be any document.
    """
    places = np.flatnonzero(able & (totals > 0))
    if len(places) < k:
        return None
    scores = totals[places]
    least = float(np.partition(scores, len(scores) - k)[len(scores) - k])
    return places[scores >= least - rest * _ROUNDING] if least > rest * _ROUNDING else None
