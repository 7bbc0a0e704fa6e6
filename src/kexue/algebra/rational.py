"""Polynomials over the rational numbers, exactly: multiplicities, discriminants, counting real roots, factors.

A polynomial here is a list of Fractions, highest power first, without leading zeros; [] is 0. Roots are enclosed to any
number of digits in whole numbers (Weierstrass' simultaneous iteration), and rational factors are read off them: for
integer coefficients with leading a, a times any symmetric function of the roots of a factor is a whole number.
"""

from __future__ import annotations

import cmath
import itertools
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from decimal import Decimal
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np

from kexue.algebra._aberth import aberth
from kexue.algebra.closed import batch_roots
from kexue.errors import DataError

Poly = list[Fraction]
Gaussian = tuple[int, int]  # real and imaginary part, times a power of two
_SUBSET_DEGREE = 12  # up to which all products of roots are tried as factors; beyond, only up to quadratic ones
_PRIME = 2**61 - 1


def as_numbers(values: object, what: str = "coefficients") -> list[Any]:
    """A list of numbers, each int, Fraction, float, Decimal, complex or a longdouble of numpy, with the values given.

    Args:
        values: any iterable of numbers: of Python's own, numpy's of every width, 0-d arrays; an array or a tensor.

    Raises:
        TypeError: no iterable of numbers. ValueError: one is not finite.
    """
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a sequence of numbers, got {values!r}")
    if getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{what} must be one sequence of numbers, got an array of shape {tuple(values.shape)}")  # type: ignore[attr-defined]
    return [_as_number(v, what) for v in values]


def _as_number(value: Any, what: str) -> Any:
    number = value.tolist() if hasattr(value, "tolist") else value  # numpy scalars, 0-d arrays and tensors
    if not isinstance(number, numbers.Complex | Decimal) or isinstance(value, np.bool_):
        raise TypeError(f"{what} must be numbers, got {value!r} of type {type(value).__name__}")
    parts: Any = (number.real, number.imag) if isinstance(number, numbers.Complex) else (number,)
    if any(
        part.is_nan() or part.is_infinite() if isinstance(part, Decimal) else not abs(part) < math.inf for part in parts
    ):
        raise ValueError(f"{what} must be finite, got {value}")
    return number


def is_complex(number: Any) -> bool:
    """Whether a number has an imaginary part."""
    return isinstance(number, numbers.Complex) and not isinstance(number, numbers.Real) and number.imag != 0


def is_exact(coefficients: Iterable[object]) -> bool:
    """Whole numbers and Fractions only."""
    return all(isinstance(c, numbers.Rational) for c in coefficients)


def as_fractions(coefficients: Iterable[Any]) -> Poly:
    """Real numbers of `as_numbers` as they are, floats exactly; without leading zeros. TypeError: of another kind."""
    result = []
    for c in coefficients:
        real = c.real if isinstance(c, numbers.Complex) else c
        if not hasattr(real, "as_integer_ratio"):
            raise TypeError(f"coefficients must be real numbers, got {c!r} of type {type(c).__name__}")
        result.append(Fraction(*real.as_integer_ratio()))
    return trim(result)


def as_floats(coefficients: Iterable[Any]) -> list[Any]:
    """Floats, or complex numbers where one is; DataError when a float cannot hold one."""
    given = list(coefficients)
    kind = complex if any(map(is_complex, given)) else float
    try:
        floats: list[Any] = [kind(c if kind is complex else c.real) for c in given]
    except OverflowError:
        floats = [math.inf]
    if not all(map(cmath.isfinite, floats)) or any(f == 0 != c for f, c in zip(floats, given, strict=True)):
        raise DataError(
            "a coefficient is beyond the range of floats (1e-324 to 1e308).",
            remedy="Give whole numbers or Fractions, or exact=True, if they are real; or divide all by one number.",
        )
    return floats


def trim(p: Sequence[Fraction]) -> Poly:
    """Without leading zeros."""
    return list(itertools.dropwhile(lambda c: c == 0, p))


def value(p: Poly, x: Fraction) -> Fraction:
    """p(x)."""
    total = Fraction(0)
    for c in p:
        total = total * x + c
    return total


def derivative(p: Poly) -> Poly:
    """p'."""
    return [c * (len(p) - 1 - k) for k, c in enumerate(p[:-1])]


def divide(p: Poly, d: Poly) -> tuple[Poly, Poly]:
    """Quotient and remainder."""
    rest, quotient = list(p), []
    while len(rest) >= len(d):
        q = rest[0] / d[0]
        quotient.append(q)
        for k, c in enumerate(d):
            rest[k] -= q * c
        rest.pop(0)
    return quotient, trim(rest)


def primitive(p: Poly) -> list[int]:
    """The multiple with coprime whole coefficients and a positive first one."""
    scale = lcm(*(c.denominator for c in p))
    whole = [int(c * scale) for c in p]
    common = gcd(*whole) * (1 if whole[0] > 0 else -1)
    return [c // common for c in whole]


def common_divisor(p: Poly, q: Poly) -> Poly:
    """Greatest common divisor, monic."""
    while q:
        p, q = q, [Fraction(c) for c in primitive(r)] if (r := divide(p, q)[1]) else []
    return [c / p[0] for c in p]


def square_free(p: Poly) -> list[tuple[Poly, int]]:
    """Yun's decomposition: monic factors without multiple roots, each with its multiplicity, p = a prod f^m."""
    if _coprime_to_derivative(primitive(p)):
        return [([c / p[0] for c in p], 1)]
    common = common_divisor(p, derivative(p))
    product, rest = divide(p, common)[0], divide(derivative(p), common)[0]
    factors, multiplicity = [], 1
    while len(product) > 1:
        rest = trim(_minus(rest, derivative(product)))
        factor = common_divisor(product, rest)
        if len(factor) > 1:
            factors.append((factor, multiplicity))
        product, rest = divide(product, factor)[0], divide(rest, factor)[0]
        multiplicity += 1
    return factors


def _minus(p: Poly, q: Poly) -> Poly:
    pad = max(len(p), len(q))
    return [a - b for a, b in zip([Fraction(0)] * (pad - len(p)) + p, [Fraction(0)] * (pad - len(q)) + q, strict=True)]


def _coprime_to_derivative(p: list[int]) -> bool:
    """True proves that p has no multiple root; modulo a prime, where numbers stay short."""
    a = [c % _PRIME for c in p]
    b = [c * (len(p) - 1 - k) % _PRIME for k, c in enumerate(p[:-1])]
    if not a[0]:
        return False
    while b:
        inverse = pow(b[0], -1, _PRIME)
        while len(a) >= len(b):
            q = a[0] * inverse % _PRIME
            a = [(x - q * y) % _PRIME for x, y in itertools.zip_longest(a, b, fillvalue=0)][1:]
        a, b = b, list(itertools.dropwhile(lambda c: c == 0, a))
    return len(a) == 1


def count_real(p: Poly) -> int:
    """Distinct real roots, by Sturm's chain."""
    chain = [p, derivative(p)]
    while chain[-1]:
        rest = divide(chain[-2], chain[-1])[1]
        if rest:  # a positive multiple keeps the signs and the numbers short
            sign = 1 if rest[0] > 0 else -1
            rest = [Fraction(-sign * c) for c in primitive(rest)]
        chain.append(rest)
    last = [q[0] for q in chain[:-1]]
    first = [c * (-1) ** (len(q) - 1) for c, q in zip(last, chain, strict=False)]
    return _changes(first) - _changes(last)


def _changes(values: list[Fraction]) -> int:
    return sum(a * b < 0 for a, b in itertools.pairwise(values))


def exact_discriminant(p: Poly) -> Fraction:
    """a^(2n-2) times the product of the squared differences of the roots; 1 for n = 1, 0 below."""
    n = len(p) - 1
    if n < 1:
        return Fraction(0)
    sign = -1 if n * (n - 1) // 2 % 2 else 1
    return sign * _resultant(p, derivative(p)) / p[0]


def _resultant(p: Poly, q: Poly) -> Fraction:
    total = Fraction(1)
    while len(q) > 1:
        rest = divide(p, q)[1]
        if not rest:
            return Fraction(0)
        m, n, k = len(p) - 1, len(q) - 1, len(rest) - 1
        total *= (-1) ** (m * n) * q[0] ** (m - k)
        p, q = q, rest
    return total * Fraction(q[0] ** (len(p) - 1)) if q else Fraction(0)


def enclose(p: Poly, bits: int, real: int) -> tuple[list[Gaussian], int]:
    """(roots as whole numbers over 2^e, e) of a p without multiple roots, the `real` real ones first, then pairs.

    At least `bits` binary digits of each root are right: the work is repeated with twice the digits until they agree.
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
    roots = [(_fixed(z.real, held), _fixed(z.imag, held)) for z in start]
    before: list[Gaussian] = []
    while True:
        roots = [
            _parted(_shift(x, digits - held), _shift(y, digits - held), i, digits) for i, (x, y) in enumerate(roots)
        ]
        before = [(_shift(x, digits - held), _shift(y, digits - held)) for x, y in before]
        roots = sorted(_weierstrass(whole, roots, digits), key=lambda z: abs(z[1]))
        roots = [(x, 0) for x, _ in roots[:real]] + roots[real:]
        if before and all(_gap(z, before) <= abs(z[0]) + abs(z[1]) >> bits for z in roots):
            return roots, digits - size
        before, held, digits = roots, digits, 2 * digits


def _parted(x: int, y: int, i: int, digits: int) -> Gaussian:
    """The i-th point moved a little, by its own measure: points that meet must part."""
    size = abs(x) + abs(y) or 1 << digits
    return x + ((3 * i + 1) * size >> 50), y + ((2 * i * i + 1) * size >> 50)


def _fixed(x: float, digits: int) -> int:
    return int(Fraction(x) * 2**digits)


def _gap(z: Gaussian, points: list[Gaussian]) -> int:
    return min(abs(z[0] - x) + abs(z[1] - y) for x, y in points)


def _start(p: Poly) -> tuple[np.ndarray[tuple[int], np.dtype[np.complex128]], int]:
    """(double approximations over 2^k, k), whatever the size of the numbers.

    Where k = 0 will not do, it is the least for which no coefficient of f(2^k u) is much larger than the first, to
    within a factor of 2 (Fujiwara's bound).
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
        remedy="Write the unknown in another unit, so that its powers have coefficients of like size.",
    )


def _shift(x: int, by: int) -> int:
    return x << by if by >= 0 else x >> -by


def _weierstrass(p: list[int], roots: list[Gaussian], digits: int) -> list[Gaussian]:
    """z_i <- z_i - p(z_i) / (a prod over j != i of (z_i - z_j)), in fixed point, until nothing moves."""
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
                sx, sy = one >> 20, one >> 21  # two points met: part them
            else:
                sx, sy = ((fr * gr + fi * gi) << digits) // square, ((fi * gr - fr * gi) << digits) // square
            roots[i] = (x - sx, y - sy)
            largest = max(largest, abs(sx), abs(sy))
        if largest <= 4:
            break
    return roots


def factor(p: Poly) -> list[list[int]]:
    """Factors over the rationals of a p without multiple roots, whole and primitive; irreducible up to degree 12."""
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
    while (found := _divisor(whole, units, exponent)) is not None:
        part, whole, units = found
        factors.append(part)
    return [*factors, whole]


def _pairs(roots: list[Gaussian]) -> list[list[Gaussian]]:
    """Each root above the real axis with its conjugate."""
    return [[(x, y), (x, -y)] for x, y in roots if y > 0]


def _divisor(
    p: list[int], units: list[list[Gaussian]], exponent: int
) -> tuple[list[int], list[int], list[list[Gaussian]]] | None:
    """The factor of least degree, what remains, and the roots of the remainder; None: p is irreducible."""
    n = len(p) - 1
    limit = n // 2 if n <= _SUBSET_DEGREE else 2
    choices = [
        chosen
        for count in range(1, limit + 1)
        for chosen in itertools.combinations(range(len(units)), count)
        if sum(len(units[i]) for i in chosen) <= limit
    ]
    for chosen in sorted(choices, key=lambda c: sum(len(units[i]) for i in c)):
        row: list[Gaussian] = [(1 << exponent, 0)] if exponent >= 0 else [(1, 0)]
        for i in chosen:
            for x, y in units[i]:
                row = _times_linear(row, x, y, exponent)
        # p[0] times each coefficient is whole when the product of these (z - root) divides p
        if not all(_is_whole(p[0] * re, exponent) for re, _ in row):
            continue
        candidate = [Fraction(_round(p[0] * re, exponent), p[0]) for re, _ in row]
        quotient, rest = divide([Fraction(c) for c in p], candidate)
        if not rest:
            return primitive(candidate), primitive(quotient), [u for i, u in enumerate(units) if i not in chosen]
    return None


def _times_linear(row: list[Gaussian], x: int, y: int, exponent: int) -> list[Gaussian]:
    """row (z - root), everything over 2^exponent."""
    shifted = [*row, (0, 0)]
    for k, (a, b) in enumerate(row):
        re, im = shifted[k + 1]
        shifted[k + 1] = (re - _shift(a * x - b * y, -exponent), im - _shift(a * y + b * x, -exponent))
    return shifted


def _is_whole(x: int, exponent: int) -> bool:
    """x over 2^exponent lies within 2^-20 of a whole number."""
    return exponent <= 20 or abs(x - (_round(x, exponent) << exponent)) >> exponent - 20 == 0


def _round(x: int, exponent: int) -> int:
    return (x + (1 << exponent - 1)) >> exponent if exponent > 0 else x << -exponent
