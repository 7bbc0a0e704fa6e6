"""Sequences of token vectors and their weights, read for transport."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from kexue._arrays import Array, as_float64, as_matrix, finite_rows, host, raise_non_finite, reread

OnEmpty = Literal["inf", "raise"]


def read_sequence(x: Any, name: str) -> Array:
    """Return `x` as a finite numpy matrix (m, d), m >= 0, of its dtype; an empty list is a sequence of 0 tokens."""
    x = reread(x)
    if not hasattr(x, "ndim") and not len(x):
        return np.empty((0, 0))
    matrix = host(as_matrix(x, name))
    if matrix.dtype.itemsize > 8:  # longdouble, whose largest numbers float64 cannot hold
        return finite_rows(matrix, name)
    raise_non_finite(matrix, name)
    return matrix


def read_pair(x: Any, y: Any) -> tuple[Array, Array]:
    """Return both sequences in float64; ValueError unless they have the same dimension."""
    X, Y = (read_sequence(z, name).astype(np.float64) for z, name in ((x, "x"), (y, "y")))
    if len(X) and len(Y) and X.shape[1] != Y.shape[1]:
        raise ValueError(f"x and y must hold vectors of the same dimension, got shapes {X.shape} and {Y.shape}")
    return X, Y


def read_weights(weights: Any, length: int, name: str) -> Array:
    """Return weights of sum 1: equal ones for None, else the given ones (counts are fine) over their sum.

    Raises:
        ValueError: another length than the sequence's, negative, not finite, or all zero.
    """
    if weights is None:
        return np.full(length, 1.0 / length) if length else np.empty(0)  # eq. 3 (7388): p_i = 1/n
    values = read_masses(weights, name)
    if len(values) != length:
        raise ValueError(f"{name} must hold one weight per token: expected {length}, got {len(values)}")
    if not length:
        return values
    return values / positive_sum(values, name)


def read_masses(masses: Any, name: str) -> Array:
    """Return `masses` as a float64 vector; ValueError unless finite and >= 0."""
    values = as_float64(masses)
    if values.ndim != 1:
        raise ValueError(f"{name} must be a vector of masses, got shape {values.shape}")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise ValueError(f"{name} must hold finite masses >= 0, got {values[bad[0]]} at position {bad[0]}")
    return values


def positive_sum(values: Array, name: str) -> float:
    """Return the sum of masses; ValueError unless it is finite and above 0."""
    total = float(values.sum())
    if not 0 < total < np.inf:
        raise ValueError(f"{name} must have a finite sum above 0, got {total} over {len(values)} masses")
    return total


def directions(X: Array) -> tuple[Array, Array, Array]:
    """Return which tokens are not zero, their unit vectors, and their lengths over the sum of lengths."""
    if not len(X):
        return np.zeros(0, bool), X, np.empty(0)
    largest = np.abs(X).max()
    X = X / largest if largest else X  # lengths neither over- nor underflow; their ratios stay
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X))
    nonzero = lengths > 0
    lengths = lengths[nonzero]
    return nonzero, X[nonzero] / lengths[:, None], lengths / lengths.sum()  # eq. 5 (7388): p_i = |w_i| / Z


def empty_distance(X: Array, Y: Array, on_empty: str, what: str) -> float:
    """Return infinity, the distance to a sequence without tokens; ValueError where `on_empty` is ``"raise"``."""
    if on_empty == "raise":
        raise ValueError(
            f"{what} needs tokens that are not zero in both sequences, got shapes {X.shape} and {Y.shape}. "
            'Leave empty texts out, or pass on_empty="inf".'
        )
    return float("inf")
