"""Closed forms for real coefficients, in real arithmetic throughout: formulas of `kexue.algebra.closed`."""

from __future__ import annotations

import numpy as np

from kexue.algebra._compensated import split_digits, two_product
from kexue.algebra._newton import complex_newton, newton
from kexue.algebra._ordering import join_parts, sort_pairs
from kexue.algebra.coefficients import Array


def _quadratic_roots(c: list[Array]) -> tuple[Array, Array]:
    """Roots (m, 2) for n = 2, and which rows need refinement: none."""
    delta, u, v = _quadratic(*c)
    real = delta >= 0
    re = np.array([np.where(real, np.minimum(u, v), u), np.where(real, np.maximum(u, v), u)])
    im = np.where(real, 0.0, abs(v))
    return join_parts(re, np.array([-im, im])), np.zeros(len(u), bool)


def _quadratic(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """(y2^2 a^2; the real root of larger modulus, or the real part; the other root, or the imaginary part)."""
    h = -b / 2  # y1 = e1/2, times a: section "Two roots"
    halves = split_digits(h)
    p, ep = two_product(h, halves, h, halves)
    q, eq = two_product(a, split_digits(a), c, split_digits(c))
    delta = (p - q) + (ep - eq)  # y2^2 = y1^2 - e2, times a^2, as if in twice the precision: section "Two roots"
    root = np.sqrt(abs(delta))
    larger = h + np.copysign(root, h)
    real = delta >= 0
    return delta, np.where(real, larger, h) / a, np.where(real, c / larger, root / a)


def _cubic_roots(c: list[Array]) -> tuple[Array, Array]:
    """Roots (m, 3) for n = 3, and which rows need refinement."""
    a, b, c1, d = c
    y1 = -b / (3 * a)  # e1/3
    P, half, delta = resolvent(y1, c1 / a, -d / a)
    re, im, flagged = np.empty((3, len(a))), np.zeros((3, len(a))), np.empty(len(a), bool)
    three = delta < 0
    rows = np.flatnonzero(three)
    if rows.size:
        coefficients, bad = [v[rows] for v in c], np.zeros(len(rows), bool)
        for k, x in enumerate(_three_real_roots(y1[rows], P[rows], half[rows], delta[rows])):
            re[k, rows], worse = newton(coefficients, x)
            bad |= worse
        flagged[rows] = bad
    rows = np.flatnonzero(~three)
    if rows.size:
        coefficients = [v[rows] for v in c]
        total, gap = _one_real_root(P[rows], half[rows], delta[rows])
        re[0, rows], bad = newton(coefficients, y1[rows] + total)
        x, y, worse = complex_newton(coefficients, y1[rows] - total / 2, np.sqrt(3.0) / 2 * abs(gap))
        re[1, rows] = re[2, rows] = x
        im[1, rows], im[2, rows] = -y, y
        flagged[rows] = bad | worse
    return join_parts(re, im), flagged


def resolvent(y1: Array, e2: Array, e3: Array) -> tuple[Array, Array, Array]:
    """P = y2 y3; S/2, half the sum of y2^3 and y3^3; and (S/2)^2 - P^3, the square of half their difference."""
    P = y1 * y1 - e2 / 3  # section "Three roots"
    half = (e3 + y1 * (3 * P - y1 * y1)) / 2
    return P, half, half * half - P * P * P


def _three_real_roots(y1: Array, P: Array, half: Array, delta: Array) -> tuple[Array, Array, Array]:
    """Three real roots, ascending: y2 and y3 are conjugates of modulus sqrt(P), so no complex number is needed."""
    angle = np.arctan2(np.sqrt(-delta), half) / 3
    radius = np.sqrt(P)
    along, across = radius * np.cos(angle), np.sqrt(3.0) * radius * np.sin(angle)
    return y1 - along - across, y1 - along + across, y1 + 2 * along


def _one_real_root(P: Array, half: Array, delta: Array) -> tuple[Array, Array]:
    """(y2 + y3, y2 - y3), both real: one root is real, the other two are a pair."""
    root = np.sqrt(delta)
    y2 = np.cbrt(half + np.copysign(root, half))
    y3 = np.where(y2 == 0, 0.0, P / y2)  # the product is P; a second cube root might be the wrong one of three
    square = y2 * y2 + P + y3 * y3
    return y2 + y3, np.where(square == 0, 0.0, 2 * root / square)  # y2^3 - y3^3 does not cancel


def _quartic_roots(c: list[Array]) -> tuple[Array, Array]:
    """Roots (m, 4) for n = 4, and which rows need refinement."""
    a, b, c2, d, e = c
    y1 = -b / (4 * a)  # section "Four roots"
    e2, e3, e4 = c2 / a, -d / a, e / a
    square = y1 * y1
    p, q, r = e2 - 6 * square, depressed_linear(y1, e2, e3), e4 - y1 * (e3 - y1 * (e2 - 3 * square))
    centre = -p / 6
    P, half, delta = resolvent(centre, (p * p - 4 * r) / 16, q * q / 64)
    z, rows = centre + _one_real_root(P, half, abs(delta))[0], np.flatnonzero(delta < 0)
    z[rows] = _three_real_roots(centre[rows], P[rows], half[rows], delta[rows])[2]
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
            re[k, rows], bad = newton(coefficients, x - root)
            re[k + 1, rows], worse = newton(coefficients, x + root)
            flagged[rows] |= bad | worse
        rows = np.flatnonzero(~real)
        if rows.size:
            x, y, bad = complex_newton([v[rows] for v in c], middle[rows], np.sqrt(-under[rows]))
            re[k, rows] = re[k + 1, rows] = x
            im[k, rows], im[k + 1, rows] = -y, y
            flagged[rows] |= bad
    return sort_pairs(join_parts(re, im)), flagged


def depressed_linear(y1: Array, e2: Array, e3: Array) -> Array:
    """Coefficient q of u in the quartic of u = x - y1."""
    return np.asarray(2 * y1 * (e2 - 4 * y1 * y1) - e3)


REAL_FORMS = {2: _quadratic_roots, 3: _cubic_roots, 4: _quartic_roots}
