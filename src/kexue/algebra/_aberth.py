"""All roots at once, to full accuracy, of polynomials that a closed form alone does not settle: Aberth's iteration.

    z_i  <-  z_i - N_i / (1 - N_i sum over j != i of 1 / (z_i - z_j)),    N_i = f(z_i) / f'(z_i)

Source: Aberth 1973, Math. Comp. 27; starting points from the Newton polygon, Bini 1996, Numer. Algorithms 13; residuals
by compensated Horner evaluation in error-free sums and products (Graillat and Menissier-Morain 2012), as if in twice
the precision. Each root is evaluated on its own scale, a power of two, so that nothing over- or underflows.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_ROUNDS = 100
_NOISE = 2.0**-102  # what compensated evaluation leaves of sum |a_k| |z|^k
_SHRINK = 2.0**-50  # the most that one round may divide a root by, and its inverse multiply
_NUDGE = 1e-10  # breaks the symmetry of starting points, which real coefficients would keep for ever
_NEAR = 1e-4  # relative distance within which roots may be one multiple root


def aberth(coefficients: Array, start: Array | None = None) -> Array:
    """Roots (m, n) complex of m polynomials (m, n + 1), first and last coefficient not 0, in no particular order.

    Real coefficients give real roots without imaginary dust, and pairs that are exact conjugates.

    Args:
        start: (m, n) approximations; rows that are not finite or hold 0 begin at the Newton polygon; None: all rows.
    """
    c = coefficients.astype(np.complex128)
    if start is None:
        start = np.zeros((c.shape[0], c.shape[1] - 1), np.complex128)
    new = ~np.isfinite(start).all(1) | (start == 0).any(1)
    z = start.copy()
    z[new] = _polygon(c[new])
    z, unfinished = _iterate(c, z)
    again = unfinished[~new[unfinished]]
    if again.size:  # too far from where the closed form had put them
        z[again] = _iterate(c[again], _polygon(c[again]))[0]
    if coefficients.dtype.kind != "c":
        z = _conjugate(z)
    z = _merge(c, z)
    z[abs(z) < np.finfo(float).tiny] = 0
    return z


def _iterate(c: Array, z: Array) -> tuple[Array, Array]:
    """Aberth's iteration from z, and the rows that did not come to rest."""
    n = z.shape[1]
    f = evaluate(c, z)[0]
    z = np.where(f == 0, z, z * (1 + _NUDGE * np.exp(1j * (1 + 2 * np.arange(n)))))
    itself, active = np.eye(n, dtype=bool), np.arange(len(z))
    for _ in range(_ROUNDS):
        now = z[active]
        f, slope, size, lead = evaluate(c[active], now)
        with np.errstate(all="ignore"):
            gap = 1 - now[:, None, :] / now[:, :, None]
            gap[gap == 0] = np.finfo(float).eps
            newton = f / slope  # relative to z
            pull = np.where(itself | ~np.isfinite(gap), 0, 1 / gap).sum(2)
            product = lead * np.where(itself, 1, gap).prod(2)
            vague = abs(slope) <= 2.0**-30 * size  # f' cancels: take a prod (z_i - z_j) for it, as Weierstrass does
            step = np.where(vague, f / product, newton / (1 - newton * pull))
        step[(abs(f) <= _NOISE * size) | ~np.isfinite(step)] = 0
        moved, factor = now - now * step, abs(1 - step)
        wild = (factor < _SHRINK) | (factor > 1 / _SHRINK)
        moved[wild] = now[wild] * np.clip(factor[wild], _SHRINK, 1 / _SHRINK)
        z[active] = moved
        active = active[(abs(step) > 2.0**-53).any(1)]
        if not active.size:
            break
    return z, active


def evaluate(c: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """(f(z), z f'(z), sum |a_k| |z|^k, a_n z^n) for coefficients (m, n + 1) and points (m, k), up to a power of two.

    f is as accurate as if computed in twice the precision and rounded.
    """
    n = c.shape[1] - 1
    powers = np.arange(n, -1, -1)
    _, exponent = np.frexp(np.maximum(abs(z.real), abs(z.imag)))
    _, height = np.frexp(np.maximum(abs(c.real), abs(c.imag)))
    height = np.where(c == 0, -(10**6), height)
    shift = exponent[:, :, None] * powers
    top = (height[:, None, :] + shift).max(2, keepdims=True)
    re, im = (np.ldexp(part[:, None, :], shift - top) for part in (c.real, c.imag))
    x, y = np.ldexp(z.real, -exponent), np.ldexp(z.imag, -exponent)
    xs, ys = _split(x), _split(y)
    sr, si = re[..., 0], im[..., 0]
    er, ei = np.zeros_like(x), np.zeros_like(x)
    u, w = x + 1j * y, abs(x + 1j * y)
    slope, size = np.zeros_like(u), np.hypot(sr, si)
    for k in range(1, n + 1):
        slope = slope * u + (sr + 1j * si)
        size = size * w + np.hypot(re[..., k], im[..., k])
        srs, sis = _split(sr), _split(si)
        (a, ea), (b, eb) = _product(sr, srs, x, xs), _product(si, sis, y, ys)
        (d, ed), (e, ee) = _product(sr, srs, y, ys), _product(si, sis, x, xs)
        real, e1 = _sum(a, -b)
        imag, e2 = _sum(d, e)
        sr, e3 = _sum(real, re[..., k])
        si, e4 = _sum(imag, im[..., k])
        er, ei = er * x - ei * y + (ea - eb + e1 + e3), er * y + ei * x + (ed + ee + e2 + e4)
    return (sr + er) + 1j * (si + ei), u * slope, size, (re[..., 0] + 1j * im[..., 0]) * u**n


def _sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b and its exact rounding error."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _split(a: Array) -> tuple[Array, Array]:
    """The two halves of a's digits."""
    t = 134217729.0 * a  # 2^27 + 1
    high = t - (t - a)
    return high, a - high


def _product(a: Array, a_halves: tuple[Array, Array], b: Array, b_halves: tuple[Array, Array]) -> tuple[Array, Array]:
    """a b and its exact rounding error."""
    p = a * b
    (ah, al), (bh, bl) = a_halves, b_halves
    return p, al * bl - (((p - ah * bh) - al * bh) - ah * bl)


def _polygon(c: Array) -> Array:
    """Starting points on circles whose radii are the slopes of the upper hull of (k, log2 |coefficient of x^k|)."""
    n = c.shape[1] - 1
    z = np.empty((len(c), n), np.complex128)
    with np.errstate(divide="ignore"):
        heights = np.log2(abs(c[:, ::-1])).tolist()
    for row, height in enumerate(heights):
        hull: list[int] = []
        for k in range(n + 1):
            if height[k] == -np.inf:
                continue
            while len(hull) > 1 and (height[hull[-1]] - height[hull[-2]]) * (k - hull[-2]) <= (
                height[k] - height[hull[-2]]
            ) * (hull[-1] - hull[-2]):
                hull.pop()
            hull.append(k)
        for low, high in itertools.pairwise(hull):
            count = high - low
            radius = 2.0 ** min(max((height[low] - height[high]) / count, -1070), 1020)
            angles = 2 * np.pi * np.arange(count) / count + 2 * np.pi * low / n + 0.7
            z[row, low:high] = radius * np.exp(1j * angles)
    return z


def _conjugate(z: Array) -> Array:
    """Roots of real polynomials, set straight: z and its nearest conjugate become a pair, what is its own is real."""
    m, n = z.shape
    result, free, row = z.copy(), np.ones((m, n), bool), np.arange(m)
    for _ in range(n):
        first = np.where(free, abs(z.imag), -1).argmax(1)
        other = np.where(free, abs(np.conj(z[row, first])[:, None] - z), np.inf).argmin(1)
        pair = (z[row, first] + np.conj(z[row, other])) / 2  # a root that is its own partner loses its imaginary part
        todo = free[row, first]
        result[row[todo], other[todo]] = np.conj(pair[todo])
        result[row[todo], first[todo]] = pair[todo]
        free[row, first] = free[row, other] = False
    result.imag[abs(result.imag) <= 4 * np.finfo(float).eps * abs(result.real)] = 0
    return result


def _merge(c: Array, z: Array) -> Array:
    """Roots so near that they are one: two within the noise of their mean, more where it is exactly a multiple root."""
    near = abs(z[:, :, None] - z[:, None, :]) <= _NEAR * abs(z)[:, :, None]
    count = near.sum(2)
    rows = np.flatnonzero((count > 1).any(1))
    if not rows.size:
        return z
    mean = (near[rows] * z[rows][:, None, :]).sum(2) / count[rows]
    f, _, size, _ = evaluate(c[rows], mean)
    z[rows] = np.where((count[rows] == 2) & (abs(f) <= _NOISE * size), mean, z[rows])
    for row in rows[(count[rows] > 2).any(1)]:
        for members in {tuple(np.flatnonzero(near[row, i])) for i in np.flatnonzero(count[row] > 2)}:
            m = _multiple_root(c[row], z[row, list(members)].mean(), len(members))
            if m is not None:
                z[row, list(members)] = m
    return z


def _multiple_root(c: Array, start: complex, k: int) -> float | None:
    """The float near `start` that is a k-fold root of real coefficients, in exact arithmetic, or None."""
    if c.imag.any() or start.imag:
        return None
    p, x = [Fraction(v) for v in c.real.tolist()], Fraction(start.real)
    q = p
    for _ in range(k - 1):  # where q, the (k-1)-th derivative, has a simple root
        q = [a * (len(q) - 1 - j) for j, a in enumerate(q[:-1])]
    for _ in range(4):  # Newton
        *quotient, value = _synthetic(q, x)
        slope = _synthetic(quotient, x)[-1]
        if slope == 0:
            return None
        x = Fraction(float(x - value / slope))
    for _ in range(k):
        p = _synthetic(p, x)
        if p.pop() != 0:
            return None
    return float(x)


def _synthetic(p: list[Fraction], x: Fraction) -> list[Fraction]:
    """Coefficients of the quotient by (t - x), and the remainder."""
    return list(itertools.accumulate(p, lambda total, a: total * x + a))
