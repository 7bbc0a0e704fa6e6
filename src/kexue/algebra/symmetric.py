"""Symmetric functions of roots: elementary ones, power sums, and coordinates on which permutations act simply.

Source: kexue.fm/archives/1336. Symmetric functions of the roots are polynomials in the coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.algebra.coefficients import Array, as_doubles, as_floats, as_numbers, is_exact


def symmetric_coordinates(roots: Any) -> Array:
    """The coordinates y of 2, 3 or 4 roots: characters of a commutative group that permutes them.

    n = 2, 3:  y_{k+1} = (1/n) sum over j of w^{-jk} x_{j+1},  w = exp(2 pi i/n): the discrete Fourier transform
    n = 4:     y = (1/4) H x with the signs ++++, ++--, +-+-, +--+ of the Klein four-group

    A cyclic shift of 3 roots multiplies y2 and y3 by cube roots of unity, so y2 y3 and y2^3 + y3^3 stay; the swaps
    of 4 roots in pairs change signs of y, so their squares stay. Source: kexue.fm/archives/1336 for n = 2.

    Args:
        roots: (..., n), real or complex.

    Returns:
        (..., n) complex128, y1 the mean.

    Raises:
        ValueError: n is not 2, 3 or 4.

    Example:
        >>> symmetric_coordinates([5.0, 1.0]).tolist()
        [(3+0j), (2+0j)]
    """
    x = _wide(roots).astype(np.complex128)
    n = x.shape[-1] if x.ndim else 0
    if n not in (2, 3, 4):
        raise ValueError(f"coordinates are for 2, 3 or 4 roots, got {n}")
    if n == 4:
        signs = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
        return np.asarray(x @ signs / 4)
    # section "Two roots" for n = 2
    w = {2: -1.0, 3: complex(-0.5, np.sqrt(0.75))}[n]
    transform = np.array([[np.conj(w) ** (j * k % n) for k in range(n)] for j in range(n)])
    return np.asarray(x @ transform / n)


def elementary_symmetric(roots: Any) -> Any:
    """e_1, ..., e_n of n roots: e_k is the sum of all products of k of them (Vieta: coefficient (-1)^k e_k).

    Args:
        roots: (..., n) numbers; whole numbers and Fractions give an exact list.

    Returns:
        (..., n) array of the roots' dtype (float32 for half precision), computed in double precision, or a list of
        exact numbers.

    Example:
        >>> elementary_symmetric([1, 2, 3])
        [6, 11, 6]
    """
    if not hasattr(roots, "dtype"):
        roots = list(roots)
        if is_exact(map(_plain, roots)):
            roots = [_plain(x) for x in roots]
    if isinstance(roots, list) and is_exact(roots):
        exact: list[Any] = [0] * len(roots)
        for count, x in enumerate(roots):
            for k in range(count, -1, -1):
                exact[k] += x * (exact[k - 1] if k else 1)
        return exact
    x = _wide(roots)
    if not x.ndim:
        raise ValueError(f"expected (..., n) roots, got {roots!r}")
    e = np.zeros_like(x)
    for count in range(x.shape[-1]):
        for k in range(count, -1, -1):
            e[..., k] += x[..., count] * (e[..., k - 1] if k else 1)
    given = getattr(roots, "dtype", x.dtype)
    return e.astype(np.result_type(given, np.float32)) if given.kind in "fc" else e


def _plain(value: Any) -> Any:
    """An integer of numpy as Python's; other numbers unchanged."""
    return value.tolist() if isinstance(value, np.integer) else value


def _wide(roots: Any) -> Array:
    """Numbers as an array in double precision or better; TypeError for other values, ValueError unless finite."""
    x = np.asarray(roots if hasattr(roots, "dtype") else list(roots))
    if x.dtype.kind not in "biufcO":
        raise TypeError(f"roots must be numbers, got {roots!r}")
    x = x if x.dtype.type in (np.float64, np.complex128, np.longdouble, np.clongdouble) else as_doubles(x)
    if not np.isfinite(x).all():
        raise ValueError(f"roots must be finite, got {roots!r}")
    return x


def power_sums(coefficients: Iterable[Any], m: int) -> Any:
    """p_1, ..., p_m, the sums of the k-th powers of the roots, without solving, by Newton's identities.

    p_k = e_1 p_{k-1} - e_2 p_{k-2} + ... + (-1)^{k-1} k e_k,  e_k = 0 for k > n.

    Args:
        coefficients: n + 1 numbers, highest power first; exact ones give an exact list.
        m: the highest power, >= 0.

    Returns:
        (m,) array, or a list of Fractions.

    Raises:
        ValueError: a leading coefficient of 0, a coefficient that is not finite, or m < 0. TypeError: not numbers.

    Example:
        >>> [int(p) for p in power_sums([1, -6, 11, -6], 3)]  # 1 + 2 + 3, 1 + 4 + 9, 1 + 8 + 27
        [6, 14, 36]
    """
    c = as_numbers(coefficients)
    if not c or c[0] == 0:
        raise ValueError("the leading coefficient must not be 0")
    if m < 0:
        raise ValueError(f"m must be 0 or more, got {m}")
    exact = is_exact(c)
    monic = [Fraction(v) for v in c] if exact else as_floats(c)
    a = [v / monic[0] for v in monic]  # a_k = (-1)^k e_k
    p: list[Any] = []
    for k in range(1, m + 1):
        total = -k * a[k] if k < len(a) else a[0] * 0
        for j in range(1, min(k, len(a))):
            total -= a[j] * p[k - 1 - j]
        p.append(total)
    return p if exact else np.array(p)


def express_symmetric(polynomial: Any, variables: Sequence[Any]) -> Any:
    """A symmetric polynomial written in the elementary symmetric ones, by Gauss' rule.

    The leading monomial x1^a1 x2^a2 ... has a1 >= a2 >= ...; subtracting the same multiple of
    e1^(a1-a2) e2^(a2-a3) ... removes it and leaves a smaller symmetric polynomial.

    Args:
        polynomial: a sympy expression, or text that names the variables.
        variables: the symbols, or their names, in which the polynomial is symmetric.

    Returns:
        a sympy expression in e1, e2, ...; other symbols stay unchanged.

    Raises:
        ValueError: not a polynomial in these variables, or not symmetric: the message names a swap that changes it.
        MissingDependencyError: sympy is not installed (extra `algebra`).

    Example:
        >>> express_symmetric("x^2 + y^2", ["x", "y"])
        e1**2 - 2*e2
    """
    sympy = import_optional("sympy")
    symbols = [sympy.Symbol(v) if isinstance(v, str) else v for v in variables]
    if not symbols or len(set(symbols)) != len(symbols):
        raise ValueError(f"expected distinct variables, got {[str(v) for v in symbols]}")
    if isinstance(polynomial, str):
        polynomial = _read(polynomial, symbols)
    try:
        rest = sympy.Poly(polynomial, *symbols)
    except sympy.PolynomialError:
        raise ValueError(f"{polynomial} is not a polynomial in {', '.join(map(str, symbols))}") from None
    if rest.as_expr().has(sympy.nan, sympy.zoo, sympy.oo):
        raise ValueError(f"{polynomial} has a coefficient that is not finite")
    n = len(symbols)
    for i in range(n - 1):
        swapped = {symbols[i]: symbols[i + 1], symbols[i + 1]: symbols[i]}
        if sympy.Poly(rest.as_expr().xreplace(swapped), *symbols) != rest:
            raise ValueError(f"{polynomial} is not symmetric: it changes when {symbols[i]} and {symbols[i + 1]} swap")
    named = sympy.symbols(f"e1:{n + 1}")
    elementary = [sympy.Poly(e, *symbols) for e in _elementary(sympy, symbols)]
    result = sympy.Integer(0)
    while not rest.is_zero:
        powers, coefficient = rest.terms(order="lex")[0]
        factors = [a - b for a, b in zip(powers, (*powers[1:], 0), strict=True)]
        result += coefficient * sympy.Mul(*(e**k for e, k in zip(named, factors, strict=True)))
        for e, k in zip(elementary, factors, strict=True):
            if k:
                coefficient = coefficient * e**k
        rest -= coefficient
    return sympy.expand(result)


def _elementary(sympy: Any, symbols: list[Any]) -> list[Any]:
    """e_1, ..., e_n of the symbols, as sympy expressions."""
    e: list[Any] = [sympy.Integer(1)] + [sympy.Integer(0)] * len(symbols)
    for x in symbols:
        for k in range(len(symbols), 0, -1):
            e[k] = sympy.expand(e[k] + x * e[k - 1])
    return e[1:]


def _read(text: str, symbols: list[Any]) -> Any:
    """Text as a sympy polynomial in the symbols, by the grammar of Python's parser; nothing is executed."""
    import ast

    names = {str(s): s for s in symbols}
    operators = {
        ast.Add: "__add__",
        ast.Sub: "__sub__",
        ast.Mult: "__mul__",
        ast.Div: "__truediv__",
        ast.Pow: "__pow__",
    }
    sympy = import_optional("sympy")

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            if abs(node.value) == float("inf"):
                raise ValueError(f"a number in {text!r} is beyond the range of floats: write it as a power")
            return sympy.Integer(node.value) if isinstance(node.value, int) else sympy.Rational(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            return -build(node.operand) if isinstance(node.op, ast.USub) else build(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            left, right = build(node.left), build(node.right)
            if isinstance(node.op, ast.Pow) and not (right.is_Integer and 0 <= right <= 100):
                raise ValueError(f"a power must be a whole number from 0 to 100, got {ast.unparse(node.right)}")
            return getattr(left, operators[type(node.op)])(right)
        raise ValueError(
            f"{ast.unparse(node)!r} in {text!r} is not understood; the variables are {', '.join(names)}, "
            "and products are written with *"
        )

    try:
        tree = ast.parse(text.replace("^", "**").strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not understood at character {error.offset}; write products with *") from None
    return build(tree.body)
