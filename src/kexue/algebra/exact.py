"""Roots of exact coefficients: multiplicities by square-free decomposition, rational roots as Fractions, the rest
enclosed in whole numbers and rounded once.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from kexue._optional import import_optional
from kexue.algebra.enclosure import enclose, factor
from kexue.algebra.radicals import quadratic_surds
from kexue.algebra.rational import Poly, count_real, square_free
from kexue.algebra.root import Root, measure_errors
from kexue.errors import DataError

_BITS = 64  # right binary digits of an enclosed root before it is rounded to a float


def exact_roots(p: Poly, digits: int | None = None) -> tuple[list[Root], list[list[int]]]:
    """The distinct roots of p, in order, and its distinct irreducible factors as whole coefficients.

    Args:
        p: not 0.
        digits: decimal digits of mpmath numbers; None gives complex floats.

    Raises:
        DataError: without `digits`, a root beyond the range of floats.
    """
    roots, factors = [], []
    bits = _BITS if digits is None else max(_BITS, math.ceil(3.33 * digits) + 10)
    for part, multiplicity in square_free(p):
        for g in factor(part) if len(part) > 1 else ():
            factors.append(g)
            for re, im, label in _roots_of_irreducible(g, bits):
                z, power = _scale_to_floats(re, im, digits)
                value = z if digits is None else _mpmath(re, im, digits)
                scaled = [(c / Fraction(2) ** (power * k), Fraction(0)) for k, c in enumerate(p)]
                root = Root(value, multiplicity, *measure_errors(scaled, z, multiplicity), label)
                roots.append(((im != 0, re if power or not im else z.real, im), root))
    roots.sort(key=lambda pair: pair[0])
    return [root for _, root in roots], factors


def _roots_of_irreducible(g: list[int], bits: int) -> list[tuple[Fraction, Fraction, Fraction | str | None]]:
    """(real part, imaginary part, exact form) of each root of an irreducible polynomial."""
    p = [Fraction(c) for c in g]
    if len(g) == 2:
        return [(-p[1] / p[0], Fraction(0), -p[1] / p[0])]
    real = count_real(p)
    rounded, exponent = enclose(p, bits, real)
    unit = Fraction(2) ** -exponent
    result: list[tuple[Fraction, Fraction, Fraction | str | None]] = []
    for x, y in rounded[:real] + [(x, s * abs(y)) for x, y in rounded[real:] if y > 0 for s in (-1, 1)]:
        x_ = 0 if abs(x) < abs(y) >> (bits - 4) else x  # a purely imaginary root has a real part of exactly 0
        result.append((x_ * unit, y * unit, None))
    if len(g) == 3:
        result.sort(key=lambda r: (r[0], r[1]))
        result = [(re, im, label) for (re, im, _), label in zip(result, quadratic_surds(g), strict=True)]
    return result


def _scale_to_floats(re: Fraction, im: Fraction, digits: int | None) -> tuple[complex, int]:
    """(a root over 2^k, k): k is 0 where floats hold both parts; otherwise DataError unless digits are requested."""
    try:
        z = complex(float(re), float(im))
        abs(z)  # may overflow where neither part does
        if (z.real != 0 or re == 0) and (z.imag != 0 or im == 0):
            return z, 0
    except OverflowError:
        pass
    powers = [v.numerator.bit_length() - v.denominator.bit_length() for v in (re, im) if v]
    if digits is None:
        raise DataError(
            f"a root has a part of about 1e{math.log10(2) * max(powers, key=abs):+.0f}, beyond the range of floats.",
            remedy="Ask for digits: digits=20, or --digits 20.",
        )
    power = max(powers)
    return complex(float(re / Fraction(2) ** power), float(im / Fraction(2) ** power)), power


def _mpmath(re: Fraction, im: Fraction, digits: int) -> Any:
    """The number as an mpmath number, real where its imaginary part is 0."""
    mpmath = import_optional("mpmath")
    with mpmath.workdps(digits):
        parts = [mpmath.mpf(v.numerator) / v.denominator for v in (re, im)]
        return mpmath.mpc(*parts) if im else parts[0]
