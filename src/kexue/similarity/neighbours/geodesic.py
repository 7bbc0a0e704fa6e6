"""Geodesic distances: lengths of shortest paths along a neighbourhood graph.

Source: kexue.fm/archives/9368. Training on pairs has one label for near pairs and one label for all others, so small
distances rank well and large ones do not. Keep each point's k nearest as edges; the shortest path is the distance.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, Self

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from kexue._arrays import Array, host, reread
from kexue.errors import NotFittedError
from kexue.similarity._choices import check_choice
from kexue.similarity.neighbours.graph import (
    Metric,
    Symmetrize,
    chord_angles,
    connect_parts,
    knn_graph,
    read_points,
    require_connected,
)
from kexue.similarity.neighbours.knn import nearest_neighbours

OnDisconnected = Literal["inf", "bridge", "raise"]


def geodesic_distances(
    graph_or_embeddings: Any,
    sources: Any = None,
    *,
    k: int = 10,
    on_disconnected: OnDisconnected = "inf",
    limit: float | None = None,
) -> Array:
    """Compute the lengths of shortest paths from `sources` to every point.

    Source: kexue.fm/archives/9368; Dijkstra through scipy.sparse.csgraph. Never below the straight distance.

    Args:
        graph_or_embeddings: a sparse matrix from `knn_graph`, or vectors (n, d) to build one from with `k`.
        sources: indices (s,); None: all, which costs n^2 memory.
        k: neighbours, for vectors.
        on_disconnected: result where there is no path: ``"inf"``, ``"raise"``, or ``"bridge"``, which first joins the
            parts by their closest points (vectors only).
        limit: largest length to look for; farther points are at infinity, which saves time.

    Returns:
        (s, n) float64.

    Raises:
        InfeasibleError: not connected, and ``"raise"``. ValueError: see `knn_graph`; a source that is out of range.

    Example:
        >>> import numpy as np
        >>> half_circle = np.array([[np.cos(t), np.sin(t)] for t in np.linspace(0, np.pi, 101)])
        >>> round(float(geodesic_distances(half_circle, [0], k=2)[0, -1]), 3)
        3.141
    """
    check_choice("on_disconnected", on_disconnected, ("inf", "bridge", "raise"))
    graph_or_embeddings = reread(graph_or_embeddings)
    if hasattr(graph_or_embeddings, "tocsr"):
        graph = graph_or_embeddings.tocsr()
        if on_disconnected == "bridge":
            raise ValueError("bridging needs the vectors; pass them instead of the graph, or use on_disconnected='inf'")
    else:
        graph = knn_graph(graph_or_embeddings, k)
        if on_disconnected == "bridge":
            graph = connect_parts(graph, read_points(graph_or_embeddings, "chord"))
    n = graph.shape[0]
    if on_disconnected == "raise":
        require_connected(graph)
    if limit is not None and not limit >= 0:
        raise ValueError(f"limit must be a length >= 0 or None, got {limit!r}")
    wanted: Any = np.arange(n) if sources is None else np.atleast_1d(host(sources))
    if wanted.size and (wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= n):
        raise ValueError(f"sources must be indices in [0, {n}), got {wanted.tolist()[:5]}")
    # section "测地距离" (9368): the shortest path approximates the geodesic
    return np.asarray(dijkstra(graph, indices=wanted, limit=np.inf if limit is None else limit))


class GeodesicIndex:
    """Geodesic distances from new vectors to a corpus, with the chains of points between them.

    A query is joined to its k nearest points of the corpus; no path leads through another query.

    Args:
        k: number of neighbours, >= 1.
        metric: see `knn_graph`; not ``"precomputed"``.
        symmetrize: see `knn_graph`.
        on_disconnected: see `geodesic_distances`.

    Attributes:
        graph_: (n, n), the graph of the corpus.
    """

    def __init__(
        self,
        k: int = 10,
        *,
        metric: Metric = "chord",
        symmetrize: Symmetrize = "union",
        on_disconnected: OnDisconnected = "inf",
    ) -> None:
        check_choice("metric", metric, ("chord", "angle", "euclidean"))
        check_choice("on_disconnected", on_disconnected, ("inf", "bridge", "raise"))
        self.k = k
        self.metric: Metric = metric
        self.symmetrize: Symmetrize = symmetrize
        self.on_disconnected = on_disconnected
        self._corpus: Array | None = None

    def fit(self, X: Any) -> Self:
        """Build the graph of the corpus, (n, d) with n > k."""
        X = reread(X)
        self.graph_ = knn_graph(X, self.k, metric=self.metric, symmetrize=self.symmetrize)
        self._corpus = read_points(X, self.metric)
        if self.on_disconnected == "bridge":
            self.graph_ = connect_parts(self.graph_, self._corpus, angle=self.metric == "angle")
        elif self.on_disconnected == "raise":
            require_connected(self.graph_)
        return self

    def distances(self, Q: Any) -> Array:
        """Return distances (m, n) from each query to each point of the corpus; inf where there is no path."""
        distances, _ = self._search(Q)
        return distances

    def chains(self, Q: Any, targets: Any) -> list[list[int]]:
        """Return, for one query (1, d), the corpus points on the path from each target to it; empty without a path."""
        _, predecessors = self._search(Q)
        n = self.graph_.shape[0]
        wanted = [self._read_index(target) for target in targets]
        return [_follow_path(predecessors[0], target, n)[:-1] for target in wanted]

    def paths(self, i: int, j: int) -> list[int]:
        """Return the corpus points on the shortest path from `i` to `j`, both included; empty without a path."""
        self._require_corpus()
        i, j = self._read_index(i), self._read_index(j)
        start: Any = i
        _, predecessors = dijkstra(self.graph_, indices=start, return_predecessors=True)
        return _follow_path(predecessors, j, i)[::-1]

    def _read_index(self, index: Any) -> int:
        """Return a point's number, checked."""
        n = self.graph_.shape[0]
        if not 0 <= index < n:
            raise ValueError(f"points are numbered 0 to {n - 1}, got {index}")
        return operator.index(index)

    def _search(self, Q: Any) -> tuple[Array, Array]:
        """Return distances (m, n) from the queries, and the predecessors on their shortest paths."""
        corpus = self._require_corpus()
        queries = read_points(Q, self.metric)
        cosine = self.metric != "euclidean"
        nearest, lengths = nearest_neighbours(corpus, min(self.k, len(corpus)), queries=queries, cosine=cosine)
        if self.metric == "angle":
            lengths = chord_angles(lengths)
        n, (m, k) = len(corpus), nearest.shape
        inner = self.graph_
        indptr = np.concatenate([inner.indptr, inner.indptr[-1] + k * np.arange(1, m + 1)])
        indices, data = np.concatenate([inner.indices, nearest.ravel()]), np.concatenate([inner.data, lengths.ravel()])
        whole = csr_matrix((data, indices, indptr), shape=(n + m, n + m))
        sources: Any = np.arange(n, n + m)
        distances, predecessors = dijkstra(whole, indices=sources, return_predecessors=True)
        return distances[:, :n], predecessors

    def _require_corpus(self) -> Array:
        """Return the points of the corpus, or raise NotFittedError."""
        if self._corpus is None:
            raise NotFittedError("this index has no corpus yet.", remedy="Call fit(X) first.")
        return self._corpus


def _follow_path(predecessors: Array, start: int, end: int) -> list[int]:
    """Return the chain of predecessors from `start` back to `end`; empty where they do not lead there."""
    chain = [start]
    while chain[-1] != end:
        before = int(predecessors[chain[-1]])
        if before < 0:
            return []
        chain.append(before)
    return chain
