"""Neighbourhood graph: every point joined with its k nearest, edge lengths being distances.

Source: kexue.fm/archives/9368, section "测地距离". An edge is a chord or an angle, never 1 - cos, which is a squared
length: paths of many short steps would cost almost nothing. Identical points are joined by edges of length 0, which
sparse arithmetic must not lose.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from kexue._arrays import Array, finite_rows
from kexue.errors import InfeasibleError
from kexue.similarity._choices import check_choice
from kexue.similarity._vectors import unit_rows
from kexue.similarity.neighbours.knn import nearest_neighbours
from kexue.similarity.neighbours.selection import k_smallest

Metric = Literal["chord", "angle", "euclidean", "precomputed"]
Symmetrize = Literal["union", "mutual"]
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
    """Build the graph that joins every point with its k nearest; edge lengths are distances.

    Source: kexue.fm/archives/9368.

    Args:
        embeddings: (n, d), numpy or torch; a matrix of distances (n, n) with ``metric="precomputed"``.
        k: 1 <= k < n. A larger k can only shorten paths; k = n - 1 gives the metric itself. Ties for the last place
            are broken at random, with a fixed seed.
        metric: ``"chord"`` sqrt(2 - 2 cos), ``"angle"`` arccos(cos), ``"euclidean"`` or ``"precomputed"``.
        symmetrize: keep an edge if at least one (``"union"``) or each (``"mutual"``) of its two points has the other
            among its k nearest.
        radius: leave out edges longer than this.
        approx: True finds neighbours through a FAISS inverted file (extra `search`), False compares all pairs, None
            compares all pairs up to 20,000 points. A missed neighbour can only lengthen distances; few are missed where
            points form clusters, as sentences do, and many in plain noise.
        merge_duplicates: identical points share one place in the graph, joined to each other by edges of length 0;
            otherwise k copies of a point have no neighbours but each other.

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
    check_choice("metric", metric, ("chord", "angle", "euclidean", "precomputed"))
    check_choice("symmetrize", symmetrize, ("union", "mutual"))
    points = read_points(embeddings, metric)
    n = len(points)
    if n < 2:
        raise ValueError(f"a neighbourhood graph needs two points or more, got {n}")
    if radius is not None and not radius >= 0:
        raise ValueError(f"radius must be a length >= 0 or None, got {radius!r}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < n:
        raise ValueError(f"k must be between 1 and {n - 1} for {n} points, got {k!r}")
    if metric == "precomputed":
        edges = _precomputed_edges(points, int(k))
        return _symmetric_graph(n, *edges, symmetrize, radius)
    first, place = np.arange(n), np.arange(n)  # of each distinct point, and of each point among the distinct
    if merge_duplicates:
        _, first, place = np.unique(points, axis=0, return_index=True, return_inverse=True)
        place = place.reshape(-1)
    approx = n > APPROXIMATE_FROM if approx is None else approx
    # section "测地距离" (9368): the k nearest of each point, as weighted edges
    rows, columns, lengths = _nearest_edges(points[first], min(int(k), len(first) - 1), metric, approx)
    graph = _symmetric_graph(n, first[rows], first[columns], lengths, symmetrize, radius)
    copies = np.flatnonzero(first[place] != np.arange(n))
    return _add_edges(graph, copies, first[place][copies], np.zeros(len(copies)))


def _precomputed_edges(distances: Array, k: int) -> tuple[Array, Array, Array]:
    """Return starts, ends and lengths of the edges from each point to its k nearest, by a matrix of distances."""
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = k_smallest(others, k, np.random.default_rng(0))
    lengths = np.take_along_axis(others, nearest, axis=1)
    return np.repeat(np.arange(len(others)), k), nearest.ravel(), lengths.ravel()


def _nearest_edges(points: Array, k: int, metric: Metric, approx: bool) -> tuple[Array, Array, Array]:
    """Return starts, ends and lengths of the edges from each point to its k nearest."""
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    nearest, lengths = nearest_neighbours(
        points, k, cosine=metric != "euclidean", backend="approx" if approx else "exact"
    )
    lengths = chord_angles(lengths) if metric == "angle" else lengths
    return np.repeat(np.arange(len(points)), k), nearest.ravel(), lengths.ravel()


def read_points(embeddings: Any, metric: Metric) -> Array:
    """Return the points as float64, of length 1 for chords and angles; ValueError on what has no distance."""
    points = finite_rows(embeddings, "embeddings")
    if metric in ("chord", "angle"):
        points = unit_rows(points)
        if not (present := points.any(axis=1)).all():
            row = int(np.flatnonzero(~present)[0])
            raise ValueError(f"embeddings hold a zero vector in row {row}, which has no angle; leave it out")
    if metric == "precomputed" and (points.shape[0] != points.shape[1] or points.min() < 0):
        raise ValueError(f"precomputed distances must be (n, n) and not negative, got shape {points.shape}")
    return points


def chord_angles(chords: Array) -> Array:
    """Return the angles of chords of the unit sphere."""
    return np.asarray(2 * np.arcsin(np.clip(chords / 2, 0.0, 1.0)))


def _symmetric_graph(
    n: int, rows: Array, columns: Array, lengths: Array, symmetrize: Symmetrize, radius: float | None
) -> csr_matrix:
    """Return the undirected graph of directed edges, edges of length 0 included (sparse sums would drop them)."""
    if radius is not None:
        near = lengths <= radius
        rows, columns, lengths = rows[near], columns[near], lengths[near]
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    _, first, times = np.unique(low * n + high, return_index=True, return_counts=True)
    kept = first if symmetrize == "union" else first[times == 2]
    return _add_edges(csr_matrix((n, n)), low[kept], high[kept], lengths[kept])


def _add_edges(graph: csr_matrix, one: Array, other: Array, lengths: Array) -> csr_matrix:
    """Return the graph with more undirected edges, those of length 0 included."""
    if len(one) == 0:
        return graph
    n = graph.shape[0]
    rows = np.concatenate([np.repeat(np.arange(n), np.diff(graph.indptr)), one, other])
    columns = np.concatenate([graph.indices, other, one])
    data = np.concatenate([graph.data, lengths, lengths])
    order = np.lexsort((columns, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    return csr_matrix((data[order], columns[order], indptr), shape=(n, n))


def connect_parts(graph: csr_matrix, points: Array, *, angle: bool = False) -> csr_matrix:
    """Join the parts of a graph by edges between their closest points, the smallest part first."""
    while True:
        parts, label = connected_components(graph, directed=False)
        if parts == 1:
            return graph
        inside = np.flatnonzero(label == np.bincount(label).argmin())
        outside = np.flatnonzero(label != label[inside[0]])
        neighbours, lengths = nearest_neighbours(points[outside], 1, queries=points[inside])
        at = int(lengths[:, 0].argmin())
        length = chord_angles(lengths[at]) if angle else lengths[at]
        graph = _add_edges(graph, inside[[at]], outside[neighbours[at]], length)


def require_connected(graph: csr_matrix) -> None:
    """Raise InfeasibleError where a graph falls into parts."""
    parts, label = connected_components(graph, directed=False)
    if parts > 1:
        sizes = np.sort(np.bincount(label))[::-1]
        raise InfeasibleError(
            f"the neighbourhood graph falls into {parts} parts of {', '.join(map(str, sizes[:5]))} ... points.",
            remedy="Raise k, or choose on_disconnected='bridge' or 'inf'.",
        )
