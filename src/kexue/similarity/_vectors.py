"""Lengths, directions and means of float64 vectors of any size, without overflow or underflow."""

from __future__ import annotations

import numpy as np

from kexue._arrays import Array

RESIDUE = 8 * float(np.finfo(np.float64).eps)  # a difference this small beside its terms is rounding


def unit_rows(x: Array) -> Array:
    """Return rows of length 1 in float64; zero rows stay zero. Squares neither over- nor underflow."""
    rows = x.astype(np.float64)
    # first by the largest entry, then by the length
    for size in (np.abs(rows).max(axis=1, keepdims=True, initial=0.0), None):
        length = np.linalg.norm(rows, axis=1, keepdims=True) if size is None else size
        np.divide(rows, length, out=rows, where=length > 0)
    return rows


def lengths(x: Array) -> Array:
    """Return lengths (...,) of float64 vectors (..., d), d >= 1; scaled where squares would over- or underflow."""
    with np.errstate(over="ignore", under="ignore"):
        squares = np.einsum("...i,...i->...", x, x)
    length = np.sqrt(squares)
    extreme = ~((squares > 1e-280) & (squares < 1e280))
    if extreme.any():
        some = x[extreme]
        exponent = np.frexp(np.abs(some).max(axis=-1))[1]
        length[extreme] = np.ldexp(np.linalg.norm(np.ldexp(some, -exponent[:, None]), axis=-1), exponent)
    return np.asarray(length)


def exponent_of(x: Array) -> int:
    """Return 0 where the largest magnitude is moderate, otherwise the exponent of the power of two just above it."""
    largest = float(np.abs(x).max(initial=0.0))
    return 0 if largest == 0 or 2.0**-20 < largest < 2.0**20 else int(np.frexp(largest)[1])


def mean_row(rows: Array) -> Array:
    """Return the mean (d,) of float64 rows, exact up to rounding of the mean itself (a second pass corrects it)."""
    exponent = int(np.frexp(np.abs(rows).max(initial=0.0))[1])
    if exponent > 960:  # sums of such numbers overflow
        return np.asarray(np.ldexp(mean_row(np.ldexp(rows, -exponent)), exponent))
    mean = rows.mean(axis=0)
    return np.asarray(mean + (rows - mean).mean(axis=0))


def centred_unit_rows(rows: Array, centre: Array) -> Array:
    """Return rows minus `centre`, of length 1; zero where a row equals it up to rounding and so has no direction."""
    scale = np.maximum(np.abs(rows).max(axis=1, initial=0.0), np.abs(centre).max()) / 2
    left = rows / 2 - centre / 2  # halves: the difference of two large numbers stays finite
    left[np.abs(left).max(axis=1, initial=0.0) <= RESIDUE * scale] = 0.0
    return unit_rows(left)
