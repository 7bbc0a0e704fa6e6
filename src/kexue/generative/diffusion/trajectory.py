"""Paths along trajectories of any form, given by the label of the trajectory through each point; for few dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kexue.generative.diffusion.ode import odeint
from kexue.generative.diffusion.path import Path, PathSample
from kexue.generative.diffusion.prior import Prior

Label = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        times = self._times(t, x0)
        if self._inverse is not None:
            x_t = self._each(self._inverse, x_1, times, x0)
        else:
            way = times - self.t_max  # all events go from 0 to 1, each at a speed of its own
            x_t = odeint(
                lambda s, x: _times_rows(way, self.conditional_velocity(x, self.t_max + s * way, x0)),
                x_1, [0.0, 1.0], rtol=1e-6, atol=1e-6,
            ).x  # fmt: skip
        return PathSample(x_t, self.conditional_velocity(x_t, times, x0), x_1)

    def label(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return phi."""
        return self._each(self._phi, x, self._times(t, x), x0)

    def log_volume(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return log |det d phi / dx|, (B,)."""
        return torch.linalg.slogdet(self._derivatives(x, t, x0)[0]).logabsdet

    def conditional_velocity(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return -(d phi/d x)^-1 d phi/d t, (B, *event)."""
        in_x, in_t = self._derivatives(x, t, x0)
        return -torch.linalg.solve(in_x, in_t).reshape(x.shape)  # 9379: f_t(x | x_0) from phi

    def _derivatives(self, x: Tensor, t: Tensor | float, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Jacobians (B, d, d) in x and (B, d) in t."""
        d = self.prior.check(x).shape[1]
        jacobians = torch.func.jacrev(self._phi, argnums=(0, 1))
        in_x, in_t = self._each(jacobians, x, self._times(t, x), x0)
        return in_x.reshape(len(x), d, d), in_t.reshape(len(x), d)

    def _each(self, function: Callable[..., Any], *arguments: Tensor) -> Any:
        return torch.func.vmap(function)(*arguments)

    def _times(self, t: Tensor | float, x: Tensor) -> Tensor:
        times = torch.as_tensor(t, device=x.device).to(x.dtype).reshape(-1)
        if len(times) not in (1, len(x)):
            raise ValueError(f"t must be one time, or one for each of {len(x)} events, got {len(times)}")
        return times.expand(len(x))


def _times_rows(factors: Tensor, x: Tensor) -> Tensor:
    return factors.reshape(-1, *[1] * (x.ndim - 1)) * x
