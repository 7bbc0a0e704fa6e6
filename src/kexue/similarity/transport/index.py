"""Exact nearest documents under a transport distance, with the solver run for a handful of them.

Three numbers that never exceed the distance are computed in turn, each for what the last one left: the centroid bound,
the relaxed distance on vectors cut to their leading coordinates, the relaxed distance. A document is solved only while
its bound does not exceed the k-th best distance so far. Source of the bounds: kexue.fm/archives/7388; of solving in
their order: Kusner et al. 2015 (prefetch and prune).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.similarity.transport.distances import Kind, wmd_problem, wrd_problem
from kexue.similarity.transport.sequences import check_option, directions, read_sequence
from kexue.similarity.transport.solvers import SOLVERS, Solver, transport_cost
from kexue.similarity.transport.token_table import TokenTable

_FIRST_BLOCK = 64  # documents whose relaxed distance is computed before the first of them is solved


class TransportStats(NamedTuple):
    """How a search went; the three counts add up to the number of documents.

    Attributes:
        n_exact: documents solved.
        n_pruned_centroid: left out by the centroid bound; documents without tokens are among them.
        n_pruned_relaxed: left out by a relaxed distance, or by `max_exact`.
        exact: no document left out can be nearer than the hits.
    """

    n_exact: int
    n_pruned_centroid: int
    n_pruned_relaxed: int
    exact: bool


class TransportHits(NamedTuple):
    """The nearest documents, nearest first: their ids, distances (float64), and how they were found."""

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
        check_option(kind, "kind", ("wrd", "wmd"))
        check_option(solver, "solver", SOLVERS)
        self.kind = kind
        self.solver = solver
        self._ids: list[Any] = []
        self._known: set[Any] = set()
        self._place: list[int] = []  # insertion number of each document that has tokens
        self._dims: int | None = None
        self._new: list[Array] = []  # documents not yet in the table
        self._table = TokenTable(kind)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, documents: Iterable[Any], ids: Sequence[Any] | None = None) -> TransportIndex:
        """Append documents, each (m_i, d); one without tokens is at distance infinity.

        Args:
            documents: sequences of token vectors.
            ids: one a document, hashable, all different; None numbers documents by insertion.

        Returns:
            The index itself.

        Raises:
            ValueError: another dimension than before, NaN or infinity (the document is named), ids that do not fit.
                Nothing is added then.
        """
        start, dims = len(self._ids), self._dims
        kept: list[tuple[int, Array]] = []
        count = 0
        for document in documents:
            sequence = self._read(document, f"documents[{count}]", dims)
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
        """The k documents nearest to `x`; equal distances in the order of insertion.

        Args:
            x: (m, d), the query's token vectors. Without tokens every document is at distance infinity.
            k: hits wanted, >= 1; no more come than there are documents.
            prune: False solves every document.
            max_exact: solve at most this many, those of the smallest bounds. Where that is not enough to be sure,
                `stats.exact` is False; where it is below k, so is the number of hits.

        Returns:
            `TransportHits`. Distances are what `word_rotators_distance` or `word_movers_distance` return.

        Raises:
            ValueError: k or max_exact below 1, another dimension than the documents', NaN or infinity.
        """
        for name, value in (("k", k), ("max_exact", 1 if max_exact is None else max_exact)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        query = self._read(x, "x", self._dims)
        if self._new:
            self._table.extend(self._new)
            self._new = []
        n = len(self._place) if len(query) else 0
        race = _Race(self, query, min(int(k), n), n if max_exact is None else int(max_exact))
        near = 0
        if n:
            near = race.run(eager=max_exact is None) if prune else race.run_all()
        hits = sorted(race.solved)[: int(k)]
        if len(hits) == n:  # those without tokens come last
            without = sorted(set(range(len(self._ids))).difference(self._place[:n]))
            hits += [(np.inf, place) for place in without[: int(k) - n]]
        exact = len(race.solved)
        stats = TransportStats(exact, len(self._ids) - near, near - exact, race.sure)
        distances = np.array([distance for distance, _ in hits], dtype=np.float64)
        return TransportHits([self._ids[place] for _, place in hits], distances, stats)

    def _read(self, x: Any, name: str, dims: int | None) -> Array:
        sequence = read_sequence(x, name)
        if dims is not None and len(sequence) and sequence.shape[1] != dims:
            raise ValueError(f"{name} must hold vectors of {dims} dimensions as the index does, got {sequence.shape}")
        return sequence[directions(sequence.astype(np.float64))[0]] if self.kind == "wrd" else sequence

    def _distance(self, query: Array, document: int) -> float:
        table = self._table
        tokens = table.raw[table.starts[document] : table.starts[document + 1]]
        problem = wrd_problem(query, tokens) if self.kind == "wrd" else wmd_problem(query, tokens)
        return problem if isinstance(problem, float) else transport_cost(*problem[:3], self.solver)


class _Race:
    """One query: what was solved so far, and the distance the others have to beat."""

    def __init__(self, index: TransportIndex, query: Array, k: int, budget: int) -> None:
        self.index, self.query, self.k, self.budget = index, query, k, budget
        self.solved: list[tuple[float, int]] = []
        self.sure = True
        self._best: list[float] = []  # the k smallest distances, negated: a heap with the k-th best on top

    def limit(self) -> float:
        """No bound above this belongs to a hit; a hair above the k-th best, for the rounding of float64."""
        return -self._best[0] * (1 + 1e-9) if len(self._best) == self.k else np.inf

    def solve(self, document: int) -> None:
        distance = self.index._distance(self.query, document)
        self.solved.append((distance, self.index._place[document]))
        (heapq.heappush if len(self._best) < self.k else heapq.heappushpop)(self._best, -distance)

    def run_all(self) -> int:
        """Solve every document within the budget; return how many there are."""
        n = len(self.index._place)
        for document in range(min(n, self.budget)):
            self.solve(document)
        self.sure = self.budget >= n
        return n

    def run(self, *, eager: bool) -> int:
        """Solve what the bounds leave; return how many documents the centroid bound left.

        `eager` solves k documents by their centroids first, for a limit to begin with.
        """
        table, query = self.index._table, self.query
        bounds = table.centroid_bounds(query)
        first = np.argsort(bounds, kind="stable")[: self.k if eager else 0]
        for document in first:
            self.solve(int(document))
        open_ = bounds <= self.limit()
        near = int(open_.sum())
        # Most are left: go through all, in place. Few are left: gather their tokens.
        some = np.flatnonzero(open_) if 2 * near < len(bounds) else np.arange(len(bounds))
        bounds[some] = np.maximum(bounds[some], table.relaxed_bounds(query, some))
        open_[first] = False
        left = np.flatnonzero(open_)
        left = left[np.argsort(bounds[left], kind="stable")]
        size = _FIRST_BLOCK
        while len(left := left[bounds[left] <= self.limit()]):
            block, left = np.sort(left[:size]), left[size:]
            if table.cut:
                bounds[block] = np.maximum(bounds[block], table.relaxed_bounds(query, block, full=True))
            for document in block[np.argsort(bounds[block], kind="stable")]:
                if bounds[document] > self.limit():
                    break
                if len(self.solved) >= self.budget:
                    self.sure = False
                    return near
                self.solve(int(document))
            size *= 2
        return near
