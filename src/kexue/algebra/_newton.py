"""One Newton step on the original polynomial, after a closed form."""

from __future__ import annotations

import numpy as np

from kexue.algebra.coefficients import Array

_STEP = 3e-10  # relative Newton step below which a second step changes nothing
_FAR = 0.1  # relative step beyond which the closed form is not near the root, and `aberth` starts from the beginning
_CONDITION = 8.0  # condition up to which residuals in plain floats are accurate enough


def newton(c: list[Array], x: Array) -> tuple[Array, Array]:
    """Make one Newton step; return x, NaN where the step is large, and whether the root needs refinement."""
    f, slope, size, w = c[0], np.zeros_like(x), abs(c[0]), abs(x)
    for k in c[1:]:
        slope = slope * x + f
        f = f * x + k
        size = size * w + abs(k)
    step = np.where(f == 0, 0.0, f / slope)
    large = abs(step) > _FAR * w
    return np.where(large, np.nan, x - step), ~((abs(step) <= _STEP * w) & (size <= _CONDITION * abs(x * slope)))


def complex_newton(c: list[Array], x: Array, y: Array) -> tuple[Array, Array, Array]:
    """(real part, imaginary part, needs refinement) of `newton` at x + iy, for real coefficients."""
    w = np.sqrt(x * x + y * y)
    f, g, s, t, size = c[0], np.zeros_like(x), np.zeros_like(x), np.zeros_like(x), abs(c[0])
    for k in c[1:]:
        s, t = s * x - t * y + f, s * y + t * x + g  # s + it the slope, f + ig the value
        f, g = f * x - g * y + k, f * y + g * x
        size = size * w + abs(k)
    square = s * s + t * t
    square = np.where(square == 0, np.finfo(float).tiny, square)
    dx, dy = (f * s + g * t) / square, (g * s - f * t) / square
    step = dx * dx + dy * dy
    flagged = ~(step <= (_STEP * w) ** 2) | (y - dy <= _STEP * w) | (size > _CONDITION * w * np.sqrt(square))
    return np.where(step > (_FAR * w) ** 2, np.nan, x - dx), y - dy, flagged
