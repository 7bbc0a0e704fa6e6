"""Losses for a fixed number of labels: all positives above all negatives, and a softmax over sets of classes.

Source: kexue.fm/archives/7359.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kexue._tensors import Reduction, check_reduction, masked_logsumexp, may_read, reduce
from kexue.losses._checks import check_scale
from kexue.losses._multilabel import as_threshold, check_hard_labels, check_labels


def pairwise_logsumexp_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    scale: float = 1.0,
    margin: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Loss that puts every positive above every negative, without a threshold, for k labels each; predict the top k.

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
    scores, present = check_labels(scores, labels, mask)
    true = check_hard_labels(labels)
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
    """Cross-entropy of a softmax over all sets of k classes, the article's first idea.

        loss = log e_k(e^{s_1}, ..., e^{s_C}) - sum_{j in P} s_j,    e_k: k-th elementary symmetric polynomial

    With `pad_score` h a set may have up to k members, the rest being copies of a padding class:
    loss = log sum_{m <= k} e^{h (k - m)} e_m - sum_{j in P} s_j - (k - |P|) h.

    Args:
        scores: (..., C) raw scores; labels: (..., C) bool or 0/1; mask and reduction: as in `zlpr_loss`.
        k: size of the sets; None takes the number of positives of each sample (eager mode only, and no padding).
        pad_score: h, a number or a tensor that broadcasts to the leading shape.

    Costs C steps on (..., k + 1): meant for hundreds of classes.

    Raises:
        ValueError: a sample whose number of positives is not k (with `pad_score`: is above k).
    """
    check_reduction(reduction)
    scores, present = check_labels(scores, labels, mask)
    true = check_hard_labels(labels) & present
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
    # section "Softmax over sets"
    log_sums = _log_symmetric(scores, present, size)
    total = scores.masked_fill(~true, 0.0).sum(-1)
    if pad_score is None:
        # A sample that is masked out completely has no k-th sum: its 0-th sum is 0, and so is its loss.
        values = log_sums.gather(-1, count).squeeze(-1) - total
    else:
        h = as_threshold(pad_score, scores)
        left = torch.arange(size, -1, -1, device=scores.device)
        values = (log_sums + h * left).logsumexp(-1) - total - ((size - count) * h).squeeze(-1)
    return reduce(values, present.any(-1), reduction)


def _log_symmetric(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """log e_0 ... log e_k of the exponentials, (..., k + 1), adding one class at a time.

    Newton's identities would cancel. Sums over too few classes are a finite floor, since -inf has no gradient.
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
