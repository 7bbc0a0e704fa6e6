"""Nearest neighbours, exact in blocks or approximate through an inverted file: what hubness and geodesics stand on."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from kexue._arrays import Array, finite_rows
from kexue._optional import import_optional
from kexue.similarity._vectors import lengths, unit_rows

Backend = Literal["exact", "approx"]
_EPS = float(np.finfo(np.float64).eps)
_SAMPLE = 1024  # rows behind the median that is subtracted


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
        generator: draws among ties for the k-th place, anew for each query; the order of rows would make hubs. Ties are
            distances equal to rounding.

    Returns:
        Indices (m, k) int64 and distances (m, k) float64.

    Raises:
        ValueError: k out of range, shapes that differ, NaN or infinity; a zero row with `cosine`.

    Cost: O(m n d) time when exact, by matrix products; pairs that rounding leaves open are compared by differences.
    """
    points = _prepared(X, "embeddings", cosine)
    n, d = points.values.shape
    asked = points if queries is None else _prepared(queries, "queries", cosine)
    if asked.values.shape[1] != d:
        raise ValueError(f"queries have {asked.values.shape[1]} dimensions, embeddings {d}")
    most = n - 1 if queries is None else n
    if most < 1:
        raise ValueError(f"neighbours need {1 if queries is not None else 2} vectors or more, got {n}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and {most} for {n} vectors, got {k!r}")
    if backend not in ("exact", "approx"):
        raise ValueError(f"backend must be 'exact' or 'approx', got {backend!r}")
    search = _exact if backend == "exact" else _approximate
    chosen = search(points, asked, int(k), queries is None, chunk, np.random.default_rng(generator))
    return _ordered(points.values, asked.values, chosen)


def smallest(values: Array, k: int, generator: np.random.Generator, *, tie: float = 0.0) -> Array:
    """Columns (m, k) of the k smallest of each row (m, n), in no order; what ties for the last places is drawn by lot.

    Args:
        values: (m, n), k of each row below infinity.
        k: 1 <= k <= n.
        generator: draws for each row anew; one draw for all rows would favour the same columns.
        tie: values that differ by no more are equal.
    """
    some = np.argpartition(values, k - 1, axis=1)[:, :k]
    last = np.take_along_axis(values, some, axis=1).max(axis=1)
    for row in np.flatnonzero((values <= (last + tie)[:, None]).sum(axis=1) > k):
        some[row] = _draw(values[row], last[row], k, tie, generator)
    return some


def _draw(values: Array, last: float, k: int, tie: float, generator: np.random.Generator) -> Array:
    """Places of all values below `last`, the k-th smallest, and of as many that tie with it as complete k."""
    sure = np.flatnonzero(values < last - tie)
    tied = np.flatnonzero(np.abs(values - last) <= tie)
    return np.concatenate([sure, generator.choice(tied, k - len(sure), replace=False)])


class _Rows(NamedTuple):
    """Float64 rows, and how far rounding may have moved each: 0 as given, a few eps where brought to length 1."""

    values: Array
    blur: float


def _prepared(X: Any, name: str, cosine: bool) -> _Rows:
    points = finite_rows(X, name)
    if not cosine:
        largest = float(np.abs(points).max(initial=0.0))
        if largest > np.finfo(np.float64).max / (4 * math.sqrt(points.shape[1])):
            raise ValueError(f"{name} reach {largest:.3g}: distances would leave float64. Divide by a constant first.")
        return _Rows(points, 0.0)
    unit = unit_rows(points)
    if not (present := unit.any(axis=1)).all():
        row = int(np.flatnonzero(~present)[0])
        raise ValueError(f"{name} holds a zero vector in row {row}, whose cosine is not defined; leave it out")
    return _Rows(unit, 4 * _EPS)


def _exact(points: _Rows, asked: _Rows, k: int, own: bool, chunk: int, generator: np.random.Generator) -> Array:
    """All pairs by |x|^2 - 2 x.y, whose rounding is bounded row by row; what the bound leaves open, by differences."""
    # Small numbers lose less to rounding; the median, for a far row must not draw the centre away from the others.
    centre = np.median(points.values[:: max(1, len(points.values) // _SAMPLE)], axis=0)
    places, wanted = (rows.values - centre for rows in (points, asked))
    exponent = int(np.frexp(max(np.abs(places).max(), np.abs(wanted).max(initial=0.0)))[1])
    places, wanted = np.ldexp(places, -exponent), np.ldexp(wanted, -exponent)  # squares neither over- nor underflow
    blur = min(float(np.ldexp(points.blur + asked.blur, -exponent)), 1e6)
    squares, error = _error(places, blur)
    _, doubt = _error(wanted, blur)
    towards = -2.0 * places.T
    chosen = np.empty((len(wanted), k), np.int64)
    for start in range(0, len(wanted), chunk):
        part = slice(start, start + chunk)
        bounds = wanted[part] @ towards  # the query's own square changes no order
        bounds += squares + error  # from above
        if own:
            rows = np.arange(len(bounds))
            bounds[rows, start + rows] = np.inf
        some = np.argpartition(bounds, k - 1, axis=1)[:, :k]
        last = np.take_along_axis(bounds, some, axis=1).max(axis=1)
        bounds -= 2 * error  # from below
        open_ = bounds <= (last + 2 * doubt[part])[:, None]
        for row in np.flatnonzero(open_.sum(axis=1) > k).tolist():
            some[row] = _closest(points, asked, start + row, np.flatnonzero(open_[row]), k, generator)
        chosen[part] = some
    return chosen


def _error(rows: Array, blur: float) -> tuple[Array, Array]:
    """Squared lengths (n,), and each row's share of what rounding may do to a squared distance, ties included."""
    squares = np.einsum("ij,ij->i", rows, rows)
    share = 8 * (rows.shape[1] + 4) * _EPS * squares + 4 * blur * (np.sqrt(squares) + blur)
    return squares, share + 1e-300  # squares below the smallest number


def _closest(points: _Rows, asked: _Rows, row: int, candidates: Array, k: int, generator: np.random.Generator) -> Array:
    """The k of the candidates nearest to a query, from differences; ties by lot."""
    distances = lengths(points.values[candidates] - asked.values[row])
    last = float(np.partition(distances, k - 1)[k - 1])
    tie = (points.values.shape[1] + 4) * _EPS * last + points.blur + asked.blur
    return np.asarray(candidates[_draw(distances, last, k, tie, generator)])


def _approximate(points: _Rows, asked: _Rows, k: int, own: bool, chunk: int, generator: np.random.Generator) -> Array:
    """An inverted file of the distinct rows; copies share a place in it and are drawn by lot."""
    _, first, place = np.unique(points.values, axis=0, return_index=True, return_inverse=True)
    every = np.arange(len(place))
    copies = None  # of each distinct row
    if len(first) < len(place):
        order = np.argsort(place := place.reshape(-1), kind="stable")
        copies = np.split(order, np.cumsum(np.bincount(place))[:-1])
    near = _inverted_file(points.values if copies is None else points.values[first], asked.values, k + own, chunk)
    chosen = np.empty((len(asked.values), k), np.int64)
    left = every[: len(chosen)]
    if copies is None:
        if own:  # leave the row itself out, or the last where it was not met
            mine = near == left[:, None]
            mine[~mine.any(axis=1), -1] = True
            near = near[~mine].reshape(-1, k)
        chosen[:] = near
        left = np.flatnonzero((near < 0).any(axis=1))
    for row in left:
        some = every if copies is None else np.concatenate([copies[group] for group in near[row] if group >= 0])
        if len(some) < k + own:  # the cells looked into held too few
            some = every
        chosen[row] = _closest(points, asked, row, some[some != row] if own else some, k, generator)
    return chosen


def _inverted_file(points: Array, asked: Array, k: int, chunk: int) -> Array:
    """Rows (m, k) of `points` near each query, nearest first; -1 where the cells looked into held fewer."""
    faiss = import_optional("faiss")
    shift = points.mean(axis=0)
    size = float(np.abs(points - shift).max()) or 1.0  # float32 holds what lies within 1
    narrow, wanted = (((rows - shift) / size).astype(np.float32) for rows in (points, asked))
    n, d = narrow.shape
    cells = max(1, min(round(4 * math.sqrt(n)), n // 39))  # FAISS wants 39 training vectors a cell
    index = faiss.index_factory(d, f"IVF{cells},Flat")
    index.train(narrow[:: max(1, n // (64 * cells))])
    index.add(narrow)
    index.nprobe = min(cells, max(16, cells // 8))
    blocks = [index.search(wanted[start : start + chunk], k)[1] for start in range(0, len(wanted), chunk)]
    return np.concatenate([np.empty((0, k), np.int64), *blocks])


def _ordered(points: Array, asked: Array, chosen: Array) -> tuple[Array, Array]:
    """Distances of the chosen, from the differences themselves, and the chosen in their order."""
    distances = np.empty(chosen.shape)
    step = max(1, (1 << 22) // max(1, chosen.shape[1] * points.shape[1]))
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        distances[part] = lengths(points[chosen[part]] - asked[part, None, :])
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(distances, order, axis=1)
