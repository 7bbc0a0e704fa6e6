"""`kexue solve`: the roots of a polynomial equation, their derivation, and a figure of them."""

from __future__ import annotations

import cmath
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    # a polynomial may begin with a minus sign, which does not mark an option
    verb(app, "solve", examples=_EXAMPLES, context={"ignore_unknown_options": True})(solve)


def solve(
    out: Output,
    polynomial: Annotated[str, typer.Argument(help="A polynomial or an equation in one unknown, in quotes.")],
    steps: Annotated[bool, typer.Option("--steps", help="Show the derivation of the roots, step by step.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the steps as LaTeX; implies --steps.")] = False,
    digits: Annotated[
        int | None, typer.Option(help="Decimal digits of the roots (needs the algebra extra).", min=1, max=10_000)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of the roots in the complex plane to write (needs the figures extra).")
    ] = None,
) -> None:
    """Solve a polynomial equation through the symmetry of its roots: exactly up to degree four, numerically beyond."""
    with _integers_of_any_length():
        _answer(out, polynomial, steps, latex, digits, figure)


@contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Context without Python's limit on the digits of an integer; the input bounds the numbers."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def _answer(out: Output, polynomial: str, steps: bool, latex: bool, digits: int | None, figure: Path | None) -> None:
    """Solve, draw the figure if one is requested, and print the record."""
    from kexue import algebra
    from kexue.algebra.notation import polynomial_text
    from kexue.algebra.records import solution_record

    coefficients = algebra.parse_polynomial(polynomial)
    roots = algebra.solve(coefficients, digits=digits, steps=steps or latex)
    title = f"{polynomial_text(coefficients, str)} = 0"
    if figure is not None:
        _draw(roots, title, figure)
    lines = [step.latex if latex else step.text for step in roots.steps]
    record = solution_record(roots, digits=digits, steps=lines) | {"figure": None if figure is None else str(figure)}
    out.emit(record, lambda: "\n\n".join(lines) if latex else _plain_text(title, roots, lines, digits))


def _plain_text(title: str, roots: RootSet, steps: Sequence[str], digits: int | None) -> str:
    """The equation, its steps, its roots, and warnings, for a terminal."""
    from kexue.algebra.records import value_text

    size = f"discriminant {roots.discriminant}"
    lines = [
        title,
        f"degree {roots.degree}, {size if len(size) < 60 else 'a long discriminant'}: {roots.nature}",
        "",
        *(f"{number}. {step}" for number, step in enumerate(steps, 1)),
        *([""] if steps else []),
    ]
    for root in roots:
        value = value_text(root.value, digits)
        exact = f"   = {root.exact}" if root.exact is not None and str(root.exact) != value else ""
        lines.append(f"x = {value}{exact}" + (f"   {root.multiplicity} times" if root.multiplicity > 1 else ""))
    worst = max((root.condition for root in roots), default=0.0)
    if worst > 1e6:
        factor = "infinitely" if math.isinf(worst) else f"{worst:.1g} times"
        lines += ["", f"Sensitive: an error in the coefficients is magnified {factor} in a root."]
    if roots.degree > 4 and not steps:
        lines += ["", roots.explanation]
    return "\n".join(lines)


def _draw(roots: RootSet, title: str, path: Path) -> None:
    """Draw the roots as dots, joined to their mean, which is the coordinate y1."""
    from kexue._figures import save_figure

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

    save_figure(draw, path)


def _kind(z: complex) -> tuple[str, str]:
    """Colour and label of a root."""
    return ("tab:orange", "complex root") if z.imag else ("tab:blue", "real root")
