"""Gaussians whose denoiser is exact: what a sampler does without the errors of a network."""

from __future__ import annotations

import itertools
import math
from typing import Any

from kexue import generative
from kexue._optional import import_optional


def build_gaussian(mean: float, variance: float, schedule: Any) -> Any:
    """The exact denoiser of N(mean, variance), of one value."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import MixtureDenoiser

    means = torch.full((1, 1), mean, dtype=torch.float64)
    return MixtureDenoiser(generative.GaussianMixture(means, math.sqrt(variance)), schedule)


def follow_variance(schedule: Any, grid: Any, eta: float, variance: float) -> float:
    """Variance of samples of N(0, variance) by DDIM: each step is linear, so its slope and its noise tell all."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import ddim_step

    one = torch.ones(1, 1, dtype=torch.float64)
    exact = build_gaussian(0.0, variance, schedule)
    value = float(schedule.sigma(grid[0])) ** 2
    for t, s in itertools.pairwise(grid):
        slope = float(ddim_step(exact, one, t, s, eta=eta).x)
        noise = float(ddim_step(exact, 0 * one, t, s, eta=eta, z=one).x) if eta else 0.0
        value = slope**2 * value + noise**2
    return value


class ConditionalGaussian:
    """Exact denoiser of one Gaussian with the condition 0, and of another one with any other condition.

    Args:
        given, without: mean and variance of both.
        schedule: of the noise.
    """

    def __init__(self, given: tuple[float, float], without: tuple[float, float], schedule: Any) -> None:
        self.schedule = schedule
        self._given, self._without = (build_gaussian(*moments, schedule) for moments in (given, without))

    def predict(self, x: Any, t: Any, *, condition: Any = None) -> Any:
        """Return the exact prediction for events (B, 1) and conditions (B,)."""
        torch = import_optional("torch", extra="generative")
        from kexue.generative.diffusion import Prediction

        given, without = self._given.predict(x, t), self._without.predict(x, t)
        chosen = (condition == 0)[:, None]
        x0, eps = (torch.where(chosen, getattr(given, name), getattr(without, name)) for name in ("x0", "eps"))
        return Prediction(x0, eps, self.schedule, given.t)
