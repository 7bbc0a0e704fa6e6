"""Softmax and cross-entropy for several labels at once (ZLPR), its relatives, and what to predict with them.

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
    masked_logsumexp,
    may_read,
    reduce,
)
from kexue.losses._checks import as_real_numbers, check_scale


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
    """Every positive above the threshold, every negative below it: cross-entropy for several labels at once.

        loss = log(e^h + sum_i (1 - t_i) e^{s_i}) + log(e^{-h} + sum_i t_i e^{-s_i})

    with scores s, labels t and threshold h. Positives and negatives stand in one logarithm each, so that neither side
    outweighs the other however many there are. Predict the classes with s > h (`zlpr_predict`).

    Args:
        scores: (..., C) raw scores, no sigmoid and no softmax applied. -inf means the class is masked out.
        labels: (..., C), bool, or numbers in [0, 1]. Constants: no gradient flows into them.
        mask: (..., C) bool or broadcastable, True = the class takes part. A sample without any, by the mask or by
            scores of -inf, counts 0 and is left out of the mean.
        threshold: h, a number or a tensor that broadcasts to the leading shape (...).
        weight: (C,) >= 0, factor of each class inside both sums.
        label_smoothing: e in [0, 1]; t becomes t (1 - e) + e / 2.
        reduction: ``"none"`` gives one value a sample, shape (...).

    Returns:
        float32 for half-precision scores, else their dtype.

    Raises:
        TypeError: scores are no floats, the mask is not bool.
        ValueError: shapes differ, a label or the smoothing lies outside [0, 1], a weight is negative.
    """
    check_reduction(reduction)
    scores, present = _checked(scores, labels, mask)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if labels.dtype == torch.bool and weight is None and label_smoothing == 0:
        negative = scores.masked_fill(~present | labels, -torch.inf)
        positive = (-scores).masked_fill(~present | ~labels, -torch.inf)
    else:
        soft = as_real_numbers(labels).detach().to(scores.dtype) * (1 - label_smoothing) + label_smoothing / 2
        factor = torch.zeros((), dtype=scores.dtype, device=scores.device)
        if weight is not None:
            factor = _checked_weight(weight, scores).log()
        negative = scores.masked_fill(~present, -torch.inf) + (factor + torch.log1p(-soft))
        positive = (-scores).masked_fill(~present, -torch.inf) + (factor + soft.log())
    h = _threshold(threshold, scores)
    values = _with(negative, h).logsumexp(-1) + _with(positive, -h).logsumexp(-1)
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
        TypeError: scores are no floats, labels are no integers.
        ValueError: leading shapes differ, or a label is not below C.
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
    # Two more columns: the threshold's own, and one that is always -inf, where padding points.
    index = labels.masked_fill(padding, classes + 1).sort(-1).values
    repeated = index[..., 1:] == index[..., :-1]
    index = torch.cat([index[..., :1], index[..., 1:].masked_fill(repeated, classes + 1)], -1)
    h = _threshold(threshold, scores)
    if mask is not None:
        scores = scores.masked_fill(~expand_mask(mask, scores.shape), -torch.inf)
    present = (
        scores.detach().amax(-1) != -torch.inf if classes else scores.new_zeros(scores.shape[:-1], dtype=torch.bool)
    )
    sums: Any = _SparseSums.recorded if is_transformed() else _SparseSums.apply
    negative, positive = sums(scores, h, index)
    return reduce(negative + positive, present, reduction)


def pairwise_logsumexp_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    scale: float = 1.0,
    margin: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Every negative below every positive, without a threshold: for a fixed number k of labels; predict the top k.

        loss = log(1 + sum_{i in N} e^{scale (s_i + margin)} sum_{j in P} e^{-scale s_j})

    With one positive, scale 1 and margin 0 it is softmax cross-entropy. It is the unified form, eq. (1), of
    Sun et al. 2020 (Circle Loss, arXiv:2002.10857), not the circle loss itself.

    Args:
        scores: (..., C) raw scores; labels: (..., C) bool or 0/1; mask and reduction: as in `zlpr_loss`.
        scale: > 0. margin: added to each negative.

    A sample without positives, or without negatives, has loss 0.
    """
    check_reduction(reduction)
    check_scale(scale)
    scores, present = _checked(scores, labels, mask)
    true = _hard(labels)
    negative = masked_logsumexp(scale * (scores + margin), present & ~true)
    positive = masked_logsumexp(-scale * scores, present & true)
    gap = negative + positive
    return reduce(torch.stack([gap, torch.zeros_like(gap)]).logsumexp(0), present.any(-1), reduction)


def combination_softmax_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    k: int | None = None,
    pad_score: float | Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax over all sets of k classes, the article's first idea.

        loss = log e_k(e^{s_1}, ..., e^{s_C}) - sum_{j in P} s_j,    e_k: k-th elementary symmetric polynomial

    With `pad_score` h a set may have up to k members, the rest being copies of a padding class:
    loss = log sum_{m <= k} e^{h (k - m)} e_m - sum_{j in P} s_j - (k - |P|) h.

    Args:
        scores: (..., C) raw scores; labels: (..., C) bool or 0/1; mask and reduction: as in `zlpr_loss`.
        k: size of the sets; None takes the number of positives of each sample (eager mode only, and no padding).
        pad_score: h, a number or a tensor that broadcasts to the leading shape.

    Costs C steps on (..., k + 1): meant for hundreds of classes.

    Raises:
        ValueError: a sample has another number of positives than k (more than k, with `pad_score`).
    """
    check_reduction(reduction)
    scores, present = _checked(scores, labels, mask)
    true = _hard(labels) & present
    count = true.sum(-1, keepdim=True)
    if k is None:
        if pad_score is not None or not may_read(count):
            raise ValueError(
                "k must be given with pad_score, and where labels cannot be read (torch.compile, vmap, the meta "
                "device), got None"
            )
        size = int(count.max()) if count.numel() else 0
    else:
        size = k
        if not 1 <= k <= scores.shape[-1]:
            raise ValueError(f"k must be in [1, {scores.shape[-1]}], the number of classes, got {k}")
        wrong = present.any(-1, keepdim=True) & ((count > k) if pad_score is not None else (count != k))
        if may_read(wrong) and bool(wrong.any()):
            raise ValueError(f"each sample must have k = {k} positives, got {int(count[wrong][0])}")
    log_sums = _log_symmetric(scores, present, size)
    total = scores.masked_fill(~true, 0.0).sum(-1)
    if pad_score is None:
        # With k given, a sample that is masked out altogether has no k-th sum: its 0-th one is 0, and so is its loss.
        values = log_sums.gather(-1, count).squeeze(-1) - total
    else:
        h = _threshold(pad_score, scores)
        left = torch.arange(size, -1, -1, device=scores.device)
        values = (log_sums + h * left).logsumexp(-1) - total - ((size - count) * h).squeeze(-1)
    return reduce(values, present.any(-1), reduction)


def zlpr_predict(scores: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
    """Which classes to predict: bool, same shape; True where the score exceeds the threshold.

    A tensor of thresholds broadcasts to the leading shape of `scores`, one threshold a sample.
    """
    if isinstance(threshold, Tensor):
        threshold = threshold.unsqueeze(-1)
    return scores > threshold


def zlpr_proba(scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Probability of each class, sigmoid(2 s / temperature): where the gradient for soft labels vanishes.

    Mind the 2. For hard labels drawn at random it is not exact; there set `temperature` by `fit_temperature`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    return torch.sigmoid(2 * as_floats(scores) / temperature)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature at which `zlpr_proba` has the least binary cross-entropy on held-out scores and labels.

    Args:
        scores: (..., C); labels: same shape, bool or in [0, 1].

    Raises:
        ValueError: no temperature is best: scores do not rise with the labels, or separate them without an error.
    """
    s, t = as_floats(scores.detach()).double(), as_real_numbers(labels).detach().double()
    if s.shape != t.shape:
        raise ValueError(f"labels must have the shape of scores, {tuple(s.shape)}, got {tuple(t.shape)}")

    def slope(inverse: float) -> float:  # of the cross-entropy, by 1 / temperature; it rises
        return float((2 * s * (torch.sigmoid(2 * inverse * s) - t)).mean())

    low, high = 2.0**-40, 2.0**40
    if not slope(low) < 0 < slope(high):
        raise ValueError(
            "no temperature fits: scores must rise with the labels and miss some; got slopes "
            f"{slope(low):.3g} and {slope(high):.3g} at the ends; use held-out data"
        )
    for _ in range(100):  # bisection on the logarithm, to the last digit
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high


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
        """The loss."""
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


class _SparseSums(torch.autograd.Function):
    """Both terms of the loss from indices, with two arrays of the size of the scores at most, forward and backward.

    Recorded operation by operation, autograd would hold five of them. The backward pass is differentiable itself.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, h: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        wide, chosen = _SparseSums.split(scores, h, index)
        peak = wide.amax(-1, keepdim=True)
        negative = wide.sub_(peak).exp_().sum(-1).log() + peak.squeeze(-1)
        positive = _with(_SparseSums.flipped(chosen), -h).logsumexp(-1)
        ctx.save_for_backward(scores, h, index, negative, positive)
        return negative, positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        scores, h, index, negative, positive = ctx.saved_tensors
        by_negative, by_positive = (g.unsqueeze(-1) for g in grads)
        wide, chosen = _SparseSums.split(scores, h, index)
        slopes = wide.sub_(negative.unsqueeze(-1)).exp_() * by_negative
        above = -(_SparseSums.flipped(chosen) - positive.unsqueeze(-1)).exp() * by_positive
        slopes.scatter_(-1, index, above)
        own = slopes[..., -2:-1] - (-h - positive.unsqueeze(-1)).exp() * by_positive
        return slopes[..., :-2], own, None

    @staticmethod
    def recorded(scores: Tensor, h: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The same operation by operation, which every transform of torch.func can follow."""
        wide, chosen = _SparseSums.split(scores, h, index)
        return wide.logsumexp(-1), _with(_SparseSums.flipped(chosen), -h).logsumexp(-1)

    @staticmethod
    def split(scores: Tensor, h: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and two more columns with the positives set to -inf; and the scores of the positives."""
        wide = torch.cat([scores, h, torch.full_like(h, -torch.inf)], -1)
        chosen = wide.gather(-1, index)
        return wide.scatter(-1, index, -torch.inf), chosen  # not in place: gather needs it

    @staticmethod
    def flipped(chosen: Tensor) -> Tensor:
        """Minus the scores, where -inf (padding, masked) stays -inf."""
        return (-chosen).masked_fill(chosen == -torch.inf, -torch.inf)


def _checked(scores: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in full precision, and the classes that take part: those the mask keeps, less scores of -inf."""
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


def _checked_weight(weight: Tensor, scores: Tensor) -> Tensor:
    if weight.shape != scores.shape[-1:]:
        raise ValueError(f"weight must be ({scores.shape[-1]},), one a class, got {tuple(weight.shape)}")
    if may_read(weight) and not bool((weight >= 0).all()):
        raise ValueError(f"weight must be >= 0, got {weight.min().item()}")
    return weight.to(scores.dtype)


def _threshold(threshold: float | Tensor, scores: Tensor) -> Tensor:
    """The threshold as a column (..., 1)."""
    shape = scores.shape[:-1]
    if not isinstance(threshold, Tensor):
        return scores.new_full((*shape, 1), threshold)
    try:
        return threshold.to(scores.dtype).expand(shape).unsqueeze(-1)
    except RuntimeError:
        raise ValueError(f"threshold must broadcast to {tuple(shape)}, got {tuple(threshold.shape)}") from None


def _with(terms: Tensor, column: Tensor) -> Tensor:
    """The threshold's term beside the others, inside one log-sum-exp: safe when all others are -inf."""
    return torch.cat([terms, column], -1)


def _hard(labels: Tensor) -> Tensor:
    if labels.dtype != torch.bool and may_read(labels) and not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels must be 0 or 1 here, got values between; zlpr_loss takes soft labels")
    return labels.bool()


def _log_symmetric(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """log e_0 ... log e_k of the exponentials, (..., k + 1), adding one class at a time.

    Newton's identities would cancel. Sums of too few classes stand at a finite floor, since -inf has no gradient.
    """
    floor = torch.finfo(scores.dtype).min / (2 * k + 4)
    scores = scores.masked_fill(~mask, floor)
    sums = scores.new_full((*scores.shape[:-1], k + 1), floor)
    sums[..., 0] = 0.0
    lowest = torch.full_like(sums[..., :1], floor)
    for s in scores.unbind(-1):
        added = torch.cat([lowest, sums[..., :-1] + s.unsqueeze(-1)], -1).clamp(min=floor)
        sums = torch.stack([sums, added]).logsumexp(0)  # logaddexp has no second derivative at large gaps
    return sums
