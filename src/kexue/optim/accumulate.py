"""Gradient accumulation: large batches from small ones; kexue.fm/archives/7094."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue.optim._fusion import is_fused, is_linear
from kexue.optim._tensor_lists import batches
from kexue.optim._update import Update
from kexue.optim._wrapper import Wrapper
from kexue.optim.stack import parameters


class GradientAccumulation(Wrapper):
    """Gradient accumulation: every `steps`-th call of `step` updates with the mean gradient of the micro-batches.

    gradient = sum w_i g_i / sum w_i, w_i = 1 unless `step(weight=w_i)` says otherwise.

    ::

        optimizer = GradientAccumulation(AdamW(model.parameters()), 4)
        for batch in batches:                        # a loop as without accumulation
            loss = mean_loss(model, batch)
            loss.backward()
            optimizer.step(weight=batch.num_tokens)  # mean over tokens; without `weight`: mean of the means
            optimizer.zero_grad()

    Source: kexue.fm/archives/7094. Differences: in the article's code the first call makes an update with an empty sum,
    and all updates come one call late; here call number `steps` is the first update, and inner counters count updates.

    Args:
        inner: any optimizer of dense gradients.
        steps: >= 1, micro-batches per update.
        average: whether to use the mean; False: the sum of w_i g_i.
        accum_dtype: type of the sum, where gradients have a lower precision.

    Raises:
        ValueError: `steps` below 1; a weight that is negative or not finite.
        TypeError: a sparse gradient.

    `step` removes each gradient: `p.grad` is None after it. Clip the mean in a step pre-hook of `inner`. A parameter
    without a gradient in a micro-batch counts as zero there. A micro-batch of weight 0 counts as a call and adds
    nothing. Wrappers around this one act, and count, at updates only; step schedulers at updates too, see
    `is_boundary`. The mean over micro-batches is the gradient of the large batch only if the loss is a mean over
    independent samples: not with batch normalisation, and not with contrastive losses.
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
    def is_fused(self) -> bool:
        """Whether no wrapper inside acts after the step of the innermost optimizer."""
        return is_fused(self.inner)

    @property
    def is_linear(self) -> bool:
        """Whether scaling lr of the innermost optimizer scales the whole change of the inner one."""
        return is_linear(self.inner)

    @property
    def is_boundary(self) -> bool:
        """Whether the coming `step` updates. Read it before `backward`, to know whether ranks must share gradients."""
        return bool(self._counter("step") + 1 >= self.steps)

    def _advance(self, update: Update) -> None:
        if not update.flush:
            self._accumulate(update.weight)
        update.weight = None
        count = self._counter("step")
        if count < self.steps and not (update.flush and count):
            return
        seen = self._tensors_named("seen")
        means = [(p, gradient) for p, gradient in self._tensors_named("gradient").items() if seen.get(p)]
        for p, gradient in means:
            p.grad = gradient.to(p.dtype)
        self._inner_step(update)  # section "gradient accumulation": the inner step, from the mean gradient
        for p, _ in means:
            p.grad = None
        self._set_counter("step", 0)
        self._set_counter("weight", 0.0)

    def _accumulate(self, weight: float | None) -> None:
        """Take the gradients of one micro-batch into the running mean or sum."""
        w = 1.0 if weight is None else float(weight)
        if not (w >= 0 and math.isfinite(w)):
            raise ValueError(f"weight must be finite and >= 0, got {weight}")
        total = self._counter("weight") + w
        part = w / total if self.average and w else w
        if self._counter("step") == 0:
            for mark in self._tensors_named("seen").values():
                mark.zero_()
        sums, gradients, silent = [], [], []
        for p in parameters(self):
            gradient, p.grad = p.grad, None
            tensors = self.tensors.get(p, {})
            seen = tensors.keys() >= {"seen", "gradient"} and bool(tensors["seen"])
            if gradient is None:
                silent += [tensors["gradient"]] if seen else []
                continue
            if gradient.is_sparse:
                raise TypeError("GradientAccumulation takes dense gradients, got a sparse one")
            if not w:
                continue
            if not seen:
                taken = _detached_memory(gradient.detach(), self._tensor_dtype("gradient", p))
                self.tensors[p] = {"gradient": taken if part == 1 else taken.mul_(part), "seen": torch.ones(())}
            else:
                sums.append(tensors["gradient"])
                gradients.append(gradient.detach().to(tensors["gradient"].dtype))
        for ours, new in batches(sums, gradients):
            if self.average:
                torch._foreach_lerp_(ours, new, part)  # section "gradient accumulation": the weighted mean so far
            else:
                torch._foreach_add_(ours, new, alpha=part)
        if self.average and w:
            for (ours,) in batches(silent):
                torch._foreach_mul_(ours, 1 - part)
        self._set_counter("weight", total)
        self._set_counter("step", self._counter("step") + 1)

    def _allocate(self, param: Tensor) -> None:
        if not self.tensors.get(param):
            empty = torch.zeros_like(param, dtype=self._tensor_dtype("gradient", param))
            self.tensors[param] = {"gradient": empty, "seen": torch.zeros(())}

    def _tensor_dtype(self, name: str, param: Tensor) -> torch.dtype:
        return torch.promote_types(param.dtype, self.accum_dtype)

    def _adopt(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        return value.detach().cpu().clone() if name == "seen" else super()._adopt(name, param, value)

    def _describe(self) -> str:
        return f"steps={self.steps}, average={self.average}"


def _detached_memory(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient itself, or a copy where its memory may belong to something larger or to a bucket of DDP."""
    if gradient.dtype != dtype:
        return gradient.to(dtype)
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = type(gradient) is Tensor and gradient.untyped_storage().nbytes() == gradient.numel() * gradient.itemsize
    return gradient if alone and not shared and not gradient.is_inference() else gradient.clone()
