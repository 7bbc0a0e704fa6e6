"""A solution as JSON, and its numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from kexue._optional import import_optional
from kexue.algebra.root import Root
from kexue.algebra.root_set import RootSet


def solution_record(roots: RootSet, *, digits: int | None = None, steps: Sequence[str] = ()) -> dict[str, Any]:
    """A solved equation as a JSON object.

    Args:
        roots: of `solve`, with real coefficients that are exact.
        digits: decimal digits of the roots, which are then text; None gives numbers.
        steps: text of the steps, plain or LaTeX.
    """
    return {
        "polynomial": [_whole_or_text(c) for c in roots.coefficients],
        "degree": roots.degree,
        "discriminant": _whole_or_text(roots.discriminant),
        "nature": roots.nature,
        "formula_exists": roots.formula_exists,
        "roots": [_root_record(root, digits) for root in roots],
        "steps": list(steps),
    }


def value_text(z: Any, digits: int | None = None) -> str:
    """A root as text, such as ``"1.5 - 2i"``."""
    re, im = (str(_part(x, digits)).removesuffix(".0") for x in (z.real, z.imag))
    if im == "0":
        return re
    sign, size = ("-", im[1:]) if im.startswith("-") else ("+", im)
    imag = "i" if size == "1" else f"{size}i"
    return f"{re} {sign} {imag}" if re != "0" else f"{sign.replace('+', '')}{imag}"


def _root_record(root: Root, digits: int | None) -> dict[str, Any]:
    """One root as a JSON object; an infinite condition is null."""
    return {
        "re": _part(root.value.real, digits),
        "im": _part(root.value.imag, digits),
        "exact": None if root.exact is None else str(root.exact),
        "multiplicity": root.multiplicity,
        "backward_error": root.backward_error,
        "condition": root.condition if math.isfinite(root.condition) else None,
    }


def _whole_or_text(c: Fraction) -> int | str:
    """A whole number as a number, a fraction as text."""
    return c.numerator if c.denominator == 1 else str(c)


def _part(x: Any, digits: int | None) -> float | str:
    """Real or imaginary part of a root: a float, or text with `digits` digits."""
    if digits is None:
        return float(x)
    return str(import_optional("mpmath").nstr(x, digits))
