"""Roots as sympy expressions: the closed forms of `kexue.algebra.closed`, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from kexue._optional import import_optional
from kexue.algebra.enclosure import factor
from kexue.algebra.rational import depress_quartic, exact_discriminant, quartic_resolvent
from kexue.algebra.special import special_form


def quadratic_surds(p: list[int]) -> list[str]:
    """Both roots of an irreducible quadratic as text that sympy can parse too, the one with - first."""
    a, b, c = p
    square, rest = 1, abs(b * b - 4 * a * c)
    for d in range(2, 10_000):
        while rest % (d * d) == 0:
            square, rest = square * d, rest // (d * d)
        if d * d > rest:
            break
    mean, factor_ = Fraction(-b, 2 * a), Fraction(square, 2 * a)
    symbols = ([] if rest == 1 else [f"sqrt({rest})"]) + (["I"] if b * b < 4 * a * c else [])
    term = "*".join(([str(factor_.numerator)] if factor_.numerator > 1 or not symbols else []) + symbols)
    term += f"/{factor_.denominator}" if factor_.denominator > 1 else ""
    return [f"-{term}", term] if mean == 0 else [f"{mean} - {term}", f"{mean} + {term}"]


def root_expressions(factors: Sequence[list[int]], values: Sequence[complex]) -> list[Any]:
    """One sympy expression for each of `values`, the distinct roots of the irreducible `factors`."""
    sympy = import_optional("sympy")
    candidates = [expression for p in factors for expression in _roots(sympy, p)]
    result = []
    for value in values:
        nearest = min(candidates, key=lambda e: abs(complex(e.evalf(20)) - value))
        candidates.remove(nearest)
        result.append(nearest)
    return result


def _roots(sympy: Any, p: list[int]) -> list[Any]:
    """All roots of one irreducible polynomial, in any order."""
    n = len(p) - 1
    a, b = (sympy.Integer(c) for c in p[:2])
    if n == 1:
        return [-b / a]
    if n == 2:
        root = sympy.sqrt(b * b - 4 * a * p[2])
        return [(-b - root) / (2 * a), (-b + root) / (2 * a)]
    form = special_form(p)
    if form is not None and (n != 3 or form.kind == "power"):
        if form.kind == "cyclotomic":
            turns = [k for k in range(form.k) if sympy.gcd(k, form.k) == 1]
            return [sympy.exp(2 * sympy.pi * sympy.I * k / form.k) for k in turns]
        inner = [z for g in factor([Fraction(c) for c in form.inner]) for z in _roots(sympy, g)]
        if form.kind == "palindromic":
            return [(z + sign * sympy.sqrt(z * z - 4)) / 2 for z in inner for sign in (-1, 1)]
        turns = [sympy.exp(2 * sympy.pi * sympy.I * k / form.k) for k in range(form.k)]
        return [_power_root(sympy, z, form.k) * turn for z in inner for turn in turns]
    if n == 3:
        return _cubic(sympy, p)
    if n == 4:
        return _quartic(sympy, p)
    x = sympy.Symbol("x")
    return [sympy.CRootOf(sympy.Poly(p, x), k) for k in range(n)]  # exact, but no formula


def _power_root(sympy: Any, z: Any, k: int) -> Any:
    """A k-th root of z, the real one where it exists."""
    return -sympy.root(-z, k) if k % 2 and z.is_negative else sympy.root(z, k)


def _cubic(sympy: Any, p: list[int]) -> list[Any]:
    """The roots for n = 3, by the formulas of `kexue.algebra.closed`."""
    a, b, c, d = (sympy.Integer(v) for v in p)
    y1, e2, e3 = -b / (3 * a), c / a, -d / a
    P = y1**2 - e2 / 3
    half = (e3 - y1**3 + 3 * y1 * P) / 2
    if exact_discriminant([Fraction(v) for v in p]) > 0:  # three real roots, without complex radicals
        angle = sympy.acos(half / sympy.sqrt(P**3)) / 3
        return [y1 + 2 * sympy.sqrt(P) * sympy.cos(angle + 2 * sympy.pi * k / 3) for k in range(3)]
    root = sympy.sqrt(half**2 - P**3)
    t = half + root if half >= 0 else half - root  # the larger modulus
    y2 = _power_root(sympy, t, 3)
    y3 = P / y2
    w = (-1 + sympy.sqrt(3) * sympy.I) / 2
    return [y1 + y2 + y3, y1 + w * y2 + w.conjugate() * y3, y1 + w.conjugate() * y2 + w * y3]


def _quartic(sympy: Any, p: list[int]) -> list[Any]:
    """The roots for n = 4, by the formulas of `kexue.algebra.closed`."""
    y1, u2, u1, u0 = depress_quartic([(-1) ** k * Fraction(c, p[0]) for k, c in enumerate(p)])
    if u1 == 0:
        root = sympy.sqrt(_rational(sympy, u2**2 / 4 - u0))
        squares = [_rational(sympy, -u2 / 2) + sign * root for sign in (1, -1)]
        return [_rational(sympy, y1) + sign * sympy.sqrt(z) for z in squares for sign in (1, -1)]
    candidates = [z for g in factor(quartic_resolvent(u2, u1, u0)) for z in _roots(sympy, g)]
    z = max((r for r in candidates if abs(sympy.im(r.evalf(30))) < 1e-20), key=lambda r: sympy.re(r.evalf(30)))
    y1, u2, u1 = (_rational(sympy, v) for v in (y1, u2, u1))
    y2 = sympy.sqrt(z)
    return [
        y1 + sign * y2 + other * sympy.sqrt(-u2 / 2 - z - sign * u1 / (4 * y2)) for sign in (1, -1) for other in (1, -1)
    ]


def _rational(sympy: Any, x: Fraction) -> Any:
    """A Fraction as a sympy number."""
    return sympy.Rational(x.numerator, x.denominator)
