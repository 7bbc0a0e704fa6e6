"""Solve one polynomial equation: its roots with their errors, exactly where the coefficients are exact.

Source: kexue.fm/archives/1336.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from kexue.algebra.coefficients import as_floats, as_fractions, as_numbers, is_complex, is_exact
from kexue.algebra.exact import exact_roots
from kexue.algebra.numeric import numeric_roots
from kexue.algebra.parsing import parse_polynomial
from kexue.algebra.rational import Poly
from kexue.algebra.root_set import RootSet
from kexue.algebra.steps import derive_steps
from kexue.errors import DataError


def solve(
    coefficients: Iterable[Any] | str,
    *,
    exact: bool | None = None,
    digits: int | None = None,
    steps: bool = False,
) -> RootSet:
    """All roots of a polynomial of any degree, with their multiplicities and errors.

    Degree 2 to 4 by the symmetric coordinates of `kexue.algebra.closed`; above, numerically, and exactly where the
    polynomial factors or has a special form.

    Args:
        coefficients: numbers, highest power first, or text such as ``"x^3 - 6x^2 + 11x = 6"``.
        exact: None: whole numbers, Fractions and text are exact, floats are not. True takes floats as the binary
            fractions they are; False computes in floating point.
        digits: decimal digits of the roots, >= 1, as mpmath numbers (extra `algebra`); for real coefficients.
        steps: also derive the roots step by step, for real coefficients.

    Raises:
        ValueError: all coefficients 0, or one not finite; `DataError`: text that is not a polynomial (showing where),
            or numbers or roots beyond the range of floats; `digits` or `exact` avoid that.
        TypeError: not numbers.

    Example:
        >>> roots = solve([1, -9, 27, -27])
        >>> roots[0].exact, roots[0].multiplicity
        (Fraction(3, 1), 3)
        >>> solve("x^2 = x + 1")[1].exact
        '1/2 + sqrt(5)/2'
    """
    given = parse_polynomial(coefficients) if isinstance(coefficients, str) else as_numbers(coefficients)
    if digits is not None and digits < 1:
        raise ValueError(f"digits must be 1 or more, got {digits}")
    if any(map(is_complex, given)):
        if exact or digits is not None or steps:
            raise ValueError("exact, digits and steps need real coefficients")
        return _solve_in_floats(as_floats(given))
    p = as_fractions(given)
    if not p:
        raise ValueError("all coefficients are 0: every number is a root")
    exact = is_exact(given) if exact is None else exact
    result = _solve_exactly(p, digits, exact) if exact or digits is not None else _solve_in_floats(as_floats(p))
    if steps:
        try:
            result.steps = derive_steps(p, result, result.factors, exact)
        except OverflowError:
            raise DataError(
                "the steps pass through numbers beyond the range of floats.", remedy="Leave out steps."
            ) from None
    return result


def _solve_in_floats(coefficients: list[Any]) -> RootSet:
    """Roots of floats or complex numbers, which may begin with zeros."""
    row = [v.item() for v in np.trim_zeros(np.array(coefficients), "f")]
    return RootSet(row, numeric_roots(row), None)


def _solve_exactly(p: Poly, digits: int | None, exact: bool) -> RootSet:
    """Roots of Fractions; without `exact` the coefficients count as floats, and the roots have no exact form."""
    roots, factors = exact_roots(p, digits)
    if exact:
        return RootSet(p, roots, factors)
    return RootSet(as_floats(p), [replace(root, exact=None) for root in roots], None)


def nature(coefficients: Iterable[Any] | str) -> str:
    """Number of real, complex, simple and multiple roots, in words; exact for exact coefficients.

    Example:
        >>> nature([1, -4, 5, -2])
        '1 simple real root and 1 double real root'
        >>> nature([1, 0, 0, -1])
        '1 simple real root and 1 simple pair of complex roots'
    """
    return solve(coefficients).nature
