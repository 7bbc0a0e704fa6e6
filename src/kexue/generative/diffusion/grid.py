"""Time grids: the times at which a sampler stops on its way from noise to data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kexue._counts import check_count, is_whole
from kexue.generative.diffusion.discrete import DiscreteSchedule
from kexue.generative.diffusion.schedule import Schedule

Kind = Literal["leading", "trailing", "linspace", "quadratic", "karras", "lambda", "uniform"]
_LEAST_TIME = 1e-3  # last time above 0 of grids by noise, where a schedule begins at 0 without noise


def make_grid(
    schedule: Schedule,
    steps: int | Sequence[float] | Tensor,
    *,
    kind: Kind = "leading",
    offset: int = 0,
    rho: float = 7.0,
) -> Tensor:
    """Return falling times (steps + 1,), from noise to data; a sampler makes one step between each two.

    Discrete schedules: integers that end at -1, which is clean data.

    - ``leading``: k (T // S) + offset for k = S - 1, ..., 0. It misses the last times, where the signal is smallest.
    - ``trailing``: round(T - k T/S) - 1. It begins at the last one, where pure noise is at home; but there the error of
      a network that predicts eps is divided by a tiny alpha: clip x0, or predict v.
    - ``linspace``: S times from T - 1 to 0 in equal steps, rounded.
    - ``quadratic``: floor(squares of S equal steps from 0 to sqrt(0.8 T)) + 1: finer near the data.

    Continuous schedules: float64 that end at t_min.

    - ``uniform``: equal steps of time (also ``trailing``, ``leading`` and ``linspace``, which mean the same here).
    - ``quadratic``: square roots of the times in equal steps.

    Both: ``karras``: (sigma/alpha)^(1/rho) in equal steps; ``lambda``: log(alpha/sigma) in equal steps.

    Args:
        schedule: of the model.
        steps: S, number of steps, >= 1; or a list of falling times, which is checked, and to which -1 is added where
            it is missing.
        kind: rule of the times.
        offset: >= 0, of ``leading``.
        rho: > 0, of ``karras``.

    Raises:
        ValueError: fewer or more steps than the table has, an unknown kind; of a list: times that do not fall, or are
            out of range.

    Source: kexue.fm/archives/9181 (times of sub-sequences).

    Example:
        >>> make_grid(DiscreteSchedule.linear(1000), 4, kind="trailing").tolist()
        [999, 749, 499, 249, -1]
    """
    if isinstance(steps, bool | float):
        raise TypeError(f"steps must be a whole number, or a list of times, got {steps!r}")
    if not isinstance(steps, int) and not is_whole(steps):
        times = check_grid(schedule, steps)
        clean = not schedule.discrete or int(times[-1]) == -1
        return times if clean else torch.cat([times, times.new_full((1,), -1)])
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    steps = check_count(steps, "steps", 1)
    if isinstance(schedule, DiscreteSchedule):
        if steps > schedule.num_steps:
            raise ValueError(f"steps must be <= {schedule.num_steps}, the times of the schedule, got {steps}")
        times = _discrete_times(schedule, steps, kind, offset, rho)
        return check_grid(schedule, torch.cat([times, times.new_full((1,), -1)]))
    return _continuous_times(schedule, steps, kind, rho)


def _discrete_times(schedule: DiscreteSchedule, steps: int, kind: Kind, offset: int, rho: float) -> Tensor:
    """Return S falling integer times."""
    T = schedule.num_steps
    k = torch.arange(steps, dtype=torch.float64)
    if kind == "leading":
        return torch.arange(steps - 1, -1, -1) * (T // steps) + offset
    if kind == "trailing":
        return (T - k * T / steps).round().long() - 1
    if kind in ("linspace", "uniform"):
        return torch.linspace(T - 1, 0, steps, dtype=torch.float64).round().long()
    if kind == "quadratic":
        roots = torch.linspace((0.8 * T) ** 0.5, 0, steps, dtype=torch.float64)
        return _separate(roots.square().floor().long() + 1, T)
    first = T - 2 if float(schedule.alpha(T - 1)) == 0 else T - 1  # without signal the ratio is infinite
    ratio = _noise_levels(schedule, torch.tensor([first, 0]), steps - 1, kind, rho)
    times = schedule.time_of_log_snr(-2 * ratio.log())
    times[0] = T - 1
    return _separate(times, T)


def _separate(times: Tensor, num_steps: int) -> Tensor:
    """Return falling times in [0, num_steps - 1], none of them twice: those that meet are moved apart."""
    rank = torch.arange(len(times))
    apart = (times + rank).flip(0).cummax(0).values.flip(0) - rank  # at least one above the next
    return torch.minimum(apart.clamp(min=len(times) - 1 - rank), num_steps - 1 - rank)


def _continuous_times(schedule: Schedule, steps: int, kind: Kind, rho: float) -> Tensor:
    """Return S + 1 falling times from t_max to t_min."""
    high, low = schedule.t_max, schedule.t_min
    w = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if kind not in ("karras", "lambda"):
        power = 2 if kind == "quadratic" else 1
        times = w.mul(high ** (1 / power) - low ** (1 / power)).add(low ** (1 / power)).pow(power)
        times[0], times[-1] = high, low
        return times
    ends_clean = float(schedule.sigma(low)) == 0
    ends = torch.tensor([high, max(low, _LEAST_TIME) if ends_clean else low], dtype=torch.float64)
    if float(schedule.alpha(high)) == 0:  # no signal at all: log(alpha/sigma) is infinite there
        ends[0] = high - _LEAST_TIME * (high - low)
    count = steps - 1 if ends_clean and steps > 1 else steps
    inside = schedule.time_of_log_snr(-2 * _noise_levels(schedule, ends, count, kind, rho).log())
    inside[0] = high
    if ends_clean and steps > 1:
        return torch.cat([inside, inside.new_tensor([low])])
    inside[-1] = low
    return inside


def _noise_levels(schedule: Schedule, ends: Tensor, steps: int, kind: Kind, rho: float) -> Tensor:
    """Return steps + 1 falling ratios sigma/alpha between those of two times."""
    first, last = (schedule.sigma(ends) / schedule.alpha(ends)).tolist()
    w = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if kind == "lambda":
        levels: Tensor = first ** (1 - w) * last**w
        return levels
    if not rho > 0:
        raise ValueError(f"rho must be > 0, got {rho}")
    roots: Tensor = first ** (1 / rho) * (1 - w) + last ** (1 / rho) * w
    return roots.pow(rho)


def check_grid(schedule: Schedule, times: Sequence[float] | Tensor) -> Tensor:
    """Return times as a tensor that a sampler takes.

    Raises:
        ValueError: fewer than two times, times that do not fall strictly, or out of the schedule's range.
        TypeError: fractions on a discrete schedule; neither a number nor a list.
    """
    try:
        grid = torch.as_tensor(times, dtype=None if isinstance(times, Tensor) else torch.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a number of steps, or a list of times, is expected, got {times!r}") from error
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid has two times at least, (steps + 1,), got {tuple(grid.shape)}")
    if schedule.discrete:
        if grid.is_floating_point() and bool((grid != grid.round()).any()):
            raise TypeError(f"times of a discrete schedule are integers, got {grid.tolist()}")
        grid = grid.long()
    else:
        grid = grid.to(torch.float64)
    wrong = (~(grid.diff() < 0)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"times must fall from step to step, got {grid[i].item()}, then {grid[i + 1].item()}")
    low = -1.0 if schedule.discrete else 0.0
    if float(grid[-1]) < low or float(grid[0]) > schedule.t_max:
        raise ValueError(f"times must be in [{low:g}, {schedule.t_max:g}], got {grid[0].item()} to {grid[-1].item()}")
    return grid
