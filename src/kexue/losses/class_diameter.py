"""Mean diameter of the classes, from which a margin can be computed instead of tuned.

Source: kexue.fm/archives/8656.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kexue._tensors import as_class_numbers, direction_and_length
from kexue.losses.margin import AMSoftmaxLoss


@torch.no_grad()
def estimate_class_diameter(
    embeddings: Tensor, labels: Tensor, weight: Tensor, *, metric: Literal["sqrt_cos", "euclidean"] = "sqrt_cos"
) -> float:
    """Mean class diameter, twice the mean distance of a sample to its class centre: the margin of `margin_loss`.

    Args:
        embeddings: (B, d).
        labels: (B,) integers in [0, C); negative ones are ignored.
        weight: (C, d) class centres.
        metric: ``"sqrt_cos"``, sqrt(1 - cos), or ``"euclidean"``.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, a label >= C, or all labels negative.
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
    return 2 * float(distances.mean())  # section "A margin that is measured"


class AdaptiveMarginSchedule:
    """The article's loop: train, measure the class diameter, take it as the margin, continue training.

    With m the mean diameter under sqrt(1 - cos), the margin between distances becomes one between cosines: at the
    boundary sqrt(1 - cos_i) = sqrt(1 - cos_y) + m, hence cos_y - cos_i = m (m + 2 sqrt(1 - cos_y)), and a sample at the
    mean distance m / 2 from its centre gives

        margin = 2 m^2, at most C / (C - 1), beyond which no arrangement of C classes reaches it.

    Differences: the article takes m as the margin of the metric; the step to cosines and the bound are ours.

    Args:
        loss: the loss whose `margin` is set; start with margin 0.
        every: calls of `step` (epochs) between measurements, >= 1.
    """

    def __init__(self, loss: AMSoftmaxLoss, *, every: int) -> None:
        if not isinstance(loss, AMSoftmaxLoss):
            raise TypeError(f"the margin of an AMSoftmaxLoss is adapted, got {type(loss).__name__}")
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.loss, self.every, self.calls = loss, every, 0

    def step(self, embeddings: Tensor, labels: Tensor) -> float:
        """Set the margin on every `every`-th call, and return it; to be called once per epoch with training samples."""
        self.calls += 1
        if self.calls % self.every == 0:
            diameter = estimate_class_diameter(embeddings, labels, self.loss.weight)
            classes = len(self.loss.weight)
            # section "A margin that is measured"
            self.loss.margin = min(2 * diameter**2, classes / (classes - 1))
        return self.loss.margin
