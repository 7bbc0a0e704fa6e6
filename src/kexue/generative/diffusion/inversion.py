"""Inversion of DDIM: from events to the noise that it would make them of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue.errors import KexueError
from kexue.generative.diffusion.denoiser import Predictor
from kexue.generative.diffusion.grid import check_grid
from kexue.generative.diffusion.schedule import expand_dims


@dataclass(frozen=True)
class Inversion:
    """Latents of events.

    Attributes:
        z: events at the first time of the grid, (B, *event).
        residual: largest change by which the equation of a step was still unsolved, root mean square of an event; of
            the naive method NaN, since it solves none.
        iterations: most iterations that a step took.
    """

    z: Tensor
    residual: float
    iterations: int


def ddim_encode(
    denoiser: Predictor,
    x0: Tensor,
    grid: Tensor | Sequence[float],
    *,
    method: Literal["fixed_point", "naive"] = "fixed_point",
    tol: float = 1e-6,
    max_iter: int = 20,
    condition: Tensor | None = None,
) -> Inversion:
    """Return the noise from which `solve` with ``"ddim"`` on the same grid makes these events.

    A step up from s to t finds the x_t whose step down is x_s = alpha_s x0(x_t, t) + sigma_s eps(x_t, t).

    Args:
        denoiser: of the events.
        x0: events (B, *event) at the last time of the grid.
        grid: falling times, as of sampling.
        method: ``"fixed_point"`` adds to x_t what is missing in x_s, repeatedly; ``"naive"`` takes eps at (x_s, s),
            an error of first order.
        tol: change, root mean square of an event, at which the iteration ends.
        max_iter: iterations of a step, >= 1. More of them, or more steps, reach a smaller residual.
        condition: of the denoiser.

    Raises:
        ValueError: an unknown method, max_iter below 1, a negative tol, a grid that does not fall.
        KexueError: NaN or infinity from the network, or an iteration that diverges; the time is named.

    Source: kexue.fm/archives/9181.
    """
    if method not in ("fixed_point", "naive"):
        raise ValueError(f"method must be 'fixed_point' or 'naive', got {method!r}")
    check_count(max_iter, "max_iter", 1)
    if not tol >= 0:
        raise ValueError(f"tol must be >= 0, got {tol}")
    times = check_grid(denoiser.schedule, grid).to(x0.device).flip(0)
    schedule, x, residual, most = denoiser.schedule, x0, 0.0, 0
    for s, t in itertools.pairwise(times):
        alpha_s, sigma_s = (expand_dims(c, x) for c in (schedule.alpha(s), schedule.sigma(s)))
        ratio = expand_dims(schedule.alpha(t) / schedule.alpha(s), x)
        if method == "naive":
            noise = expand_dims(schedule.sigma(t), x) - ratio * sigma_s
            at = t if not bool(schedule.sigma(s) > 0) else s  # clean data have no time of their own
            x, residual = ratio * x + noise * denoiser.predict(x, at, condition=condition).eps, float("nan")
            most = 1
            continue
        share = torch.where(ratio > 0, ratio, 1)  # without signal at t the equation of 9181 says x_t = x_t
        there, change = ratio * x, torch.inf
        for count in range(1, max_iter + 1):
            told = denoiser.predict(there, t, condition=condition)
            new = there + share * (x - (alpha_s * told.x0 + sigma_s * told.eps))  # 9181, section "There and back"
            change = float((new - there).flatten(1).square().mean(1).sqrt().max()) if len(x) else 0.0
            there, most = new, max(most, count)
            if not math.isfinite(change):
                raise KexueError(
                    f"the events are not finite after {count} iterations of the step to time {t.item():g}",
                    remedy="Check the network for NaN, or take more steps.",
                )
            if change <= tol:
                break
        x, residual = there, max(residual, change)
    return Inversion(x, residual, most)
