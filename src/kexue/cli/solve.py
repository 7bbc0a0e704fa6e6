"""`kexue solve`: the roots of a polynomial, how they come about, and where they lie."""

from __future__ import annotations

import cmath
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue._optional import import_optional
from kexue.cli._verb import Output, verb
from kexue.errors import DataError

if TYPE_CHECKING:
    from kexue.algebra import RootSet

_EXAMPLES = (
    'kexue solve "x^3-6x^2+11x-6"',
    'kexue solve "2(t-1)^2 = 3t/4" --steps',
    'kexue solve "x^4-10x^2+1" --steps --latex',
    'kexue solve "x^5-x-1" --digits 50',
    'kexue solve "x^6 + x^3 + 2" --figure roots.png --json',
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    # a polynomial may begin with a minus sign, which is no option
    verb(app, "solve", examples=_EXAMPLES, context={"ignore_unknown_options": True})(solve)


def solve(
    out: Output,
    polynomial: Annotated[str, typer.Argument(help="A polynomial or an equation in one unknown, in quotes.")],
    steps: Annotated[bool, typer.Option("--steps", help="Show how the roots come about.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="The steps as LaTeX; implies --steps.")] = False,
    digits: Annotated[
        int | None, typer.Option(help="Decimal digits of the roots (needs the algebra extra).", min=1, max=10_000)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of the roots in the complex plane (needs the figures extra).")
    ] = None,
) -> None:
    """Solve a polynomial equation through the symmetry of its roots: exactly up to degree four, numerically beyond."""
    with _integers_of_any_length():
        _answer(out, polynomial, steps, latex, digits, figure)


@contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Lift Python's limit on the digits of an integer: what was typed bounds the numbers."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def _answer(out: Output, polynomial: str, steps: bool, latex: bool, digits: int | None, figure: Path | None) -> None:
    from kexue import algebra
    from kexue.algebra.steps import polynomial_text

    coefficients = algebra.parse_polynomial(polynomial)
    roots = algebra.solve(coefficients, digits=digits, steps=steps or latex)
    if figure is not None:
        _draw(roots, f"{polynomial_text(coefficients, str)} = 0", figure)
    shown = [step.latex if latex else step.text for step in roots.steps]
    record = {
        "polynomial": [_plain(c) for c in roots.coefficients],
        "degree": roots.degree,
        "discriminant": _plain(roots.discriminant),
        "nature": roots.nature,
        "formula_exists": roots.formula_exists,
        "roots": [
            {
                "re": _digits(root.value.real, digits),
                "im": _digits(root.value.imag, digits),
                "exact": None if root.exact is None else str(root.exact),
                "multiplicity": root.multiplicity,
                "backward_error": root.backward_error,
                "condition": root.condition if math.isfinite(root.condition) else None,
            }
            for root in roots
        ],
        "steps": shown,
        "figure": None if figure is None else str(figure),
    }

    def text() -> str:
        if latex:
            return "\n\n".join(shown)
        size = f"discriminant {roots.discriminant}"
        lines = [
            f"{polynomial_text(coefficients, str)} = 0",
            f"degree {roots.degree}, {size if len(size) < 60 else 'a long discriminant'}: {roots.nature}",
            "",
            *(f"{number}. {step}" for number, step in enumerate(shown, 1)),
            *([""] if shown else []),
        ]
        for root in roots:
            times = f"   {root.multiplicity} times" if root.multiplicity > 1 else ""
            exact = (
                f"   = {root.exact}" if root.exact is not None and str(root.exact) != _value(root.value, digits) else ""
            )
            lines.append(f"x = {_value(root.value, digits)}{exact}{times}")
        worst = max((root.condition for root in roots), default=0.0)
        if worst > 1e6:
            moved = "infinitely" if math.isinf(worst) else f"{worst:.1g} times"
            lines += ["", f"Sensitive: an error in the coefficients is magnified {moved} in a root."]
        if roots.degree > 4 and not shown:
            lines += ["", roots.explanation]
        return "\n".join(lines)

    out.emit(record, text)


def _plain(c: Fraction) -> int | str:
    """A whole number as it is, a fraction as text."""
    return c.numerator if c.denominator == 1 else str(c)


def _digits(x: Any, digits: int | None) -> float | str:
    if digits is None:
        return float(x)
    return str(import_optional("mpmath").nstr(x, digits))


def _value(z: Any, digits: int | None) -> str:
    re, im = (str(_digits(part, digits)).removesuffix(".0") for part in (z.real, z.imag))
    if im == "0":
        return re
    sign, size = ("-", im[1:]) if im.startswith("-") else ("+", im)
    imag = "i" if size == "1" else f"{size}i"
    return f"{re} {sign} {imag}" if re != "0" else f"{sign.replace('+', '')}{imag}"


def _draw(roots: RootSet, title: str, path: Path) -> None:
    """Roots as dots, joined to their mean, which is the coordinate y1."""
    from kexue._figures import save_picture

    if not all(map(cmath.isfinite, roots.values)):
        raise DataError("roots beyond the range of floats cannot be drawn.", remedy="Leave out --figure.")

    def draw(figure: Any) -> None:
        figure.set_size_inches(6.5, 6)
        axes = figure.add_subplot()
        values = roots.values
        mean = values.mean() if len(values) else 0j
        axes.axhline(0, color="0.5", lw=0.8)
        axes.axvline(0, color="0.5", lw=0.8)
        for root in roots:
            z = complex(root.value)
            axes.plot([mean.real, z.real], [mean.imag, z.imag], color="0.75", lw=1, zorder=1)
            axes.plot(z.real, z.imag, "o", ms=9, color=_kind(z)[0], zorder=3)
            if root.multiplicity > 1:
                axes.annotate(f"×{root.multiplicity}", (z.real, z.imag), xytext=(8, 8), textcoords="offset points")
        axes.plot(mean.real, mean.imag, "k+", ms=11, zorder=4, label="mean of the roots")
        for color, kind in sorted({_kind(complex(root.value)) for root in roots}):
            axes.plot([], [], "o", color=color, label=kind)
        axes.set(xlabel="real part", ylabel="imaginary part", title=title if len(title) < 60 else f"{title[:57]}...")
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.15)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)

    save_picture(draw, path)


def _kind(z: complex) -> tuple[str, str]:
    return ("tab:orange", "complex root") if z.imag else ("tab:blue", "real root")
