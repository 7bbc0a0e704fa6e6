"""Order of roots: real ones first, ascending; then by real and imaginary part; NaN, which is not a root, last."""

from __future__ import annotations

import numpy as np

from kexue.algebra.coefficients import Array


def sort_roots(roots: Array) -> Array:
    """Real roots first, ascending; then by real and imaginary part; NaN last."""
    keys = (roots.imag, roots.real, np.where(np.isnan(roots), 2, roots.imag != 0))
    return np.take_along_axis(roots, np.lexsort(keys, axis=-1), -1)


def sort_pairs(roots: Array) -> Array:
    """Sort four roots in two pairs, each two ascending real roots or a conjugate pair, faster than `sort_roots`."""
    first, second = roots.imag[:, 0] != 0, roots.imag[:, 2] != 0
    left, right = roots.real[:, 0], roots.real[:, 2]
    rows = np.flatnonzero(~second & first | first & second & (right < left))
    roots[rows] = roots[rows][:, [2, 3, 0, 1]]
    rows = np.flatnonzero(~(first | second))
    roots.real[rows] = np.sort(roots.real[rows], axis=1)
    rows = np.flatnonzero(first & second & (left == right))
    roots[rows] = sort_roots(roots[rows])
    return roots


def join_parts(re: Array, im: Array) -> Array:
    """Real and imaginary parts (n, m) as complex roots (m, n)."""
    roots = np.empty(re.shape[::-1], np.complex128)
    roots.real, roots.imag = re.T, im.T
    return roots
