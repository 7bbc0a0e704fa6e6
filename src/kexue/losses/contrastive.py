"""Contrastive losses that stay exact if the positive scores far higher: InfoNCE, and FlatNCE for small batches.

For one anchor with scores s, positive t and negatives i, all the losses are functions of one number,

    log xi = logsumexp over negatives of (s_i - s_t),    InfoNCE = log(1 + xi),    FlatNCE = log xi.

FlatNCE has the gradient of xi / stop_gradient(xi); per anchor, grad InfoNCE = xi / (1 + xi) grad FlatNCE.

Source: kexue.fm/archives/8586; Chen et al. 2021, arXiv:2107.01152. The same gradient as the decoupled contrastive loss
(DCL) of Yeh et al. 2021, arXiv:2110.06848. The pair form is that of kexue.fm/archives/7427 and 8454.
Differences: the article writes xi / stop_gradient(xi), whose value is always 1; log xi is computed here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import (
    Reduction,
    as_floats,
    check_mask,
    check_reduction,
    masked_logsumexp,
    reduce,
    unit,
    without_autocast,
)
from kexue.losses._checks import check_class_rows, check_scale, is_class


class _Gaps(NamedTuple):
    """Gaps between the negatives and the positive of each anchor."""

    values: Tensor  # (B, K): s_i - s_t, -inf where column i is not a negative of the row
    log_xi: Tensor  # (B,): finite everywhere; 0 for rows without a negative
    kept: Tensor  # (B,) bool: the row has a negative


def info_nce(
    scores: Tensor, labels: Tensor | None = None, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """InfoNCE, log(1 + xi): cross-entropy of the positive among K candidates, exact down to the smallest xi.

    The usual cross-entropy forms 1 + xi, which rounds to 1 below xi = 6e-8 in float32: the loss and the gradient of the
    positive become 0. Here the value is -log sigmoid(-log xi), accurate as long as xi itself is a number.

    Args:
        scores: (B, K) similarities already divided by the temperature; B anchors, K candidates. A negative of -inf is
            masked; a positive of -inf has the limit, an infinite loss with finite gradients.
        labels: (B,) integers, the column of each row's positive; None means the diagonal, which needs K >= B.
        mask: (B, K) bool, True where the column may be a negative; the positive's entry is not read. A row
            without negatives, as in a last batch of one pair, is dropped: it adds 0 and does not count in the mean.
            A batch without any other row, or empty, gives 0.
        reduction: ``"none"`` (one value per anchor), ``"mean"`` over kept anchors, or ``"sum"``.

    Returns:
        Scalar, or (B,) for ``"none"``; never negative; float32 for half precision, else the dtype of `scores`.

    Raises:
        ValueError: wrong shapes, or a label outside [0, K).
        TypeError: scores that are not floats, labels that are not integers, a mask that is not bool.
    """
    gaps = _gaps(scores, labels, mask, reduction)
    return reduce(_log1p_exp(gaps.log_xi), gaps.kept, reduction)  # section "One number per anchor"


def flat_nce(
    scores: Tensor, labels: Tensor | None = None, *, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """FlatNCE, log xi = logsumexp over negatives of (s_i - s_t): every anchor has the same total weight.

    Its gradient is -1 on the positive and softmax over the negatives, that of xi / stop_gradient(xi), the article's
    form. The value has no lower bound and is often negative: do not stop at "loss near 0", and choose new thresholds
    for gradient clipping. Same arguments, returns and errors as `info_nce`.
    """
    gaps = _gaps(scores, labels, mask, reduction)
    return reduce(gaps.log_xi, gaps.kept, reduction)  # section "FlatNCE"


def _log1p_exp(x: Tensor) -> Tensor:
    """log(1 + e^x), accurate at both ends; softplus drops e^-x above 20."""
    return -functional.logsigmoid(-x)


def _gaps(scores: Tensor, labels: Tensor | None, mask: Tensor | None, reduction: Reduction = "none") -> _Gaps:
    """Check the arguments of a contrastive loss and compute log xi per anchor."""
    check_reduction(reduction)
    scores = as_floats(scores)
    labels = _check(scores, labels, mask)
    positive = is_class(labels, scores.shape[1])
    negative = ~positive & (scores > -torch.inf)
    if mask is not None:
        negative = negative & mask
    kept = negative.any(dim=1)
    own = scores.gather(1, labels[:, None])
    infinite = own == -torch.inf
    values = (scores - own.masked_fill(infinite, 0.0)).masked_fill(~negative, -torch.inf)
    log_xi = masked_logsumexp(values, negative, 1) + torch.where(infinite, -own, 0.0).squeeze(1)
    return _Gaps(values, log_xi.masked_fill(~kept, 0.0), kept)


def _check(scores: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
    """The positives' columns, after checks of shapes and values."""
    if scores.ndim != 2:
        raise ValueError(f"scores must be (anchors, candidates), got {tuple(scores.shape)}")
    rows, columns = scores.shape
    if mask is not None:
        check_mask(mask, scores.shape)
    if labels is None:
        if columns < rows:
            raise ValueError(f"without labels the positives are the diagonal: expected K >= B, got {(rows, columns)}")
        return torch.arange(rows, device=scores.device)
    return check_class_rows(labels, rows, columns, ignore_index=None)


class _TwoViewLoss(nn.Module):
    """Settings and scores of the losses of two views."""

    def __init__(self, temperature: float = 0.1, *, symmetric: bool = True, reduction: Reduction = "mean") -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        check_reduction(reduction)
        self.temperature, self.symmetric, self.reduction = temperature, symmetric, reduction

    def scores(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and mask for the functions above, from B pairs of views.

        One direction: row i of `a` against all of `b`. Symmetric: all 2B rows against each other; a row is not its own
        candidate, and its other view is the positive, not a negative.
        """
        if a.ndim != 2 or a.shape != b.shape:
            raise ValueError(f"expected two views of shape (B, d), got {tuple(a.shape)} and {tuple(b.shape)}")
        size, device = len(a), a.device
        with without_autocast(a):
            a, b = (unit(as_floats(x, "a view")) for x in (a, b))
            if not self.symmetric:
                everyone = torch.ones(size, size, dtype=torch.bool, device=device)
                return a @ b.T / self.temperature, torch.arange(size, device=device), everyone
            views = torch.cat([a, b])
            scores = views @ views.T / self.temperature
        rows = torch.arange(2 * size, device=device)
        return scores, (rows + size) % (2 * size), rows[:, None] != rows

    def extra_repr(self) -> str:
        """Settings in the printed form."""
        return f"temperature={self.temperature}, symmetric={self.symmetric}, reduction={self.reduction!r}"


class InfoNCELoss(_TwoViewLoss):
    """InfoNCE of two views: `forward(a, b)`, each (B, d); row i of a and row i of b are a positive pair.

    A row of length 0 has no direction: its cosines are 0, and so is its gradient.

    Args:
        temperature: > 0; cosines are divided by it.
        symmetric: True compares all 2B vectors with each other (NT-Xent, SimCLR) and ``"none"`` gives 2B values;
            False compares each row of `a` with the rows of `b` only.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: views of different shape, a temperature that is not positive. One pair alone has no negative and
            gives 0, as does an empty batch.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the loss of a batch of pairs."""
        scores, labels, mask = self.scores(a, b)
        return info_nce(scores, labels, mask=mask, reduction=self.reduction)


class FlatNCELoss(_TwoViewLoss):
    """FlatNCE of two views: as `InfoNCELoss`, with the gradient of `flat_nce`.

    Args:
        temperature, symmetric, reduction: as `InfoNCELoss`.
        report: the returned value; the gradient is that of FlatNCE in both cases. ``"flat"`` returns log xi, often
            negative; ``"infonce"`` returns InfoNCE, so that curves of both losses can be compared.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        symmetric: bool = True,
        reduction: Reduction = "mean",
        report: Literal["flat", "infonce"] = "flat",
    ) -> None:
        super().__init__(temperature, symmetric=symmetric, reduction=reduction)
        if report not in ("flat", "infonce"):
            raise ValueError(f"report must be 'flat' or 'infonce', got {report!r}")
        self.report = report

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the loss of a batch of pairs."""
        scores, labels, mask = self.scores(a, b)
        loss = flat_nce(scores, labels, mask=mask, reduction=self.reduction)
        if self.report == "flat":
            return loss
        value = info_nce(scores.detach(), labels, mask=mask, reduction=self.reduction)
        return loss - loss.detach() + value


def pair_contrastive_loss(embeddings: Tensor, *, scale: float = 20.0, reduction: Reduction = "mean") -> Tensor:
    """InfoNCE of a batch whose rows 2i and 2i + 1 are partners; all other rows are negatives.

    The loss of SimBERT and RoFormer-Sim, kexue.fm/archives/7427: cosines times `scale`, without the diagonal.

    Args:
        embeddings: (2B, d), any length; they are normalised here, and one of length 0 has cosines and gradient 0.
        scale: > 0, inverse temperature.
        reduction: ``"none"`` gives 2B values.

    Raises:
        ValueError: an odd number of rows, or a scale that is not positive. One pair alone has no negative and gives 0,
            as does an empty batch.
    """
    if embeddings.ndim != 2 or len(embeddings) % 2:
        raise ValueError(f"rows 2i and 2i + 1 are partners: expected (2B, d), got {tuple(embeddings.shape)}")
    check_scale(scale)
    rows = torch.arange(len(embeddings), device=embeddings.device)
    with without_autocast(embeddings):
        directions = unit(as_floats(embeddings, "embeddings"))
        scores = scale * (directions @ directions.T)
    # roformer-sim, section "Partners in a batch"
    return info_nce(scores, rows ^ 1, mask=rows[:, None] != rows, reduction=reduction)


@torch.no_grad()
def contrastive_diagnostics(
    scores: Tensor, labels: Tensor | None = None, *, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Diagnostics of a contrastive batch: xi, anchors lost to rounding, and the spread of the anchors' weights.

    Args:
        scores, labels, mask: as `info_nce`; rows without negatives are ignored.

    Returns:
        ``xi_quantiles``: (5,) minimum, quartiles and maximum of xi over anchors.
        ``share_below_eps``: share of anchors whose 1 + xi rounds to 1 in the dtype of `scores`.
        ``effective_sample_size``: mean over anchors of 1 / sum of w^2, w the softmax over negatives; between 1 (one
        negative has all the weight) and their number.
        ``gradient_snr``: mean over standard deviation, across anchors, of xi / (1 + xi), the factor by which InfoNCE
        scales the gradient FlatNCE gives an anchor; infinite when all weigh the same.

    Raises:
        ValueError: no row with a negative; otherwise as `info_nce`.
    """
    gaps = _gaps(scores, labels, mask)
    if not gaps.kept.any():
        raise ValueError("no row has a negative: nothing to diagnose")
    log_xi = gaps.log_xi[gaps.kept].double()
    weights = gaps.values[gaps.kept].double().softmax(dim=1)
    factors = log_xi.sigmoid()
    points = torch.linspace(0, 1, 5, dtype=torch.float64, device=scores.device)
    return {
        "xi_quantiles": log_xi.exp().quantile(points),
        "share_below_eps": (log_xi.exp() <= torch.finfo(scores.dtype).eps / 2).double().mean(),
        "effective_sample_size": (1 / weights.square().sum(dim=1)).mean(),
        "gradient_snr": factors.mean() / factors.std(correction=0),
    }
