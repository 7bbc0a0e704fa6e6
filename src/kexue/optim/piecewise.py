"""Piecewise linear learning rate: linear between knots; kexue.fm/archives/7094."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kexue.optim._fusion import is_fused, is_linear
from kexue.optim._tensor_lists import batches
from kexue.optim._update import Update
from kexue.optim._wrapper import Wrapper


def multiplier(knots: tuple[tuple[int, float], ...], updates: int) -> float:
    """The multiplier after a number of completed updates: linear between knots, constant after the last one."""
    index = bisect_right(knots, updates, key=lambda knot: knot[0])
    (start, low), (end, high) = knots[index - 1], knots[min(index, len(knots) - 1)]
    # section "piecewise linear learning rate": m(t)
    return low if end == start else low + (high - low) * (updates - start) / (end - start)


def read_schedule(schedule: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """Sorted knots, with (0, 0.0) in front where no knot stands at 0.

    Raises:
        ValueError: no knot; a knot that is not a whole number >= 0; a multiplier that is negative or not finite.
    """
    if not schedule:
        raise ValueError("the schedule is empty; {0: 1.0} is a constant one")
    for knot, value in schedule.items():
        if isinstance(knot, bool) or knot != int(knot) or knot < 0:
            raise ValueError(f"a knot is a number of completed updates, a whole number >= 0; got {knot!r}")
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"a multiplier must be finite and >= 0; got {value!r} at {knot}")
    knots = sorted((int(knot), float(value)) for knot, value in schedule.items())
    return tuple(knots if knots[0][0] == 0 else [(0, 0.0), *knots])


class PiecewiseLinear(Wrapper):
    """Multiply each update by a factor that is linear between knots: warm-up and decay without a scheduler.

    p <- p_old + m(t) (p_new - p_old), t = number of completed updates, so that the first update sees m(0). ::

        PiecewiseLinear(optimizer, {1000: 1.0, 2000: 0.1})   # 0 -> 1 over 1,000 updates, -> 0.1 over 1,000 more

    Source: kexue.fm/archives/7094.

    Args:
        inner: any optimizer; the learning rate in its groups stays, and a scheduler may move it too.
        schedule: completed updates -> multiplier >= 0. Without a knot at 0 it starts at (0, 0.0), and the first update
            then changes no parameter; it is constant after the last knot.

    Raises:
        ValueError: an empty schedule, a knot or a multiplier out of range.

    Where the step of the inner optimizer is known to be proportional to lr, lr is scaled during the step, at no cost;
    otherwise the old parameters are kept during the step.
    """

    name: ClassVar[str] = "piecewise_linear"
    _counters: ClassVar[dict[str, Any]] = {"step": 0}

    def __init__(self, inner: Optimizer, schedule: Mapping[int, float]) -> None:
        self.schedule = dict(schedule)
        self._knots = read_schedule(schedule)
        super().__init__(inner)

    @property
    def is_fused(self) -> bool:
        """Whether the step of the innermost optimizer does all the work.

        lr is scaled there, and no wrapper inside acts after it.
        """
        return self.is_linear and is_fused(self.inner)

    @property
    def is_linear(self) -> bool:
        """Whether scaling lr of the innermost optimizer scales the whole change of the inner one."""
        return is_linear(self.inner)

    def _advance(self, update: Update) -> None:
        step = self._counter("step")
        m = multiplier(self._knots, step)
        linear = self.is_linear
        if linear:
            update.scale *= m  # section "piecewise linear learning rate"
        elif m != 1:
            update.keep(lambda p: True)
        self._inner_step(update)
        if not update.applied:
            return
        if not linear and m != 1:
            for ps, olds in batches(update.params, [update.old[p] for p in update.params]):
                torch._foreach_lerp_(ps, olds, 1 - m)  # p_old + m (p_new - p_old), the same
        self._set_counter("step", step + 1)

    def _describe(self) -> str:
        return f"{self.schedule}"


class PiecewiseLinearLR(LRScheduler):
    """The schedule of `PiecewiseLinear` as a torch scheduler: each group's lr is its initial lr times m(t).

    Args:
        optimizer: the optimizer with the learning rates.
        schedule: as in `PiecewiseLinear`; t counts calls of `step`.
        last_epoch: as in every scheduler of torch.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    >>> scheduler = PiecewiseLinearLR(optimizer, {2: 1.0, 4: 0.1})
    >>> rates = []
    >>> for _ in range(6):
    ...     rates.append(optimizer.param_groups[0]["lr"])
    ...     optimizer.step()
    ...     scheduler.step()
    >>> [round(rate, 3) for rate in rates]
    [0.0, 1.0, 2.0, 1.1, 0.2, 0.2]
    """

    def __init__(self, optimizer: Optimizer, schedule: Mapping[int, float], last_epoch: int = -1) -> None:
        self._knots = read_schedule(schedule)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates at the present t."""
        m = multiplier(self._knots, self.last_epoch)
        return [base * m for base in self.base_lrs]
