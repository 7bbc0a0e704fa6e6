"""Index of documents as sequences of token vectors, searched exactly by WRD or WMD.

Sources: kexue.fm/archives/7388 (the bounds); Kusner et al. 2015 (solving in their order: prefetch and prune).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.similarity._choices import check_choice
from kexue.similarity.transport.distances import word_movers_distance, word_rotators_distance
from kexue.similarity.transport.problems import Kind
from kexue.similarity.transport.pruning import PrunedSearch
from kexue.similarity.transport.sequences import directions, read_sequence
from kexue.similarity.transport.solvers import SOLVERS, Solver
from kexue.similarity.transport.token_table import TokenTable


class TransportStats(NamedTuple):
    """Statistics of one search; the three counts add up to the number of documents.

    Attributes:
        n_exact: number of documents solved.
        n_pruned_centroid: number ruled out by the centroid bound, documents without tokens among them.
        n_pruned_relaxed: number ruled out by a relaxed distance, or not solved because of `max_exact`.
        exact: True if the hits are certainly the nearest documents.
    """

    n_exact: int
    n_pruned_centroid: int
    n_pruned_relaxed: int
    exact: bool


class TransportHits(NamedTuple):
    """The nearest documents, nearest first: their ids, distances (float64), and the statistics of the search."""

    ids: list[Any]
    distances: Array
    stats: TransportStats


class TransportIndex:
    """Documents as sequences of token vectors, searched exactly by WRD or WMD.

    Args:
        kind: ``"wrd"`` (`word_rotators_distance`) or ``"wmd"`` (`word_movers_distance`).
        solver: see `emd`.

    Example:
        >>> index = TransportIndex("wrd").add([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]], ids=["x", "y", "xy"])
        >>> hits = index.search([[2.0, 0.1]], k=2)
        >>> hits.ids, hits.stats.exact
        (['x', 'xy'], True)

    Cost: N tokens of d dimensions take about 1.5 N d numbers of memory; a search with m tokens at most N m d
    multiplications in float32, and a few runs of the solver.
    """

    def __init__(self, kind: Kind = "wrd", *, solver: Solver = "auto") -> None:
        check_choice("kind", kind, ("wrd", "wmd"))
        check_choice("solver", solver, SOLVERS)
        self.kind = kind
        self.solver = solver
        self._ids: list[Any] = []
        self._known: set[Any] = set()
        self._place: list[int] = []  # insertion number of each document with tokens
        self._dims: int | None = None
        self._new: list[Array] = []  # documents not yet in the table
        self._table = TokenTable(kind)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, documents: Iterable[Any], ids: Sequence[Any] | None = None) -> TransportIndex:
        """Append documents, each (m_i, d); one without tokens is at distance infinity.

        Args:
            documents: sequences of token vectors.
            ids: one for each document, hashable, all different; None numbers documents by insertion.

        Returns:
            The index itself.

        Raises:
            ValueError: another dimension than the index's, NaN or infinity (the document is named), ids that do not
                fit. Nothing is added then.
        """
        start, dims = len(self._ids), self._dims
        kept: list[tuple[int, Array]] = []
        count = 0
        for document in documents:
            sequence = self._read_tokens(document, f"documents[{count}]", dims)
            if len(sequence):
                dims = sequence.shape[1]
                kept.append((start + count, sequence))
            count += 1
        names = list(range(start, start + count)) if ids is None else list(ids)
        if len(names) != count:
            raise ValueError(f"ids must name each of the {count} documents, got {len(names)}")
        fresh = set(names)
        if len(fresh) < count or not fresh.isdisjoint(self._known):
            twice = next(name for i, name in enumerate(names) if name in self._known or name in names[:i])
            raise ValueError(f"ids must differ, {twice!r} comes twice")
        self._ids += names
        self._known |= fresh
        self._dims = dims
        self._place += [place for place, _ in kept]
        self._new += [sequence for _, sequence in kept]
        return self

    def search(self, x: Any, k: int = 10, *, prune: bool = True, max_exact: int | None = None) -> TransportHits:
        """Return the k documents nearest to `x`; equal distances in the order of insertion.

        Args:
            x: (m, d), the query's token vectors. Without tokens every document is at distance infinity.
            k: number of hits, >= 1; at most all documents are returned.
            prune: False solves every document.
            max_exact: largest number of documents to solve, those of the smallest bounds first. Where the hits may then
                be wrong, `stats.exact` is False; below k it limits the number of hits too.

        Returns:
            `TransportHits`. Distances are what `word_rotators_distance` or `word_movers_distance` return.

        Raises:
            ValueError: k or max_exact below 1, another dimension than the documents', NaN or infinity.
        """
        for name, value in (("k", k), ("max_exact", 1 if max_exact is None else max_exact)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        query = self._read_tokens(x, "x", self._dims)
        if self._new:
            self._table.extend(self._new)
            self._new = []
        n = len(self._place) if len(query) else 0
        budget = n if max_exact is None else int(max_exact)
        search = PrunedSearch(self._table, query, lambda i: self._distance(query, i), k=min(int(k), n), budget=budget)
        near = 0
        if n:
            near = search.run(eager=max_exact is None) if prune else search.run_all()
        hits = [(distance, self._place[document]) for distance, document in sorted(search.solved)[: int(k)]]
        if len(hits) == n:  # those without tokens come last
            without = sorted(set(range(len(self._ids))).difference(self._place[:n]))
            hits += [(np.inf, place) for place in without[: int(k) - n]]
        solved = len(search.solved)
        stats = TransportStats(solved, len(self._ids) - near, near - solved, search.exact)
        distances = np.array([distance for distance, _ in hits], dtype=np.float64)
        return TransportHits([self._ids[place] for _, place in hits], distances, stats)

    def _read_tokens(self, x: Any, name: str, dims: int | None) -> Array:
        """Return the tokens of a sequence that carry a mass; ValueError on another dimension."""
        sequence = read_sequence(x, name)
        if dims is not None and len(sequence) and sequence.shape[1] != dims:
            raise ValueError(f"{name} must hold vectors of {dims} dimensions as the index does, got {sequence.shape}")
        return sequence[directions(sequence.astype(np.float64))[0]] if self.kind == "wrd" else sequence

    def _distance(self, query: Array, document: int) -> float:
        """Return the exact distance to a document, by its number in the table."""
        tokens = self._table.tokens(document)
        distance = word_rotators_distance if self.kind == "wrd" else word_movers_distance
        return float(distance(query, tokens, solver=self.solver))
