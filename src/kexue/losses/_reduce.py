"""What every loss shares: checks of labels and cosines, full precision, log-sum-exp over what is kept, reductions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kexue._tensors import may_read

Reduction = Literal["none", "mean", "sum"]


def check_reduction(reduction: str) -> None:
    """ValueError unless `reduction` is one of the three."""
    if reduction not in {"none", "mean", "sum"}:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def full_precision(scores: Tensor, name: str = "scores") -> Tensor:
    """float16 and bfloat16 to float32, wider floats as they are; TypeError for anything else.

    Autocast leaves elementwise functions in the dtype it is given; only matrix products need
    ``torch.autocast(device_type, enabled=False)`` around them.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {getattr(scores, 'dtype', type(scores).__name__)}")
    return scores.float() if scores.dtype in {torch.float16, torch.bfloat16} else scores


def class_numbers(labels: Tensor, name: str = "labels") -> Tensor:
    """Class numbers of any integer dtype as int64; TypeError for floats, bools and complex numbers."""
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{name} must be a tensor of integer class numbers, got {got}")
    return labels.long()


def real_numbers(labels: Tensor, name: str = "labels") -> Tensor:
    """Labels that are numbers, in the dtype they came, bools and integers as int64; TypeError for complex ones."""
    if not isinstance(labels, Tensor) or labels.is_complex():
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"{name} must be a tensor of real numbers, got {got}")
    return labels if labels.is_floating_point() else labels.long()


def check_range(labels: Tensor, classes: int | Tensor, ignore_index: int | None, name: str = "labels") -> None:
    """ValueError for a class number that is neither in [0, classes) nor `ignore_index`, where numbers can be read.

    `classes` may differ from label to label.
    """
    if not may_read(labels):
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong = wrong & (labels != ignore_index)
    if bool(wrong.any()):
        first = tuple(wrong.nonzero()[0].tolist())
        size = classes if isinstance(classes, int) else int(classes[first])
        other = "" if ignore_index is None else f" or be {ignore_index}"
        where = f" in row {first[0]}" if len(first) == 1 else f" at {first}"
        raise ValueError(f"{name} must lie in [0, {size}){other}, got {int(labels[first])}{where if first else ''}")


def check_mask(mask: Tensor | None, shape: torch.Size) -> None:
    """TypeError unless the mask is bool, ValueError unless it has this shape."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = keep, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"mask must have shape {tuple(shape)}, got {tuple(mask.shape)}")


def checked_cosines(cosines: Tensor) -> Tensor:
    """Cosines in full precision; ValueError for one outside [-1, 1] by more than rounding, where they can be read."""
    wide = full_precision(cosines, "cosines")
    if cosines.numel() and may_read(cosines):
        worst = float(cosines.detach().abs().max())
        if worst > 1 + max(1e-4, torch.finfo(cosines.dtype).eps):
            raise ValueError(f"cosines must lie in [-1, 1], got {worst:g} in size; normalise, and do not scale before")
    return wide


def is_class(labels: Tensor, classes: int) -> Tensor:
    """(..., classes) bool, True at each label's class; no class for a label out of range."""
    return labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)


def cross_entropy(scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """One value -log softmax(scores)[label] a row of scores (N, C, ...) or (C,); rows not kept give 0, whatever in."""
    if may_read(kept) and bool(kept.all()):
        return functional.cross_entropy(scores, labels, reduction="none")  # without a copy of the scores
    scores = scores.masked_fill(~kept.unsqueeze(min(scores.ndim - 1, 1)), 0.0)
    return functional.cross_entropy(scores, labels.masked_fill(~kept, 0), reduction="none").masked_fill(~kept, 0.0)


def finite_and_rest(own: Tensor) -> tuple[Tensor, Tensor]:
    """A target's score s as s' - rest: s' is s, or a low number where s is -inf; rest is 0, or there -s.

    A loss of s' plus `rest` is the infinite limit at s = -inf, with finite gradients and the -1 of the target.
    """
    gone = own == -torch.inf
    return own.masked_fill(gone, torch.finfo(own.dtype).min / 16), torch.where(gone, -own, 0.0)


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
