"""Polynomials as text: "x^3-6x^2+11x-6", "2(t-1)^2 = 3t/4", "0.5y² − 3". Nothing is evaluated as code.

equation = sum ["=" sum]        sum     = ["+"|"-"] product (("+"|"-") product)*
product  = power (("*"|"/"|nothing) power)*     power = atom [("^"|"**") whole number | superscript]
atom     = number | letter | "(" sum ")"
"""

from __future__ import annotations

import re
from fractions import Fraction

from kexue.errors import DataError

_MAX_DEGREE = 200
_MAX_DIGITS = 1000
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SAME = str.maketrans(
    {"−": "-", "–": "-", "＋": "+", "－": "-", "＝": "=", "（": "(", "）": ")", "×": "*", "·": "*", "⋅": "*"}
)
_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def parse_polynomial(text: str) -> list[Fraction]:
    """Coefficients, highest power first, of a polynomial or of an equation, whose right side is brought to the left.

    One unknown, any letter. Numbers are whole, decimal or with an exponent, all taken exactly; `*` may be left out;
    powers of the unknown are whole numbers up to 200; only numbers may be divisors.

    Returns:
        Fractions without leading zeros; [0] if all terms cancel.

    Raises:
        DataError, a ValueError: the text is not a polynomial; the message shows where, `column` counts from 1.

    Example:
        >>> parse_polynomial("x^3 - 6x^2 + 11x = 6")
        [Fraction(1, 1), Fraction(-6, 1), Fraction(11, 1), Fraction(-6, 1)]
    """
    if not isinstance(text, str):
        raise TypeError(f"expected text such as 'x^2 - 2', got {text!r}; `solve` also takes coefficients")
    parser = _Parser(text)
    powers = parser.equation()
    degree = max((k for k, c in powers.items() if c), default=0)
    return [powers.get(k, Fraction(0)) for k in range(degree, -1, -1)]


_Powers = dict[int, Fraction]  # power of the unknown -> coefficient


class _Parser:
    """Recursive descent over the grammar at the top of this file; one method per rule."""

    def __init__(self, text: str) -> None:
        self.text, self.clean = text, text.translate(_SAME)
        self.position = 0
        self.unknown: str | None = None
        self.depth = 0

    def equation(self) -> _Powers:
        """The left side minus the right side."""
        left = self.sum()
        if self.take("="):
            left = _add(left, self.sum(), -1)
        if self.peek():
            raise self.error("the polynomial should end here; expected +, -, *, / or ^")
        return left

    def sum(self) -> _Powers:
        """Products with signs between them."""
        sign = self.sign() or 1
        total = _add({}, self.product(), sign)
        while sign := self.sign():
            total = _add(total, self.product(), sign)
        return total

    def sign(self) -> int:
        """1 or -1 for a sign, which is skipped; 0 for none."""
        return 1 if self.take("+") else -1 if self.take("-") else 0

    def product(self) -> _Powers:
        """Powers with *, / or nothing between them."""
        total = self.power()
        while following := self.peek():
            if following == "/":
                self.position += 1
                self.peek()
                start, divisor = self.position, self.power()
                if any(k and c for k, c in divisor.items()):
                    raise self.error("the unknown must not be in a divisor", start)
                if not divisor.get(0):
                    raise self.error("division by zero", start)
                total = {k: c / divisor[0] for k, c in total.items()}
            elif following in "*(" or following.isalnum() or following == ".":
                if following == "*":
                    self.position += 1
                self.peek()
                start = self.position
                total = self.times(total, self.power(), start)
            else:
                break
        return total

    def power(self) -> _Powers:
        """An atom with its exponent, if any."""
        start = self.position
        base = self.atom()
        digits = ""
        if self.take("**") or self.take("^"):
            self.peek()
            while self.position < len(self.clean) and self.clean[self.position] in "0123456789":
                digits += self.clean[self.position]
                self.position += 1
            if not digits or self.clean.startswith(".", self.position):
                raise self.error("a power must be a whole number, 0 or more, such as x^2")
        else:
            while self.position < len(self.clean) and self.clean[self.position] in "⁰¹²³⁴⁵⁶⁷⁸⁹":
                digits += self.clean[self.position].translate(_SUPERSCRIPTS)
                self.position += 1
            if not digits:
                return base
        if len(digits) > 4 or int(digits) * max((0, *base)) > _MAX_DEGREE:
            raise self.error(f"powers go up to {_MAX_DEGREE}", start)
        total: _Powers = {0: Fraction(1)}
        for _ in range(int(digits)):
            total = self.times(total, base, start)
        return total

    def atom(self) -> _Powers:
        """A number, the unknown, or a sum in brackets."""
        following = self.peek()
        if not following:
            raise self.error("the polynomial ends too early; expected a number, a letter or (")
        if number := _NUMBER.match(self.clean, self.position):
            mantissa, _, exponent = number[0].lower().partition("e")
            if len(mantissa) > _MAX_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > _MAX_DIGITS:
                raise self.error(f"numbers have up to {_MAX_DIGITS} digits")
            self.position = number.end()
            return {0: Fraction(number[0])}
        if following == "(":
            opened, self.depth = self.position, self.depth + 1
            if self.depth > 50:
                raise self.error("more than 50 nested brackets")
            self.position += 1
            inner = self.sum()
            if not self.take(")"):
                if self.position < len(self.clean):
                    raise self.error("expected ) or an operator")
                raise self.error("this bracket is never closed", opened)
            self.depth -= 1
            return inner
        if following.isalpha():
            if self.unknown not in (None, following):
                raise self.error(f"only one unknown is allowed, found {self.unknown} and {following}")
            self.unknown = following
            self.position += 1
            return {1: Fraction(1)}
        raise self.error("expected a number, a letter or (")

    def times(self, p: _Powers, q: _Powers, start: int) -> _Powers:
        """The product, within the limits of degree and length; `start` is the column of an error."""
        if max((0, *p)) + max((0, *q)) > _MAX_DEGREE:
            raise self.error(f"powers go up to {_MAX_DEGREE}", start)
        total: _Powers = {}
        for i, a in p.items():
            for j, b in q.items():
                total[i + j] = total.get(i + j, Fraction(0)) + a * b
        if any(c.numerator.bit_length() + c.denominator.bit_length() > 20_000 for c in total.values()):
            raise self.error("the numbers become too long", start)
        return total

    def take(self, token: str) -> bool:
        """Skip the token if it comes next; return whether it does."""
        self.peek()
        matches = self.clean.startswith(token, self.position)
        if matches:
            self.position += len(token)
        return matches

    def peek(self) -> str:
        """Skip spaces and return the next character, "" at the end."""
        while self.position < len(self.clean) and self.clean[self.position].isspace():
            self.position += 1
        return self.clean[self.position : self.position + 1]

    def error(self, message: str, at: int | None = None) -> DataError:
        """An error that points at a column, by default the current one."""
        place = self.position if at is None else at
        line = "".join(" " if c.isspace() else c for c in self.text)
        start = max(0, place - 60)
        shown = f"{line[start : place + 20]}\n  {' ' * (place - start)}^"
        return DataError(
            f"{message}\n  {shown}",
            remedy="Write for example x^3 - 6x^2 + 11x - 6, or 2(x-1)^2 = 3.",
            column=place + 1,
        )


def _add(p: _Powers, q: _Powers, sign: int) -> _Powers:
    """p + sign q."""
    return {k: p.get(k, Fraction(0)) + sign * q.get(k, Fraction(0)) for k in {**p, **q}}
