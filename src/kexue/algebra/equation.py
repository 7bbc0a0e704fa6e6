"""`solve`: one polynomial, its roots with their errors, and what can be said about them.

Source: kexue.fm/archives/1336. Whole numbers, Fractions and text are solved exactly: multiplicities from a square-free
decomposition, rational roots as Fractions, the rest enclosed in whole numbers and rounded once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, overload

import numpy as np

from kexue._optional import import_optional
from kexue.algebra._aberth import Array, aberth
from kexue.algebra.closed import _in_order, batch_roots
from kexue.algebra.discriminants import discriminant
from kexue.algebra.parsing import parse_polynomial
from kexue.algebra.radicals import expressions, surds
from kexue.algebra.rational import (
    Poly,
    as_floats,
    as_fractions,
    as_numbers,
    count_real,
    enclose,
    factor,
    is_complex,
    is_exact,
    square_free,
)
from kexue.algebra.special import NO_FORMULA, UNDECIDED, solvable, special_form
from kexue.algebra.steps import Step, teach
from kexue.errors import DataError

_LOST = 1e-6  # backward error that only an overflow explains
_BITS = 64  # right digits of an enclosed root before it is rounded to a float


@dataclass(frozen=True)
class Root:
    """One distinct root r of sum a_k x^(n-k).

    Attributes:
        value: complex, its imaginary part exactly 0 for a real root; with `digits` an mpmath number.
        multiplicity: how often it counts.
        backward_error: |f(r)| / sum |a_k| |r|^(n-k) at the float: how much the coefficients would have to change,
            relatively, for r to be exact. About 1e-16 at best, unless r is a float itself.
        condition: sum |a_k| |r|^(n-k) / (|r| |f'(r)|): how much a relative change of the coefficients may be
            magnified in r; infinite for a multiple root, which moves by the m-th root of the change.
        exact: a Fraction, a quadratic surd as text ("1/2 + sqrt(5)/2"), or None: see `RootSet.exact`.
    """

    value: Any
    multiplicity: int
    backward_error: float
    condition: float
    exact: Fraction | str | None


class RootSet(Sequence[Root]):
    """The distinct roots of a polynomial: real ones ascending, then the others by real and imaginary part.

    Attributes:
        coefficients: as solved, highest power first, without leading zeros: Fractions, floats or complex numbers.
        steps: how the roots come about, when asked for; else ().
    """

    def __init__(
        self,
        coefficients: Sequence[Any],
        roots: Sequence[Root],
        factors: Sequence[list[int]] | None,
        steps: tuple[Step, ...],
    ) -> None:
        self.coefficients = tuple(coefficients)
        self.steps = steps
        self._roots, self._factors = tuple(roots), factors

    @overload
    def __getitem__(self, index: int) -> Root: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Root]: ...
    def __getitem__(self, index: int | slice) -> Root | Sequence[Root]:
        return self._roots[index]

    def __len__(self) -> int:
        return len(self._roots)

    def __repr__(self) -> str:
        shown = ", ".join(
            _number(complex(r.value)) + (f" (x{r.multiplicity})" if r.multiplicity > 1 else "") for r in self
        )
        return f"RootSet([{shown}], degree={self.degree})"

    @property
    def values(self) -> Array:
        """(degree,) complex128, a root as often as its multiplicity; infinite or 0 beyond the range of floats."""
        return np.array([complex(r.value) for r in self for _ in range(r.multiplicity)], dtype=np.complex128)

    @property
    def degree(self) -> int:
        """The number of roots, counted with multiplicity."""
        return len(self.coefficients) - 1

    @cached_property
    def discriminant(self) -> Any:
        """See `kexue.algebra.discriminant`."""
        return discriminant(self.coefficients)

    @property
    def nature(self) -> str:
        """How many roots are real, and how often they count: see `kexue.algebra.nature`."""
        if any(isinstance(c, complex) for c in self.coefficients):
            return _describe([(r.multiplicity, "root") for r in self], 1) + " of complex coefficients"
        kinds = [(r.multiplicity, "pair of complex roots" if _is_complex(r.value) else "real root") for r in self]
        return _describe(kinds, 2)

    @property
    def formula_exists(self) -> bool:
        """True where radicals give the roots: degree up to 4, or above with a special form that was found."""
        return self.degree <= 4 or (self._factors is not None and all(map(solvable, self._factors)))

    @property
    def explanation(self) -> str:
        """Why there is a formula, or none, in a sentence or two."""
        if self.degree <= 4:
            return f"Degree {self.degree}: a formula exists."
        if self._factors is None:
            return f"{NO_FORMULA} Special forms are looked for with whole numbers and Fractions only."
        if not self.formula_exists:
            return f"{NO_FORMULA} {UNDECIDED}"
        forms = [special_form(p) for p in self._factors if len(p) > 5]
        reasons = [form.says for form in forms if form] or ["it has factors of degree 4 or less only"]
        return f"{NO_FORMULA} This one is special: {'; '.join(reasons)}."

    def exact(self) -> list[Any]:
        """Sympy expressions of the distinct roots, in order; where no formula is known, exact `CRootOf` objects.

        Raises:
            ValueError: the coefficients were floats. MissingDependencyError: sympy is missing (extra `algebra`).
        """
        if self._factors is None:
            raise ValueError("floats have no exact roots: give whole numbers, Fractions or text, or solve(exact=True)")
        return expressions(self._factors, [complex(r.value) for r in self])


def solve(
    coefficients: Iterable[Any] | str,
    *,
    exact: bool | None = None,
    digits: int | None = None,
    steps: bool = False,
) -> RootSet:
    """All roots of a polynomial of any degree, with their multiplicities and errors.

    Degree 2 to 4 by the symmetric coordinates of `kexue.algebra.closed`; above, numerically, and exactly where the
    polynomial factors or has a special form.

    Args:
        coefficients: numbers, highest power first, or text such as ``"x^3 - 6x^2 + 11x = 6"``.
        exact: None: whole numbers, Fractions and text are exact, floats are not. True takes floats as the binary
            fractions they are; False computes in floating point.
        digits: give the roots as mpmath numbers with so many decimal digits (extra `algebra`); for real coefficients.
        steps: also say how the roots come about (real coefficients).

    Raises:
        ValueError: all coefficients 0, or one not finite; `DataError`: text that is no polynomial (showing where), or
            numbers or roots beyond the range of floats, which `digits` or `exact` then help to have.
        TypeError: not numbers.

    Example:
        >>> roots = solve([1, -9, 27, -27])
        >>> roots[0].exact, roots[0].multiplicity
        (Fraction(3, 1), 3)
        >>> solve("x^2 = x + 1")[1].exact
        '1/2 + sqrt(5)/2'
    """
    given = parse_polynomial(coefficients) if isinstance(coefficients, str) else as_numbers(coefficients)
    if digits is not None and digits < 1:
        raise ValueError(f"digits must be 1 or more, got {digits}")
    if any(map(is_complex, given)):
        if exact or digits is not None or steps:
            raise ValueError("exact, digits and steps need real coefficients")
        return _numeric(as_floats(given))
    p = as_fractions(given)
    if not p:
        raise ValueError("all coefficients are 0: every number is a root")
    exact = is_exact(given) if exact is None else exact
    result = _exact(p, digits, exact) if exact or digits is not None else _numeric(as_floats(p))
    if steps:
        try:
            result.steps = teach(p, result, exact)
        except OverflowError:
            raise DataError(
                "the steps pass through numbers beyond the range of floats.", remedy="Leave out steps."
            ) from None
    return result


def nature(coefficients: Iterable[Any] | str) -> str:
    """How many roots are real, complex, simple or multiple, in words: exact for exact coefficients.

    Example:
        >>> nature([1, -4, 5, -2])
        '1 simple real root and 1 double real root'
        >>> nature([1, 0, 0, -1])
        '1 simple real root and 1 simple pair of complex roots'
    """
    return solve(coefficients).nature


def _numeric(c: list[Any]) -> RootSet:
    row = np.trim_zeros(np.array(c), "f")
    n = len(row) - 1
    with np.errstate(all="ignore"):
        if n in (2, 3, 4):
            values = batch_roots(row, n)
        else:
            kept = np.trim_zeros(row, "b")
            m = len(kept) - 1
            found = aberth(kept[None])[0] if m > 1 else -kept[1:] / kept[:1]
            values = _in_order(np.concatenate([found, np.zeros(n - m)]).astype(np.complex128) + 0.0)
        fit = np.isfinite(abs(values)).all()
    if not fit:
        raise _beyond(c)
    count = Counter(complex(v) for v in values)
    numbers_ = [(Fraction(float(v.real)), Fraction(float(v.imag))) for v in row]
    roots = [Root(z, m, *_errors(numbers_, z, m), None) for z, m in count.items()]
    if max((r.backward_error for r in roots), default=0.0) > _LOST:
        raise _beyond(c)
    return RootSet([v.item() for v in row], roots, None, ())


def _beyond(c: list[Any]) -> DataError:
    return DataError(
        f"some roots of {c} are beyond the range of floats (1e-324 to 1e308).", remedy="Give exact=True and digits=20."
    )


def _exact(p: Poly, digits: int | None, exact: bool) -> RootSet:
    found, factors = [], []
    bits = _BITS if digits is None else max(_BITS, math.ceil(3.33 * digits) + 10)
    numbers_ = [(c, Fraction(0)) for c in p]
    for part, multiplicity in square_free(p):
        for g in factor(part) if len(part) > 1 else ():
            factors.append(g)
            for re, im, label in _irreducible(g, bits):
                z, power = _on_its_scale(re, im, digits)
                value = z if digits is None else _mpmath(re, im, digits)
                scaled = [(c / Fraction(2) ** (power * k), v) for k, (c, v) in enumerate(numbers_)]
                root = Root(value, multiplicity, *_errors(scaled, z, multiplicity), label if exact else None)
                found.append(((im != 0, re if power or not im else z.real, im), root))
    found.sort(key=lambda pair: pair[0])
    coefficients: list[Any] = list(p) if exact else as_floats(p)
    return RootSet(coefficients, [root for _, root in found], factors if exact else None, ())


def _irreducible(g: list[int], bits: int) -> list[tuple[Fraction, Fraction, Fraction | str | None]]:
    """(real part, imaginary part, exact form) of each root of an irreducible polynomial."""
    p = [Fraction(c) for c in g]
    if len(g) == 2:
        return [(-p[1] / p[0], Fraction(0), -p[1] / p[0])]
    real = count_real(p)
    rounded, exponent = enclose(p, bits, real)
    unit = Fraction(2) ** -exponent
    result: list[tuple[Fraction, Fraction, Fraction | str | None]] = []
    for x, y in rounded[:real] + [(x, s * abs(y)) for x, y in rounded[real:] if y > 0 for s in (-1, 1)]:
        x_ = 0 if abs(x) < abs(y) >> (bits - 4) else x  # a purely imaginary root has no dust either
        result.append((x_ * unit, y * unit, None))
    if len(g) == 3:
        result.sort(key=lambda r: (r[0], r[1]))
        result = [(re, im, label) for (re, im, _), label in zip(result, surds(g), strict=True)]
    return result


def _on_its_scale(re: Fraction, im: Fraction, digits: int | None) -> tuple[complex, int]:
    """(a root over 2^k, k): k is 0 when floats hold both parts; when they do not, digits must be asked for."""
    try:
        z = complex(float(re), float(im))
        abs(z)  # may overflow where neither part does
        if (z.real != 0 or re == 0) and (z.imag != 0 or im == 0):
            return z, 0
    except OverflowError:
        pass
    powers = [v.numerator.bit_length() - v.denominator.bit_length() for v in (re, im) if v]
    if digits is None:
        raise DataError(
            f"a root has a part of about 1e{math.log10(2) * max(powers, key=abs):+.0f}, beyond the range of floats.",
            remedy="Ask for digits: digits=20, or --digits 20.",
        )
    power = max(powers)
    return complex(float(re / Fraction(2) ** power), float(im / Fraction(2) ** power)), power


def _errors(c: list[tuple[Fraction, Fraction]], z: complex, multiplicity: int) -> tuple[float, float]:
    """Backward error and condition at a float, in whole numbers."""
    if z == 0:
        return 0.0, 0.0 if multiplicity == 1 else math.inf
    common = math.lcm(*(part.denominator for pair in c for part in pair))
    parts = [Fraction(v) for v in (z.real, z.imag, abs(z))]
    bits = max(v.denominator.bit_length() - 1 for v in parts)
    x, y, w = (int(v * 2**bits) for v in parts)
    fr = fi = sr = si = size = 0  # f, f' and sum |a_k| |z|^k, over common 2^(bits n)
    for k, (re, im) in enumerate(c):
        sr, si = sr * x - si * y + fr, sr * y + si * x + fi
        a, b = int(re * common) << bits * k, int(im * common) << bits * k
        fr, fi = fr * x - fi * y + a, fr * y + fi * x + b
        size = size * w + (math.isqrt(a * a + b * b) if b else abs(a))
    backward = math.sqrt(Fraction(fr * fr + fi * fi, size * size))
    square = (sr * sr + si * si) * w * w
    if multiplicity > 1 or square == 0:
        return backward, math.inf
    try:
        return backward, math.sqrt(Fraction(size * size, square))
    except OverflowError:
        return backward, math.inf


def _mpmath(re: Fraction, im: Fraction, digits: int) -> Any:
    mpmath = import_optional("mpmath")
    with mpmath.workdps(digits):
        parts = [mpmath.mpf(v.numerator) / v.denominator for v in (re, im)]
        return mpmath.mpc(*parts) if im else parts[0]


def _is_complex(value: Any) -> bool:
    return bool(getattr(value, "imag", 0))


def _describe(kinds: list[tuple[int, str]], of_pairs: int) -> str:
    """(multiplicity, noun) of each root, counted; roots of conjugate pairs arrive twice."""
    parts = []
    for (multiplicity, noun), count in sorted(Counter(kinds).items(), key=lambda k: (k[0][1] != "real root", k[0][0])):
        how = {1: "simple", 2: "double", 3: "triple"}.get(multiplicity, f"{multiplicity}-fold")
        total = count // of_pairs if noun.startswith("pair") else count
        plural = noun.replace("pair ", "pairs ") if noun.startswith("pair") else f"{noun}s"
        parts.append(f"{total} {how} {noun if total == 1 else plural}")
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0] if parts else "no root"


def _number(z: complex) -> str:
    return str(z).strip("()") if z.imag else repr(z.real).removesuffix(".0")
