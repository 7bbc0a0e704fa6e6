"""Roots in floating point, for real or complex coefficients of any degree."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np

from kexue.algebra._aberth import aberth
from kexue.algebra._ordering import sort_roots
from kexue.algebra.closed import batch_roots
from kexue.algebra.coefficients import Array
from kexue.algebra.root import Root, measure_errors
from kexue.errors import DataError

_LOST = 1e-6  # backward error that only an overflow explains


def numeric_roots(coefficients: list[Any]) -> list[Root]:
    """The distinct roots, in order, of floats or complex numbers whose first is not 0.

    Raises:
        DataError: a root beyond the range of floats.
    """
    row = np.array(coefficients)
    values = _values(row)
    if not np.isfinite(abs(values)).all():
        raise _range_error(coefficients)
    pairs = [(Fraction(float(v.real)), Fraction(float(v.imag))) for v in row]
    roots = [Root(z, m, *measure_errors(pairs, z, m), None) for z, m in Counter(complex(v) for v in values).items()]
    if max((r.backward_error for r in roots), default=0.0) > _LOST:
        raise _range_error(coefficients)
    return roots


def _values(row: Array) -> Array:
    """(n,) complex roots, repeated by multiplicity; not finite beyond the range of floats."""
    n = len(row) - 1
    with np.errstate(all="ignore"):
        if n in (2, 3, 4):
            return batch_roots(row, n)
        kept = np.trim_zeros(row, "b")
        m = len(kept) - 1
        nonzero = aberth(kept[None])[0] if m > 1 else -kept[1:] / kept[:1]
        return sort_roots(np.concatenate([nonzero, np.zeros(n - m)]).astype(np.complex128) + 0.0)


def _range_error(c: list[Any]) -> DataError:
    """The error for roots that floats cannot hold."""
    return DataError(
        f"some roots of {c} are beyond the range of floats (1e-324 to 1e308).", remedy="Give exact=True and digits=20."
    )
