"""Diffusion and flow matching from first principles: schedules, paths, priors, solvers.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.generative.diffusion.ode import ODEResult as ODEResult, odeint as odeint
    from kexue.generative.diffusion.prior import (
        CauchyPrior as CauchyPrior,
        EmpiricalPrior as EmpiricalPrior,
        NormalPrior as NormalPrior,
        Prior as Prior,
        UniformPrior as UniformPrior,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ode": ("ODEResult", "odeint"),
        "prior": ("CauchyPrior", "EmpiricalPrior", "NormalPrior", "Prior", "UniformPrior"),
    },
    needs="torch",
    extra="generative",
)
