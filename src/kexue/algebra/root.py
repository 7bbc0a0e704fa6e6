"""One root of a polynomial, and how accurate it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Root:
    """One distinct root r of sum a_k x^(n-k).

    Attributes:
        value: complex, its imaginary part exactly 0 for a real root; with `digits` an mpmath number.
        multiplicity: of the root, >= 1.
        backward_error: |f(r)| / sum |a_k| |r|^(n-k) with r as a float: the relative change of the coefficients
            for which r would be exact. About 1e-16 at best, unless r is a float itself.
        condition: sum |a_k| |r|^(n-k) / (|r| |f'(r)|): the factor by which a relative change of the coefficients
            may be magnified in r; infinite for a multiple root, which moves by the m-th root of the change.
        exact: a Fraction, a quadratic surd as text ("1/2 + sqrt(5)/2"), or None: see `RootSet.exact`.
    """

    value: Any
    multiplicity: int
    backward_error: float
    condition: float
    exact: Fraction | str | None


def measure_errors(c: list[tuple[Fraction, Fraction]], z: complex, multiplicity: int) -> tuple[float, float]:
    """Backward error and condition at a float z, computed in whole numbers.

    Args:
        c: (real, imaginary) part of each coefficient, highest power first.
    """
    if z == 0:
        return 0.0, 0.0 if multiplicity == 1 else math.inf
    common = math.lcm(*(part.denominator for pair in c for part in pair))
    parts = [Fraction(v) for v in (z.real, z.imag, abs(z))]
    bits = max(v.denominator.bit_length() - 1 for v in parts)
    x, y, w = (int(v * 2**bits) for v in parts)
    fr = fi = sr = si = size = 0  # f, f' and sum |a_k| |z|^k, over common 2^(bits n)
    for k, (re, im) in enumerate(c):
        sr, si = sr * x - si * y + fr, sr * y + si * x + fi
        a, b = int(re * common) << bits * k, int(im * common) << bits * k
        fr, fi = fr * x - fi * y + a, fr * y + fi * x + b
        size = size * w + (math.isqrt(a * a + b * b) if b else abs(a))
    backward = math.sqrt(Fraction(fr * fr + fi * fi, size * size))
    square = (sr * sr + si * si) * w * w
    if multiplicity > 1 or square == 0:
        return backward, math.inf
    try:
        return backward, math.sqrt(Fraction(size * size, square))
    except OverflowError:
        return backward, math.inf
