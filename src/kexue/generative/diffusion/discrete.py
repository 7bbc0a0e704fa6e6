"""Noise schedules of a table, such as DDPM's thousand steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import may_read
from kexue.errors import NotSupported
from kexue.generative.diffusion.schedule import Schedule, Time, as_time

_MOST_BETA = 0.999  # of the cosine table, whose last step would leave no signal at all


class DiscreteSchedule(Schedule):
    """Table of alpha and sigma at the times 0 to num_steps - 1; time -1 is clean data, (1, 0) exactly.

    Args:
        log_alphas: (T,) log alpha of each time, falling, <= 0; -inf is no signal at all.

    Example:
        >>> schedule = DiscreteSchedule.linear(1000)
        >>> schedule.num_steps, float(schedule.alpha(-1)), float(schedule.sigma(-1))
        (1000, 1.0, 0.0)
    """

    discrete = True
    t_min = -1

    def __init__(self, log_alphas: Tensor) -> None:
        if log_alphas.ndim != 1 or not len(log_alphas):
            raise ValueError(f"one log alpha for each time is expected, (T >= 1,), got {tuple(log_alphas.shape)}")
        table = log_alphas.to(torch.float64)
        falling = bool((table.diff() < 0).all()) if len(table) > 1 else True
        if bool(table.isnan().any()) or float(table[0]) >= 0 or not falling:
            raise ValueError("alpha must be below 1 and fall with every time: all betas must be in (0, 1]")
        self.num_steps = len(table)
        self.t_max = self.num_steps - 1
        log_alpha = torch.cat([table, table.new_zeros(1)])  # the last row is clean data, which index -1 finds
        self._rows = torch.stack([log_alpha, log_alpha.exp(), torch.expm1(2 * log_alpha).abs().sqrt()])

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> Self:
        """Return the schedule of the variances (T,) that each step adds, in (0, 1]."""
        steps = torch.as_tensor(betas, dtype=torch.float64)
        if not bool(((steps > 0) & (steps <= 1)).all()):
            raise ValueError("all betas must be in (0, 1]; multiply percentages by 0.01")
        return cls(torch.log1p(-steps).cumsum(0) / 2)

    @classmethod
    def linear(cls, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Self:
        """Return DDPM's schedule: `num_steps` variances from `beta_start` to `beta_end` in equal steps."""
        steps = check_count(num_steps, "num_steps", 1)
        return cls.from_betas(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, num_steps: int = 1000) -> Self:
        """Return the schedule alpha = cos(pi/2 (t/T + s)/(1 + s)), s = 0.008, with no variance above 0.999."""
        times = torch.arange(check_count(num_steps, "num_steps", 1) + 1, dtype=torch.float64) / num_steps
        squared = ((times + 0.008) / 1.008 * (math.pi / 2)).cos().square()
        return cls.from_betas((1 - squared[1:] / squared[:-1]).clamp(max=_MOST_BETA))

    @classmethod
    def from_alphas_cumprod(cls, a: Tensor | Sequence[float]) -> Self:
        """Return the schedule of alpha^2 (T,), which the DDPM paper and diffusers call alphas_cumprod."""
        return cls(torch.as_tensor(a, dtype=torch.float64).log() / 2)

    def _look_up(self, row: int, t: Time) -> Tensor:
        """Return values of one row of the table, which moves to the device of the times."""
        index = torch.as_tensor(t)
        if index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"times of a discrete schedule are integers in [-1, {self.num_steps - 1}], got {t}")
        index = index.long()  # bytes would be a mask
        readable = may_read(index)
        if readable and not self._has(index):
            raise ValueError(f"times must be in [-1, {self.num_steps - 1}], got {index.tolist()}")
        if self._rows.device != index.device:
            self._rows = self._rows.to(index.device)
        if readable and index.ndim == 0:  # what samplers ask for, many times a step
            return self._rows[row, int(index)].clone()
        values: Tensor = self._rows[row][index[None]][0]  # an axis, since torch.compile reads a lone index
        return values

    def _has(self, index: Tensor) -> bool:
        """Return whether all times are in the table."""
        if index.ndim == 0:
            return -1 <= int(index) < self.num_steps
        return bool(((index >= -1) & (index < self.num_steps)).all())

    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha of times."""
        return self._look_up(0, t)

    def alpha(self, t: Time) -> Tensor:
        """Return the coefficient of the signal at times."""
        return self._look_up(1, t)

    def sigma(self, t: Time) -> Tensor:
        """Return the standard deviation of the noise at times."""
        return self._look_up(2, t)

    def drift_coefficient(self, t: Time) -> Tensor:
        """Raise: a table has no derivatives."""
        raise NotSupported(
            "a discrete schedule has no derivatives in time; differential equations need a continuous one, such as VP."
        )

    sigma_dot = drift_coefficient

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time whose `log_snr` is nearest to v."""
        v = as_time(v)
        log_alpha, _, sigma = self._rows[:, :-1].to(v.device)
        gap: Tensor = v.unsqueeze(-1) - 2 * (log_alpha - sigma.log())
        return gap.abs().argmin(-1)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 of every time, (T,)."""
        return self._rows[1, :-1].square()


def zero_terminal_snr(schedule: DiscreteSchedule) -> DiscreteSchedule:
    """Return a schedule whose last time has no signal: alpha is shifted to 0 there and kept at the first time.

    A network that predicts eps tells nothing of the data at that time: train one that predicts v or x0.

    Example:
        >>> schedule = zero_terminal_snr(DiscreteSchedule.linear())
        >>> float(schedule.alpha(999)), float(schedule.sigma(999))
        (0.0, 1.0)
    """
    if schedule.num_steps < 2:
        raise ValueError(f"two times at least are expected, got {schedule.num_steps}")
    alpha = schedule.alphas_cumprod.sqrt()
    shifted = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return DiscreteSchedule(shifted.log())
