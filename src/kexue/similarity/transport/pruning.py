"""Exact nearest documents of one query, with the solver run for the few that lower bounds cannot rule out."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from kexue._arrays import Array
from kexue.similarity.transport.token_table import TokenTable

_FIRST_BLOCK = 64  # documents whose relaxed distance is computed before the first of them is solved


class PrunedSearch:
    """Search of the k documents nearest to one query.

    Three lower bounds are computed in turn, each for the documents that the previous one left: the centroid bound, the
    relaxed distance on vectors truncated to their leading coordinates, the relaxed distance. A document is solved only
    while its bound does not exceed the k-th best distance so far.

    Args:
        table: tokens of the documents.
        query: (m, d), token vectors.
        distance: exact distance of the query to a document, by its number in the table.
        k: hits wanted, in [1, number of documents].
        budget: largest number of documents to solve.

    Attributes:
        solved: distance and number of each document solved.
        exact: no document that was not solved can be nearer than the k best.
    """

    def __init__(
        self, table: TokenTable, query: Array, distance: Callable[[int], float], *, k: int, budget: int
    ) -> None:
        self.table, self.query, self.distance, self.k, self.budget = table, query, distance, k, budget
        self.solved: list[tuple[float, int]] = []
        self.exact = True
        self._best: list[float] = []  # the k smallest distances, negated: a heap with the k-th best on top

    def run_all(self) -> int:
        """Solve every document within the budget; return the number of documents."""
        n = len(self.table)
        for document in range(min(n, self.budget)):
            self._solve(document)
        self.exact = self.budget >= n
        return n

    def run(self, *, eager: bool) -> int:
        """Solve the documents that the bounds leave; return how many the centroid bound left.

        Args:
            eager: solve the k documents of the smallest centroid bounds first, for a limit to start from.
        """
        bounds = self.table.centroid_bounds(self.query)
        first = np.argsort(bounds, kind="stable")[: self.k if eager else 0]
        for document in first:
            self._solve(int(document))
        open_ = bounds <= self._limit()
        near = int(open_.sum())
        # Where most are left, compute all in place; where few are left, gather their tokens.
        some = np.flatnonzero(open_) if 2 * near < len(bounds) else np.arange(len(bounds))
        bounds[some] = np.maximum(bounds[some], self.table.relaxed_bounds(self.query, some))
        open_[first] = False
        candidates = np.flatnonzero(open_)
        self._solve_in_order(candidates[np.argsort(bounds[candidates], kind="stable")], bounds)
        return near

    def _solve_in_order(self, candidates: Array, bounds: Array) -> None:
        """Solve candidates in order of their bounds, in growing blocks, until none can be a hit or the budget ends."""
        size = _FIRST_BLOCK
        while len(candidates := candidates[bounds[candidates] <= self._limit()]):
            block, candidates = np.sort(candidates[:size]), candidates[size:]
            if self.table.is_truncated:
                bounds[block] = np.maximum(bounds[block], self.table.relaxed_bounds(self.query, block, full=True))
            for document in block[np.argsort(bounds[block], kind="stable")]:
                if bounds[document] > self._limit():
                    break
                if len(self.solved) >= self.budget:
                    self.exact = False
                    return
                self._solve(int(document))
            size *= 2

    def _limit(self) -> float:
        """Return the k-th best distance, raised a little for the rounding of float64; no hit has a larger bound."""
        return -self._best[0] * (1 + 1e-9) if len(self._best) == self.k else np.inf

    def _solve(self, document: int) -> None:
        """Compute the exact distance to a document."""
        distance = self.distance(document)
        self.solved.append((distance, document))
        (heapq.heappush if len(self._best) < self.k else heapq.heappushpop)(self._best, -distance)
