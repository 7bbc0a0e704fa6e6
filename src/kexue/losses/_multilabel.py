"""Checks and terms that the losses for several labels share: classes that take part, weights, thresholds."""

from __future__ import annotations

import torch
from torch import Tensor

from kexue._tensors import as_floats, expand_mask, may_read
from kexue.losses._checks import as_real_numbers


def check_labels(scores: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in float32 or wider, and which classes take part: kept by the mask, and a score other than -inf."""
    scores = as_floats(scores)
    if labels.shape != scores.shape:
        raise ValueError(f"labels must have the shape of scores, {tuple(scores.shape)}, got {tuple(labels.shape)}")
    if (
        labels.dtype != torch.bool
        and may_read(labels)
        and not bool(((as_real_numbers(labels) >= 0) & (labels <= 1)).all())
    ):
        raise ValueError(f"labels must be in [0, 1], got {labels.min().item()} ... {labels.max().item()}")
    present = scores != -torch.inf
    return scores, present if mask is None else expand_mask(mask, scores.shape) & present


def check_weight(weight: Tensor, scores: Tensor) -> Tensor:
    """The weights in the dtype of the scores; ValueError unless they are (C,) and >= 0."""
    if weight.shape != scores.shape[-1:]:
        raise ValueError(f"weight must be ({scores.shape[-1]},), one per class, got {tuple(weight.shape)}")
    if may_read(weight) and not bool((weight >= 0).all()):
        raise ValueError(f"weight must be >= 0, got {weight.min().item()}")
    return weight.to(scores.dtype)


def check_hard_labels(labels: Tensor) -> Tensor:
    """Labels as bool; ValueError unless all are 0 or 1."""
    if labels.dtype != torch.bool and may_read(labels) and not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels must be 0 or 1 here, got values between; zlpr_loss takes soft labels")
    return labels.bool()


def as_threshold(threshold: float | Tensor, scores: Tensor) -> Tensor:
    """The threshold as a column (..., 1) in the dtype of the scores."""
    shape = scores.shape[:-1]
    if not isinstance(threshold, Tensor):
        return scores.new_full((*shape, 1), threshold)
    try:
        return threshold.to(scores.dtype).expand(shape).unsqueeze(-1)
    except RuntimeError:
        raise ValueError(f"threshold must broadcast to {tuple(shape)}, got {tuple(threshold.shape)}") from None


def append_column(terms: Tensor, column: Tensor) -> Tensor:
    """Terms and one column of the threshold: their log-sum-exp is finite also where all terms are -inf."""
    return torch.cat([terms, column], -1)
