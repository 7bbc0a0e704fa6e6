"""Nearest neighbours, exact in blocks or approximate through an inverted file: what hubness and geodesics stand on."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from kexue._optional import import_optional
from kexue.similarity._arrays import Array, as_matrix, host, raise_non_finite

Backend = Literal["exact", "approx"]
_TIE = 1e-12  # relative to the squared scale of the data: what float64 cannot tell apart in a product


def nearest(
    X: Any,
    k: int,
    *,
    queries: Any = None,
    cosine: bool = False,
    chunk: int = 4096,
    backend: Backend = "exact",
    generator: Any = 0,
) -> tuple[Array, Array]:
    """The k rows of `X` nearest to each query, nearest first, by Euclidean distance.

    Args:
        X: (n, d).
        k: 1 <= k < n (k <= n with `queries`).
        queries: (m, d); None asks for the neighbours of the rows themselves, a row never counted as its own.
        cosine: bring all rows to length 1 first: the order is then that of cosines, and the distance the chord
            sqrt(2 - 2 cos).
        chunk: queries compared at a time; memory is 8 chunk n bytes.
        backend: ``"approx"`` looks into a few cells of a FAISS inverted file (extra `search`).
        generator: breaks ties at the k-th place, anew for each query; otherwise the order of rows would make hubs.

    Returns:
        Indices (m, k) int64 and distances (m, k) float64.

    Raises:
        ValueError: k out of range, shapes that differ, NaN or infinity; a zero row with `cosine`.

    Cost: O(m n d) time when exact.
    """
    points = _prepared(X, "embeddings", cosine)
    n = len(points)
    asked = points if queries is None else _prepared(queries, "queries", cosine)
    if asked.shape[1] != points.shape[1]:
        raise ValueError(f"queries have {asked.shape[1]} dimensions, embeddings {points.shape[1]}")
    most = n - 1 if queries is None else n
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and {most} for {n} vectors, got {k!r}")
    if backend not in ("exact", "approx"):
        raise ValueError(f"backend must be 'exact' or 'approx', got {backend!r}")
    search = _exact if backend == "exact" else _approximate
    found = search(points, asked, int(k), queries is None, chunk, np.random.default_rng(generator))
    return _ordered(points, asked, found)


def _prepared(X: Any, name: str, cosine: bool) -> Array:
    matrix = as_matrix(X, name)
    raise_non_finite(matrix, name)
    points = host(matrix).astype(np.float64)
    if cosine:
        lengths = np.linalg.norm(points, axis=1, keepdims=True)
        if not lengths.all():
            row = int(np.flatnonzero(lengths[:, 0] == 0)[0])
            raise ValueError(f"{name} holds a zero vector in row {row}, whose cosine is not defined; leave it out")
        points = points / lengths
    return points


def _exact(points: Array, asked: Array, k: int, own: bool, chunk: int, generator: np.random.Generator) -> Array:
    centre = points.mean(axis=0)  # small numbers: the expansion |x|^2 - 2 x.y cancels less
    points, asked = points - centre, asked - centre
    squares = np.einsum("ij,ij->i", points, points)
    tie = _TIE * max(float(squares.max()), 1e-300)
    found = np.empty((len(asked), k), np.int64)
    for start in range(0, len(asked), chunk):
        block = asked[start : start + chunk]
        distances = squares - 2.0 * (block @ points.T)  # the query's own square changes no order
        if own:
            rows = np.arange(len(block))
            distances[rows, start + rows] = np.inf
        some = np.argpartition(distances, k - 1, axis=1)[:, :k]
        # A place is contested where more than k candidates are no farther than the k-th.
        last = np.take_along_axis(distances, some, axis=1).max(axis=1)
        contested = (distances <= (last + tie)[:, None]).sum(axis=1) > k
        for row in np.flatnonzero(contested):
            some[row] = _fair(distances[row], last[row], k, tie, generator)
        found[start : start + len(block)] = some
    return found


def _fair(distances: Array, last: float, k: int, tie: float, generator: np.random.Generator) -> Array:
    """The k nearest, those that tie for the last places drawn by lot."""
    sure = np.flatnonzero(distances < last - tie)
    tied = np.flatnonzero(np.abs(distances - last) <= tie)
    return np.concatenate([sure, generator.choice(tied, k - len(sure), replace=False)])


def _approximate(points: Array, asked: Array, k: int, own: bool, chunk: int, _: np.random.Generator) -> Array:
    faiss = import_optional("faiss")
    n, d = points.shape
    cells = max(1, min(round(4 * math.sqrt(n)), n // 39))  # FAISS wants 39 training vectors a cell
    index = faiss.index_factory(d, f"IVF{cells},Flat")
    narrow = points.astype(np.float32)
    index.train(narrow[:: max(1, n // (64 * cells))])
    index.add(narrow)
    index.nprobe = min(cells, max(16, cells // 8))
    found = np.empty((len(asked), k), np.int64)
    for start in range(0, len(asked), chunk):
        block = asked[start : start + chunk].astype(np.float32)
        _, some = index.search(block, k + 1 if own else k)
        if own:  # leave the row itself out, or the last where a duplicate stands in its place
            mine = some == np.arange(start, start + len(block))[:, None]
            mine[~mine.any(axis=1), -1] = True
            some = some[~mine].reshape(len(block), k)
        short = np.flatnonzero((some < 0).any(axis=1))  # the cells looked into held too few
        if len(short):
            exact = _exact(points, asked[start + short], k + 1, False, chunk, np.random.default_rng(0))
            for row, answer in zip(short, exact, strict=True):
                some[row] = answer[answer != start + row][:k] if own else answer[:k]
        found[start : start + len(block)] = some
    return found


def _ordered(points: Array, asked: Array, found: Array) -> tuple[Array, Array]:
    """Distances of the chosen, from the differences themselves, and the chosen in their order."""
    distances = np.empty(found.shape)
    step = max(1, (1 << 22) // max(1, found.shape[1] * points.shape[1]))
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        difference = points[found[part]] - asked[part, None, :]
        distances[part] = np.sqrt(np.einsum("ijk,ijk->ij", difference, difference))
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(distances, order, axis=1)
