"""Conversion of callers' coefficients: any numbers of Python, numpy or torch, to exact or floating-point ones."""

from __future__ import annotations

import cmath
import math
import numbers
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from kexue.algebra.rational import Poly, trim
from kexue.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def as_numbers(values: object, what: str = "coefficients") -> list[Any]:
    """The values as a list of numbers, each an int, Fraction, float, Decimal, complex or numpy longdouble.

    Args:
        values: any iterable of Python's or numpy's numbers of any width, or of 0-d arrays; an array or a tensor.

    Raises:
        TypeError: not an iterable of numbers. ValueError: a number that is not finite.
    """
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a sequence of numbers, got {values!r}")
    if getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{what} must be one sequence of numbers, got an array of shape {tuple(values.shape)}")  # type: ignore[attr-defined]
    return [_as_number(v, what) for v in values]


def _as_number(value: Any, what: str) -> Any:
    """One number; TypeError for anything else, ValueError unless it is finite."""
    number = value.tolist() if hasattr(value, "tolist") else value  # numpy scalars, 0-d arrays and tensors
    if not isinstance(number, numbers.Complex | Decimal) or isinstance(value, np.bool_):
        raise TypeError(f"{what} must be numbers, got {value!r} of type {type(value).__name__}")
    parts: Any = (number.real, number.imag) if isinstance(number, numbers.Complex) else (number,)
    if any(
        part.is_nan() or part.is_infinite() if isinstance(part, Decimal) else not abs(part) < math.inf for part in parts
    ):
        raise ValueError(f"{what} must be finite, got {value}")
    return number


def is_complex(number: Any) -> bool:
    """Return whether a number has an imaginary part other than 0."""
    return isinstance(number, numbers.Complex) and not isinstance(number, numbers.Real) and number.imag != 0


def is_exact(coefficients: Iterable[object]) -> bool:
    """Return whether all are whole numbers or Fractions."""
    return all(isinstance(c, numbers.Rational) for c in coefficients)


def as_fractions(coefficients: Iterable[Any]) -> Poly:
    """Real numbers from `as_numbers` as exact Fractions, without leading zeros; TypeError for another kind."""
    result = []
    for c in coefficients:
        real = c.real if isinstance(c, numbers.Complex) else c
        if not hasattr(real, "as_integer_ratio"):
            raise TypeError(f"coefficients must be real numbers, got {c!r} of type {type(c).__name__}")
        result.append(Fraction(*real.as_integer_ratio()))
    return trim(result)


def as_floats(coefficients: Iterable[Any]) -> list[Any]:
    """The numbers as floats, or all as complex where one is complex; DataError where a float cannot hold one."""
    given = list(coefficients)
    kind = complex if any(map(is_complex, given)) else float
    try:
        floats: list[Any] = [kind(c if kind is complex else c.real) for c in given]
    except OverflowError:
        floats = [math.inf]
    if not all(map(cmath.isfinite, floats)) or any(f == 0 != c for f, c in zip(floats, given, strict=True)):
        raise DataError(
            "a coefficient is beyond the range of floats (1e-324 to 1e308).",
            remedy="Give whole numbers or Fractions, or exact=True, if they are real; or divide all by one number.",
        )
    return floats


def as_doubles(x: Array) -> Array:
    """An array of numbers as float64 or complex128; a value beyond their range becomes infinite."""
    if x.dtype.kind == "O":
        if odd := [v for v in x.flat if not isinstance(v, numbers.Number)]:
            raise TypeError(f"expected numbers, got {odd[0]!r}")
        try:
            return x.astype(
                np.complex128 if any(isinstance(v, complex | np.complexfloating) for v in x.flat) else float
            )
        except OverflowError:
            raise ValueError(f"coefficients must fit 64-bit floats, got {x.tolist()}") from None
    with np.errstate(over="ignore"):  # of longdouble
        return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
