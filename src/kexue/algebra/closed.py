"""Solution of equations of degree 2, 3 and 4 by the symmetry of their roots, in batches and with derivatives.

The roots are replaced by coordinates in which a permutation only multiplies by a root of unity; symmetric products of
these coordinates are polynomials in the coefficients. With e_k the elementary symmetric functions of the roots:

    n = 2   x = y1 +- y2                          y1 = e1/2,  y2^2 = y1^2 - e2
    n = 3   x = y1 + w^k y2 + w^-k y3             y1 = e1/3,  y2 y3 = P = y1^2 - e2/3,
            w = exp(2 pi i/3)                     y2^3 + y3^3 = S = e3 - y1^3 + 3 y1 P
    n = 4   x = y1 + y2 + y3 + y4 and the three   y1 = e1/4; on u = x - y1, u^4 + p u^2 + q u + r: the y^2 solve
            with two signs changed                z^3 + (p/2) z^2 + ((p^2 - 4 r)/16) z - q^2/64,  y2 y3 y4 = -q/8

Source: kexue.fm/archives/1336 (n = 2; the rest continues its idea).
Differences: no difference that cancels is computed. y3 = P/y2 and y4 = -q/(8 y2 y3), never by another root extraction;
the smaller root of a quadratic comes from the product; three real roots come from a cosine. One Newton step on the
original polynomial follows, and where a root is ill-conditioned or the step was not small, `aberth` refines all roots
of the row.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from kexue.algebra._aberth import aberth
from kexue.algebra._complex_forms import COMPLEX_FORMS
from kexue.algebra._ordering import sort_roots
from kexue.algebra._real_forms import REAL_FORMS
from kexue.algebra.coefficients import Array, as_doubles

_CHUNK = 4096  # rows per chunk: they fit in the cache of a core
_HARD_CHUNK = 8192  # rows per chunk of `aberth`, where the slowest rows cost more than the cache saves
_WILD = 2.0**40  # coefficients up to this, or down to its inverse, need no scaling
_LOW = -900  # exponent below which scaled coefficients may have lost digits


def solve_quadratic(coefficients: Any) -> Any:
    """The two roots of a x^2 + b x + c, for a batch; conventions as in `solve_cubic`.

    Source: kexue.fm/archives/1336.

    Args:
        coefficients: (..., 3), highest power first.

    Returns:
        (..., 2) complex128.

    Example:
        >>> solve_quadratic([1.0, -3.0, 2.0]).tolist()
        [(1+0j), (2+0j)]
    """
    return _solve(coefficients, 2)


def solve_cubic(coefficients: Any) -> Any:
    """The three roots of a x^3 + b x^2 + c x + d, for a batch.

    Formulas at the top of `kexue.algebra.closed`. Source: kexue.fm/archives/1336.

    Args:
        coefficients: (..., 4), highest power first; numpy or torch, real or complex; computed in float64.

    Returns:
        (..., 3) complex128, numpy or torch as the input, on its device. Real roots come first, ascending, then the
        others by real and imaginary part. Real coefficients give real roots whose imaginary part is exactly 0, and
        conjugate pairs. Leading zeros lower the degree: the places without a root are NaN, at the end. In torch the
        roots are differentiable, also twice: dr/da_k = -r^(n-k) / f'(r), which is infinite at a multiple root.

    Raises:
        ValueError: another shape, a row of zeros, or a coefficient that is not finite. TypeError: not numbers.

    Example:
        >>> solve_cubic([1.0, -6.0, 11.0, -6.0]).tolist()
        [(1+0j), (2+0j), (3+0j)]

    Cost: below a microsecond per row; tens of microseconds, as `numpy.roots`, where roots nearly meet.
    """
    return _solve(coefficients, 3)


def solve_quartic(coefficients: Any) -> Any:
    """The four roots of a x^4 + b x^3 + c x^2 + d x + e, for a batch; conventions as in `solve_cubic`.

    Formulas at the top of `kexue.algebra.closed`. Source: kexue.fm/archives/1336.

    Args:
        coefficients: (..., 5), highest power first.

    Returns:
        (..., 4) complex128.

    Example:
        >>> solve_quartic([1.0, 0.0, -5.0, 0.0, 4.0]).tolist()
        [(-2+0j), (-1+0j), (1+0j), (2+0j)]
    """
    return _solve(coefficients, 4)


def _solve(coefficients: Any, n: int) -> Any:
    """`batch_roots` for numpy or torch."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(coefficients, torch.Tensor):
        from kexue.algebra._torch import differentiable_roots

        return differentiable_roots(coefficients, lambda rows: batch_roots(rows, n))
    return batch_roots(np.asarray(coefficients), n)


def batch_roots(coefficients: Array, n: int) -> Array:
    """Roots (..., n) of an array of coefficients (..., n + 1); conventions as in `solve_cubic`."""
    if coefficients.dtype.kind not in "iufcO":
        raise TypeError(f"coefficients must be numbers, got dtype {coefficients.dtype}")
    if coefficients.ndim < 1 or coefficients.shape[-1] != n + 1:
        raise ValueError(
            f"degree {n} has {n + 1} coefficients, highest power first: expected (..., {n + 1}), "
            f"got {coefficients.shape}"
        )
    rows = as_doubles(coefficients.reshape(-1, n + 1))
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ValueError(f"coefficients must be finite, row {bad} is {rows[bad].tolist()}")
    zero = np.flatnonzero(rows[:, 0] == 0)
    if zero.size and not rows[zero].any(1).all():
        bad = int(zero[~rows[zero].any(1)][0])
        raise ValueError(f"all coefficients of row {bad} are 0: every number is a root")
    real = np.ones(len(rows), bool) if rows.dtype.kind == "f" else ~(rows.imag != 0).any(1)
    roots = np.empty((len(rows), n), np.complex128)
    roots[real] = _roots_of_degree_at_most(rows[real].real, n)
    if not real.all():
        roots[~real] = _roots_of_degree_at_most(rows[~real], n)
    roots += 0.0  # turns -0 into 0
    return roots.reshape(*coefficients.shape[:-1], n)


def _roots_of_degree_at_most(rows: Array, n: int) -> Array:
    """Roots (m, n) of rows of degree n or less, whose roots may be 0."""
    plain = (rows[:, 0] != 0) & (rows[:, n] != 0)
    if plain.all():
        return _roots_of_degree(rows, n)
    roots = np.full((len(rows), n), complex(np.nan, np.nan))
    roots[plain] = _roots_of_degree(rows[plain], n)
    lower = rows[:, 0] == 0
    zero = ~lower & ~plain
    if n > 1:
        roots[lower, :-1] = _roots_of_degree_at_most(rows[lower, 1:], n - 1)
        roots[zero, :-1] = _roots_of_degree_at_most(rows[zero, :-1], n - 1)
    roots[zero, -1] = 0
    roots[zero] = sort_roots(roots[zero])
    return roots


def _roots_of_degree(rows: Array, n: int) -> Array:
    """Roots (m, n), sorted, of rows whose first and last coefficient are not 0."""
    with np.errstate(all="ignore"):
        if n == 1:
            return (-rows[:, 1:] / rows[:, :1]).astype(np.complex128)
        roots, flagged = np.empty((len(rows), n), np.complex128), np.zeros(len(rows), bool)
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            scaled, exponent, lost = _scale(rows[part])
            values, bad = (REAL_FORMS if rows.dtype.kind == "f" else COMPLEX_FORMS)[n](scaled)
            if exponent is not None:
                values.real, values.imag = (np.ldexp(x, exponent[:, None]) for x in (values.real, values.imag))
            values[lost] = np.nan
            roots[part], flagged[part] = values, bad | lost
        hard = np.flatnonzero(flagged)
        for start in range(0, len(hard), _HARD_CHUNK):
            some = hard[start : start + _HARD_CHUNK]
            roots[some] = sort_roots(aberth(rows[some], roots[some]))
    return roots


def _scale(rows: Array) -> tuple[list[Array], Array | None, Array]:
    """(coefficients for x = 2^k u, each (m,); k or None where all are 0; rows that lost digits).

    Only rows with very large or very small coefficients are scaled, by powers of two: k is the least with
    |a_j / a_0| <= 2^(j k) to within a factor of 2, Fujiwara's bound.
    """
    columns = rows.T.copy()
    size = abs(columns) if rows.dtype.kind == "f" else np.maximum(abs(columns.real), abs(columns.imag))
    high, low = size.max(0), size.min(0)
    if (low == 0).any():
        low = np.where(size == 0, np.inf, size).min(0)
    wild = np.flatnonzero((high > _WILD) | (low < 1 / _WILD))
    if not wild.size:
        return list(columns), None, np.zeros(len(rows), bool)
    exponents = np.frexp(size[:, wild])[1]
    relative, steps = exponents - exponents[0], np.arange(len(size))[:, None]
    present = size[:, wild] != 0
    k = np.where(present, -((-relative) // np.maximum(steps, 1)), -(10**6))[1:].max(0)
    shift = -exponents[0] - steps * k
    for part in (columns,) if rows.dtype.kind == "f" else (columns.real, columns.imag):
        part[:, wild] = np.ldexp(part[:, wild], shift)
    exponent, lost = np.zeros(len(rows), int), np.zeros(len(rows), bool)
    exponent[wild], lost[wild] = k, (present & (relative - steps * k < _LOW)).any(0)
    return list(columns), exponent, lost
