"""Layer adaptation: steps in proportion to the size of each layer; kexue.fm/archives/7094; arXiv:1904.00962."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue._tensors import float32_or_wider
from kexue.optim._exclude import Exclude, Excluding
from kexue.optim._fusion import is_linear, learning_rate
from kexue.optim._tensor_lists import batches, pieces
from kexue.optim._update import Update
from kexue.optim.stack import unwrap

_LEAST_LR = 1e-7


class LayerAdaptation(Excluding):
    """Wrapper that scales each update so that its length is proportional to that of the tensor.

    With delta = p_new - p_old of the inner optimizer, ratio = |p_old| / |delta / max(lr, 1e-7)| and

    p <- p_old + ratio delta,

    where ratio = 1 when either length is 0; lengths are Euclidean, over the whole tensor. ::

        LAMB = LayerAdaptation(DecoupledWeightDecay(Adam(params)))
        LARS-like = LayerAdaptation(SGD(params, momentum=0.9))

    Source: kexue.fm/archives/7094; arXiv:1904.00962, algorithm 2 (there phi may clip, and is not applied to 0).

    Args:
        inner: any optimizer with a learning rate.
        exclude: parameters that keep the inner step, as in `DecoupledWeightDecay`; usually biases and normalisation.
        clip: (low, high), bounds of the ratio; None: no bounds, as in the article.

    A learning rate schedule belongs outside (`PiecewiseLinear`) or into the groups: inside, the ratio cancels it. Under
    FSDP each parameter must be sharded by itself (`fully_shard`); a flat parameter has no layers. Costs a copy of the
    parameters during the step, and three passes over both.
    """

    name: ClassVar[str] = "layer_adaptation"

    def __init__(self, inner: Optimizer, *, exclude: Exclude = None, clip: tuple[float, float] | None = None) -> None:
        if clip is not None and not 0 <= clip[0] <= clip[1]:
            raise ValueError(f"clip must be (low, high) with 0 <= low <= high, got {clip}")
        self.clip = clip
        super().__init__(inner, exclude)

    @property
    def is_linear(self) -> bool:
        """Whether scaling lr of the innermost optimizer scales the whole change of the inner one."""
        return is_linear(self.inner)

    def _advance(self, update: Update) -> None:
        scale = update.scale  # of an outer schedule: already in delta, and no part of the ratio
        update.keep(lambda p: p not in self._excluded)
        self._inner_step(update)
        if not update.applied:
            return
        for group, params in update.groups(unwrap(self)):
            moved = [p for p in params if p not in self._excluded and p.numel()]
            lr = max(float(learning_rate(group)), _LEAST_LR) * scale
            for ps, olds in batches(moved, [update.old[p] for p in moved]):
                if ps[0].is_cuda and type(ps[0].data) is Tensor:
                    self._adapt_many(ps, olds, lr)
                else:
                    for p, old in zip(ps, olds, strict=True):
                        self._adapt(p, old, lr)

    def _adapt(self, p: Tensor, old: Tensor, lr: float) -> None:
        lengths = [(_length(a), _length(b - a)) for a, b in pieces(old, p)]
        size, change = (sum(length[i] ** 2 for length in lengths) ** 0.5 for i in (0, 1))
        if size > 0 and change > 0:
            ratio = size * lr / change  # section "layer adaptation": |theta| / |delta / lr|
            if self.clip is not None:
                ratio = min(max(ratio, self.clip[0]), self.clip[1])
            p.lerp_(old, 1 - ratio)  # section "layer adaptation": p_old + ratio delta

    def _adapt_many(self, ps: list[Tensor], olds: list[Tensor], lr: float) -> None:
        """The same for many tensors without waiting for the device."""
        deltas = torch._foreach_sub(ps, olds)
        kind = float32_or_wider(ps[0].dtype)
        size = torch.stack([n.to(kind) for n in torch._foreach_norm(olds, 2, dtype=kind)])
        change = torch.stack([n.to(kind) for n in torch._foreach_norm(deltas, 2, dtype=kind)])
        ratio = size * lr / change  # section "layer adaptation"
        if self.clip is not None:
            ratio = ratio.clamp(*self.clip)
        ratio = torch.where((size > 0) & (change > 0), ratio, 1.0)
        torch._foreach_mul_(deltas, list(ratio.unbind()))
        torch._foreach_add_(deltas, olds)
        torch._foreach_copy_(ps, deltas)

    def _describe(self) -> str:
        return f"clip={self.clip}"


def _length(tensor: Tensor) -> float:
    """Euclidean length of the whole tensor, all shards included."""
    length = torch.linalg.vector_norm(tensor, dtype=float32_or_wider(tensor.dtype))
    return float(length.full_tensor() if hasattr(length, "full_tensor") else length)
