"""Closed forms for complex coefficients: formulas of `kexue.algebra.closed`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kexue.algebra._newton import newton
from kexue.algebra._ordering import sort_roots
from kexue.algebra._real_forms import depressed_linear, resolvent
from kexue.algebra.coefficients import Array


def _add_newton(form: Callable[..., list[Array]]) -> Callable[[list[Array]], tuple[Array, Array]]:
    """Add a Newton step to a closed form; it then returns sorted roots (m, n), and which rows need refinement."""

    def solve(c: list[Array]) -> tuple[Array, Array]:
        pairs = [newton(c, x) for x in form(*(v / c[0] for v in c[1:]))]
        roots = sort_roots(np.stack([x for x, _ in pairs], 1))
        return roots, np.any([bad for _, bad in pairs], 0)

    return solve


def _two_roots(b: Array, c: Array) -> list[Array]:
    """Return the roots of x^2 + b x + c."""
    h = -b / 2  # section "Two roots"
    root = np.sqrt(h * h - c)
    larger = np.where(abs(h + root) >= abs(h - root), h + root, h - root)
    return [larger, c / larger]


def _three_roots(b: Array, c: Array, d: Array) -> list[Array]:
    """n = 3."""
    y1 = -b / 3  # section "Three roots"
    P, half, delta = resolvent(y1, c, -d)
    root = np.sqrt(delta)
    t = np.where(abs(half + root) >= abs(half - root), half + root, half - root)
    y2 = t ** (1 / 3)
    y3 = np.where(y2 == 0, 0.0, P / y2)
    w = complex(-0.5, np.sqrt(0.75))
    return [y1 + y2 + y3, y1 + w * y2 + w.conjugate() * y3, y1 + w.conjugate() * y2 + w * y3]


def _four_roots(b: Array, c: Array, d: Array, e: Array) -> list[Array]:
    """n = 4."""
    y1 = -b / 4  # section "Four roots"
    square = y1 * y1
    p, q, r = c - 6 * square, depressed_linear(y1, c, -d), e + y1 * (d + y1 * (c - 3 * square))
    z = np.stack(_three_roots(p / 2, (p * p - 4 * r) / 16, -q * q / 64))
    z = np.take_along_axis(z, abs(z).argsort(0), 0)
    y2, y3 = np.sqrt(z[2]), np.sqrt(z[1])
    y4 = np.where(y2 * y3 == 0, np.sqrt(z[0]), -q / (8 * y2 * y3))
    return [y1 + y2 + y3 + y4, y1 + y2 - y3 - y4, y1 - y2 + y3 - y4, y1 - y2 - y3 + y4]


COMPLEX_FORMS = {2: _add_newton(_two_roots), 3: _add_newton(_three_roots), 4: _add_newton(_four_roots)}
