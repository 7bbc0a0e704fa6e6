"""All roots of one polynomial, and their properties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from kexue.algebra.coefficients import Array
from kexue.algebra.discriminants import discriminant
from kexue.algebra.radicals import root_expressions
from kexue.algebra.root import Root
from kexue.algebra.special import explain_formula, formula_exists
from kexue.algebra.steps import Step


class RootSet(Sequence[Root]):
    """The distinct roots of a polynomial: real ones ascending, then the others by real and imaginary part.

    Attributes:
        coefficients: as solved, highest power first, without leading zeros: Fractions, floats or complex numbers.
        factors: whole coefficients of the distinct irreducible factors over the rationals; None for floats.
        steps: the derivation of the roots, when requested; otherwise ().
    """

    def __init__(
        self,
        coefficients: Sequence[Any],
        roots: Sequence[Root],
        factors: Sequence[list[int]] | None,
    ) -> None:
        self.coefficients, self.factors = tuple(coefficients), factors
        self.steps: tuple[Step, ...] = ()
        self._roots = tuple(roots)

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
            _number_text(complex(r.value)) + (f" (x{r.multiplicity})" if r.multiplicity > 1 else "") for r in self
        )
        return f"RootSet([{shown}], degree={self.degree})"

    @property
    def values(self) -> Array:
        """(degree,) complex128, each root repeated by its multiplicity; infinite or 0 beyond the range of floats."""
        return np.array([complex(r.value) for r in self for _ in range(r.multiplicity)], dtype=np.complex128)

    @property
    def degree(self) -> int:
        """The number of roots, counted with multiplicity."""
        return len(self.coefficients) - 1

    @cached_property
    def discriminant(self) -> Any:
        """Discriminant of the coefficients, as `kexue.algebra.discriminant` returns it."""
        return discriminant(self.coefficients)

    @property
    def nature(self) -> str:
        """Number and multiplicity of the real and the complex roots, in words, as `kexue.algebra.nature` returns it."""
        if any(isinstance(c, complex) for c in self.coefficients):
            return _describe([(r.multiplicity, "root") for r in self], 1) + " of complex coefficients"
        kinds = [(r.multiplicity, "pair of complex roots" if r.value.imag else "real root") for r in self]
        return _describe(kinds, 2)

    @property
    def formula_exists(self) -> bool:
        """Whether radicals give the roots: True up to degree 4, and above where a special form is recognised."""
        return formula_exists(self.degree, self.factors)

    @property
    def explanation(self) -> str:
        """Why a formula exists or not, in a sentence or two."""
        return explain_formula(self.degree, self.factors)

    def exact(self) -> list[Any]:
        """Sympy expressions of the distinct roots, in order; where no formula is known, exact `CRootOf` objects.

        Raises:
            ValueError: the coefficients were floats. MissingDependencyError: sympy is missing (extra `algebra`).
        """
        if self.factors is None:
            raise ValueError("floats have no exact roots: give whole numbers, Fractions or text, or solve(exact=True)")
        return root_expressions(self.factors, [complex(r.value) for r in self])


def _describe(kinds: list[tuple[int, str]], of_pairs: int) -> str:
    """Return a count of roots in words, such as "2 simple real roots", from (multiplicity, noun) of each root.

    `of_pairs` is 2 where both roots of a pair are listed.
    """
    parts = []
    for (multiplicity, noun), count in sorted(Counter(kinds).items(), key=lambda k: (k[0][1] != "real root", k[0][0])):
        how = {1: "simple", 2: "double", 3: "triple"}.get(multiplicity, f"{multiplicity}-fold")
        total = count // of_pairs if noun.startswith("pair") else count
        plural = noun.replace("pair ", "pairs ") if noun.startswith("pair") else f"{noun}s"
        parts.append(f"{total} {how} {noun if total == 1 else plural}")
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0] if parts else "no root"


def _number_text(z: complex) -> str:
    """A number for `repr`, without brackets and without ".0"."""
    return str(z).strip("()") if z.imag else repr(z.real).removesuffix(".0")
