"""n classifications over the same m classes, balanced over classes: the sum over tasks is inside the logarithm.

Source: kexue.fm/archives/9158, titled an unsuccessful attempt; both of its forms are here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import (
    Reduction,
    as_class_numbers,
    as_floats,
    check_range,
    check_reduction,
    masked_logsumexp,
    may_read,
    reduce,
)
from kexue.losses._checks import is_class, split_infinite

Form = Literal["pairwise", "centered"]


def nmway_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    form: Form = "pairwise",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Loss of n decisions over the same m classes, in which a class of c tasks weighs about log c.

        pairwise: loss = sum_j log(1 + sum_i t_ij sum_{k != j} e^{s_ik - s_ij})
        centered: loss = sum_j log(1 + sum_i t_ij e^{mean_k s_ik - s_ij})

    One task with a hard label is cross-entropy in the pairwise form; so are several whose labels all differ, summed.
    For soft labels only the centered form has a known optimum, t_i = softmax(s_i); for hard labels it is weak: it
    falls to 0 as soon as a true score is well above the mean, without being the largest.

    The loss is not a sum over tasks: splitting the n tasks of a sample, over steps or devices, changes it.

    Args:
        scores: (..., n, m) raw scores, m >= 2. The centered form needs finite ones; in the other -inf drops a class,
            and a label of it has the limit, an infinite loss with finite gradients.
        labels: (..., n) integers in [0, m); or (..., n, m) floats, each row with sum 1, or 0 to drop the task.
        form: ``"pairwise"`` (time and memory n m^2 for soft labels) or ``"centered"``.
        ignore_index: integer label of a task to drop. A sample without tasks counts 0, outside the mean.
        reduction: ``"none"`` (one value per leading index, shape (...)), ``"mean"`` or ``"sum"``.

    Returns:
        float32 for half-precision scores, else their dtype.

    Raises:
        TypeError: scores that are not floats, labels that are bool or complex.
        ValueError: shapes do not fit, m < 2, a label out of range, rows that sum to neither 1 nor 0, an unknown form.
    """
    check_reduction(reduction)
    _check_form(form)
    scores = as_floats(scores)
    if scores.dim() < 2 or scores.shape[-1] < 2:
        raise ValueError(f"scores must be (..., n, m) with m >= 2, got {tuple(scores.shape)}")
    low, rest = split_infinite(scores)
    if labels.is_floating_point():
        _check_soft(scores, labels)
        t = labels.detach().to(scores.dtype)
        present = t > 0
        scores, low = _without_dropped(scores, low, present.any(-1))
        terms = _gaps_of_all(scores, low, form) + t.masked_fill(~present, 1.0).log()
    else:
        labels, taken = _check_hard(scores, labels, ignore_index)
        scores, low = _without_dropped(scores, low, taken)
        present = is_class(labels, scores.shape[-1])
        terms = _gaps_of_true(scores, low, labels, present, form).unsqueeze(-1).expand_as(scores)
        present = present & taken.unsqueeze(-1)
    terms = terms.masked_fill(~present, -torch.inf)
    # section "Moving the sum into the logarithm" (pairwise), "Working backwards from the optimum" (centered):
    # log(1 + ...) as a log-sum-exp with an explicit 0, so that an absent class has value 0 and gradient 0
    per_class = torch.cat([terms, torch.zeros_like(terms[..., :1, :])], -2).logsumexp(-2)
    values = per_class.sum(-1) + rest.masked_fill(~present, 0.0).sum((-2, -1))
    return reduce(values, present.flatten(-2).any(-1), reduction)


class NMWayLoss(nn.Module):
    """Module of `nmway_loss`, with the same arguments."""

    def __init__(self, *, form: Form = "pairwise", ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        _check_form(form)
        self.form: Form = form
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss."""
        return nmway_loss(scores, labels, form=self.form, ignore_index=self.ignore_index, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Settings in the printed form."""
        return f"form={self.form!r}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


def _without_dropped(scores: Tensor, low: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return `scores` and `low` with zeros for tasks that are not taken, whose values may be anything."""
    if may_read(taken) and bool(taken.all()):
        return scores, low
    return scores.masked_fill(~taken.unsqueeze(-1), 0.0), low.masked_fill(~taken.unsqueeze(-1), 0.0)


def _gaps_of_true(scores: Tensor, low: Tensor, labels: Tensor, true: Tensor, form: Form) -> Tensor:
    """log sum exp of the other scores (centered: their mean), minus the true score: (..., n)."""
    own = low.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (scores.mean(-1) if form == "centered" else masked_logsumexp(scores, ~true)) - own


def _gaps_of_all(scores: Tensor, low: Tensor, form: Form) -> Tensor:
    """`_gaps_of_true` with each class in turn as the true one: (..., n, m)."""
    if form == "centered":
        return scores.mean(-1, keepdim=True) - low
    m = scores.shape[-1]
    others = ~torch.eye(m, dtype=torch.bool, device=scores.device)
    shape = (*scores.shape[:-1], m, m)
    return masked_logsumexp(scores.unsqueeze(-2).expand(shape), others.expand(shape)) - low


def _check_form(form: str) -> None:
    """ValueError for an unknown form."""
    if form not in {"pairwise", "centered"}:
        raise ValueError(f"form must be 'pairwise' or 'centered', got {form!r}")


def _check_soft(scores: Tensor, labels: Tensor) -> None:
    """ValueError unless the labels have the shape of the scores and rows that sum to 1 or 0."""
    if labels.shape != scores.shape:
        raise ValueError(f"float labels must be {tuple(scores.shape)} like scores, got {tuple(labels.shape)}")
    if may_read(labels):
        sums = labels.float().sum(-1)
        wrong = ~((sums - 1).abs() <= 1e-2) & (sums != 0) | (labels < 0).any(-1)  # half precision sums to 1 within 1e-2
        if bool(wrong.any()):
            raise ValueError(f"each row of labels must be >= 0 and sum to 1, or to 0; got {labels[wrong][0].tolist()}")


def _check_hard(scores: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(labels with class 0 for ignored tasks, bool True for the other tasks)."""
    if labels.shape != scores.shape[:-1]:
        raise ValueError(f"integer labels must be {tuple(scores.shape[:-1])}, got {tuple(labels.shape)}")
    labels = as_class_numbers(labels)
    check_range(labels, scores.shape[-1], ignore_index)
    taken = labels != ignore_index
    return labels.masked_fill(~taken, 0), taken
