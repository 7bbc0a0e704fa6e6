"""Distances along a neighbourhood graph: trustworthy far away, because made of steps that are trustworthy nearby.

Source: kexue.fm/archives/9368. Pair training says "0" of near pairs and one and the same "different" of all others,
so small distances rank well and large ones do not. Keep each point's k nearest as edges; the shortest path is the
distance.

Differences: an edge is a chord or an angle, never 1 - cos, which is a squared length: paths of many short steps would
be almost free. Identical points are joined by edges of length 0 that sparse arithmetic must not lose.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, Self

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra

from kexue._arrays import Array, finite_rows, host, reread
from kexue.errors import InfeasibleError, NotFittedError
from kexue.similarity._vectors import unit_rows
from kexue.similarity.neighbours.knn import Backend, nearest, smallest

Metric = Literal["chord", "angle", "euclidean", "precomputed"]
Symmetrize = Literal["union", "mutual"]
OnDisconnected = Literal["inf", "bridge", "raise"]
APPROXIMATE_FROM = 20_000  # points; below, every pair is compared


def knn_graph(
    embeddings: Any,
    k: int = 10,
    *,
    metric: Metric = "chord",
    symmetrize: Symmetrize = "union",
    radius: float | None = None,
    approx: bool | None = None,
    merge_duplicates: bool = True,
) -> csr_matrix:
    """Join every point with its k nearest; edge lengths are distances.

    Source: kexue.fm/archives/9368.

    Args:
        embeddings: (n, d), numpy or torch; a matrix of distances (n, n) with ``metric="precomputed"``.
        k: 1 <= k < n. A larger k can only shorten paths; k = n - 1 gives the metric itself. Points that tie for the
            last place are drawn by lot, from a fixed seed.
        metric: ``"chord"`` sqrt(2 - 2 cos), ``"angle"`` arccos(cos), ``"euclidean"`` or ``"precomputed"``.
        symmetrize: an edge where either (``"union"``) or each (``"mutual"``) lists the other.
        radius: leave out edges longer than this.
        approx: True finds neighbours through a FAISS inverted file (extra `search`), False compares all pairs, None
            does so up to 20,000 points. A missed neighbour can only lengthen distances; few are missed where points
            form clusters, as sentences do, and most of them in plain noise.
        merge_duplicates: identical points share one place in the graph, joined to each other by edges of length 0;
            otherwise k copies of a point are all the neighbours it has.

    Returns:
        (n, n) symmetric CSR matrix. Stored zeros are edges of length 0: use `geodesic_distances`, not arithmetic.

    Raises:
        ValueError: fewer than two points, k out of range, an unknown option, NaN, a zero vector where an angle is
            needed.

    Example:
        >>> import numpy as np
        >>> knn_graph(np.array([[0.0], [1.0], [3.0]]), 1, metric="euclidean").toarray().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0]]

    Cost: O(n^2 d) exact; O(n k) memory.
    """
    _one_of("metric", metric, ("chord", "angle", "euclidean", "precomputed"))
    _one_of("symmetrize", symmetrize, ("union", "mutual"))
    points = _points(embeddings, metric)
    n = len(points)
    if n < 2:
        raise ValueError(f"a neighbourhood graph needs two points or more, got {n}")
    if radius is not None and not radius >= 0:
        raise ValueError(f"radius must be a length >= 0 or None, got {radius!r}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < n:
        raise ValueError(f"k must be between 1 and {n - 1} for {n} points, got {k!r}")
    if metric == "precomputed":
        others = points.copy()
        np.fill_diagonal(others, np.inf)
        chosen = smallest(others, int(k), np.random.default_rng(0))
        lengths = np.take_along_axis(others, chosen, axis=1)
        return _symmetric(n, np.repeat(np.arange(n), k), chosen.ravel(), lengths.ravel(), symmetrize, radius)
    first, place = np.arange(n), np.arange(n)
    if merge_duplicates:
        _, first, place = np.unique(points, axis=0, return_index=True, return_inverse=True)
        place = place.reshape(-1)
    rows = columns = np.empty(0, np.int64)
    lengths = np.empty(0)
    if len(first) > 1:
        near = min(int(k), len(first) - 1)
        approx = n > APPROXIMATE_FROM if approx is None else approx
        backend: Backend = "approx" if approx else "exact"
        chosen, lengths = nearest(points[first], near, cosine=metric != "euclidean", backend=backend)
        rows, columns, lengths = first[np.repeat(np.arange(len(first)), near)], first[chosen.ravel()], lengths.ravel()
        if metric == "angle":
            lengths = _angle(lengths)
    graph = _symmetric(n, rows, columns, lengths, symmetrize, radius)
    copies = np.flatnonzero(first[place] != np.arange(n))
    return _with_edges(graph, copies, first[place][copies], np.zeros(len(copies)))


def geodesic_distances(
    graph_or_embeddings: Any,
    sources: Any = None,
    *,
    k: int = 10,
    on_disconnected: OnDisconnected = "inf",
    limit: float | None = None,
) -> Array:
    """Lengths of shortest paths from `sources` to every point.

    Source: kexue.fm/archives/9368; Dijkstra through scipy.sparse.csgraph. Never below the straight distance.

    Args:
        graph_or_embeddings: a sparse matrix from `knn_graph`, or vectors (n, d) to build one from with `k`.
        sources: indices (s,); None: all, which costs n^2 memory.
        k: neighbours, for vectors.
        on_disconnected: where there is no path: ``"inf"``, ``"raise"``, or ``"bridge"``, which first joins parts by
            their closest points (vectors only).
        limit: leave farther points at infinity, and stop early.

    Returns:
        (s, n) float64.

    Raises:
        InfeasibleError: not connected, and ``"raise"``. ValueError: see `knn_graph`; a source that is no point.

    Example:
        >>> import numpy as np
        >>> half_circle = np.array([[np.cos(t), np.sin(t)] for t in np.linspace(0, np.pi, 101)])
        >>> round(float(geodesic_distances(half_circle, [0], k=2)[0, -1]), 3)
        3.141
    """
    _one_of("on_disconnected", on_disconnected, ("inf", "bridge", "raise"))
    graph_or_embeddings = reread(graph_or_embeddings)
    if hasattr(graph_or_embeddings, "tocsr"):
        graph = graph_or_embeddings.tocsr()
        if on_disconnected == "bridge":
            raise ValueError("bridging needs the vectors; pass them instead of the graph, or use on_disconnected='inf'")
    else:
        graph = knn_graph(graph_or_embeddings, k)
        if on_disconnected == "bridge":
            graph = bridged(graph, _points(graph_or_embeddings, "chord"))
    n = graph.shape[0]
    if on_disconnected == "raise":
        _raise_if_disconnected(graph)
    if limit is not None and not limit >= 0:
        raise ValueError(f"limit must be a length >= 0 or None, got {limit!r}")
    wanted: Any = np.arange(n) if sources is None else np.atleast_1d(host(sources))
    if wanted.size and (wanted.dtype.kind not in "iu" or wanted.min() < 0 or wanted.max() >= n):
        raise ValueError(f"sources must be indices in [0, {n}), got {wanted.tolist()[:5]}")
    return np.asarray(dijkstra(graph, indices=wanted, limit=np.inf if limit is None else limit))


class GeodesicIndex:
    """Geodesic distances from new vectors to a corpus, and the chain of points in between.

    A query is joined to its k nearest points of the corpus; queries are no steps for one another.

    Args:
        k: neighbours. metric, symmetrize: see `knn_graph`. on_disconnected: see `geodesic_distances`.

    Attributes:
        graph_: (n, n), the corpus's own graph.
    """

    def __init__(
        self,
        k: int = 10,
        *,
        metric: Metric = "chord",
        symmetrize: Symmetrize = "union",
        on_disconnected: OnDisconnected = "inf",
    ) -> None:
        _one_of("metric", metric, ("chord", "angle", "euclidean"))
        _one_of("on_disconnected", on_disconnected, ("inf", "bridge", "raise"))
        self.k = k
        self.metric: Metric = metric
        self.symmetrize: Symmetrize = symmetrize
        self.on_disconnected = on_disconnected
        self._corpus: Array | None = None

    def fit(self, X: Any) -> Self:
        """Take in the corpus, (n, d) with n > k."""
        X = reread(X)
        self.graph_ = knn_graph(X, self.k, metric=self.metric, symmetrize=self.symmetrize)
        self._corpus = _points(X, self.metric)
        if self.on_disconnected == "bridge":
            self.graph_ = bridged(self.graph_, self._corpus, angle=self.metric == "angle")
        elif self.on_disconnected == "raise":
            _raise_if_disconnected(self.graph_)
        return self

    def distances(self, Q: Any) -> Array:
        """(m, n): from each query to each point of the corpus; inf where there is no path."""
        distances, _ = self._reach(Q)
        return distances

    def chains(self, Q: Any, targets: Any) -> list[list[int]]:
        """For one query (1, d), the chain of corpus points from each target to it; empty where there is no path."""
        _, predecessors = self._reach(Q)
        n = self.graph_.shape[0]
        wanted = [self._point(target) for target in targets]
        return [_walk(predecessors[0], target, n)[:-1] for target in wanted]

    def paths(self, i: int, j: int) -> list[int]:
        """Corpus points on the shortest path from `i` to `j`, both included; empty where there is none."""
        self._fitted()
        i, j = self._point(i), self._point(j)
        start: Any = i
        _, predecessors = dijkstra(self.graph_, indices=start, return_predecessors=True)
        return _walk(predecessors, j, i)[::-1]

    def _point(self, index: Any) -> int:
        n = self.graph_.shape[0]
        if not 0 <= index < n:
            raise ValueError(f"points are numbered 0 to {n - 1}, got {index}")
        return operator.index(index)

    def _reach(self, Q: Any) -> tuple[Array, Array]:
        corpus = self._fitted()
        queries = _points(Q, self.metric)
        cosine = self.metric != "euclidean"
        chosen, lengths = nearest(corpus, min(self.k, len(corpus)), queries=queries, cosine=cosine)
        if self.metric == "angle":
            lengths = _angle(lengths)
        n, (m, k) = len(corpus), chosen.shape
        inner = self.graph_
        indptr = np.concatenate([inner.indptr, inner.indptr[-1] + k * np.arange(1, m + 1)])
        indices, data = np.concatenate([inner.indices, chosen.ravel()]), np.concatenate([inner.data, lengths.ravel()])
        whole = csr_matrix((data, indices, indptr), shape=(n + m, n + m))
        asked: Any = np.arange(n, n + m)
        distances, predecessors = dijkstra(whole, indices=asked, return_predecessors=True)
        return distances[:, :n], predecessors

    def _fitted(self) -> Array:
        if self._corpus is None:
            raise NotFittedError("this index has not seen a corpus.", remedy="Call fit(X) first.")
        return self._corpus


def bridged(graph: csr_matrix, points: Array, *, angle: bool = False) -> csr_matrix:
    """Join the parts of a graph by edges between their closest points, the smallest part first."""
    while True:
        parts, label = connected_components(graph, directed=False)
        if parts == 1:
            return graph
        inside = np.flatnonzero(label == np.bincount(label).argmin())
        outside = np.flatnonzero(label != label[inside[0]])
        found, lengths = nearest(points[outside], 1, queries=points[inside])
        at = int(lengths[:, 0].argmin())
        length = _angle(lengths[at]) if angle else lengths[at]
        graph = _with_edges(graph, inside[[at]], outside[found[at]], length)


def _points(embeddings: Any, metric: Metric) -> Array:
    points = finite_rows(embeddings, "embeddings")
    if metric in ("chord", "angle"):
        points = unit_rows(points)
        if not (present := points.any(axis=1)).all():
            row = int(np.flatnonzero(~present)[0])
            raise ValueError(f"embeddings hold a zero vector in row {row}, which has no angle; leave it out")
    if metric == "precomputed" and (points.shape[0] != points.shape[1] or points.min() < 0):
        raise ValueError(f"precomputed distances must be (n, n) and not negative, got shape {points.shape}")
    return points


def _angle(chords: Array) -> Array:
    return np.asarray(2 * np.arcsin(np.clip(chords / 2, 0.0, 1.0)))


def _symmetric(
    n: int, rows: Array, columns: Array, lengths: Array, symmetrize: Symmetrize, radius: float | None
) -> csr_matrix:
    """CSR with zeros kept: sparse sums and maxima would drop them."""
    if radius is not None:
        near = lengths <= radius
        rows, columns, lengths = rows[near], columns[near], lengths[near]
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    _, first, times = np.unique(low * n + high, return_index=True, return_counts=True)
    kept = first if symmetrize == "union" else first[times == 2]
    return _with_edges(csr_matrix((n, n)), low[kept], high[kept], lengths[kept])


def _with_edges(graph: csr_matrix, one: Array, other: Array, lengths: Array) -> csr_matrix:
    """Add undirected edges, zeros included."""
    if len(one) == 0:
        return graph
    n = graph.shape[0]
    rows = np.concatenate([np.repeat(np.arange(n), np.diff(graph.indptr)), one, other])
    columns = np.concatenate([graph.indices, other, one])
    data = np.concatenate([graph.data, lengths, lengths])
    order = np.lexsort((columns, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    return csr_matrix((data[order], columns[order], indptr), shape=(n, n))


def _walk(predecessors: Array, start: int, end: int) -> list[int]:
    """Follow predecessors from `start` back to `end`; empty when they do not lead there."""
    chain = [start]
    while chain[-1] != end:
        before = int(predecessors[chain[-1]])
        if before < 0:
            return []
        chain.append(before)
    return chain


def _raise_if_disconnected(graph: csr_matrix) -> None:
    parts, label = connected_components(graph, directed=False)
    if parts > 1:
        sizes = np.sort(np.bincount(label))[::-1]
        raise InfeasibleError(
            f"the neighbourhood graph falls into {parts} parts of {', '.join(map(str, sizes[:5]))} ... points.",
            remedy="Raise k, or choose on_disconnected='bridge' or 'inf'.",
        )


def _one_of(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(legal)}, got {value!r}")
