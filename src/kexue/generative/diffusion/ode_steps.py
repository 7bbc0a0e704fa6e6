"""Steps of solvers of the probability-flow equation: Euler, Heun, midpoint, Runge-Kutta, Adams-Bashforth.

On a continuous schedule they solve dx/dt = alpha' x0 + sigma' eps in time. On a discrete one, which has no derivatives,
they solve d(x/alpha) = eps d(sigma/alpha), in sigma/alpha; the Euler step is DDIM's there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kexue._counts import is_whole
from kexue.errors import NotSupported
from kexue.generative.diffusion.denoiser import Prediction, Predictor, refuse_zero
from kexue.generative.diffusion.schedule import expand_dims
from kexue.generative.diffusion.steps import Step, noisy_time, reads_zero, unless_clean

_MOST_ORDER = 4  # of Adams-Bashforth


class _Clock(NamedTuple):
    """The variable in which a schedule's equation is solved.

    Attributes:
        denoiser: of the equation.
        condition: of the denoiser.
    """

    denoiser: Predictor
    condition: Tensor | None

    def position(self, t: Tensor) -> Tensor:
        """Return the variable at a time: the time, or sigma/alpha of a discrete schedule."""
        schedule = self.denoiser.schedule
        if not schedule.discrete:
            return t
        alpha = schedule.alpha(t)
        refuse_zero(alpha, t, "sigma/alpha is infinite where alpha is 0; take the solver ddim")
        return schedule.sigma(t) / alpha

    def rate(self, x: Tensor, t: Tensor) -> tuple[Tensor, Prediction]:
        """Return the derivative, in the variable, of x, or of x/alpha on a discrete schedule; and the prediction."""
        told = self.denoiser.predict(x, t, condition=self.condition)
        return (told.eps if self.denoiser.schedule.discrete else told.velocity), told  # 9228

    def move(self, x: Tensor, rate: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return x at time s, from x at time t along a rate."""
        length = expand_dims(self.position(s) - self.position(t), x)
        schedule = self.denoiser.schedule
        if not schedule.discrete:
            return x + length * rate
        return expand_dims(schedule.alpha(s), x) * (x / expand_dims(schedule.alpha(t), x) + length * rate)


def euler_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one Euler step, of order 1, with one call."""
    clock = _Clock(denoiser, condition)
    rate, told = clock.rate(x, t)
    return Step(clock.move(x, rate, t, s), None, told)


def heun_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one Heun step, of order 2, with two calls; a step to clean data is Euler's, with one."""
    clock = _Clock(denoiser, condition)
    rate, told = clock.rate(x, t)
    there = clock.move(x, rate, t, s)
    if reads_zero(denoiser.schedule.sigma(s)):
        return Step(there, None, told)
    after, _ = clock.rate(there, noisy_time(denoiser.schedule, t, s))
    mean = unless_clean(denoiser.schedule, s, (rate + after) / 2, rate)
    return Step(clock.move(x, mean, t, s), None, told)


def midpoint_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one midpoint step, of order 2, with two calls, on a continuous schedule."""
    clock = _Clock(denoiser, condition)
    middle = _between(denoiser, t, s)
    rate, told = clock.rate(x, t)
    after, _ = clock.rate(clock.move(x, rate, t, middle), middle)
    return Step(clock.move(x, after, t, s), None, told)


def rk4_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one step of the Runge-Kutta method of order 4, with four calls, on a continuous schedule.

    A step to clean data ends with the third stage's estimate, since there a network has nothing to denoise.
    """
    clock = _Clock(denoiser, condition)
    middle = _between(denoiser, t, s)
    first, told = clock.rate(x, t)
    second, _ = clock.rate(clock.move(x, first, t, middle), middle)
    third, _ = clock.rate(clock.move(x, second, t, middle), middle)
    if reads_zero(denoiser.schedule.sigma(s)):
        return Step(clock.move(x, third, t, s), None, told)
    last, _ = clock.rate(clock.move(x, third, t, s), noisy_time(denoiser.schedule, t, s))
    mean = unless_clean(denoiser.schedule, s, (first + 2 * second + 2 * third + last) / 6, third)
    return Step(clock.move(x, mean, t, s), None, told)


def ab_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
    order: int = 2,
) -> Step:
    """Make one Adams-Bashforth step with one call: the rates of the last steps are extrapolated over this one.

    The grid may be uneven. The first steps have too few rates: of order 2 the first is Euler's; of a higher order they
    are `rk4_step`, or `heun_step` on a discrete schedule, with more calls.

    Args:
        denoiser, x, t, s, z, state, condition: as of all steps.
        order: number of rates, 1 to 4.
    """
    if not is_whole(order) or not 1 <= order <= _MOST_ORDER:
        raise ValueError(f"order must be 1 to {_MOST_ORDER}, got {order}")
    clock = _Clock(denoiser, condition)
    rate, told = clock.rate(x, t)
    rates = [(rate, clock.position(t)), *(state or [])][:order]
    if len(rates) < order > 2:
        start = heun_step if denoiser.schedule.discrete else rk4_step
        return Step(start(denoiser, x, t, s, condition=condition).x, rates, told)
    weights = _extrapolation_weights([place for _, place in rates], clock.position(s))
    mixed = sum((expand_dims(w, x) * r for w, (r, _) in zip(weights, rates, strict=True)), torch.zeros_like(x))
    return Step(clock.move(x, mixed, t, s), rates, told)


def _extrapolation_weights(places: list[Tensor], end: Tensor) -> list[Tensor]:
    """Return the weight of each rate in the mean, from places[0] to `end`, of the polynomial through them."""
    nodes = torch.stack([place - places[0] for place in places], -1).to(torch.float64)
    h = (end - places[0]).to(torch.float64)
    scaled = nodes / h.unsqueeze(-1)
    powers = torch.arange(len(places), device=h.device, dtype=torch.float64)
    matrix = scaled.unsqueeze(-2) ** powers.unsqueeze(-1)  # row k: node^k
    moments = (1 / (powers + 1)).expand(*h.shape, -1)
    return list(torch.linalg.solve(matrix, moments.unsqueeze(-1)).squeeze(-1).unbind(-1))


def _between(denoiser: Predictor, t: Tensor, s: Tensor) -> Tensor:
    """Return the time half way; NotSupported on a discrete schedule."""
    if denoiser.schedule.discrete:
        raise NotSupported(
            "a discrete schedule has no times between two steps; take the solver euler, heun, ab or dpmpp_2m."
        )
    return (t + s) / 2
