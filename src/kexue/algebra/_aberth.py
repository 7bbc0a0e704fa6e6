"""Aberth's iteration: all roots of a polynomial at once, to full accuracy.

    z_i  <-  z_i - N_i / (1 - N_i sum over j != i of 1 / (z_i - z_j)),    N_i = f(z_i) / f'(z_i)

Source: Aberth 1973, Math. Comp. 27; starting points from the Newton polygon, Bini 1996, Numer. Algorithms 13; residuals
by compensated Horner evaluation in error-free sums and products (Graillat and Menissier-Morain 2012), as if in twice
the precision. Each root is evaluated on its own scale, a power of two, so that nothing over- or underflows.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from kexue.algebra._compensated import evaluate
from kexue.algebra.coefficients import Array
from kexue.algebra.rational import derivative

_ROUNDS = 100
_NOISE = 2.0**-102  # rounding of a compensated evaluation, relative to sum |a_k| |z|^k
_SHRINK = 2.0**-50  # limits of the factor by which one round may change a root: this and its inverse
_PERTURBATION = 1e-10  # breaks the symmetry of the starting points, which real coefficients would preserve
_NEAR = 1e-4  # relative distance within which roots may be one multiple root


def aberth(coefficients: Array, start: Array | None = None) -> Array:
    """Roots (m, n) complex of m polynomials (m, n + 1), first and last coefficient not 0, in no particular order.

    Real coefficients give real roots with imaginary part exactly 0, and exact conjugate pairs.

    Args:
        start: (m, n) approximations; a row that holds 0 or is not finite starts from the Newton polygon; None: all do.
    """
    c = coefficients.astype(np.complex128)
    if start is None:
        start = np.zeros((c.shape[0], c.shape[1] - 1), np.complex128)
    new = ~np.isfinite(start).all(1) | (start == 0).any(1)
    z = start.copy()
    z[new] = _newton_polygon(c[new])
    z, unfinished = _iterate(c, z)
    again = unfinished[~new[unfinished]]
    if again.size:  # the closed form was too far off
        z[again] = _iterate(c[again], _newton_polygon(c[again]))[0]
    if coefficients.dtype.kind != "c":
        z = _pair_conjugates(z)
    z = _merge_multiple(c, z)
    z[abs(z) < np.finfo(float).tiny] = 0
    return z


def _iterate(c: Array, z: Array) -> tuple[Array, Array]:
    """The roots after Aberth's iteration from z, and the rows that have not converged."""
    n = z.shape[1]
    f = evaluate(c, z)[0]
    z = np.where(f == 0, z, z * (1 + _PERTURBATION * np.exp(1j * (1 + 2 * np.arange(n)))))
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
            vague = abs(slope) <= 2.0**-30 * size  # f' cancels: Weierstrass' a prod (z_i - z_j) replaces it
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


def _newton_polygon(c: Array) -> Array:
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


def _pair_conjugates(z: Array) -> Array:
    """Pair each root of real polynomials with the root nearest to its conjugate, exactly; z alone becomes real."""
    m, n = z.shape
    result, free, row = z.copy(), np.ones((m, n), bool), np.arange(m)
    for _ in range(n):
        first = np.where(free, abs(z.imag), -1).argmax(1)
        other = np.where(free, abs(np.conj(z[row, first])[:, None] - z), np.inf).argmin(1)
        pair = (z[row, first] + np.conj(z[row, other])) / 2  # a root paired with itself becomes real
        unpaired = free[row, first]
        result[row[unpaired], other[unpaired]] = np.conj(pair[unpaired])
        result[row[unpaired], first[unpaired]] = pair[unpaired]
        free[row, first] = free[row, other] = False
    result.imag[abs(result.imag) <= 4 * np.finfo(float).eps * abs(result.real)] = 0
    return result


def _merge_multiple(c: Array, z: Array) -> Array:
    """Merge near roots into one: two within rounding of their mean, more where an exact multiple root exists."""
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
        q = derivative(q)
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
