"""Transport problems: masses and costs of WMD and WRD, and those a caller gives."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows
from kexue.similarity._choices import check_choice
from kexue.similarity._vectors import exponent_of
from kexue.similarity.transport.sequences import (
    OnEmpty,
    directions,
    empty_distance,
    positive_sum,
    read_masses,
    read_pair,
    read_weights,
)

Kind = Literal["wrd", "wmd"]
Scale = Literal["rms"] | None
_MASS_TOLERANCE = 1e-6  # relative difference between the sums of p and q


class Problem(NamedTuple):
    """Masses and costs of tokens of two sequences.

    Attributes:
        p: (m',). q: (n',), of the same sum. cost: (m', n').
        rows: (m',), positions in x of the tokens with a mass. columns: (n',), positions in y.
    """

    p: Array
    q: Array
    cost: Array
    rows: Array
    columns: Array


def wmd_problem(
    x: Any,
    y: Any,
    weights_x: Any = None,
    weights_y: Any = None,
    metric: str = "euclidean",
    scale: Scale = None,
    on_empty: OnEmpty = "inf",
) -> Problem | float:
    """Return the transport problem of WMD, or the distance where a sequence is empty."""
    from scipy.spatial.distance import cdist

    check_choice("metric", metric, ("euclidean",))
    check_choice("scale", scale, (None, "rms"))
    check_choice("on_empty", on_empty, ("inf", "raise"))
    X, Y = read_pair(x, y)
    p, q = read_weights(weights_x, len(X), "weights_x"), read_weights(weights_y, len(Y), "weights_y")
    if not (len(X) and len(Y)):
        return empty_distance(X, Y, on_empty, "WMD")
    # From differences: |x|^2 - 2 x.y + |y|^2 would lose digits of small ones. Scaled, so that squares fit float64.
    exponent = exponent_of(np.concatenate([X, Y]))
    near, far = (np.ldexp(Z, -exponent) if exponent else Z for Z in (X, Y))
    with np.errstate(over="ignore"):
        cost: Array = np.ldexp(cdist(near, far), exponent)  # eq. 3 (7388): |w_i - w'_j|
    if not np.isfinite(cost).all():
        raise ValueError("distances between tokens of x and y overflow float64; divide both by a constant")
    if scale == "rms":
        cost /= np.sqrt(X.shape[1])
    return Problem(p, q * (p.sum() / q.sum()), cost, np.arange(len(X)), np.arange(len(Y)))


def wrd_problem(x: Any, y: Any, on_empty: OnEmpty = "inf") -> Problem | float:
    """Return the transport problem of WRD without zero vectors, or the distance where nothing is left."""
    check_choice("on_empty", on_empty, ("inf", "raise"))
    X, Y = read_pair(x, y)
    (nonzero_x, U, p), (nonzero_y, V, q) = directions(X), directions(Y)  # eq. 5 (7388): masses by length
    if not (len(U) and len(V)):
        return empty_distance(X, Y, on_empty, "WRD")
    cost = np.clip(1.0 - U @ V.T, 0.0, 2.0)  # eq. 6 (7388)
    return Problem(p, q * (p.sum() / q.sum()), cost, np.flatnonzero(nonzero_x), np.flatnonzero(nonzero_y))


def read_problem(p: Any, q: Any, cost: Any) -> tuple[Array, Array, Array]:
    """Return masses and costs of a caller in float64, q scaled to the sum of p; ValueError where they do not fit."""
    p, q = read_masses(p, "p"), read_masses(q, "q")
    matrix = as_matrix(cost, "cost")
    if tuple(matrix.shape) != (len(p), len(q)):
        raise ValueError(f"cost must be ({len(p)}, {len(q)}) for masses p and q, got shape {tuple(matrix.shape)}")
    here, there = positive_sum(p, "p"), positive_sum(q, "q")
    if abs(here - there) > _MASS_TOLERANCE * max(here, there):
        raise ValueError(f"p and q must have the same sum, got {here} and {there}. Normalise both: p / p.sum().")
    q = q * (here / there)
    return p, q, finite_rows(matrix, "cost")
