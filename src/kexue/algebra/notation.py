"""Polynomials and numbers as plain text, and formulas of that text as LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

Format = Callable[[Fraction], str]  # a number as text
REMARK = " # "  # between a formula and the remark on it


def polynomial_text(p: list[Fraction], show: Format, unknown: str = "x") -> str:
    """A polynomial as text, such as ``"x^3 - 6 x^2 + 11 x - 6"``; `show` writes its coefficients."""
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


def square_root_text(x: Fraction, show: Format) -> str:
    """The square root of x, exact where it is rational, with "i" for a negative x."""
    size = abs(x)
    top, bottom = math.isqrt(size.numerator), math.isqrt(size.denominator)
    exact = top * top == size.numerator and bottom * bottom == size.denominator
    value = show(Fraction(top, bottom)) if exact else decimal_text(math.sqrt(size))
    return value if x >= 0 else f"{value} i"


def root_text(exact: Fraction | str | None, value: complex) -> str:
    """The exact form of a root, or its value where it has none."""
    return complex_text(value) if exact is None else str(exact)


def decimal_text(x: float) -> str:
    """Ten digits of x."""
    return f"{x:.10g}"


def complex_text(z: complex) -> str:
    """Return ten digits of both parts of z; a part that is only rounding error of the other is left out."""
    if abs(z.imag) <= 1e-15 * abs(z.real):
        return decimal_text(z.real)
    size = decimal_text(abs(z.imag))
    imag = "i" if size == "1" else f"{size} i"
    if abs(z.real) <= 1e-15 * abs(z.imag):
        return imag if z.imag > 0 else f"-{imag}"
    return f"{decimal_text(z.real)} {'+' if z.imag > 0 else '-'} {imag}"


def to_latex(line: str) -> str:
    """A line of the text above, with its remark, as LaTeX."""
    formula, _, remark = line.partition(REMARK)
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
