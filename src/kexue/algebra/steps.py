"""The derivation of the roots, step by step, in plain text and in LaTeX.

Source: kexue.fm/archives/1336 (degree two); degrees three and four continue its idea, see `kexue.algebra.closed`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from kexue.algebra.exact import exact_roots
from kexue.algebra.notation import (
    REMARK,
    Format,
    complex_text,
    decimal_text,
    polynomial_text,
    root_text,
    square_root_text,
    to_latex,
)
from kexue.algebra.rational import depress_quartic, quartic_resolvent
from kexue.algebra.root import Root
from kexue.algebra.special import explain_formula, special_form


class Step(NamedTuple):
    """One step of a derivation: a sentence and its formulas, in plain text and in LaTeX.

    Attributes:
        says: the sentence.
        formulas: lines of plain text, such as ``"y1 = e1/2 = 3/2"``.
    """

    says: str
    formulas: tuple[str, ...]

    @property
    def text(self) -> str:
        """The step for a terminal."""
        return "\n".join([self.says, *(f"    {line.replace(REMARK, '   # ')}" for line in self.formulas)])

    @property
    def latex(self) -> str:
        """The step for a LaTeX document that loads amsmath."""
        says = re.sub(
            r"\b(?:[exy]\d(?:\^\w+)?(?: y\d)*|[xz]\^\w+|[DPS] [<=>] 0)", lambda m: f"${to_latex(m[0])}$", self.says
        )
        if not self.formulas:
            return says
        rows = " \\\\\n".join("  " + to_latex(line) for line in self.formulas)
        return f"{says}\n\\begin{{gather*}}\n{rows}\n\\end{{gather*}}"


def derive_steps(
    p: list[Fraction], roots: Sequence[Root], factors: Sequence[list[int]] | None, exact: bool
) -> tuple[Step, ...]:
    """The steps that lead to `roots`, for real coefficients p with the irreducible `factors` (None: floats).

    `exact` writes fractions, otherwise decimals.
    """

    def show(x: Fraction) -> str:
        return str(x) if exact and len(str(x)) < 30 else decimal_text(float(x))

    n = len(p) - 1
    if n == 0:
        return (Step("A number other than 0 has no root.", ()),)
    e = [(-1) ** k * c / p[0] for k, c in enumerate(p)]
    if n <= 4:
        steps = [_vieta(p, e, show), *{1: _linear, 2: _quadratic, 3: _cubic, 4: _quartic}[n](e, show)]
    else:
        steps = _above_degree_four(n, factors)
    values = []
    for root in roots:
        value = complex_text(complex(root.value))
        shown = f"{root.exact} = {value}" if isinstance(root.exact, str) else str(root.exact or value)
        values.append(f"x = {shown}" + (f"{REMARK}{root.multiplicity} times" if root.multiplicity > 1 else ""))
    return (*steps, Step("The roots:", tuple(values)))


def _vieta(p: list[Fraction], e: list[Fraction], show: Format) -> Step:
    """The elementary symmetric functions e_k of the roots, read off the coefficients."""
    n = len(p) - 1
    monic = polynomial_text([c / p[0] for c in p], show)
    sums = {1: ["x1"], 2: ["x1 + x2", "x1 x2"], 3: ["x1 + x2 + x3", "x1 x2 + x1 x3 + x2 x3", "x1 x2 x3"]}.get(
        n, ["x1 + x2 + x3 + x4", "x1 x2 + x1 x3 + ... + x3 x4", "x1 x2 x3 + ... + x2 x3 x4", "x1 x2 x3 x4"]
    )
    lines = [f"e{k} = {text} = {show(e[k])}" for k, text in enumerate(sums, 1)]
    return Step(
        "Divide by the leading coefficient. No permutation of the roots changes their elementary symmetric functions, "
        "and these are the coefficients up to sign (Vieta):",
        (f"{monic} = 0", *lines),
    )


def _linear(e: list[Fraction], show: Format) -> list[Step]:
    """No step: the root is e_1."""
    return []


def _quadratic(e: list[Fraction], show: Format) -> list[Step]:
    """Steps for n = 2."""
    y1 = e[1] / 2
    square = y1 * y1 - e[2]
    return [
        Step(
            "Take coordinates that a swap of x1 and x2 changes little: y1 stays, y2 changes its sign.",
            ("x1 = y1 + y2", "x2 = y1 - y2"),
        ),
        Step(
            "So y1 and y2^2 are symmetric, and follow from e1 and e2:",
            (f"2 y1 = e1, y1 = {show(y1)}", f"y1^2 - y2^2 = e2, y2^2 = y1^2 - e2 = {show(square)}"),
        ),
        Step(
            "One square root, whose sign does not matter:",
            (f"y2 = {square_root_text(square, show)}", "x = y1 + y2, y1 - y2"),
        ),
    ]


def _resolvent(y1: Fraction, e2: Fraction, e3: Fraction) -> tuple[Fraction, Fraction, Fraction]:
    """P = y2 y3, S = y2^3 + y3^3 and D = S^2/4 - P^3 for n = 3."""
    P = y1 * y1 - e2 / 3
    S = e3 - y1**3 + 3 * y1 * P
    return P, S, S * S / 4 - P**3


def _cubic(e: list[Fraction], show: Format) -> list[Step]:
    """Steps for n = 3."""
    y1 = e[1] / 3
    P, S, delta = _resolvent(y1, e[2], e[3])
    steps = [
        Step(
            "Take coordinates in which a cyclic shift of the roots only multiplies y2 and y3 by cube roots of unity, "
            "and a swap exchanges them:",
            (
                "w = exp(2 pi i/3)",
                "x1 = y1 + y2 + y3",
                "x2 = y1 + w y2 + w^2 y3",
                "x3 = y1 + w^2 y2 + w y3",
            ),
        ),
        Step(
            "So y1, y2 y3 and y2^3 + y3^3 are symmetric, and follow from e1, e2, e3:",
            (
                f"y1 = e1/3 = {show(y1)}",
                f"P = y2 y3 = y1^2 - e2/3 = {show(P)}",
                f"S = y2^3 + y3^3 = e3 - y1^3 + 3 y1 P = {show(S)}",
            ),
        ),
        Step(
            "Sum and product of y2^3 and y3^3 are known: they are the roots of a quadratic, the resolvent.",
            ("t^2 - S t + P^3 = 0", f"t = S/2 +- sqrt(D), D = S^2/4 - P^3 = {show(delta)}"),
        ),
    ]
    return [*steps, _cube_roots(P, S, delta)]


def _cube_roots(P: Fraction, S: Fraction, delta: Fraction) -> Step:
    """The last step for n = 3: y2, y3 and the roots, by the sign of D."""
    if P == 0 and S == 0:
        return Step("Both are 0, so y2 = y3 = 0: the three roots are equal.", ("x1 = x2 = x3 = y1",))
    if delta < 0:
        radius = math.sqrt(P)
        angle = math.atan2(math.sqrt(-delta), S / 2) / 3
        return Step(
            "D < 0: y2^3 and y3^3 are conjugate, so are y2 and y3, and the three roots are real. Radicals would pass "
            "through complex numbers; a cosine does not:",
            (
                "y2 = sqrt(P) exp(i a), cos(3 a) = S/(2 sqrt(P^3))",
                f"sqrt(P) = {decimal_text(radius)}, a = {decimal_text(angle)}",
                "x = y1 + 2 sqrt(P) cos(a + 2 pi k/3), k = 0, 1, 2",
            ),
        )
    root = math.sqrt(delta)
    half = float(S / 2)
    t = half + math.copysign(root, half)
    y2 = math.copysign(abs(t) ** (1 / 3), t)
    return Step(
        "D = 0: two roots meet."
        if delta == 0
        else "D > 0: y2 and y3 are real, so one root is real and two are a pair.",
        (
            f"t = {decimal_text(t)}{REMARK}the one of larger modulus",
            f"y2 = cbrt(t) = {decimal_text(y2)}",
            f"y3 = P/y2 = {decimal_text(float(P) / y2)}{REMARK}not by another cube root, because y2 y3 = P",
            f"x1 = y1 + y2 + y3{REMARK}and x2, x3 with w as above",
        ),
    )


def _quartic(e: list[Fraction], show: Format) -> list[Step]:
    """Steps for n = 4."""
    y1, p, q, r = depress_quartic(e)
    resolvent = quartic_resolvent(p, q, r)
    inner = exact_roots(resolvent)[0]
    z = sorted((complex(root.value) for root in inner for _ in range(root.multiplicity)), key=abs, reverse=True)
    shown = [root_text(root.exact, complex(root.value)) for root in inner for _ in range(root.multiplicity)]
    y2, y3 = (v**0.5 for v in z[:2])
    y4 = -float(q) / (8 * y2 * y3) if y2 * y3 else z[2] ** 0.5
    return [
        Step(
            "Take coordinates that swapping the roots in pairs only multiplies by signs:",
            (
                "x1 = y1 + y2 + y3 + y4",
                "x2 = y1 + y2 - y3 - y4",
                "x3 = y1 - y2 + y3 - y4",
                "x4 = y1 - y2 - y3 + y4",
            ),
        ),
        Step(
            "The mean is y1; on u = x - y1 the roots have sum 0:",
            (f"y1 = e1/4 = {show(y1)}", f"u^4 + p u^2 + q u + r = 0, p = {show(p)}, q = {show(q)}, r = {show(r)}"),
        ),
        Step(
            "The squares of y2, y3, y4 are only permuted, so they solve an equation of degree three, the resolvent; "
            "the product y2 y3 y4 is symmetric itself.",
            (
                "z^3 + (p/2) z^2 + ((p^2 - 4 r)/16) z - q^2/64 = 0",
                f"{polynomial_text(resolvent, show, 'z')} = 0",
                "z = " + ", ".join(shown),
                f"y2 y3 y4 = -q/8 = {show(-q / 8)}",
            ),
        ),
        Step(
            "Two square roots, of the z of largest modulus; the third coordinate follows from the product"
            + ("." if y2 * y3 else ", which is 0 here, so it is a square root as well."),
            (f"y2 = {complex_text(y2)}, y3 = {complex_text(y3)}, y4 = {complex_text(y4)}",),
        ),
    ]


def _above_degree_four(degree: int, factors: Sequence[list[int]] | None) -> list[Step]:
    """Why no general formula exists, the factors, and the special forms among them."""
    steps = [Step(explain_formula(degree, factors), ())]
    if factors and len(factors) > 1:
        lines = [polynomial_text([Fraction(c) for c in g], str) for g in factors]
        steps.append(Step("Over the rational numbers the distinct irreducible factors are:", tuple(lines)))
    for g in factors or ():
        form = special_form(g) if len(g) > 5 else None
        if form and form.kind != "cyclotomic":
            new = f"z = x^{form.k}" if form.kind == "power" else "z = x + 1/x"
            inner = polynomial_text([Fraction(c) for c in form.inner], str, "z")
            steps.append(Step(f"{polynomial_text([Fraction(c) for c in g], str)}: {form.says}.", (new, f"{inner} = 0")))
    return steps
