"""Equations of degree two, three and four by the symmetry of their roots, for whole batches and with derivatives.

The roots are replaced by coordinates in which a permutation only multiplies by a root of unity; symmetric products of
these coordinates are polynomials in the coefficients. With e_k the elementary symmetric functions of the roots:

    n = 2   x = y1 +- y2                          y1 = e1/2,  y2^2 = y1^2 - e2
    n = 3   x = y1 + w^k y2 + w^-k y3             y1 = e1/3,  y2 y3 = P = y1^2 - e2/3,
            w = exp(2 pi i/3)                     y2^3 + y3^3 = S = e3 - y1^3 + 3 y1 P
    n = 4   x = y1 + y2 + y3 + y4 and the three   y1 = e1/4; on u = x - y1, u^4 + p u^2 + q u + r: the y^2 solve
            with two signs changed                z^3 + (p/2) z^2 + ((p^2 - 4 r)/16) z - q^2/64,  y2 y3 y4 = -q/8

Source: kexue.fm/archives/1336 (n = 2; the rest continues its idea).
Differences: what cancels is not computed. y3 = P/y2 and y4 = -q/(8 y2 y3), never a root of its own; the smaller root
of a quadratic comes from the product; three real roots come from a cosine. One Newton step on the original polynomial
follows, and where a root is ill-conditioned or the step was not small, `_aberth` takes over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np

from kexue.algebra._aberth import Array, _product, _split, aberth

_CHUNK = 4096  # rows at a time: what stays in the cache of a core
_STEP = 3e-10  # relative Newton step after which nothing is left to gain
_HARD_CHUNK = 8192  # of rows with iterations ahead, where late stragglers cost more than the cache
_ASTRAY = 0.1  # relative step that says the closed form lost the root: `aberth` then begins anew
_CONDITION = 8.0  # up to which plain residuals are accurate enough
_WILD = 2.0**40  # coefficients up to this, or down to its inverse, need no scaling
_LOW = -900  # exponent below which scaled coefficients may have lost digits


def solve_quadratic(coefficients: Any) -> Any:
    """The two roots of a x^2 + b x + c, for a batch: see `solve_cubic` for everything shared.

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
        (..., 3) complex128, of the input's kind and on its device. Real roots come first, ascending, then the others
        by real and imaginary part. Real coefficients give real roots whose imaginary part is exactly 0, and conjugate
        pairs. Leading zeros lower the degree: what then is no root is NaN, at the end. In torch it is differentiable,
        also twice: dr/da_k = -r^(n-k) / f'(r), which is infinite at a multiple root.

    Raises:
        ValueError: another shape, a row of zeros, or a coefficient that is not finite. TypeError: not numbers.

    Example:
        >>> solve_cubic([1.0, -6.0, 11.0, -6.0]).tolist()
        [(1+0j), (2+0j), (3+0j)]

    Cost: below a microsecond a row; where roots nearly meet as much as `numpy.roots`, some tens of microseconds.
    """
    return _solve(coefficients, 3)


def solve_quartic(coefficients: Any) -> Any:
    """The four roots of a x^4 + b x^3 + c x^2 + d x + e, for a batch: see `solve_cubic` for everything shared.

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
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(coefficients, torch.Tensor):
        from kexue.algebra._torch import differentiable_roots

        return differentiable_roots(coefficients, lambda rows: batch_roots(rows, n))
    return batch_roots(np.asarray(coefficients), n)


def batch_roots(coefficients: Array, n: int) -> Array:
    """Roots (..., n) of degree n for an array (..., n + 1); see `solve_cubic`."""
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
    roots[real] = _full_or_lower(rows[real].real, n)
    if not real.all():
        roots[~real] = _full_or_lower(rows[~real], n)
    roots += 0.0  # no -0
    return roots.reshape(*coefficients.shape[:-1], n)


def as_doubles(x: Array) -> Array:
    """float64 or complex128, of whatever numbers; what they cannot hold becomes infinite."""
    if x.dtype.kind == "O":
        if odd := [v for v in x.flat if not isinstance(v, Number)]:
            raise TypeError(f"expected numbers, got {odd[0]!r}")
        try:
            return x.astype(
                np.complex128 if any(isinstance(v, complex | np.complexfloating) for v in x.flat) else float
            )
        except OverflowError:
            raise ValueError(f"coefficients must fit 64-bit floats, got {x.tolist()}") from None
    with np.errstate(over="ignore"):  # of longdouble
        return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _full_or_lower(rows: Array, n: int) -> Array:
    """Rows of degree n at most, any of whose roots may be 0."""
    plain = (rows[:, 0] != 0) & (rows[:, n] != 0)
    if plain.all():
        return _roots(rows, n)
    roots = np.full((len(rows), n), complex(np.nan, np.nan))
    roots[plain] = _roots(rows[plain], n)
    lower = rows[:, 0] == 0
    zero = ~lower & ~plain
    if n > 1:
        roots[lower, :-1] = _full_or_lower(rows[lower, 1:], n - 1)
        roots[zero, :-1] = _full_or_lower(rows[zero, :-1], n - 1)
    roots[zero, -1] = 0
    roots[zero] = _in_order(roots[zero])
    return roots


def _roots(rows: Array, n: int) -> Array:
    """Roots (m, n) in order; first and last coefficient are not 0."""
    with np.errstate(all="ignore"):
        if n == 1:
            return (-rows[:, 1:] / rows[:, :1]).astype(np.complex128)
        roots, flagged = np.empty((len(rows), n), np.complex128), np.zeros(len(rows), bool)
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            scaled, exponent, lost = _scale(rows[part])
            found, bad = (_REAL if rows.dtype.kind == "f" else _COMPLEX)[n](scaled)
            if exponent is not None:
                found.real, found.imag = (np.ldexp(x, exponent[:, None]) for x in (found.real, found.imag))
            found[lost] = np.nan
            roots[part], flagged[part] = found, bad | lost
        hard = np.flatnonzero(flagged)
        for start in range(0, len(hard), _HARD_CHUNK):
            some = hard[start : start + _HARD_CHUNK]
            roots[some] = _in_order(aberth(rows[some], roots[some]))
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


def _in_order(roots: Array) -> Array:
    """Real roots first, ascending; then by real and imaginary part; NaN last."""
    keys = (roots.imag, roots.real, np.where(np.isnan(roots), 2, roots.imag != 0))
    return np.take_along_axis(roots, np.lexsort(keys, axis=-1), -1)


# Real coefficients: real arithmetic throughout.


def _quadratic(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """(half discriminant, the root of larger modulus or the real part, the other or the imaginary part)."""
    h = -b / 2
    halves = _split(h)
    p, ep = _product(h, halves, h, halves)
    q, eq = _product(a, _split(a), c, _split(c))
    delta = (p - q) + (ep - eq)  # y2^2 a^2, as if in twice the precision
    root = np.sqrt(abs(delta))
    larger = h + np.copysign(root, h)
    real = delta >= 0
    return delta, np.where(real, larger, h) / a, np.where(real, c / larger, root / a)


def _real_quadratic(c: list[Array]) -> tuple[Array, Array]:
    delta, u, v = _quadratic(*c)
    real = delta >= 0
    re = np.array([np.where(real, np.minimum(u, v), u), np.where(real, np.maximum(u, v), u)])
    im = np.where(real, 0.0, abs(v))
    return _join(re, np.array([-im, im])), np.zeros(len(u), bool)


def _join(re: Array, im: Array) -> Array:
    """(n, m) parts as (m, n) complex."""
    roots = np.empty(re.shape[::-1], np.complex128)
    roots.real, roots.imag = re.T, im.T
    return roots


def _real_cubic(c: list[Array]) -> tuple[Array, Array]:
    a, b, c1, d = c
    y1 = -b / (3 * a)  # e1/3
    P, half, delta = _resolvent(y1, c1 / a, -d / a)
    re, im, flagged = np.empty((3, len(a))), np.zeros((3, len(a))), np.empty(len(a), bool)
    three = delta < 0
    rows = np.flatnonzero(three)
    if rows.size:
        coefficients, bad = [v[rows] for v in c], np.zeros(len(rows), bool)
        for k, x in enumerate(_three(y1[rows], P[rows], half[rows], delta[rows])):
            re[k, rows], worse = _newton(coefficients, x)
            bad |= worse
        flagged[rows] = bad
    rows = np.flatnonzero(~three)
    if rows.size:
        coefficients = [v[rows] for v in c]
        total, gap = _one(P[rows], half[rows], delta[rows])
        re[0, rows], bad = _newton(coefficients, y1[rows] + total)
        x, y, worse = _complex_newton(coefficients, y1[rows] - total / 2, np.sqrt(3.0) / 2 * abs(gap))
        re[1, rows] = re[2, rows] = x
        im[1, rows], im[2, rows] = -y, y
        flagged[rows] = bad | worse
    return _join(re, im), flagged


def _resolvent(y1: Array, e2: Array, e3: Array) -> tuple[Array, Array, Array]:
    """P = y2 y3; S/2, the half sum of y2^3 and y3^3; and (S/2)^2 - P^3, whose root is their half difference."""
    P = y1 * y1 - e2 / 3
    half = (e3 + y1 * (3 * P - y1 * y1)) / 2
    return P, half, half * half - P * P * P


def _three(y1: Array, P: Array, half: Array, delta: Array) -> tuple[Array, Array, Array]:
    """Three real roots, ascending: y2 and y3 are conjugates of modulus sqrt(P), so no complex number is needed."""
    angle = np.arctan2(np.sqrt(-delta), half) / 3
    radius = np.sqrt(P)
    along, across = radius * np.cos(angle), np.sqrt(3.0) * radius * np.sin(angle)
    return y1 - along - across, y1 - along + across, y1 + 2 * along


def _one(P: Array, half: Array, delta: Array) -> tuple[Array, Array]:
    """(y2 + y3, y2 - y3): one real root and a pair, y2 and y3 real."""
    root = np.sqrt(delta)
    y2 = np.cbrt(half + np.copysign(root, half))
    y3 = np.where(y2 == 0, 0.0, P / y2)  # the product is known; a second cube root might be the wrong one
    square = y2 * y2 + P + y3 * y3
    return y2 + y3, np.where(square == 0, 0.0, 2 * root / square)  # y2^3 - y3^3 does not cancel


def _real_quartic(c: list[Array]) -> tuple[Array, Array]:
    a, b, c2, d, e = c
    y1 = -b / (4 * a)
    e2, e3, e4 = c2 / a, -d / a, e / a
    square = y1 * y1
    p, q, r = e2 - 6 * square, _q(y1, e2, e3), e4 - y1 * (e3 - y1 * (e2 - 3 * square))
    centre = -p / 6
    P, half, delta = _resolvent(centre, (p * p - 4 * r) / 16, q * q / 64)
    z, rows = centre + _one(P, half, abs(delta))[0], np.flatnonzero(delta < 0)
    z[rows] = _three(centre[rows], P[rows], half[rows], delta[rows])[2]
    z = np.maximum(z, 0.0)  # the largest root of the resolvent, whose product of roots is q^2/64 >= 0
    y2 = np.sqrt(z)
    product = np.where(y2 == 0, np.sqrt(np.maximum(p * p - 4 * r, 0.0)) / 4, -q / (8 * y2))  # y3 y4
    spread = -p / 2 - z  # y3^2 + y4^2
    re, im, flagged = np.empty((4, len(a))), np.zeros((4, len(a))), np.zeros(len(a), bool)
    for k, sign in ((0, 1.0), (2, -1.0)):
        middle, under = y1 + sign * y2, spread + 2 * sign * product  # (y3 +- y4)^2
        real = under >= 0
        rows = np.flatnonzero(real)
        if rows.size:
            coefficients, x, root = [v[rows] for v in c], middle[rows], np.sqrt(under[rows])
            re[k, rows], bad = _newton(coefficients, x - root)
            re[k + 1, rows], worse = _newton(coefficients, x + root)
            flagged[rows] |= bad | worse
        rows = np.flatnonzero(~real)
        if rows.size:
            x, y, bad = _complex_newton([v[rows] for v in c], middle[rows], np.sqrt(-under[rows]))
            re[k, rows] = re[k + 1, rows] = x
            im[k, rows], im[k + 1, rows] = -y, y
            flagged[rows] |= bad
    return _pairs_in_order(_join(re, im)), flagged


def _pairs_in_order(roots: Array) -> Array:
    """`_in_order` for two pairs, each two real roots ascending or a conjugate pair."""
    first, second = roots.imag[:, 0] != 0, roots.imag[:, 2] != 0
    left, right = roots.real[:, 0], roots.real[:, 2]
    rows = np.flatnonzero(~second & first | first & second & (right < left))
    roots[rows] = roots[rows][:, [2, 3, 0, 1]]
    rows = np.flatnonzero(~(first | second))
    roots.real[rows] = np.sort(roots.real[rows], axis=1)
    rows = np.flatnonzero(first & second & (left == right))
    roots[rows] = _in_order(roots[rows])
    return roots


def _q(y1: Array, e2: Array, e3: Array) -> Array:
    """Coefficient of u in the quartic whose roots have mean 0."""
    return np.asarray(2 * y1 * (e2 - 4 * y1 * y1) - e3)


def _newton(c: list[Array], x: Array) -> tuple[Array, Array]:
    """One step on the polynomial itself, and where that may not be enough."""
    f, slope, size, w = c[0], np.zeros_like(x), abs(c[0]), abs(x)
    for k in c[1:]:
        slope = slope * x + f
        f = f * x + k
        size = size * w + abs(k)
    step = np.where(f == 0, 0.0, f / slope)
    large = abs(step) > _ASTRAY * w
    return np.where(large, np.nan, x - step), ~((abs(step) <= _STEP * w) & (size <= _CONDITION * abs(x * slope)))


def _complex_newton(c: list[Array], x: Array, y: Array) -> tuple[Array, Array, Array]:
    """`_newton` at x + iy for real coefficients."""
    w = np.sqrt(x * x + y * y)
    f, g, s, t, size = c[0], np.zeros_like(x), np.zeros_like(x), np.zeros_like(x), abs(c[0])
    for k in c[1:]:
        s, t = s * x - t * y + f, s * y + t * x + g  # s + it the slope, f + ig the value
        f, g = f * x - g * y + k, f * y + g * x
        size = size * w + abs(k)
    square = s * s + t * t
    square = np.where(square == 0, np.finfo(float).tiny, square)
    dx, dy = (f * s + g * t) / square, (g * s - f * t) / square
    step = dx * dx + dy * dy
    flagged = ~(step <= (_STEP * w) ** 2) | (y - dy <= _STEP * w) | (size > _CONDITION * w * np.sqrt(square))
    return np.where(step > (_ASTRAY * w) ** 2, np.nan, x - dx), y - dy, flagged


# Complex coefficients.


def _complex(form: Callable[..., list[Array]]) -> Callable[[list[Array]], tuple[Array, Array]]:
    def solve(c: list[Array]) -> tuple[Array, Array]:
        pairs = [_newton(c, x) for x in form(*(v / c[0] for v in c[1:]))]
        roots = _in_order(np.stack([x for x, _ in pairs], 1))
        return roots, np.any([bad for _, bad in pairs], 0)

    return solve


def _two_complex(b: Array, c: Array) -> list[Array]:
    h = -b / 2
    root = np.sqrt(h * h - c)
    larger = np.where(abs(h + root) >= abs(h - root), h + root, h - root)
    return [larger, c / larger]


def _three_complex(b: Array, c: Array, d: Array) -> list[Array]:
    y1 = -b / 3
    P, half, delta = _resolvent(y1, c, -d)
    root = np.sqrt(delta)
    t = np.where(abs(half + root) >= abs(half - root), half + root, half - root)
    y2 = t ** (1 / 3)
    y3 = np.where(y2 == 0, 0.0, P / y2)
    w = complex(-0.5, np.sqrt(0.75))
    return [y1 + y2 + y3, y1 + w * y2 + w.conjugate() * y3, y1 + w.conjugate() * y2 + w * y3]


def _four_complex(b: Array, c: Array, d: Array, e: Array) -> list[Array]:
    y1 = -b / 4
    square = y1 * y1
    p, q, r = c - 6 * square, _q(y1, c, -d), e + y1 * (d + y1 * (c - 3 * square))
    z = np.stack(_three_complex(p / 2, (p * p - 4 * r) / 16, -q * q / 64))
    z = np.take_along_axis(z, abs(z).argsort(0), 0)
    y2, y3 = np.sqrt(z[2]), np.sqrt(z[1])
    y4 = np.where(y2 * y3 == 0, np.sqrt(z[0]), -q / (8 * y2 * y3))
    return [y1 + y2 + y3 + y4, y1 + y2 - y3 - y4, y1 - y2 + y3 - y4, y1 - y2 - y3 + y4]


_REAL = {2: _real_quadratic, 3: _real_cubic, 4: _real_quartic}
_COMPLEX = {2: _complex(_two_complex), 3: _complex(_three_complex), 4: _complex(_four_complex)}
