"""Paths along trajectories of any form, given by the label of the trajectory through each point; for few dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kexue.generative.diffusion.ode import odeint
from kexue.generative.diffusion.path import Path, PathSample
from kexue.generative.diffusion.prior import Prior
from kexue.generative.diffusion.schedule import expand_dims

Label = Callable[[Tensor, Tensor, Tensor], Tensor]
_EARLIEST = 1e-6  # share of t_max: at time 0 all labels are in one point


class TrajectoryPath(Path):
    """Trajectories phi(x_t, t, x_0) = x_1 of any form; velocities come from the derivatives of phi. Experimental.

    The velocity given x_0 is -(d phi/d x)^-1 d phi/d t, one linear system of size d for each event: for small d only.
    Points at a time t are found by following this velocity from x_1 at t_max, which costs an ODE; with the `inverse` of
    phi they are computed.

    Args:
        phi: the label x_1 of the trajectory through x from x_0: a differentiable function of one x (*event), one time t
            (a scalar) and one x_0, in operations that torch.func can transform, with phi(x, t_max, x_0) = x.
        prior: distribution of x_1.
        inverse: the point x_t: a function of one x_1, t and x_0; None follows the ODE.
        t_max: time of the prior.

    Source: kexue.fm/archives/9379, the recipe for any trajectories.

    Example:
        >>> from kexue.generative.diffusion import NormalPrior
        >>> path = TrajectoryPath(lambda x, t, x0: (x - (1 - t) * x0) / t, NormalPrior(2))
        >>> path.conditional_velocity(torch.ones(1, 2), 0.5, torch.zeros(1, 2))
        tensor([[2., 2.]])
    """

    def __init__(self, phi: Label, prior: Prior, *, inverse: Label | None = None, t_max: float = 1.0) -> None:
        super().__init__(prior, t_max=t_max)
        self._phi, self._inverse = phi, inverse

    def between(self, x0: Tensor, x_1: Tensor, t: Tensor | float) -> PathSample:
        """Return points at time t on the trajectories from x0 to x_1, and their velocities."""
        times = self.spread_times(t, x0).clamp(min=_EARLIEST * self.t_max)
        if self._inverse is not None:
            x_t = self._each(self._inverse, x_1, times, x0)
            return PathSample(x_t, self._each(torch.func.jacrev(self._inverse, argnums=1), x_1, times, x0), x_1)
        start, way = x0.double(), times.double() - self.t_max  # all go from 0 to 1, each at a speed of its own

        def rhs(s: Tensor, x: Tensor) -> Tensor:
            return expand_dims(way, x) * self.conditional_velocity(x, self.t_max + s * way, start)

        x_t = odeint(rhs, x_1.double(), [0.0, 1.0], rtol=1e-7, atol=1e-7).x
        return PathSample(x_t.to(x0), self.conditional_velocity(x_t, times, start).to(x0), x_1)

    def label(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return phi."""
        label: Tensor = self._each(self._phi, x, self.spread_times(t, x), x0)
        return label

    def log_volume(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return log |det d phi / dx|, (B,)."""
        volume: Tensor = torch.linalg.slogdet(self._derivatives(x, t, x0)[0]).logabsdet
        return volume

    def conditional_velocity(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return -(d phi/d x)^-1 d phi/d t, (B, *event)."""
        in_x, in_t = self._derivatives(x, t, x0)
        velocity: Tensor = -torch.linalg.solve(in_x, in_t).reshape(x.shape)  # section "The recipe", 2
        return velocity

    def _derivatives(self, x: Tensor, t: Tensor | float, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Jacobians (B, d, d) in x and (B, d) in t."""
        d = self.prior.check(x).shape[1]
        jacobians = torch.func.jacrev(self._phi, argnums=(0, 1))
        in_x, in_t = self._each(jacobians, x, self.spread_times(t, x), x0)
        return in_x.reshape(len(x), d, d), in_t.reshape(len(x), d)

    def _each(self, function: Callable[..., Any], *arguments: Tensor) -> Any:
        return torch.func.vmap(function)(*arguments)
