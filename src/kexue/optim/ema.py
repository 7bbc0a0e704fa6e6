"""Exponential moving average of the weights; Polyak & Juditsky 1992, and the last wrapper of bert4keras."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue._tensors import float32_or_wider
from kexue.optim._tensor_lists import batches
from kexue.optim._update import Update
from kexue.optim._wrapper import Wrapper
from kexue.optim.stack import parameters


class EMA(Wrapper):
    """Exponential moving average of the parameters, kept next to them; training itself is not changed.

    s <- d_t s + (1 - d_t) p after update t = 1, 2, ..., with s = p before the first, d_t = decay, or with `warmup`
    min(decay, (1 + t) / (10 + t)).

    Args:
        inner: any optimizer.
        decay: in [0, 1); the average reaches back about 1 / (1 - decay) updates.
        warmup: a smaller decay during the first updates, so that the first weights are forgotten soon.

    Raises:
        ValueError: decay out of range.

    Put it outermost: inside another wrapper it would average weights that the outer one changes afterwards. The average
    is float32 for half precision, in which its steps would be lost to rounding. Only parameters are averaged, not
    buffers. Costs a copy of the parameters and one pass over them at each update.
    """

    name: ClassVar[str] = "ema"
    _counters: ClassVar[dict[str, Any]] = {"step": 0}

    def __init__(self, inner: Optimizer, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        super().__init__(inner)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within the `with` the parameters hold the average; before the first update nothing changes.

        Raises:
            RuntimeError: `step`, `state_dict` or `load_state_dict` is called within.
        """
        return self._show("shadow")

    def shadow_state_dict(self) -> dict[str | int, Tensor]:
        """The average by parameter name, where the inner optimizer has names, else by index; not copied.

        A parameter that never had a gradient is its own average. With names, `model.load_state_dict(..., strict=False)`
        takes it.
        """
        self._refuse_swapped("shadow_state_dict")
        names: list[str | int] = [name for group in self.param_groups for name in group.get("param_names", [])]
        params, shadows = parameters(self), self._tensors_named("shadow")
        return {name: shadows.get(p, p.detach()) for name, p in zip(names or range(len(params)), params, strict=True)}

    def _advance(self, update: Update) -> None:
        update.before.append(self._allocate_all)
        self._inner_step(update)
        if not update.applied:
            return
        t = self._counter("step") + 1
        self._set_counter("step", t)
        d = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        averages = self._tensors_named("shadow")
        for ps, shadows in batches(averages, averages.values()):
            if ps[0].dtype == shadows[0].dtype:
                torch._foreach_lerp_(shadows, ps, 1 - d)
            else:
                for p, shadow in zip(ps, shadows, strict=True):
                    shadow.lerp_(p.to(shadow.dtype), 1 - d)

    def _allocate(self, param: Tensor) -> None:
        if not self.tensors.get(param):
            self.tensors[param] = {"shadow": param.detach().to(self._tensor_dtype("shadow", param), copy=True)}

    def _tensor_dtype(self, name: str, param: Tensor) -> torch.dtype:
        return float32_or_wider(param.dtype)

    def _describe(self) -> str:
        return f"decay={self.decay}, warmup={self.warmup}"
