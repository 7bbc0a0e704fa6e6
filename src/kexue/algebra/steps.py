"""How the roots come about, step by step, in plain text and in LaTeX.

Source: kexue.fm/archives/1336 (degree two); degrees three and four continue its idea, see `kexue.algebra.closed`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from kexue.algebra.special import special_form

if TYPE_CHECKING:
    from kexue.algebra.equation import RootSet

Show = Callable[[Fraction], str]
_REMARK = " # "


class Step(NamedTuple):
    """One step: what is done, and the formulas, each both in plain text and in LaTeX.

    Attributes:
        says: a sentence.
        formulas: lines of plain text, such as ``"y1 = e1/2 = 3/2"``.
    """

    says: str
    formulas: tuple[str, ...]

    @property
    def text(self) -> str:
        """The step for a terminal."""
        return "\n".join([self.says, *(f"    {line.replace(_REMARK, '   # ')}" for line in self.formulas)])

    @property
    def latex(self) -> str:
        """The step for a LaTeX document that loads amsmath."""
        says = re.sub(
            r"\b(?:[exy]\d(?:\^\w+)?(?: y\d)*|[xz]\^\w+|[DPS] [<=>] 0)", lambda m: f"${_latex(m[0])}$", self.says
        )
        if not self.formulas:
            return says
        rows = " \\\\\n".join("  " + _latex(line) for line in self.formulas)
        return f"{says}\n\\begin{{gather*}}\n{rows}\n\\end{{gather*}}"


def teach(p: list[Fraction], roots: RootSet, exact: bool) -> tuple[Step, ...]:
    """The steps for a polynomial with real coefficients; `exact` writes fractions, else decimals."""

    def show(x: Fraction) -> str:
        return str(x) if exact and len(str(x)) < 30 else _decimal(float(x))

    n = len(p) - 1
    if n == 0:
        return (Step("A number other than 0 has no root.", ()),)
    e = [(-1) ** k * c / p[0] for k, c in enumerate(p)]
    steps = [_vieta(p, e, show)] if n <= 4 else []
    steps += {1: _linear, 2: _quadratic, 3: _cubic, 4: _quartic}[n](e, show) if n <= 4 else _beyond(roots)
    values = []
    for root in roots:
        value = complex(root.value)
        shown = (
            f"{root.exact} = {_complex(value)}" if isinstance(root.exact, str) else str(root.exact or _complex(value))
        )
        values.append(f"x = {shown}" + (f"{_REMARK}{root.multiplicity} times" if root.multiplicity > 1 else ""))
    return (*steps, Step("The roots:", tuple(values)))


def _vieta(p: list[Fraction], e: list[Fraction], show: Show) -> Step:
    n = len(p) - 1
    monic = polynomial_text([c / p[0] for c in p], show)
    sums = {1: ["x1"], 2: ["x1 + x2", "x1 x2"], 3: ["x1 + x2 + x3", "x1 x2 + x1 x3 + x2 x3", "x1 x2 x3"]}.get(
        n, ["x1 + x2 + x3 + x4", "x1 x2 + x1 x3 + ... + x3 x4", "x1 x2 x3 + ... + x2 x3 x4", "x1 x2 x3 x4"]
    )
    lines = [f"e{k} = {text} = {show(e[k])}" for k, text in enumerate(sums, 1)]
    return Step(
        "Divide by the leading coefficient. No permutation of the roots changes their elementary symmetric functions, "
        "and these stand in the equation (Vieta):",
        (f"{monic} = 0", *lines),
    )


def _linear(e: list[Fraction], show: Show) -> list[Step]:
    return []


def _quadratic(e: list[Fraction], show: Show) -> list[Step]:
    y1 = e[1] / 2
    square = y1 * y1 - e[2]
    return [
        Step(
            "Take coordinates that the swap of x1 and x2 hardly touches: y1 stays, y2 changes its sign.",
            ("x1 = y1 + y2", "x2 = y1 - y2"),
        ),
        Step(
            "So y1 and y2^2 are symmetric, and follow from e1 and e2:",
            (f"2 y1 = e1, y1 = {show(y1)}", f"y1^2 - y2^2 = e2, y2^2 = y1^2 - e2 = {show(square)}"),
        ),
        Step(
            "One square root, whose sign does not matter:", (f"y2 = {_root(square, 2, show)}", "x = y1 + y2, y1 - y2")
        ),
    ]


def _coordinates(y1: Fraction, e2: Fraction, e3: Fraction) -> tuple[Fraction, Fraction, Fraction]:
    P = y1 * y1 - e2 / 3
    S = e3 - y1**3 + 3 * y1 * P
    return P, S, S * S / 4 - P**3


def _cubic(e: list[Fraction], show: Show) -> list[Step]:
    y1 = e[1] / 3
    P, S, delta = _coordinates(y1, e[2], e[3])
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
    return [*steps, _cube_roots(P, S, delta, show)]


def _cube_roots(P: Fraction, S: Fraction, delta: Fraction, show: Show) -> Step:
    if P == 0 and S == 0:
        return Step("Both are 0, so y2 = y3 = 0: the three roots are one.", ("x1 = x2 = x3 = y1",))
    if delta < 0:
        radius = math.sqrt(P)
        angle = math.atan2(math.sqrt(-delta), S / 2) / 3
        return Step(
            "D < 0: y2^3 and y3^3 are conjugate, so are y2 and y3, and the three roots are real. Radicals would pass "
            "through complex numbers; a cosine does not:",
            (
                "y2 = sqrt(P) exp(i a), cos(3 a) = S/(2 sqrt(P^3))",
                f"sqrt(P) = {_decimal(radius)}, a = {_decimal(angle)}",
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
            f"t = {_decimal(t)}{_REMARK}the one of larger modulus",
            f"y2 = cbrt(t) = {_decimal(y2)}",
            f"y3 = P/y2 = {_decimal(float(P) / y2)}{_REMARK}no cube root of its own, as the product is P",
            f"x1 = y1 + y2 + y3{_REMARK}and x2, x3 with w as above",
        ),
    )


def _quartic(e: list[Fraction], show: Show) -> list[Step]:
    y1 = e[1] / 4
    p, q = e[2] - 6 * y1**2, 2 * y1 * (e[2] - 4 * y1**2) - e[3]
    r = e[4] - y1 * (e[3] - y1 * (e[2] - 3 * y1**2))
    resolvent = [Fraction(1), p / 2, (p * p - 4 * r) / 16, -q * q / 64]
    from kexue.algebra.equation import solve

    inner = solve(resolvent)
    z = sorted(inner.values, key=abs, reverse=True)
    shown = [_value(root.exact, complex(root.value)) for root in inner for _ in range(root.multiplicity)]
    y2, y3 = (complex(v) ** 0.5 for v in z[:2])
    y4 = -float(q) / (8 * y2 * y3) if y2 * y3 else complex(z[2]) ** 0.5
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
            (f"y2 = {_complex(y2)}, y3 = {_complex(y3)}, y4 = {_complex(y4)}",),
        ),
    ]


def _beyond(roots: RootSet) -> list[Step]:
    steps = [Step(roots.explanation, ())]
    factors = roots._factors
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


def polynomial_text(p: list[Fraction], show: Show, unknown: str = "x") -> str:
    """``"x^3 - 6 x^2 + 11 x - 6"``."""
    n, parts = len(p) - 1, []
    for k, c in enumerate(p):
        if not c and n:
            continue
        power = "" if k == n else unknown if k == n - 1 else f"{unknown}^{n - k}"
        size = show(abs(c))
        size = f"({size})" if "/" in size and power else size
        parts += ["-" if c < 0 else "+", " ".join([size] * (abs(c) != 1 or not power) + [power] * bool(power))]
    text = " ".join(parts[1:])
    return f"-{text}" if parts[0] == "-" else text


def _root(x: Fraction, k: int, show: Show) -> str:
    """A square root, exact where it is rational."""
    size = abs(x)
    top, bottom = math.isqrt(size.numerator), math.isqrt(size.denominator)
    exact = top * top == size.numerator and bottom * bottom == size.denominator
    value = show(Fraction(top, bottom)) if exact else _decimal(math.sqrt(size))
    return value if x >= 0 else f"{value} i"


def _value(exact: Fraction | str | None, value: complex) -> str:
    return _complex(value) if exact is None else str(exact)


def _decimal(x: float) -> str:
    return f"{x:.10g}"


def _complex(z: complex) -> str:
    if abs(z.imag) <= 1e-15 * abs(z.real):
        return _decimal(z.real)
    size = _decimal(abs(z.imag))
    imag = "i" if size == "1" else f"{size} i"
    if abs(z.real) <= 1e-15 * abs(z.imag):
        return imag if z.imag > 0 else f"-{imag}"
    return f"{_decimal(z.real)} {'+' if z.imag > 0 else '-'} {imag}"


def _latex(line: str) -> str:
    """A formula of ours as LaTeX."""
    formula, _, remark = line.partition(_REMARK)
    text = re.sub(r"\b([exy])(\d)\b", r"\1_\2", formula)
    text = re.sub(r"(?<![\^_\d])(\d+)/(\d+)\b", r"\\tfrac{\1}{\2}", text)
    text = re.sub(r"\^(\w{2,})", r"^{\1}", text)
    text = re.sub(r"(\d)e([+-]\d+)", r"\1\\cdot 10^{\2}", text)
    for name, command in (("sqrt", r"\\sqrt"), ("cbrt", r"\\sqrt[3]")):
        text = re.sub(rf"\b{name}\(([^()]*)\)", rf"{command}{{\1}}", text)
    text = re.sub(r"\b(exp|cos)\b", r"\\\1", text)
    text = re.sub(r"\bpi\b", r"\\pi", text).replace("+-", r"\pm").replace("...", r"\dots")
    text = re.sub(r"\bI\b", "i", text.replace("*", r"\,")).replace(", ", r",\quad ")
    return text + (rf"\quad\text{{({remark})}}" if remark else "")
