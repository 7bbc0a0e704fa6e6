"""Losses on the cosines of labelled pairs of sentences: by order (CoSENT), or by value (squared error, hinge).

Source: kexue.fm/archives/8847 (CoSENT), 8541 (squared error and hinge).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kexue._tensors import Reduction, as_floats, may_read, reduce, unit, without_autocast
from kexue.losses._checks import as_cosines, as_real_numbers, check_embeddings, check_scale

Method = Literal["sorted", "pairwise"]


def cosent_loss(cosines: Tensor, labels: Tensor, *, scale: float = 20.0, method: Method = "sorted") -> Tensor:
    """CoSENT: a pair with a higher label should have the higher cosine; only the order matters.

    loss = log(1 + sum over i, j with labels_i < labels_j of exp(scale (cos_i - cos_j)))

    One logsumexp over all ordered pairs of the batch, so the value grows with the batch; ties are not compared. Source:
    kexue.fm/archives/8847.

    Args:
        cosines: (B,) cosines of the pairs of sentences, each in [-1, 1].
        labels: (B,) numbers, greater = more similar: 0/1, graded, or entailment > neutral > contradiction. Tied labels
            must be exactly equal.
        scale: > 0, inverse temperature.
        method: ``"sorted"`` needs O(B) memory and O(B log B) time; ``"pairwise"`` forms the B x B matrix and is
            the reference. They agree to rounding; "sorted" computes in float64 where the device can.

    Returns:
        Scalar; exactly 0 where no two labels differ; float32 for half precision, else the dtype of `cosines`.

    Raises:
        ValueError: shapes that differ or are not (B,), a cosine outside [-1, 1], labels that are not finite, an unknown
            method, scale <= 0. TypeError: cosines that are not floats, complex labels.
    """
    check_scale(scale)
    if method not in ("sorted", "pairwise"):
        raise ValueError(f"method must be 'sorted' or 'pairwise', got {method!r}")
    _check_pairs(cosines, labels)
    labels = as_real_numbers(labels)
    if may_read(labels) and not bool(labels.isfinite().all()):
        raise ValueError("labels must be finite, got NaN or infinity")
    cosines = as_cosines(cosines)
    if method == "pairwise":
        return _cosent_pairwise(scale * cosines, labels)
    exact = cosines if cosines.device.type == "mps" else cosines.double()  # B numbers: float64 costs nothing
    return _cosent_sorted(scale * exact, labels).to(cosines.dtype)


def _cosent_pairwise(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss from the matrix of all ordered pairs."""
    below = labels[:, None] < labels
    terms = (scores[:, None] - scores).masked_fill(~below, -torch.inf).flatten()
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)  # section "The order alone: CoSENT"


def _cosent_sorted(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss from sorted labels: a running logsumexp over smaller labels replaces each row of the matrix."""
    labels, order = labels.sort()
    scores = scores[order]
    first = torch.searchsorted(labels, labels)  # number of labels smaller than that of j
    running = scores.logcumsumexp(0)  # section "One pass over the sorted batch"
    terms = running[(first - 1).clamp(min=0)] - scores
    return torch.cat([terms.new_zeros(1), terms.masked_fill(first == 0, -torch.inf)]).logsumexp(0)


class CoSENTLoss(nn.Module):
    """`cosent_loss` of the cosines of two batches of embeddings: `forward(a, b, labels)` with (B, d), (B, d), (B,).

    An embedding of length 0 has no direction: its cosine and its gradient are 0.
    """

    def __init__(self, scale: float = 20.0, *, method: Method = "sorted") -> None:
        super().__init__()
        check_scale(scale)
        if method not in ("sorted", "pairwise"):
            raise ValueError(f"method must be 'sorted' or 'pairwise', got {method!r}")
        self.scale, self.method = scale, method

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch of pairs."""
        check_embeddings(a, b)
        with without_autocast(a):
            cosines = (unit(as_floats(a, "a")) * unit(as_floats(b, "b"))).sum(1)
        return cosent_loss(cosines, labels, scale=self.scale, method=self.method)

    def extra_repr(self) -> str:
        """Settings in the printed form."""
        return f"scale={self.scale}, method={self.method!r}"


def cosine_mse_loss(cosines: Tensor, labels: Tensor, *, negative: float = 0.0, reduction: Reduction = "mean") -> Tensor:
    """Squared error label (cos - 1)^2 + (1 - label) (cos - negative)^2; among the weaker losses in article 8541.

    Labelled negatives are mostly similar in wording; a target of 0 or -1 is too low for them.

    Args:
        cosines, labels: (B,); cosines in [-1, 1], labels in [0, 1], 1 = similar.
        negative: target cosine of dissimilar pairs, in [-1, 1]; the article tries 0 and -1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: shapes that differ, cosines or `negative` outside [-1, 1], labels outside [0, 1].
    """
    if not -1 <= negative <= 1:
        raise ValueError(f"negative is a cosine in [-1, 1], got {negative}")
    cosines, labels = _check_similarities(cosines, labels)
    # section "Regression of the cosine", as is the hinge below
    values = labels * (cosines - 1).square() + (1 - labels) * (cosines - negative).square()
    return reduce(values, None, reduction)


def cosine_hinge_loss(
    cosines: Tensor, labels: Tensor, *, upper: float = 0.9, lower: float = 0.1, reduction: Reduction = "mean"
) -> Tensor:
    """Hinge loss label max(upper - cos, 0) + (1 - label) max(cos - lower, 0): no gradient beyond the two bounds.

    Args:
        cosines, labels: (B,); cosines in [-1, 1], labels in [0, 1], 1 = similar.
        upper, lower: -1 <= lower <= upper <= 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: shapes that differ, cosines outside [-1, 1], labels outside [0, 1], bounds out of order.
    """
    if not -1 <= lower <= upper <= 1:
        raise ValueError(f"expected -1 <= lower <= upper <= 1, got lower={lower}, upper={upper}")
    cosines, labels = _check_similarities(cosines, labels)
    values = labels * (upper - cosines).clamp(min=0) + (1 - labels) * (cosines - lower).clamp(min=0)
    return reduce(values, None, reduction)


def _check_pairs(cosines: Tensor, labels: Tensor) -> None:
    """ValueError unless both are (B,)."""
    if cosines.ndim != 1 or labels.shape != cosines.shape:
        raise ValueError(f"expected cosines (B,) and labels (B,), got {tuple(cosines.shape)} and {tuple(labels.shape)}")


def _check_similarities(cosines: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines in [-1, 1] and labels in [0, 1], in one dtype."""
    _check_pairs(cosines, labels)
    labels = as_real_numbers(labels)
    if may_read(labels) and bool(((labels < 0) | (labels > 1)).any()):
        raise ValueError(f"labels must lie in [0, 1], got {labels.min().item()} to {labels.max().item()}")
    cosines = as_cosines(cosines)
    return cosines, labels.to(cosines.dtype)
