"""Softmax cross-entropy for several labels at once (ZLPR), from labels as numbers or as indices.

Source: kexue.fm/archives/7359 (hard labels), kexue.fm/archives/9064 (soft labels); Su et al. 2022, arXiv:2208.02955.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kexue._tensors import (
    Reduction,
    as_class_numbers,
    as_floats,
    check_range,
    check_reduction,
    expand_mask,
    is_transformed,
    reduce,
)
from kexue.losses._checks import as_real_numbers
from kexue.losses._multilabel import append_column, as_threshold, check_labels, check_weight
from kexue.losses._sparse_sums import SparseSums


def zlpr_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    threshold: float | Tensor = 0.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy for several labels at once: every positive above a threshold, every negative below it.

        loss = log(e^h + sum_i (1 - t_i) e^{s_i}) + log(e^{-h} + sum_i t_i e^{-s_i})

    with scores s, labels t and threshold h. Positives and negatives have one logarithm each, so that both sides
    count alike, whatever their numbers. Predict the classes with s > h (`zlpr_predict`).

    Args:
        scores: (..., C) raw scores, no sigmoid and no softmax applied. -inf means the class is masked out.
        labels: (..., C), bool, or numbers in [0, 1]. Constants: no gradient flows into them.
        mask: (..., C) bool or broadcastable, True = the class takes part. A sample without any, by the mask or by
            scores of -inf, counts 0 and is left out of the mean.
        threshold: h, a number or a tensor that broadcasts to the leading shape (...).
        weight: (C,) >= 0, factor of each class inside both sums.
        label_smoothing: e in [0, 1]; t becomes t (1 - e) + e / 2.
        reduction: ``"none"`` (one value per sample, shape (...)), ``"mean"`` or ``"sum"``.

    Returns:
        float32 for half-precision scores, else their dtype.

    Raises:
        TypeError: scores that are not floats, a mask that is not bool.
        ValueError: shapes that differ, a label or the smoothing outside [0, 1], a negative weight.
    """
    check_reduction(reduction)
    scores, present = check_labels(scores, labels, mask)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if labels.dtype == torch.bool and weight is None and label_smoothing == 0:
        negative = scores.masked_fill(~present | labels, -torch.inf)
        positive = (-scores).masked_fill(~present | ~labels, -torch.inf)
    else:
        soft = as_real_numbers(labels).detach().to(scores.dtype) * (1 - label_smoothing) + label_smoothing / 2
        factor = torch.zeros((), dtype=scores.dtype, device=scores.device)
        if weight is not None:
            factor = check_weight(weight, scores).log()
        negative = scores.masked_fill(~present, -torch.inf) + (factor + torch.log1p(-soft))
        positive = (-scores).masked_fill(~present, -torch.inf) + (factor + soft.log())
    h = as_threshold(threshold, scores)
    # section "Soft labels"; with hard labels section "A class that is the threshold"
    values = append_column(negative, h).logsumexp(-1) + append_column(positive, -h).logsumexp(-1)
    return reduce(values, present.any(-1), reduction)


def sparse_zlpr_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    threshold: float | Tensor = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """`zlpr_loss` with the positives given as indices: the same value, less time and memory when C is large.

    Args:
        scores: (..., C) raw scores.
        labels: (..., P) integers, the positive classes of each sample, in any order; `ignore_index` and every negative
            number are padding, and a repeated class counts once.
        mask, threshold, reduction: as in `zlpr_loss`.
        ignore_index: padding, when it is not a negative number.

    Raises:
        TypeError: scores that are not floats, labels that are not integers.
        ValueError: leading shapes that differ, or a label that is not below C.
    """
    check_reduction(reduction)
    scores = as_floats(scores)
    classes = scores.shape[-1]
    labels = as_class_numbers(labels)
    if labels.shape[:-1] != scores.shape[:-1]:
        raise ValueError(
            f"labels must be (..., P) for scores (..., C), got {tuple(labels.shape)} and {tuple(scores.shape)}"
        )
    padding = (labels < 0) | (labels == ignore_index)
    check_range(labels.masked_fill(padding, -1), classes, -1)
    # Two more columns: the threshold's, and one that is always -inf, to which padding points.
    index = labels.masked_fill(padding, classes + 1).sort(-1).values
    repeated = index[..., 1:] == index[..., :-1]
    index = torch.cat([index[..., :1], index[..., 1:].masked_fill(repeated, classes + 1)], -1)
    h = as_threshold(threshold, scores)
    if mask is not None:
        scores = scores.masked_fill(~expand_mask(mask, scores.shape), -torch.inf)
    present = (
        scores.detach().amax(-1) != -torch.inf if classes else scores.new_zeros(scores.shape[:-1], dtype=torch.bool)
    )
    sums: Any = SparseSums.compute_recorded if is_transformed() else SparseSums.apply
    negative, positive = sums(scores, h, index)  # section "A class that is the threshold"
    return reduce(negative + positive, present, reduction)


class ZLPRLoss(nn.Module):
    """Module of `zlpr_loss`, or with ``sparse=True`` of `sparse_zlpr_loss`.

    Args:
        sparse: labels are padded indices (..., P) instead of (..., C).
        threshold: number, tensor, or `nn.Parameter` to learn.
        label_smoothing, reduction: as in `zlpr_loss`; sparse labels cannot be smoothed.
    """

    threshold: float | Tensor

    def __init__(
        self,
        *,
        sparse: bool = False,
        threshold: float | Tensor = 0.0,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if not 0 <= label_smoothing <= (0 if sparse else 1):
            raise ValueError(f"label_smoothing must be in [0, 1], and 0 with sparse labels, got {label_smoothing}")
        self.sparse = sparse
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction
        if isinstance(threshold, Tensor) and not isinstance(threshold, nn.Parameter):
            self.register_buffer("threshold", threshold)
        else:
            self.threshold = threshold

    def forward(self, scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the loss; arguments as in `zlpr_loss`."""
        if self.sparse:
            return sparse_zlpr_loss(scores, labels, mask=mask, threshold=self.threshold, reduction=self.reduction)
        return zlpr_loss(
            scores,
            labels,
            mask=mask,
            threshold=self.threshold,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Settings in the printed form."""
        return f"sparse={self.sparse}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
