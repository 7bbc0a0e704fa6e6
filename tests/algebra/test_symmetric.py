import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given, settings, strategies as st

from kexue.algebra import elementary_symmetric, express_symmetric, power_sums, symmetric_coordinates


def test_power_sums_without_roots():
    assert power_sums([1, -6, 11, -6], 5) == [1 + 2**k + 3**k for k in range(1, 6)]
    assert power_sums([2, -4, 2], 3) == [2, 2, 2]
    assert power_sums([Fraction(1), Fraction(1, 2)], 2) == [Fraction(-1, 2), Fraction(1, 4)]
    roots = np.random.default_rng(0).normal(size=5)
    assert np.allclose(power_sums(np.poly(roots), 8), [(roots**k).sum() for k in range(1, 9)])
    assert power_sums([1, 2], 0) == []
    with pytest.raises(ValueError, match="leading"):
        power_sums([0, 1], 2)


def test_elementary_symmetric_functions_are_the_coefficients():
    roots = np.random.default_rng(1).normal(size=(7, 5))
    expected = [np.poly(row)[1:] * (-1.0) ** np.arange(1, 6) for row in roots]
    assert np.allclose(elementary_symmetric(roots), expected)
    assert elementary_symmetric([Fraction(1, 2), 2]) == [Fraction(5, 2), 1]
    assert elementary_symmetric([1j, -1j]).tolist() == [0, 1]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_coordinates_and_permutations(n):
    x = np.random.default_rng(2).normal(size=n)
    y = symmetric_coordinates(x)
    assert y[0] == pytest.approx(x.mean())
    w = np.exp(2j * np.pi / 3)
    if n == 2:
        assert np.allclose(x, [y[0] + y[1], y[0] - y[1]])
    elif n == 3:
        assert np.allclose(x, [y.sum(), y @ [1, w, w**2], y @ [1, w**2, w]])
        assert np.allclose(symmetric_coordinates(np.roll(x, -1)), y * [1, w, w**2])
    else:
        signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
        assert np.allclose(x, signs @ y)
    for order in itertools.permutations(range(n)):
        z = symmetric_coordinates(x[list(order)])
        if n == 3:
            assert z[1] * z[2] == pytest.approx(y[1] * y[2])
            assert z[1] ** 3 + z[2] ** 3 == pytest.approx(y[1] ** 3 + y[2] ** 3)
        else:
            assert np.allclose(np.sort_complex(z[1:] ** 2), np.sort_complex(y[1:] ** 2))
    with pytest.raises(ValueError, match="2, 3 or 4"):
        symmetric_coordinates([1, 2, 3, 4, 5])


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.tuples(*[st.integers(0, 3)] * 3).map(lambda t: tuple(sorted(t, reverse=True))),
        st.integers(-5, 5),
        max_size=4,
    )
)
def test_any_symmetric_polynomial_is_written_and_read_back(monomials):
    x = sympy.symbols("x y z")
    polynomial = sum(
        c * sympy.prod(v**k for v, k in zip(x, powers, strict=True))
        for orbit, c in monomials.items()
        for powers in set(itertools.permutations(orbit))
    )
    expression = express_symmetric(polynomial, x)
    e = {sympy.Symbol(f"e{k}"): sum(sympy.prod(c) for c in itertools.combinations(x, k)) for k in (1, 2, 3)}
    assert expression.free_symbols <= set(e)
    assert sympy.expand(expression.subs(e) - polynomial) == 0


def test_express_symmetric_on_known_cases():
    e1, e2, e3 = sympy.symbols("e1:4")
    assert express_symmetric("a^3 + b^3 + c^3", ["a", "b", "c"]) == e1**3 - 3 * e1 * e2 + 3 * e3
    x, y, t = sympy.symbols("x y t")
    assert express_symmetric((x - y) ** 2 + t, [x, y]) == e1**2 - 4 * e2 + t
    assert express_symmetric("(x-y)^2*(y-z)^2*(x-z)^2", "xyz") == (
        e1**2 * e2**2 - 4 * e2**3 - 4 * e1**3 * e3 + 18 * e1 * e2 * e3 - 27 * e3**2
    )


@pytest.mark.parametrize(
    ("polynomial", "variables", "said"),
    [
        ("x - y", ["x", "y"], "x and y swap"),
        ("x^2 + y^2 + 2*z^2", ["x", "y", "z"], "y and z swap"),
        ("x*y + q", ["x", "y"], "'q'"),
        ("__import__('os').system('true')", ["x", "y"], "not understood"),
        ("2x", ["x"], "products with"),
        ("x^y", ["x", "y"], "whole number"),
        (sympy.sin(sympy.Symbol("x")), ["x"], "not a polynomial"),
        ("x", ["x", "x"], "distinct"),
    ],
)
def test_what_is_not_symmetric_is_refused(polynomial, variables, said):
    with pytest.raises(ValueError, match=said):
        express_symmetric(polynomial, variables)
