"""Nearest neighbours by Euclidean distance or cosine: exact in blocks, or approximate through an inverted file.

Distances are float64 and exact up to rounding of the result, and ties for the last place are broken at random, since
hubness counts and graphs would otherwise depend on the order of rows. An index of `kexue.search` follows
other rules (`kexue.search.products`): float32 inner products, ties in the order of keys.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from kexue._arrays import Array, finite_rows
from kexue._optional import import_optional
from kexue.similarity._vectors import lengths, unit_rows
from kexue.similarity.neighbours.cells import count_cells
from kexue.similarity.neighbours.selection import draw_k_smallest

Backend = Literal["exact", "approx"]
_EPS = float(np.finfo(np.float64).eps)
_SAMPLE = 1024  # rows behind the median that is subtracted


def nearest_neighbours(
    X: Any,
    k: int,
    *,
    queries: Any = None,
    cosine: bool = False,
    chunk: int = 4096,
    backend: Backend = "exact",
    generator: Any = 0,
) -> tuple[Array, Array]:
    """Return the k rows of `X` nearest to each query by Euclidean distance, nearest first.

    Args:
        X: (n, d).
        k: 1 <= k < n (k <= n with `queries`).
        queries: (m, d); None asks for the neighbours of the rows themselves, a row never counted as its own.
        cosine: scale all rows to length 1 first: the order is then that of cosines, and the distance the chord
            sqrt(2 - 2 cos).
        chunk: queries compared at a time; memory is 8 chunk n bytes.
        backend: ``"approx"`` searches a few cells of a FAISS inverted file (extra `search`).
        generator: breaks ties for the k-th place, separately for each query; by order the first rows would become hubs.
            Ties are distances equal up to rounding.

    Returns:
        Indices (m, k) int64 and distances (m, k) float64.

    Raises:
        ValueError: k out of range, shapes that differ, NaN or infinity; a zero row with `cosine`.

    Cost: O(m n d) time when exact, by matrix products; pairs whose order is uncertain because of rounding are
    compared again by differences.
    """
    points = _read_rows(X, "embeddings", cosine)
    n, d = points.values.shape
    targets = points if queries is None else _read_rows(queries, "queries", cosine)
    if targets.values.shape[1] != d:
        raise ValueError(f"queries have {targets.values.shape[1]} dimensions, embeddings {d}")
    most = n - 1 if queries is None else n
    if most < 1:
        raise ValueError(f"neighbours need {1 if queries is not None else 2} vectors or more, got {n}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and {most} for {n} vectors, got {k!r}")
    if backend not in ("exact", "approx"):
        raise ValueError(f"backend must be 'exact' or 'approx', got {backend!r}")
    search = _search_all_pairs if backend == "exact" else _search_cells
    indices = search(points, targets, int(k), queries is None, chunk, np.random.default_rng(generator))
    return _sort_by_distance(points.values, targets.values, indices)


class _Rows(NamedTuple):
    """Float64 rows; `rounding` bounds how far each may be off: a few eps where scaled to length 1, else 0."""

    values: Array
    rounding: float


def _read_rows(X: Any, name: str, cosine: bool) -> _Rows:
    """Return the rows of `X`, checked and with `cosine` scaled to length 1."""
    points = finite_rows(X, name)
    if not cosine:
        largest = float(np.abs(points).max(initial=0.0))
        if largest > np.finfo(np.float64).max / (4 * math.sqrt(points.shape[1])):
            raise ValueError(
                f"{name} reach {largest:.3g}: distances would overflow float64. Divide by a constant first."
            )
        return _Rows(points, 0.0)
    unit = unit_rows(points)
    if not (present := unit.any(axis=1)).all():
        row = int(np.flatnonzero(~present)[0])
        raise ValueError(f"{name} holds a zero vector in row {row}, whose cosine is not defined; leave it out")
    return _Rows(unit, 4 * _EPS)


def _search_all_pairs(
    points: _Rows, targets: _Rows, k: int, own: bool, chunk: int, generator: np.random.Generator
) -> Array:
    """Return the k nearest of all points: by |x|^2 - 2 x.y, and by differences where its rounding leaves the order
    open.
    """
    # Small numbers lose less to rounding; the median, since one far row would draw the mean away from the others.
    centre = np.median(points.values[:: max(1, len(points.values) // _SAMPLE)], axis=0)
    places, wanted = (rows.values - centre for rows in (points, targets))
    exponent = int(np.frexp(max(np.abs(places).max(), np.abs(wanted).max(initial=0.0)))[1])
    places, wanted = np.ldexp(places, -exponent), np.ldexp(wanted, -exponent)  # squares neither over- nor underflow
    rounding = min(float(np.ldexp(points.rounding + targets.rounding, -exponent)), 1e6)
    squares, error = _rounding_bounds(places, rounding)
    _, doubt = _rounding_bounds(wanted, rounding)
    towards = -2.0 * places.T
    indices = np.empty((len(wanted), k), np.int64)
    for start in range(0, len(wanted), chunk):
        part = slice(start, start + chunk)
        bounds = wanted[part] @ towards  # the square of the query itself changes no order
        bounds += squares + error  # upper bounds
        if own:
            rows = np.arange(len(bounds))
            bounds[rows, start + rows] = np.inf
        nearest = np.argpartition(bounds, k - 1, axis=1)[:, :k]
        last = np.take_along_axis(bounds, nearest, axis=1).max(axis=1)
        bounds -= 2 * error  # lower bounds
        candidates = bounds <= (last + 2 * doubt[part])[:, None]
        for row in np.flatnonzero(candidates.sum(axis=1) > k).tolist():
            nearest[row] = _pick_closest(points, targets, start + row, np.flatnonzero(candidates[row]), k, generator)
        indices[part] = nearest
    return indices


def _rounding_bounds(rows: Array, rounding: float) -> tuple[Array, Array]:
    """Return squared lengths (n,), and each row's share of the rounding of a squared distance, ties included."""
    squares = np.einsum("ij,ij->i", rows, rows)
    share = 8 * (rows.shape[1] + 4) * _EPS * squares + 4 * rounding * (np.sqrt(squares) + rounding)
    return squares, share + 1e-300  # squares below the smallest number


def _pick_closest(
    points: _Rows, targets: _Rows, row: int, candidates: Array, k: int, generator: np.random.Generator
) -> Array:
    """Return the k of the candidates nearest to a query, from differences; ties broken at random."""
    distances = lengths(points.values[candidates] - targets.values[row])
    last = float(np.partition(distances, k - 1)[k - 1])
    tie = (points.values.shape[1] + 4) * _EPS * last + points.rounding + targets.rounding
    return np.asarray(candidates[draw_k_smallest(distances, last, k, tie, generator)])


def _search_cells(
    points: _Rows, targets: _Rows, k: int, own: bool, chunk: int, generator: np.random.Generator
) -> Array:
    """Return the k nearest in an inverted file of the distinct rows; copies share a place in it, drawn at random."""
    _, first, place = np.unique(points.values, axis=0, return_index=True, return_inverse=True)
    every = np.arange(len(place))
    copies = None  # of each distinct row
    if len(first) < len(place):
        order = np.argsort(place := place.reshape(-1), kind="stable")
        copies = np.split(order, np.cumsum(np.bincount(place))[:-1])
    near = _query_inverted_file(
        points.values if copies is None else points.values[first], targets.values, k + own, chunk
    )
    indices = np.empty((len(targets.values), k), np.int64)
    incomplete = every[: len(indices)]
    if copies is None:
        if own:  # leave the row itself out, or the last where it was not among them
            mine = near == incomplete[:, None]
            mine[~mine.any(axis=1), -1] = True
            near = near[~mine].reshape(-1, k)
        indices[:] = near
        incomplete = np.flatnonzero((near < 0).any(axis=1))
    for row in incomplete:
        candidates = every if copies is None else np.concatenate([copies[group] for group in near[row] if group >= 0])
        if len(candidates) < k + own:  # the cells searched held too few
            candidates = every
        candidates = candidates[candidates != row] if own else candidates
        indices[row] = _pick_closest(points, targets, row, candidates, k, generator)
    return indices


def _query_inverted_file(points: Array, queries: Array, k: int, chunk: int) -> Array:
    """Return rows (m, k) of `points` near each query, nearest first; -1 where the cells searched held fewer."""
    faiss = import_optional("faiss")
    shift = points.mean(axis=0)
    size = float(np.abs(points - shift).max()) or 1.0  # float32 holds numbers up to 1 well
    narrow, wanted = (((rows - shift) / size).astype(np.float32) for rows in (points, queries))
    n, d = narrow.shape
    cells = count_cells(n)
    index = faiss.index_factory(d, f"IVF{cells},Flat")
    index.train(narrow[:: max(1, n // (64 * cells))])
    index.add(narrow)
    index.nprobe = min(cells, max(16, cells // 8))
    blocks = [index.search(wanted[start : start + chunk], k)[1] for start in range(0, len(wanted), chunk)]
    return np.concatenate([np.empty((0, k), np.int64), *blocks])


def _sort_by_distance(points: Array, targets: Array, indices: Array) -> tuple[Array, Array]:
    """Return the neighbours nearest first, with distances from the differences themselves."""
    distances = np.empty(indices.shape)
    step = max(1, (1 << 22) // max(1, indices.shape[1] * points.shape[1]))
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        distances[part] = lengths(points[indices[part]] - targets[part, None, :])
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)
