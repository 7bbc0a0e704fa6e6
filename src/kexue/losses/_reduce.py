"""What every loss shares: full precision, log-sum-exp over what is kept, and the three reductions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


def check_reduction(reduction: str) -> None:
    """ValueError unless `reduction` is one of the three."""
    if reduction not in {"none", "mean", "sum"}:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def in_eager() -> bool:
    """Whether checks may read the values of tensors: not while torch.compile traces."""
    return not torch.compiler.is_compiling()


def full_precision(scores: Tensor, name: str = "scores") -> Tensor:
    """float16 and bfloat16 to float32, wider floats as they are; TypeError for anything else.

    Autocast leaves elementwise functions in the dtype it is given; only matrix products need
    ``torch.autocast(device_type, enabled=False)`` around them.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {getattr(scores, 'dtype', type(scores).__name__)}")
    return scores.float() if scores.dtype in {torch.float16, torch.bfloat16} else scores


def masked_logsumexp(scores: Tensor, keep: Tensor, dim: int = -1) -> Tensor:
    """log sum exp over the entries where `keep` (bool, same shape) is True; over none, -inf with gradient 0.

    Entries of -inf count as not kept. Plain logsumexp over nothing but -inf has gradient NaN, which no later masking
    undoes.
    """
    keep = keep & (scores != -torch.inf)
    empty = ~keep.any(dim, keepdim=True)
    value = scores.masked_fill(~(keep | empty), -torch.inf).masked_fill(empty, 0.0).logsumexp(dim)
    return value.masked_fill(empty.squeeze(dim), -torch.inf)


def reduce(values: Tensor, kept: Tensor | None, reduction: str) -> Tensor:
    """None, mean or sum of one value a sample.

    Args:
        values: any shape, one value a sample; finite also where `kept` is False, or its gradient is not.
        kept: bool, same shape; None keeps all. The others count 0, and the mean is over the kept ones; with none
            kept it is an exact 0 with gradient 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
    """
    check_reduction(reduction)
    if kept is not None:
        values = values.masked_fill(~kept, 0.0)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (kept.sum().clamp(min=1) if kept is not None else max(values.numel(), 1))
