import contextlib
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from kexue.algebra import parse_polynomial
from kexue.algebra.notation import polynomial_text
from kexue.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x^3-6x^2+11x-6", [1, -6, 11, -6]),
        ("x**2 - 1", [1, 0, -1]),
        ("2(t-1)^2 = 3t/4", [2, Fraction(-19, 4), 2]),
        ("-y² + 0.5y − 1e-3", [-1, Fraction(1, 2), Fraction(-1, 1000)]),
        ("(x+1)(x-1)", [1, 0, -1]),
        ("x(x+1)x", [1, 1, 0, 0]),
        ("3·2×x", [6, 0]),
        ("1/3 x", [Fraction(1, 3), 0]),
        ("x = x", [0]),
        ("7", [7]),
        (" + x ", [1, 0]),
        (".5x", [Fraction(1, 2), 0]),
        ("x/(1+1)", [Fraction(1, 2), 0]),
        ("2^3 x^0", [8]),
        ("x^10", [1, *[0] * 10]),
        ("5e1z", [50, 0]),
    ],
)
def test_what_people_type(text, expected):
    assert parse_polynomial(text) == expected


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("x^2+*3", 5, "expected a number"),
        ("x+y", 3, "only one unknown is allowed, found x and y"),
        ("", 1, "ends too early"),
        ("x^2 +", 6, "ends too early"),
        ("2^x", 3, "whole number"),
        ("x^-1", 3, "whole number"),
        ("x^1.5", 4, "whole number"),
        ("3(x+1", 2, "never closed"),
        ("(x+1", 1, "never closed"),
        ("x+1)", 4, "should end"),
        ("1/x", 3, "must not be in a divisor"),
        ("x/0", 3, "division by zero"),
        ("x^201", 1, "up to 200"),
        ("(x^40)^40", 1, "up to 200"),
        ("x^150 x^150", 7, "up to 200"),
        ("x = 1 = 2", 7, "should end"),
        ("sin(x)", 2, "one unknown"),
        ("x$", 2, "should end"),
        ("1e99999 x", 1, "digits"),
        ("(" * 60 + "x", 51, "more than 50 nested brackets"),
        ("__import__('os')", 1, "expected a number"),
        ("9^100^100", 6, "should end"),
        ("(((7^100)^100)^100)x", 3, "too long"),
    ],
)
def test_mistakes_are_pointed_at(text, column, said):
    with pytest.raises(DataError, match=said) as caught:
        parse_polynomial(text)
    assert caught.value.column == column
    *_, shown, caret = caught.value.message.splitlines()
    assert caret.index("^") - 2 <= column - 1
    assert shown.startswith("  ")
    assert isinstance(caught.value, ValueError)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fractions(max_denominator=50), min_size=1, max_size=8).filter(lambda c: c[0] != 0))
def test_what_is_written_is_read_back(coefficients):
    assert parse_polynomial(polynomial_text(coefficients, str)) == coefficients


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="x0123456789+-*/^().= e²y", max_size=12))
def test_no_text_breaks_the_parser(text):
    with contextlib.suppress(DataError):
        assert all(isinstance(c, Fraction) for c in parse_polynomial(text))
