"""Polynomials over the rational numbers, exactly: division, multiplicities, discriminants, counting real roots.

A polynomial here is a list of Fractions, highest power first, without leading zeros; [] is 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

Poly = list[Fraction]
_PRIME = 2**61 - 1


def trim(p: Sequence[Fraction]) -> Poly:
    """p without leading zeros."""
    return list(itertools.dropwhile(lambda c: c == 0, p))


def derivative(p: Poly) -> Poly:
    """The derivative p'."""
    return [c * (len(p) - 1 - k) for k, c in enumerate(p[:-1])]


def divide(p: Poly, d: Poly) -> tuple[Poly, Poly]:
    """Quotient and remainder of p by d."""
    rest, quotient = list(p), []
    while len(rest) >= len(d):
        q = rest[0] / d[0]
        quotient.append(q)
        for k, c in enumerate(d):
            rest[k] -= q * c
        rest.pop(0)
    return quotient, trim(rest)


def primitive(p: Poly) -> list[int]:
    """The multiple of p with coprime whole coefficients, the first positive."""
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
    """p - q."""
    pad = max(len(p), len(q))
    return [a - b for a, b in zip([Fraction(0)] * (pad - len(p)) + p, [Fraction(0)] * (pad - len(q)) + q, strict=True)]


def _coprime_to_derivative(p: list[int]) -> bool:
    """Return whether p and p' are coprime modulo a prime: True proves that p has no multiple root, False nothing."""
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
    """Number of distinct real roots, by Sturm's chain."""
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
    """Number of sign changes."""
    return sum(a * b < 0 for a, b in itertools.pairwise(values))


def exact_discriminant(p: Poly) -> Fraction:
    """a^(2n-2) times the product of the squared differences of the roots; 1 for n = 1, 0 below."""
    n = len(p) - 1
    if n < 1:
        return Fraction(0)
    sign = -1 if n * (n - 1) // 2 % 2 else 1
    return sign * _resultant(p, derivative(p)) / p[0]


def depress_quartic(e: Sequence[Fraction]) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Mean y1 of four roots, and p, q, r of u^4 + p u^2 + q u + r = 0, the equation of u = x - y1.

    Args:
        e: 1 and the elementary symmetric functions e_1, ..., e_4 of the roots.
    """
    y1 = e[1] / 4
    p, q = e[2] - 6 * y1**2, 2 * y1 * (e[2] - 4 * y1**2) - e[3]
    return y1, p, q, e[4] - y1 * (e[3] - y1 * (e[2] - 3 * y1**2))


def quartic_resolvent(p: Fraction, q: Fraction, r: Fraction) -> Poly:
    """The polynomial of degree three whose roots are the squares of the coordinates y2, y3, y4 of the four roots u."""
    return [Fraction(1), p / 2, (p * p - 4 * r) / 16, -q * q / 64]


def _resultant(p: Poly, q: Poly) -> Fraction:
    """The resultant of p and q, by Euclid's algorithm."""
    total = Fraction(1)
    while len(q) > 1:
        rest = divide(p, q)[1]
        if not rest:
            return Fraction(0)
        m, n, k = len(p) - 1, len(q) - 1, len(rest) - 1
        total *= (-1) ** (m * n) * q[0] ** (m - k)
        p, q = q, rest
    return total * Fraction(q[0] ** (len(p) - 1)) if q else Fraction(0)
