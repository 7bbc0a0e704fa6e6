"""Large batches from small ones: kexue.fm/archives/7094."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim._update import Update, batches
from kexue.optim._wrapper import Wrapper, folds, is_linear


class GradientAccumulation(Wrapper):
    """Call `step` after every micro-batch; every `steps`-th call updates with the mean of their gradients.

    gradient = sum w_i g_i / sum w_i, w_i = 1 unless `step(weight=w_i)` says otherwise.

    ::

        optimizer = GradientAccumulation(AdamW(model.parameters()), 4)
        for batch in batches:                        # a loop as without accumulation
            loss = mean_loss(model, batch)
            loss.backward()
            optimizer.step(weight=batch.num_tokens)  # a mean over tokens; leave out for a mean of means
            optimizer.zero_grad()

    Source: kexue.fm/archives/7094. Differences: there the condition lets the first call apply an empty sum and updates
    lag one call behind; here call number `steps` is the first update, and inner counters count updates.

    Args:
        inner: any optimizer of dense gradients.
        steps: >= 1, micro-batches of an update.
        average: False: the sum of w_i g_i.
        accum_dtype: gradients of lower precision are summed in this type.

    Raises:
        ValueError: `steps` below 1; a weight that is negative or not finite.
        TypeError: a sparse gradient.

    `step` takes each gradient away, `p.grad` is None after it; a step pre-hook of `inner` sees the mean, there clip it.
    A parameter without a gradient in some micro-batches counts as zero there. A micro-batch of weight 0 counts as a
    call and adds nothing. Wrappers around this one act, and count, at updates only; step schedulers there too, see
    `is_boundary`. The mean over micro-batches is the gradient of the large batch only if the loss is a mean over
    independent samples: not with batch normalisation, nor with contrastive losses.
    """

    name: ClassVar[str] = "gradient_accumulation"
    _counters: ClassVar[dict[str, Any]] = {"step": 0, "weight": 0.0}

    def __init__(
        self, inner: Optimizer, steps: int, *, average: bool = True, accum_dtype: torch.dtype = torch.float32
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")
        if not accum_dtype.is_floating_point:
            raise ValueError(f"accum_dtype must be a floating type, got {accum_dtype}")
        self.steps = steps
        self.average = average
        self.accum_dtype = accum_dtype
        super().__init__(inner)

    @property
    def _folds(self) -> bool:
        return folds(self.inner)

    @property
    def _linear(self) -> bool:
        return is_linear(self.inner)

    @property
    def is_boundary(self) -> bool:
        """Whether the coming `step` updates. Ask before `backward`, to know whether ranks must share gradients."""
        return bool(self._get("step") + 1 >= self.steps)

    def _advance(self, update: Update) -> None:
        if not update.flush:
            self._gather(update.weight)
        update.weight = None
        count = self._get("step")
        if count < self.steps and not (update.flush and count):
            return
        seen = self._held("seen")
        handed = [(p, gradient) for p, gradient in self._held("gradient").items() if seen.get(p)]
        for p, gradient in handed:
            p.grad = gradient.to(p.dtype)
        self._inner_step(update)
        for p, _ in handed:
            p.grad = None
        self._set("step", 0)
        self._set("weight", 0.0)

    def _gather(self, weight: float | None) -> None:
        w = 1.0 if weight is None else float(weight)
        if not (w >= 0 and math.isfinite(w)):
            raise ValueError(f"weight must be finite and >= 0, got {weight}")
        total = self._get("weight") + w
        part = w / total if self.average and w else w
        if self._get("step") == 0:
            for mark in self._held("seen").values():
                mark.zero_()
        sums, gradients, silent = [], [], []
        for p in self._params():
            gradient, p.grad = p.grad, None
            tensors = self._tensors.get(p, {})
            seen = tensors.keys() >= {"seen", "gradient"} and bool(tensors["seen"])
            if gradient is None:
                silent += [tensors["gradient"]] if seen else []
                continue
            if gradient.is_sparse:
                raise TypeError("GradientAccumulation takes dense gradients, got a sparse one")
            if not w:
                continue
            if not seen:
                taken = _own(gradient.detach(), self._dtype("gradient", p))
                self._tensors[p] = {"gradient": taken if part == 1 else taken.mul_(part), "seen": torch.ones(())}
            else:
                sums.append(tensors["gradient"])
                gradients.append(gradient.detach().to(tensors["gradient"].dtype))
        for ours, new in batches(sums, gradients):
            if self.average:
                torch._foreach_lerp_(ours, new, part)  # the running weighted mean
            else:
                torch._foreach_add_(ours, new, alpha=part)
        if self.average and w:
            for (ours,) in batches(silent):
                torch._foreach_mul_(ours, 1 - part)
        self._set("weight", total)
        self._set("step", self._get("step") + 1)

    def _allocate(self, param: Tensor) -> None:
        if not self._tensors.get(param):
            empty = torch.zeros_like(param, dtype=self._dtype("gradient", param))
            self._tensors[param] = {"gradient": empty, "seen": torch.zeros(())}

    def _dtype(self, name: str, param: Tensor) -> torch.dtype:
        return torch.promote_types(param.dtype, self.accum_dtype)

    def _loaded(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        return value.detach().cpu().clone() if name == "seen" else super()._loaded(name, param, value)

    def _describe(self) -> str:
        return f"steps={self.steps}, average={self.average}"


def _own(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient itself; a copy where its memory may be part of something larger, or a bucket of DDP."""
    if gradient.dtype != dtype:
        return gradient.to(dtype)
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = type(gradient) is Tensor and gradient.untyped_storage().nbytes() == gradient.numel() * gradient.itemsize
    return gradient if alone and not shared and not gradient.is_inference() else gradient.clone()
