"""The two sums of the multi-label loss from indices of the positives, in little memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kexue.losses._multilabel import append_column


class SparseSums(torch.autograd.Function):
    """Both log-sum-exps of the loss from indices, with at most two arrays of the size of the scores at a time.

    If autograd recorded each operation, it would keep five of them. The backward pass is itself differentiable.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, h: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        wide, positives = SparseSums.split_positives(scores, h, index)
        peak = wide.amax(-1, keepdim=True)
        negative = wide.sub_(peak).exp_().sum(-1).log() + peak.squeeze(-1)
        positive = append_column(SparseSums.negate(positives), -h).logsumexp(-1)
        ctx.save_for_backward(scores, h, index, negative, positive)
        return negative, positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        scores, h, index, negative, positive = ctx.saved_tensors
        by_negative, by_positive = (g.unsqueeze(-1) for g in grads)
        wide, positives = SparseSums.split_positives(scores, h, index)
        slopes = wide.sub_(negative.unsqueeze(-1)).exp_() * by_negative
        above = -(SparseSums.negate(positives) - positive.unsqueeze(-1)).exp() * by_positive
        slopes.scatter_(-1, index, above)
        own = slopes[..., -2:-1] - (-h - positive.unsqueeze(-1)).exp() * by_positive
        return slopes[..., :-2], own, None

    @staticmethod
    def compute_recorded(scores: Tensor, h: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms operation by operation, for the transforms of torch.func."""
        wide, positives = SparseSums.split_positives(scores, h, index)
        return wide.logsumexp(-1), append_column(SparseSums.negate(positives), -h).logsumexp(-1)

    @staticmethod
    def split_positives(scores: Tensor, h: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(scores and two more columns with the positives set to -inf, the scores of the positives)."""
        wide = torch.cat([scores, h, torch.full_like(h, -torch.inf)], -1)
        positives = wide.gather(-1, index)
        return wide.scatter(-1, index, -torch.inf), positives  # not in place: gather needs it

    @staticmethod
    def negate(positives: Tensor) -> Tensor:
        """Minus the scores; -inf (padding, masked) stays -inf."""
        return (-positives).masked_fill(positives == -torch.inf, -torch.inf)
