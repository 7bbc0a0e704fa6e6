"""Polynomial equations: closed forms up to degree four through the symmetry of the roots, numerical roots above.

Importing this package loads nothing; numpy is loaded on first use, sympy, mpmath and torch only where needed.
Coefficients come highest power first, as in `numpy.roots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.algebra.closed import (
        solve_cubic as solve_cubic,
        solve_quadratic as solve_quadratic,
        solve_quartic as solve_quartic,
    )
    from kexue.algebra.discriminants import discriminant as discriminant
    from kexue.algebra.equation import nature as nature, solve as solve
    from kexue.algebra.parsing import parse_polynomial as parse_polynomial
    from kexue.algebra.root import Root as Root
    from kexue.algebra.root_set import RootSet as RootSet
    from kexue.algebra.steps import Step as Step
    from kexue.algebra.symmetric import (
        elementary_symmetric as elementary_symmetric,
        express_symmetric as express_symmetric,
        power_sums as power_sums,
        symmetric_coordinates as symmetric_coordinates,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "closed": ("solve_cubic", "solve_quadratic", "solve_quartic"),
        "discriminants": ("discriminant",),
        "equation": ("nature", "solve"),
        "parsing": ("parse_polynomial",),
        "root": ("Root",),
        "root_set": ("RootSet",),
        "steps": ("Step",),
        "symmetric": ("elementary_symmetric", "express_symmetric", "power_sums", "symmetric_coordinates"),
    },
)
