"""Margin softmax: the true class must score higher by a margin, so that samples of one class are near one another.

Retrieval requires d(z1, z3) < d(z1, z2) for z1, z3 of one class and z2 of another. By the triangle inequality, used
twice, d(z1, c1) + [d(z3, c1) + d(z2, c2)] < d(z1, c2) with the class centres c is sufficient: a margin of about the
mean class diameter.

Source: kexue.fm/archives/8656. AM-Softmax: Wang et al. 2018, arXiv:1801.05599; ArcFace: Deng et al. 2019,
arXiv:1801.07698.
Differences: the article's code takes the unmargined target out of a finished logsumexp, unstable where the target
dominates; here the margin is subtracted before the cross-entropy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kexue._tensors import (
    Reduction,
    as_class_numbers,
    as_floats,
    check_range,
    check_reduction,
    may_read,
    unit,
    without_autocast,
)
from kexue.losses._checks import as_cosines, check_scale, is_class, reduced_cross_entropy


def am_softmax_loss(
    cosines: Tensor,
    labels: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.35,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """AM-Softmax: cross-entropy of scale (cos - margin onehot); with y the sample's class,

    loss = log(1 + sum over i != y of exp(scale (cos_i + margin - cos_y))).

    Args:
        cosines: (B, C), each in [-1, 1], without softmax, scale or margin.
        labels: (B,) integers in [0, C), or `ignore_index`.
        scale: > 0, inverse temperature. Probability p in all C classes requires at least
            (C - 1) / C log((C - 1) p / (1 - p)), with the classes' directions as far apart as possible, at cosines of
            -1 / (C - 1). Losses at different scales cannot be compared.
        margin: in [0, 2], subtracted from the cosine (not from the scaled score); 0 is plain scaled softmax. For
            training only: predict with the bare cosines.
        ignore_index: rows with this label add 0 and do not count in the mean.
        reduction: ``"none"`` (one value per row), ``"mean"`` over kept rows, or ``"sum"``.

    Returns:
        Scalar, or (B,) for ``"none"``; float32 for half precision, else the dtype of `cosines`.

    Raises:
        ValueError: wrong shapes, a cosine outside [-1, 1] by more than 1e-4 (or the rounding of a half dtype), a label
            out of range, a scale or margin out of range.
        TypeError: cosines that are not floats, labels that are not integers.
    """
    check_scale(scale)
    if not 0 <= margin <= 2:
        raise ValueError(f"a margin between cosines lies in [0, 2], got {margin}")
    cosines, labels, own = _classes(cosines, labels, ignore_index)
    cosines = as_cosines(cosines)
    moved = torch.sub(cosines, own.to(cosines.dtype), alpha=margin)  # section "From the chord to the cosine"
    return reduced_cross_entropy(scale * moved, labels, reduction, ignore_index)


def arcface_loss(
    cosines: Tensor,
    labels: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.5,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """ArcFace: the margin is an angle, and cos(theta_y + margin) replaces cos_y.

    Beyond theta + margin = pi that would increase again; there cos_y - margin sin(margin) keeps decreasing.

    Args:
        cosines, labels, scale, ignore_index, reduction: as `am_softmax_loss`.
        margin: radians, in [0, pi).

    Raises:
        ValueError, TypeError: as `am_softmax_loss`.
    """
    check_scale(scale)
    if not 0 <= margin < math.pi:
        raise ValueError(f"a margin between angles lies in [0, pi), got {margin}")
    cosines, labels, own = _classes(cosines, labels, ignore_index)
    cosines = as_cosines(cosines)
    # the derivative of the sine is infinite at the poles: the sine is clamped there
    sine = (1 - cosines.square()).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()
    turned = cosines * math.cos(margin) - sine * math.sin(margin)  # cos(theta + margin)
    beyond = cosines < -math.cos(margin)  # theta > pi - margin
    moved = torch.where(beyond, cosines - margin * math.sin(margin), turned)
    return reduced_cross_entropy(scale * torch.where(own, moved, cosines), labels, reduction, ignore_index)


def margin_loss(
    distances: Tensor,
    labels: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.35,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """The article's loss for any distance: log(1 + sum over i != y of exp(scale (d_y + margin - d_i))).

    Args:
        distances: (B, C) distances to the class centres, >= 0, small = near. The reasoning needs a metric, as
            sqrt(1 - cos) is; 1 - cos breaks the triangle inequality.
        margin: >= 0, in the unit of the distances; `estimate_class_diameter` measures one.
        labels, scale, ignore_index, reduction: as `am_softmax_loss`.

    Raises:
        ValueError: a negative distance; otherwise as `am_softmax_loss`.
    """
    check_scale(scale)
    if not margin >= 0:
        raise ValueError(f"a margin between distances is >= 0, got {margin}")
    distances, labels, own = _classes(distances, labels, ignore_index, "distances")
    distances = as_floats(distances, "distances")
    if distances.numel() and may_read(distances) and float(distances.detach().min()) < 0:
        raise ValueError(f"distances must be >= 0 (small = near), got {float(distances.detach().min())}")
    moved = torch.add(distances, own.to(distances.dtype), alpha=margin)  # section "Two tasks, two conditions"
    return reduced_cross_entropy(-scale * moved, labels, reduction, ignore_index)


def _classes(scores: Tensor, labels: Tensor, ignore_index: int, name: str = "cosines") -> tuple[Tensor, Tensor, Tensor]:
    """(scores with 0 in ignored rows, labels as int64, (B, C) bool True at the class), after checks of shapes."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected {name} (B, C) and labels (B,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    labels = as_class_numbers(labels)
    check_range(labels, scores.shape[1], ignore_index)
    kept = labels != ignore_index
    if not (may_read(kept) and bool(kept.all())):  # an ignored row may hold anything
        scores = scores.masked_fill(~kept.unsqueeze(1), 0.0)
    return scores, labels, is_class(labels, scores.shape[1])


class _CosineHead(nn.Module):
    """Class directions (C, d) as parameters, compared with embeddings by cosine."""

    def __init__(
        self, num_classes: int, dim: int, *, scale: float, margin: float, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        if num_classes < 2 or dim < 1:
            raise ValueError(f"expected num_classes >= 2 and dim >= 1, got {num_classes} and {dim}")
        check_reduction(reduction)
        check_scale(scale)
        self.scale, self.margin, self.reduction = scale, margin, reduction
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.normal_(self.weight)  # directions uniform on the sphere; lengths do not matter

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines (B, C) of embeddings (B, d) with the class directions, without margin, for prediction.

        An embedding of length 0 has no direction: its cosines and its gradient are 0.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weight.shape[1]:
            raise ValueError(f"expected embeddings (B, {self.weight.shape[1]}), got {tuple(embeddings.shape)}")
        with without_autocast(embeddings):
            embeddings, weight = as_floats(embeddings, "embeddings"), as_floats(self.weight, "weight")
            return unit(embeddings) @ unit(weight.to(embeddings.dtype)).T

    def extra_repr(self) -> str:
        """Settings in the printed form."""
        classes, dim = self.weight.shape
        return (
            f"num_classes={classes}, dim={dim}, scale={self.scale}, margin={self.margin}, reduction={self.reduction!r}"
        )


class AMSoftmaxLoss(_CosineHead):
    """`am_softmax_loss` with the class directions as parameters: give `loss.parameters()` to the optimizer too.

    Args:
        num_classes, dim: C and d of the weight.
        scale, margin, reduction: as `am_softmax_loss`; `margin` may be changed during training.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 30.0,
        margin: float = 0.35,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(num_classes, dim, scale=scale, margin=margin, reduction=reduction)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of embeddings (B, d), of any length, with labels (B,)."""
        return am_softmax_loss(
            self.cosines(embeddings), labels, scale=self.scale, margin=self.margin, reduction=self.reduction
        )


class ArcFaceLoss(_CosineHead):
    """`arcface_loss` with the class directions as parameters: give `loss.parameters()` to the optimizer too.

    Args:
        num_classes, dim: C and d of the weight.
        scale, margin, reduction: as `arcface_loss`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 30.0,
        margin: float = 0.5,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(num_classes, dim, scale=scale, margin=margin, reduction=reduction)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of embeddings (B, d), of any length, with labels (B,)."""
        return arcface_loss(
            self.cosines(embeddings), labels, scale=self.scale, margin=self.margin, reduction=self.reduction
        )
