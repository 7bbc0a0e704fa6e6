"""The discriminant: a^(2n-2) times the product of all (x_i - x_j)^2, zero exactly where roots meet."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from kexue.algebra.coefficients import as_doubles, as_floats, as_fractions, as_numbers, is_complex, is_exact
from kexue.algebra.numeric import numeric_roots
from kexue.algebra.rational import exact_discriminant


def discriminant(coefficients: Any) -> Any:
    """The discriminant of a polynomial with the given coefficients, highest power first.

    n = 2: b^2 - 4 a c.   n = 3: (4 A C - B^2)/3 with A = b^2 - 3ac, B = bc - 9ad, C = c^2 - 3bd.
    n = 4: (4 I^3 - J^2)/27 with I = 12ae - 3bd + c^2, J = 72ace + 9bcd - 27ad^2 - 27b^2 e - 2c^3.
    Beyond, by the resultant of f and f'. Positive for real coefficients when the number of conjugate pairs is even.

    Args:
        coefficients: n + 1 numbers, or a batch (..., n + 1) of degree 2, 3 or 4, numpy or torch (differentiable).

    Returns:
        an exact Fraction for whole numbers and Fractions; a float, exact up to its rounding, for a list of floats; a
        complex for complex ones; (...,) for a batch, by the formulas above, computed in float64 and returned in
        the batch's dtype (float32 for half precision). Leading zeros of a list are dropped. A value beyond the range of
        floats is inf.

    Raises:
        ValueError: all 0, not finite (numpy), or a batch of another degree. TypeError: not numbers.

    Example:
        >>> discriminant([1, -6, 11, -6])
        Fraction(4, 1)
    """
    torch = sys.modules.get("torch")
    tensor = torch is not None and isinstance(coefficients, torch.Tensor)
    if tensor or (isinstance(coefficients, np.ndarray) and coefficients.ndim > 1):
        return _formula(coefficients)
    c = as_numbers(coefficients)
    if any(map(is_complex, c)):
        return _of_complex(np.trim_zeros(np.array(as_floats(c)), "f"))
    p = as_fractions(c)
    if not p:
        raise ValueError("all coefficients are 0: every number is a root")
    exact = exact_discriminant(p)
    if is_exact(c):
        return exact
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _formula(x: Any) -> Any:
    """Discriminants (...,) of a batch (..., n + 1), n = 2, 3 or 4, in float64 inside."""
    n = x.shape[-1] - 1 if x.ndim else 0
    if n not in (2, 3, 4):
        raise ValueError(f"a batch must be (..., 3), (..., 4) or (..., 5), got {tuple(x.shape)}")
    if not isinstance(x, np.ndarray):
        from kexue.algebra._torch import in_double

        tensor, dtype = in_double(x)
        return _polynomial(tensor, n).to(dtype)
    if x.dtype.kind not in "iufcO":
        raise TypeError(f"coefficients must be numbers, got dtype {x.dtype}")
    wide = as_doubles(x)
    if not np.isfinite(wide).all():
        raise ValueError(f"coefficients must be finite, got {wide[~np.isfinite(wide)][0]} in the batch")
    kind = np.result_type(x.dtype, np.float32) if x.dtype.kind in "fc" else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        return _polynomial(wide, n).astype(kind)


def _polynomial(x: Any, n: int) -> Any:
    """The discriminant of degree n as a polynomial in the coefficients."""
    a, b, c = x[..., 0], x[..., 1], x[..., 2]
    if n == 2:
        return b * b - 4 * a * c
    d = x[..., 3]
    if n == 3:
        return (4 * (b * b - 3 * a * c) * (c * c - 3 * b * d) - (b * c - 9 * a * d) ** 2) / 3
    e = x[..., 4]
    first = 12 * a * e - 3 * b * d + c * c
    second = 72 * a * c * e + 9 * b * c * d - 27 * a * d * d - 27 * b * b * e - 2 * c**3
    return (4 * first**3 - second**2) / 27


def _of_complex(c: Any) -> complex:
    """The discriminant of complex coefficients, from the differences of the roots."""
    roots = np.array([root.value for root in numeric_roots(list(c)) for _ in range(root.multiplicity)])
    gaps = (roots[:, None] - roots)[np.triu_indices(len(roots), 1)]
    with np.errstate(over="ignore", invalid="ignore"):
        return complex(c[0] ** (2 * len(roots) - 2) * np.prod(gaps**2))
