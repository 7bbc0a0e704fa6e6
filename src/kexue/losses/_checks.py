"""Checks and terms that several losses share: labels, cosines, cross-entropy, targets of -inf."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kexue._tensors import Reduction, as_class_numbers, as_floats, check_range, may_read, reduce


def as_real_numbers(labels: Tensor, name: str = "labels") -> Tensor:
    """Return labels as numbers: floats in their dtype, bools and integers as int64; TypeError for complex ones."""
    if not isinstance(labels, Tensor) or labels.is_complex():
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{name} must be a tensor of real numbers, got {got}")
    return labels if labels.is_floating_point() else labels.long()


def as_cosines(cosines: Tensor) -> Tensor:
    """Cosines in float32 or wider; ValueError for a readable one outside [-1, 1] by more than rounding."""
    wide = as_floats(cosines, "cosines")
    if cosines.numel() and may_read(cosines):
        worst = float(cosines.detach().abs().max())
        if worst > 1 + max(1e-4, torch.finfo(cosines.dtype).eps):
            raise ValueError(f"cosines must lie in [-1, 1], got {worst:g} in size; normalise, and do not scale before")
    return wide


def check_scale(scale: float) -> None:
    """ValueError unless the scale is positive."""
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}")


def is_class(labels: Tensor, classes: int) -> Tensor:
    """Return a one-hot mask, (..., classes) bool: True at each label's class; all False for a label out of range."""
    return labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)


def cross_entropy(scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """-log softmax(scores)[label], one value per row of scores (N, C, ...) or (C,); 0 for rows that are not kept.

    Rows that are not kept may hold anything, NaN included.
    """
    if may_read(kept) and bool(kept.all()):
        return functional.cross_entropy(scores, labels, reduction="none")  # without a copy of the scores
    scores = scores.masked_fill(~kept.unsqueeze(min(scores.ndim - 1, 1)), 0.0)
    return functional.cross_entropy(scores, labels.masked_fill(~kept, 0), reduction="none").masked_fill(~kept, 0.0)


def split_infinite(own: Tensor) -> tuple[Tensor, Tensor]:
    """Split a target's score s into s' - rest: s' is s, or a low number where s is -inf; rest is 0, or -s there.

    A loss of s' plus `rest` is the infinite limit at s = -inf, with finite gradients and the -1 of the target.
    """
    infinite = own == -torch.inf
    return own.masked_fill(infinite, torch.finfo(own.dtype).min / 16), torch.where(infinite, -own, 0.0)


def reduced_cross_entropy(scores: Tensor, labels: Tensor, reduction: Reduction, ignore_index: int = -100) -> Tensor:
    """`cross_entropy` over the rows whose label is not `ignore_index`, reduced."""
    kept = labels != ignore_index
    return reduce(cross_entropy(as_floats(scores), labels, kept), kept, reduction)


def check_embeddings(u: Tensor, v: Tensor) -> None:
    """ValueError unless both are (B, d)."""
    if u.ndim != 2 or u.shape != v.shape:
        raise ValueError(f"expected two batches of embeddings (B, d), got {tuple(u.shape)} and {tuple(v.shape)}")


def check_class_rows(
    labels: Tensor, rows: int, classes: int | Tensor, name: str = "labels", ignore_index: int | None = -100
) -> Tensor:
    """`labels` (rows,) as int64 in [0, classes) or equal to `ignore_index`; `classes` may differ by row."""
    labels = as_class_numbers(labels, name)
    if labels.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), got {tuple(labels.shape)}")
    check_range(labels, classes, ignore_index, name)
    return labels
