"""Special equations above degree four that have a formula; the general equation has none (Abel and Ruffini).

The symmetric group on n >= 5 letters has no chain of normal subgroups with commutative quotients, so no coordinates of
the roots do what y2, y3, y4 do up to degree four; the resolvent of a quintic has degree six.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import gcd
from typing import NamedTuple

from kexue.algebra.enclosure import factor
from kexue.algebra.rational import divide, primitive

NO_FORMULA = (
    "From degree 5 on no formula in radicals solves every equation (Abel-Ruffini): the permutations of five and more "
    "roots admit no chain of symmetric quantities that leads down to the roots."
)
UNDECIDED = (
    "None of the special forms is found here (x^n = a, a polynomial in x^k, palindromic, cyclotomic, factors of degree "
    "4 or less), so the roots are computed numerically. Whether radicals exist for this one equation is not decided."
)


class Form(NamedTuple):
    """A special form: an equation of lower degree, from whose roots those of the polynomial follow.

    Attributes:
        kind: ``"power"``, ``"palindromic"`` or ``"cyclotomic"``.
        says: the form in words, after "it is" or "its roots are".
        inner: whole coefficients of the equation of lower degree.
        k: the power of x, or the order of the roots of unity; 0 for a palindrome.
    """

    kind: str
    says: str
    inner: list[int]
    k: int


def special_form(p: list[int]) -> Form | None:
    """The special form of an irreducible polynomial with whole coefficients, or None."""
    n = len(p) - 1
    for m in range(n + 1, 6 * n + 1) if p == p[::-1] and p[0] == 1 else ():
        if _totient(m) == n and p == cyclotomic(m):
            return Form("cyclotomic", f"its roots are the primitive {m}-th roots of unity", [], m)
    if k := _common_step(p):
        inner = p[::k]
        what = f"x^{n} = {Fraction(-p[-1], p[0])}" if len(inner) == 2 else f"a polynomial of degree {n // k} in x^{k}"
        return Form("power", f"it is {what}", inner, k)
    if n > 1 and n % 2 == 0 and p == p[::-1]:
        return Form("palindromic", f"it is palindromic: z = x + 1/x halves the degree to {n // 2}", _halve(p), 0)
    return None


def is_solvable(p: list[int]) -> bool:
    """Return whether p has degree up to four, or a form that reduces it to that; False: no such form is recognised."""
    if len(p) <= 5:
        return True
    form = special_form(p)
    if form is None:
        return False
    return form.kind == "cyclotomic" or all(is_solvable(g) for g in factor([Fraction(c) for c in form.inner]))


def formula_exists(degree: int, factors: Sequence[list[int]] | None) -> bool:
    """Return whether radicals give the roots of a polynomial with these irreducible factors (None: unknown)."""
    return degree <= 4 or (factors is not None and all(map(is_solvable, factors)))


def explain_formula(degree: int, factors: Sequence[list[int]] | None) -> str:
    """Why a formula exists or not, in a sentence or two; arguments as in `formula_exists`."""
    if degree <= 4:
        return f"Degree {degree}: a formula exists."
    if factors is None:
        return f"{NO_FORMULA} Special forms are looked for with whole numbers and Fractions only."
    if not formula_exists(degree, factors):
        return f"{NO_FORMULA} {UNDECIDED}"
    forms = [special_form(p) for p in factors if len(p) > 5]
    reasons = [form.says for form in forms if form] or ["it has factors of degree 4 or less only"]
    return f"{NO_FORMULA} This one is special: {'; '.join(reasons)}."


def _totient(m: int) -> int:
    """Euler's phi(m)."""
    return sum(gcd(k, m) == 1 for k in range(m))


@cache
def cyclotomic(m: int) -> list[int]:
    """The polynomial of the primitive m-th roots of unity: x^m - 1 without the factors of all proper divisors."""
    p = [Fraction(1), *[Fraction(0)] * (m - 1), Fraction(-1)]
    for d in range(1, m):
        if m % d == 0:
            p = divide(p, [Fraction(c) for c in cyclotomic(d)])[0]
    return primitive(p)


def _common_step(p: list[int]) -> int:
    """The largest k > 1 with p a polynomial in x^k, or 0."""
    n = len(p) - 1
    return next((k for k in range(n, 1, -1) if n % k == 0 and not any(c for i, c in enumerate(p) if i % k)), 0)


def _halve(p: list[int]) -> list[int]:
    """h with p(x) = x^(n/2) h(x + 1/x), by x^k + x^-k = z (x^(k-1) + x^-(k-1)) - (x^(k-2) + x^-(k-2))."""
    half = (len(p) - 1) // 2
    h = [0] * half + [p[half]]  # highest power of z first
    before, now = [2], [1, 0]
    for k in range(1, half + 1):
        for i, c in enumerate(reversed(now)):
            h[half - i] += p[half - k] * c
        after = [*now, 0]
        for i, c in enumerate(reversed(before)):
            after[len(after) - 1 - i] -= c
        before, now = now, after
    return h
