"""Losses as functions and modules: multi-label, multi-way, tailored, margin, contrastive, pairs.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kexue._optional import import_optional

if TYPE_CHECKING:
    from kexue.losses.contrastive import FlatNCELoss as FlatNCELoss
    from kexue.losses.contrastive import InfoNCELoss as InfoNCELoss
    from kexue.losses.contrastive import contrastive_diagnostics as contrastive_diagnostics
    from kexue.losses.contrastive import flat_nce as flat_nce
    from kexue.losses.contrastive import info_nce as info_nce
    from kexue.losses.contrastive import pair_contrastive_loss as pair_contrastive_loss
    from kexue.losses.margin import AdaptiveMarginSchedule as AdaptiveMarginSchedule
    from kexue.losses.margin import AMSoftmaxLoss as AMSoftmaxLoss
    from kexue.losses.margin import ArcFaceLoss as ArcFaceLoss
    from kexue.losses.margin import am_softmax_loss as am_softmax_loss
    from kexue.losses.margin import arcface_loss as arcface_loss
    from kexue.losses.margin import estimate_class_diameter as estimate_class_diameter
    from kexue.losses.margin import margin_loss as margin_loss
    from kexue.losses.multilabel import ZLPRLoss as ZLPRLoss
    from kexue.losses.multilabel import combination_softmax_loss as combination_softmax_loss
    from kexue.losses.multilabel import fit_temperature as fit_temperature
    from kexue.losses.multilabel import pairwise_logsumexp_loss as pairwise_logsumexp_loss
    from kexue.losses.multilabel import sparse_zlpr_loss as sparse_zlpr_loss
    from kexue.losses.multilabel import zlpr_loss as zlpr_loss
    from kexue.losses.multilabel import zlpr_predict as zlpr_predict
    from kexue.losses.multilabel import zlpr_proba as zlpr_proba

_HOMES: dict[str, tuple[str, ...]] = {
    "contrastive": (
        "info_nce",
        "flat_nce",
        "InfoNCELoss",
        "FlatNCELoss",
        "contrastive_diagnostics",
        "pair_contrastive_loss",
    ),
    "margin": (
        "am_softmax_loss",
        "AMSoftmaxLoss",
        "arcface_loss",
        "ArcFaceLoss",
        "margin_loss",
        "estimate_class_diameter",
        "AdaptiveMarginSchedule",
    ),
    "multilabel": (
        "ZLPRLoss",
        "combination_softmax_loss",
        "fit_temperature",
        "pairwise_logsumexp_loss",
        "sparse_zlpr_loss",
        "zlpr_loss",
        "zlpr_predict",
        "zlpr_proba",
    ),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_LAZY)  # noqa: PLE0605 - the names are those of the table above


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'kexue.losses' has no attribute {name!r}")
    import_optional("torch", extra="train")  # a missing extra is named before the module fails on its first line
    return getattr(import_module(f"kexue.losses.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
