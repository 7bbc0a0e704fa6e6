"""TaiLr: cross-entropy in which improbable targets weigh less, between likelihood and total variation.

Source: kexue.fm/archives/9526; Ji et al. 2023, arXiv:2302.13344.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import Reduction, as_class_numbers, as_floats, check_range, check_reduction, may_read, reduce
from kexue.losses._checks import cross_entropy

Form = Literal["weighted", "integrated"]


def tailr_loss(
    scores: Tensor,
    labels: Tensor,
    gamma: float | Tensor,
    *,
    min_weight: float = 0.0,
    form: Form = "weighted",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy in which a target weighs less, the less probable it is under the model.

        weighted:   loss = -w log p,  w = max(p / (gamma + (1 - gamma) p), min_weight), a constant for the gradient
        integrated: loss = -log(gamma + (1 - gamma) p) / (1 - gamma),  at gamma = 1 its limit 1 - p

    with p the probability of the target. Without `min_weight` both have the same gradient; the integrated value is
    bounded by -log(gamma) / (1 - gamma). gamma = 0 is cross-entropy, gamma = 1 has the gradient of -p, of accuracy.
    From random weights gamma = 1 trains slowly, since w is about 1 / C: start lower (`GammaWarmup`).

    Args:
        scores: (N, C, ...) or (C,), raw scores, as `torch.nn.functional.cross_entropy`. A target of -inf has the limit
            of its loss: 0 with gradient 0 weighted, the bound integrated, infinity at gamma = 0 or with `min_weight`.
        labels: (N, ...) or (), integers in [0, C).
        gamma: in [0, 1], a number or a tensor without dimensions.
        min_weight: in [0, 1), least weight of a target; only with ``"weighted"``.
        form: the returned value, ``"weighted"`` or ``"integrated"``.
        weight: (C,) factor of each class; the mean divides by their sum over the kept targets, as cross_entropy does.
        ignore_index: label of targets that add 0 and do not count in the mean.
        label_smoothing: e in [0, 1]; (1 - e) loss + e / C sum_c -log p_c, where the second term is without w.
        reduction: ``"none"`` gives the shape of `labels`.

    Returns:
        float32 for half-precision scores, else their dtype.

    Raises:
        TypeError: scores that are not floats, labels that are not integers.
        ValueError: a number out of range, shapes that do not fit, ``"integrated"`` together with `min_weight`.
    """
    _check_options(gamma, min_weight, form, label_smoothing, reduction)
    scores = as_floats(scores)
    labels, kept = _check_labels(scores, labels, ignore_index)
    factor = None if weight is None else _class_factors(weight, scores, labels, kept)
    nll = cross_entropy(scores, labels, kept)
    g = gamma.detach() if isinstance(gamma, Tensor) else torch.full((), gamma, dtype=torch.float64)
    g = g.to(dtype=scores.dtype, device=scores.device)
    if form == "weighted":
        log_p = -nll.detach().clamp(max=1e30)
        # section "Between two gradients"
        w = (log_p - torch.logaddexp(g.log(), torch.log1p(-g) + log_p)).exp().clamp(min_weight, 1.0)
        values = nll.masked_fill(w == 0, 0.0) * w
    else:
        values = _integrated_loss(nll, g)  # section "A bounded value"
    if factor is not None:
        values = values.masked_fill(factor == 0, 0.0) * factor
    if label_smoothing > 0:
        axis = min(scores.dim() - 1, 1)
        uniform = _uniform(scores.masked_fill(~kept.unsqueeze(axis), 0.0), weight, axis).masked_fill(~kept, 0.0)
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    if factor is not None and reduction == "mean":
        total = factor.sum()
        return reduce(values, kept, "sum") / torch.where(total > 0, total, 1.0)
    return reduce(values, kept, reduction)


class TaiLrLoss(nn.Module):
    """Module of `tailr_loss`, with the same arguments; `gamma` may be set between steps."""

    weight: Tensor | None

    def __init__(
        self,
        gamma: float,
        *,
        min_weight: float = 0.0,
        form: Form = "weighted",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_options(gamma, min_weight, form, label_smoothing, reduction)
        self._gamma = gamma
        self.min_weight = min_weight
        self.form: Form = form
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction: Reduction = reduction

    @property
    def gamma(self) -> float:
        """Gamma in [0, 1]: 0 is cross-entropy, 1 the gradient of accuracy."""
        return self._gamma

    @gamma.setter
    def gamma(self, value: float) -> None:
        _check_gamma(value)
        self._gamma = value

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss."""
        return tailr_loss(
            scores,
            labels,
            self._gamma,
            min_weight=self.min_weight,
            form=self.form,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Settings in the printed form."""
        return f"gamma={self._gamma}, min_weight={self.min_weight}, form={self.form!r}, reduction={self.reduction!r}"


class GammaWarmup:
    """Linear schedule of the gamma of a `TaiLrLoss`: call `step` after each step of the optimizer.

    Args:
        loss: the loss; its gamma becomes `start` at once.
        start, end: in [0, 1]. steps: >= 1, number of steps until `end`, where gamma stays.
    """

    def __init__(self, loss: TaiLrLoss, *, start: float = 0.0, end: float, steps: int) -> None:
        _check_gamma(start)
        _check_gamma(end)
        if steps < 1:
            raise ValueError(f"steps must be >= 1, got {steps}")
        self.loss, self.start, self.end, self.steps, self.taken = loss, start, end, steps, 0
        loss.gamma = start

    def step(self) -> None:
        """Take one step; to resume a run, set `taken` first."""
        self.taken += 1
        share = min(self.taken / self.steps, 1.0)
        self.loss.gamma = (1 - share) * self.start + share * self.end


def _integrated_loss(nll: Tensor, g: Tensor) -> Tensor:
    """-log(g + (1 - g) p) / (1 - g), accurate for improbable targets and for g near 1."""
    u = (1 - g).clamp(min=1e-30)
    # Not logaddexp, which has no second derivative at large gaps. At g = 0 nll itself: this form has slope 0 at p = 0.
    log_g = g.clamp(min=torch.finfo(g.dtype).tiny).log()
    low = -torch.stack([log_g.expand_as(nll), torch.log1p(-g) - nll]).logsumexp(0) / u
    v = u.clamp(max=0.5)  # beyond 0.5 the other branch is used, and this one must not overflow
    high = -torch.log1p(v * torch.expm1(-nll)) / v
    return torch.where(g == 0, nll, torch.where(g < 0.5, low, high))


def _uniform(scores: Tensor, weight: Tensor | None, axis: int) -> Tensor:
    """Mean over the classes of -weight_c log p_c, the part that label smoothing adds."""
    terms = -scores.log_softmax(axis)
    if weight is not None:
        w = weight.to(scores.dtype).reshape(-1, *(1,) * (scores.dim() - axis - 1))
        terms = terms.masked_fill(w == 0, 0.0) * w
    return terms.mean(axis)


def _class_factors(weight: Tensor, scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """The class weight of each target, 0 where it is ignored."""
    classes = scores.shape[min(scores.dim() - 1, 1)]
    if weight.shape != (classes,):
        raise ValueError(f"weight must be ({classes},), one per class, got {tuple(weight.shape)}")
    return weight.to(scores.dtype)[labels.masked_fill(~kept, 0)].masked_fill(~kept, 0.0)


def _check_labels(scores: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(labels as int64, bool True where not ignored), after checks of shape and range."""
    if scores.dim() == 0:
        raise ValueError("scores must be (N, C, ...) or (C,), got a number")
    labels = as_class_numbers(labels)
    shape = scores.shape[:0] if scores.dim() == 1 else scores.shape[:1] + scores.shape[2:]
    if labels.shape != shape:
        raise ValueError(f"labels must be {tuple(shape)} for scores {tuple(scores.shape)}, got {tuple(labels.shape)}")
    check_range(labels, scores.shape[min(scores.dim() - 1, 1)], ignore_index)
    return labels, labels != ignore_index


def _check_options(gamma: float | Tensor, min_weight: float, form: str, label_smoothing: float, reduction: str) -> None:
    """ValueError for an option out of range."""
    check_reduction(reduction)
    _check_gamma(gamma)
    if not 0 <= min_weight < 1:
        raise ValueError(f"min_weight must be in [0, 1), got {min_weight}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if form not in {"weighted", "integrated"}:
        raise ValueError(f"form must be 'weighted' or 'integrated', got {form!r}")
    if form == "integrated" and min_weight > 0:
        raise ValueError(f"the integrated form has no min_weight: use form='weighted', got {min_weight}")


def _check_gamma(gamma: float | Tensor) -> None:
    """ValueError unless gamma is in [0, 1] and has no dimensions."""
    if isinstance(gamma, Tensor):
        if gamma.dim() != 0:
            raise ValueError(f"gamma must be a number or a tensor without dimensions, got {tuple(gamma.shape)}")
        if not may_read(gamma):
            return
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], got {float(gamma)}")
