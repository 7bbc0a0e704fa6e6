"""Margin softmax: a class wins only when it beats the others by a margin, so that same-class samples rank together.

Retrieval wants d(z1, z3) < d(z1, z2) for z1, z3 of one class and z2 of another. By the triangle inequality, twice, it
is enough that d(z1, c1) + [d(z3, c1) + d(z2, c2)] < d(z1, c2) with the class centres c: a margin of about the mean
class diameter.

Source: kexue.fm/archives/8656. AM-Softmax: Wang et al. 2018, arXiv:1801.05599; ArcFace: Deng et al. 2019,
arXiv:1801.07698.
Differences: the article's code takes the unmargined target out of a finished logsumexp, unstable where the target
dominates; here the margin is subtracted before the cross-entropy.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import (
    Reduction,
    as_class_numbers,
    as_floats,
    check_range,
    check_reduction,
    direction_and_length,
    may_read,
    reduce,
    unit,
    without_autocast,
)
from kexue.losses._checks import as_cosines, check_scale, cross_entropy, is_class


def am_softmax_loss(
    cosines: Tensor,
    labels: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.35,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """AM-Softmax: cross-entropy of scale (cos - margin onehot), with y the sample's class

    loss = log(1 + sum over i != y of exp(scale (cos_i + margin - cos_y))).

    Args:
        cosines: (B, C), each in [-1, 1]: no softmax, no scale, no margin applied before.
        labels: (B,) integers in [0, C), or `ignore_index`.
        scale: > 0, inverse temperature. To reach probability p in all C classes one needs at least
            (C - 1) / C log((C - 1) p / (1 - p)), and that only with the classes' directions as far apart as they can
            be, at cosines of -1 / (C - 1); losses at different scales cannot be compared.
        margin: in [0, 2], subtracted from the cosine (not from the scaled score); 0 is plain scaled softmax. For
            training only: predict with the bare cosines.
        ignore_index: rows with this label add nothing and do not count in the mean.
        reduction: ``"none"`` (one value per row), ``"mean"`` over kept rows, or ``"sum"``.

    Returns:
        Scalar, or (B,) for ``"none"``; float32 for half precision, else the dtype of `cosines`.

    Raises:
        ValueError: wrong shapes, a cosine outside [-1, 1] by more than 1e-4 (or the rounding of a half dtype), a label
            out of range, a scale or margin out of range.
        TypeError: cosines that are not floating point, labels no integers.
    """
    check_scale(scale)
    if not 0 <= margin <= 2:
        raise ValueError(f"a margin between cosines lies in [0, 2], got {margin}")
    cosines, labels, own = _classes(cosines, labels, ignore_index)
    cosines = as_cosines(cosines)
    moved = torch.sub(cosines, own.to(cosines.dtype), alpha=margin)
    return _cross_entropy(scale * moved, labels, ignore_index, reduction)


def arcface_loss(
    cosines: Tensor,
    labels: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.5,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """ArcFace: the margin is an angle, cos(theta_y + margin) takes the place of cos_y.

    Beyond theta + margin = pi that would fall back; there cos_y - margin sin(margin) goes on falling.

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
    # the slope of the sine is infinite at the poles: it is held there
    sine = (1 - cosines.square()).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()
    turned = cosines * math.cos(margin) - sine * math.sin(margin)  # cos(theta + margin)
    beyond = cosines < -math.cos(margin)  # theta > pi - margin
    moved = torch.where(beyond, cosines - margin * math.sin(margin), turned)
    return _cross_entropy(scale * torch.where(own, moved, cosines), labels, ignore_index, reduction)


def margin_loss(
    distances: Tensor,
    labels: Tensor,
    *,
    scale: float = 30.0,
    margin: float = 0.35,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """The article's loss for any distance, log(1 + sum over i != y of exp(scale (d_y + margin - d_i))).

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
    moved = torch.add(distances, own.to(distances.dtype), alpha=margin)
    return _cross_entropy(-scale * moved, labels, ignore_index, reduction)


def _cross_entropy(scores: Tensor, labels: Tensor, ignore_index: int, reduction: Reduction) -> Tensor:
    check_reduction(reduction)
    kept = labels != ignore_index
    return reduce(cross_entropy(scores, labels, kept), kept, reduction)


def _classes(scores: Tensor, labels: Tensor, ignore_index: int, name: str = "cosines") -> tuple[Tensor, Tensor, Tensor]:
    """Check shapes and labels; the scores, 0 in ignored rows, labels as int64, and (B, C) bool, True at their class."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected {name} (B, C) and labels (B,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    labels = as_class_numbers(labels)
    check_range(labels, scores.shape[1], ignore_index)
    kept = labels != ignore_index
    if not (may_read(kept) and bool(kept.all())):  # a row that is ignored may hold anything
        scores = scores.masked_fill(~kept.unsqueeze(1), 0.0)
    return scores, labels, is_class(labels, scores.shape[1])


class _CosineHead(nn.Module):
    """Class directions of its own, (C, d), compared with embeddings by cosine."""

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
        nn.init.normal_(self.weight)  # directions uniform on the sphere; lengths play no part

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines (B, C) of embeddings (B, d) with the class directions, without margin: what to predict with.

        An embedding of length 0 has no direction: its cosines and its gradient are 0.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weight.shape[1]:
            raise ValueError(f"expected embeddings (B, {self.weight.shape[1]}), got {tuple(embeddings.shape)}")
        with without_autocast(embeddings):
            embeddings, weight = as_floats(embeddings, "embeddings"), as_floats(self.weight, "weight")
            return unit(embeddings) @ unit(weight.to(embeddings.dtype)).T

    def extra_repr(self) -> str:
        """What `print` shows."""
        classes, dim = self.weight.shape
        return (
            f"num_classes={classes}, dim={dim}, scale={self.scale}, margin={self.margin}, reduction={self.reduction!r}"
        )


class AMSoftmaxLoss(_CosineHead):
    """`am_softmax_loss` with the class directions as parameters: hand `loss.parameters()` to the optimizer too.

    Args:
        num_classes, dim: C and d of the weight.
        scale, margin, reduction: as `am_softmax_loss`; `margin` may be set anew while training.
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
        """The loss of embeddings (B, d), of any length, with labels (B,)."""
        return am_softmax_loss(
            self.cosines(embeddings), labels, scale=self.scale, margin=self.margin, reduction=self.reduction
        )


class ArcFaceLoss(_CosineHead):
    """`arcface_loss` with the class directions as parameters: hand `loss.parameters()` to the optimizer too.

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
        """The loss of embeddings (B, d), of any length, with labels (B,)."""
        return arcface_loss(
            self.cosines(embeddings), labels, scale=self.scale, margin=self.margin, reduction=self.reduction
        )


@torch.no_grad()
def estimate_class_diameter(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, metric: Literal["sqrt_cos", "euclidean"] = "sqrt_cos"
) -> float:
    """The mean class diameter, twice the mean distance of a sample to its class centre: the margin of `margin_loss`.

    Args:
        embeddings: (B, d).
        labels: (B,) integers in [0, C); negative ones are left out.
        weight: (C, d) class centres.
        metric: ``"sqrt_cos"``, sqrt(1 - cos), or ``"euclidean"``.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, a label >= C, no sample left.
    """
    if metric not in ("sqrt_cos", "euclidean"):
        raise ValueError(f"metric must be 'sqrt_cos' or 'euclidean', got {metric!r}")
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or weight.shape[1:] != embeddings.shape[1:]:
        raise ValueError(
            f"expected embeddings (B, d), labels (B,), weight (C, d), "
            f"got {tuple(embeddings.shape)}, {tuple(labels.shape)}, {tuple(weight.shape)}"
        )
    labels = as_class_numbers(labels)
    known = labels >= 0
    if not known.any() or int(labels.max()) >= len(weight):
        raise ValueError(f"labels must hold classes in [0, {len(weight)}), got {sorted(set(labels.tolist()))}")
    samples, centres = embeddings[known].double(), weight.double()[labels[known]]
    if metric == "euclidean":
        distances = (samples - centres).norm(dim=1)
    else:
        # |a - b|^2 = 2 (1 - cos) for unit vectors, without the cancellation of 1 - cos
        distances = (direction_and_length(samples)[0] - direction_and_length(centres)[0]).norm(dim=1) / math.sqrt(2)
    return 2 * float(distances.mean())


class AdaptiveMarginSchedule:
    """The article's loop: train, measure the class diameter, make it the margin, train on.

    With m the mean diameter under sqrt(1 - cos), the margin between distances becomes one between cosines: at the
    border sqrt(1 - cos_i) = sqrt(1 - cos_y) + m, hence cos_y - cos_i = m (m + 2 sqrt(1 - cos_y)), and a sample at the
    mean distance m / 2 from its centre gives

        margin = 2 m^2, at most C / (C - 1), beyond which no arrangement of C classes reaches it.

    Differences: the article says to take m as the margin of the metric; the step to cosines and the bound are ours.

    Args:
        loss: its `margin` is set; start it with margin 0.
        every: calls of `step` (epochs) between measurements, >= 1.
    """

    def __init__(self, loss: AMSoftmaxLoss, *, every: int) -> None:
        if not isinstance(loss, AMSoftmaxLoss):
            raise TypeError(f"the margin of an AMSoftmaxLoss is adapted, got {type(loss).__name__}")
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.loss, self.every, self.calls = loss, every, 0

    def step(self, embeddings: Tensor, labels: Tensor) -> float:
        """Call once an epoch with training samples; every `every`-th call sets the margin. Returns the margin now."""
        self.calls += 1
        if self.calls % self.every == 0:
            diameter = estimate_class_diameter(embeddings, labels, self.loss.weight)
            classes = len(self.loss.weight)
            self.loss.margin = min(2 * diameter**2, classes / (classes - 1))
        return self.loss.margin
