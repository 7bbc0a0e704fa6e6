"""Polynomials evaluated as if in twice the precision, by error-free sums and products (compensated Horner)."""

from __future__ import annotations

import numpy as np

from kexue.algebra.coefficients import Array

Halves = tuple[Array, Array]


def evaluate(c: Array, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return (f(z), z f'(z), sum |a_k| |z|^k, a_n z^n), up to a power of two.

    Coefficients are (m, n + 1), points (m, k). f is as accurate as if computed in twice the precision and rounded.
    """
    n = c.shape[1] - 1
    powers = np.arange(n, -1, -1)
    _, exponent = np.frexp(np.maximum(abs(z.real), abs(z.imag)))
    _, height = np.frexp(np.maximum(abs(c.real), abs(c.imag)))
    height = np.where(c == 0, -(10**6), height)
    shift = exponent[:, :, None] * powers
    top = (height[:, None, :] + shift).max(2, keepdims=True)
    re, im = (np.ldexp(part[:, None, :], shift - top) for part in (c.real, c.imag))
    x, y = np.ldexp(z.real, -exponent), np.ldexp(z.imag, -exponent)
    xs, ys = split_digits(x), split_digits(y)
    sr, si = re[..., 0], im[..., 0]
    er, ei = np.zeros_like(x), np.zeros_like(x)
    u, w = x + 1j * y, abs(x + 1j * y)
    slope, size = np.zeros_like(u), np.hypot(sr, si)
    for k in range(1, n + 1):
        slope = slope * u + (sr + 1j * si)
        size = size * w + np.hypot(re[..., k], im[..., k])
        srs, sis = split_digits(sr), split_digits(si)
        (a, ea), (b, eb) = two_product(sr, srs, x, xs), two_product(si, sis, y, ys)
        (d, ed), (e, ee) = two_product(sr, srs, y, ys), two_product(si, sis, x, xs)
        real, e1 = two_sum(a, -b)
        imag, e2 = two_sum(d, e)
        sr, e3 = two_sum(real, re[..., k])
        si, e4 = two_sum(imag, im[..., k])
        er, ei = er * x - ei * y + (ea - eb + e1 + e3), er * y + ei * x + (ed + ee + e2 + e4)
    return (sr + er) + 1j * (si + ei), u * slope, size, (re[..., 0] + 1j * im[..., 0]) * u**n


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b and its exact rounding error (TwoSum)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def split_digits(a: Array) -> Halves:
    """Return a as the sum of two numbers of half its digits (Veltkamp's splitting)."""
    t = 134217729.0 * a  # 2^27 + 1
    high = t - (t - a)
    return high, a - high


def two_product(a: Array, a_halves: Halves, b: Array, b_halves: Halves) -> tuple[Array, Array]:
    """Return a b and its exact rounding error (TwoProduct); the halves come from `split_digits`."""
    p = a * b
    (ah, al), (bh, bl) = a_halves, b_halves
    return p, al * bl - (((p - ah * bh) - al * bh) - ah * bl)
