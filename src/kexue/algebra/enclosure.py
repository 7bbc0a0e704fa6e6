"""Roots enclosed to any number of digits in whole numbers, and the rational factors computed from them.

Weierstrass' simultaneous iteration in fixed point. For integer coefficients with leading a, a times any symmetric
function of the roots of a factor is a whole number.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

from kexue.algebra._aberth import aberth
from kexue.algebra.closed import batch_roots
from kexue.algebra.rational import Poly, count_real, divide, primitive
from kexue.errors import DataError

Gaussian = tuple[int, int]  # real and imaginary part, in units of a power of two
_SUBSET_DEGREE = 12  # up to this degree all products of roots are tried as factors; above, linear and quadratic ones


def enclose(p: Poly, bits: int, real: int) -> tuple[list[Gaussian], int]:
    """(roots as whole numbers over 2^e, e) of a p without multiple roots: the `real` real ones first, then pairs.

    At least `bits` binary digits of each root are right: the digits are doubled until two results agree.
    """
    n = len(p) - 1
    start, unit = _start(p)
    size = int(np.ceil(np.log2(max(abs(start).max(), 1e-300)))) + 2
    small = abs(start)[start != 0]
    spread = size - int(np.floor(np.log2(small.min()))) if small.size else 0
    size, start = size + unit, np.ldexp(1.0, -size) * start
    scale = Fraction(2) ** size
    whole = primitive([c * scale ** (n - k) for k, c in enumerate(p)])  # for u = x / 2^size, |u| < 1
    held, digits = 60 + spread, bits + spread + 40
    roots = [(_to_fixed_point(z.real, held), _to_fixed_point(z.imag, held)) for z in start]
    before: list[Gaussian] = []
    while True:
        roots = [
            _separate(_shift(x, digits - held), _shift(y, digits - held), i, digits) for i, (x, y) in enumerate(roots)
        ]
        before = [(_shift(x, digits - held), _shift(y, digits - held)) for x, y in before]
        roots = sorted(_weierstrass(whole, roots, digits), key=lambda z: abs(z[1]))
        roots = [(x, 0) for x, _ in roots[:real]] + roots[real:]
        if before and all(_gap(z, before) <= abs(z[0]) + abs(z[1]) >> bits for z in roots):
            return roots, digits - size
        before, held, digits = roots, digits, 2 * digits


def _separate(x: int, y: int, i: int, digits: int) -> Gaussian:
    """The i-th point moved by a small share of its size, so that equal points become different."""
    size = abs(x) + abs(y) or 1 << digits
    return x + ((3 * i + 1) * size >> 50), y + ((2 * i * i + 1) * size >> 50)


def _to_fixed_point(x: float, digits: int) -> int:
    """x 2^digits, rounded towards 0."""
    return int(Fraction(x) * 2**digits)


def _gap(z: Gaussian, points: list[Gaussian]) -> int:
    """Distance (sum of both parts) from z to the nearest point."""
    return min(abs(z[0] - x) + abs(z[1] - y) for x, y in points)


def _start(p: Poly) -> tuple[np.ndarray[tuple[int], np.dtype[np.complex128]], int]:
    """(approximations over 2^k as doubles, k), for coefficients of any size.

    k is 0 or, where doubles cannot hold that, the least for which no coefficient of f(2^k u) is much larger than the
    first, to within a factor of 2 (Fujiwara's bound).
    """
    whole = primitive(p)
    bits = [abs(c).bit_length() for c in whole]
    bound = max((-((bits[0] - b) // j) for j, b in enumerate(bits) if j and b), default=0)
    for k, top in ((0, max(max(bits) - 1000, 0)), (bound, bits[0])):
        row = np.array([float(Fraction(c) / Fraction(2) ** (top + k * j)) for j, c in enumerate(whole)])
        if any(c and not v for c, v in zip(whole, row, strict=True)):
            continue
        zeros = int(np.flatnonzero(row)[-1])
        kept = row[: zeros + 1][None]
        with np.errstate(all="ignore"):
            roots = batch_roots(kept, zeros)[0] if zeros in (2, 3, 4) else aberth(kept)[0]
            fit = np.isfinite(abs(roots)).all() and roots.all()
        if fit:
            return np.concatenate([roots, np.zeros(len(row) - 1 - zeros)]), k
    raise DataError(
        "coefficients of such different sizes do not fit floating-point numbers.",
        remedy="Substitute x = c y with a number c, so that the coefficients have similar sizes.",
    )


def _shift(x: int, by: int) -> int:
    """x 2^by, rounded down."""
    return x << by if by >= 0 else x >> -by


def _weierstrass(p: list[int], roots: list[Gaussian], digits: int) -> list[Gaussian]:
    """z_i <- z_i - p(z_i) / (a prod over j != i of (z_i - z_j)), in fixed point, until no root changes."""
    one = 1 << digits
    roots = list(roots)
    for _ in range(500):
        largest = 0
        for i, (x, y) in enumerate(roots):
            fr, fi = p[0] << digits, 0
            for c in p[1:]:
                fr, fi = (fr * x - fi * y >> digits) + (c << digits), fr * y + fi * x >> digits
            gr, gi = p[0] << digits, 0
            for j, (u, v) in enumerate(roots):
                if j != i:
                    dx, dy = x - u, y - v
                    gr, gi = gr * dx - gi * dy >> digits, gr * dy + gi * dx >> digits
            square = gr * gr + gi * gi
            if square == 0:
                sx, sy = one >> 20, one >> 21  # equal points: move one of them
            else:
                sx, sy = ((fr * gr + fi * gi) << digits) // square, ((fi * gr - fr * gi) << digits) // square
            roots[i] = (x - sx, y - sy)
            largest = max(largest, abs(sx), abs(sy))
        if largest <= 4:
            break
    return roots


def factor(p: Poly) -> list[list[int]]:
    """Primitive integer factors of a p without multiple roots; irreducible up to degree 12."""
    whole = primitive(p)
    factors: list[list[int]] = []
    while whole[-1] == 0:
        factors.append([1, 0])
        whole = whole[:-1]
    n = len(whole) - 1
    if n <= 1:
        return [*factors, whole] if n else factors
    bits = 64 + 2 * n + 2 * sum(abs(c).bit_length() for c in (whole[0], max(whole, key=abs)))
    exact = [Fraction(c) for c in whole]
    real = count_real(exact)
    roots, exponent = enclose(exact, bits, real)
    units = [[z] for z in roots[:real]] + _pairs(roots[real:])
    while (split := _divisor(whole, units, exponent)) is not None:
        part, whole, units = split
        factors.append(part)
    return [*factors, whole]


def _pairs(roots: list[Gaussian]) -> list[list[Gaussian]]:
    """Each root above the real axis with its conjugate."""
    return [[(x, y), (x, -y)] for x, y in roots if y > 0]


def _divisor(
    p: list[int], units: list[list[Gaussian]], exponent: int
) -> tuple[list[int], list[int], list[list[Gaussian]]] | None:
    """(the factor of least degree, the quotient, the roots of the quotient); None: p is irreducible."""
    n = len(p) - 1
    limit = n // 2 if n <= _SUBSET_DEGREE else 2
    choices = [
        subset
        for count in range(1, limit + 1)
        for subset in itertools.combinations(range(len(units)), count)
        if sum(len(units[i]) for i in subset) <= limit
    ]
    for subset in sorted(choices, key=lambda c: sum(len(units[i]) for i in c)):
        row: list[Gaussian] = [(1 << exponent, 0)] if exponent >= 0 else [(1, 0)]
        for i in subset:
            for x, y in units[i]:
                row = _times_linear(row, x, y, exponent)
        # p[0] times each coefficient is whole when the product of these (z - root) divides p
        if not all(_is_whole(p[0] * re, exponent) for re, _ in row):
            continue
        candidate = [Fraction(_round(p[0] * re, exponent), p[0]) for re, _ in row]
        quotient, rest = divide([Fraction(c) for c in p], candidate)
        if not rest:
            return primitive(candidate), primitive(quotient), [u for i, u in enumerate(units) if i not in subset]
    return None


def _times_linear(row: list[Gaussian], x: int, y: int, exponent: int) -> list[Gaussian]:
    """The product row (z - root), in fixed point with 2^exponent."""
    shifted = [*row, (0, 0)]
    for k, (a, b) in enumerate(row):
        re, im = shifted[k + 1]
        shifted[k + 1] = (re - _shift(a * x - b * y, -exponent), im - _shift(a * y + b * x, -exponent))
    return shifted


def _is_whole(x: int, exponent: int) -> bool:
    """Return whether x over 2^exponent lies within 2^-20 of a whole number."""
    return exponent <= 20 or abs(x - (_round(x, exponent) << exponent)) >> exponent - 20 == 0


def _round(x: int, exponent: int) -> int:
    """x over 2^exponent, rounded to a whole number."""
    return (x + (1 << exponent - 1)) >> exponent if exponent > 0 else x << -exponent
