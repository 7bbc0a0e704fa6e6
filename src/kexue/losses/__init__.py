"""Losses as functions and modules: multi-label, multi-way, tailored, margin, contrastive, pairs.

Importing this package does not load torch; the names below load it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.losses.class_diameter import (
        AdaptiveMarginSchedule as AdaptiveMarginSchedule,
        estimate_class_diameter as estimate_class_diameter,
    )
    from kexue.losses.contrastive import (
        FlatNCELoss as FlatNCELoss,
        InfoNCELoss as InfoNCELoss,
        contrastive_diagnostics as contrastive_diagnostics,
        flat_nce as flat_nce,
        info_nce as info_nce,
        pair_contrastive_loss as pair_contrastive_loss,
    )
    from kexue.losses.distillation import (
        seq2seq_loss as seq2seq_loss,
        similarity_distillation_loss as similarity_distillation_loss,
    )
    from kexue.losses.label_sets import (
        combination_softmax_loss as combination_softmax_loss,
        pairwise_logsumexp_loss as pairwise_logsumexp_loss,
    )
    from kexue.losses.margin import (
        AMSoftmaxLoss as AMSoftmaxLoss,
        ArcFaceLoss as ArcFaceLoss,
        am_softmax_loss as am_softmax_loss,
        arcface_loss as arcface_loss,
        margin_loss as margin_loss,
    )
    from kexue.losses.multilabel import (
        ZLPRLoss as ZLPRLoss,
        sparse_zlpr_loss as sparse_zlpr_loss,
        zlpr_loss as zlpr_loss,
    )
    from kexue.losses.multilabel_prediction import (
        fit_temperature as fit_temperature,
        zlpr_predict as zlpr_predict,
        zlpr_proba as zlpr_proba,
    )
    from kexue.losses.multiway import (
        NMWayLoss as NMWayLoss,
        nmway_loss as nmway_loss,
    )
    from kexue.losses.pair_heads import (
        MultiTaskPairLoss as MultiTaskPairLoss,
        PairClassificationLoss as PairClassificationLoss,
    )
    from kexue.losses.pairs import (
        CoSENTLoss as CoSENTLoss,
        cosent_loss as cosent_loss,
        cosine_hinge_loss as cosine_hinge_loss,
        cosine_mse_loss as cosine_mse_loss,
    )
    from kexue.losses.tailored import (
        GammaWarmup as GammaWarmup,
        TaiLrLoss as TaiLrLoss,
        tailr_loss as tailr_loss,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "class_diameter": ("AdaptiveMarginSchedule", "estimate_class_diameter"),
        "contrastive": (
            "FlatNCELoss",
            "InfoNCELoss",
            "contrastive_diagnostics",
            "flat_nce",
            "info_nce",
            "pair_contrastive_loss",
        ),
        "distillation": ("seq2seq_loss", "similarity_distillation_loss"),
        "label_sets": ("combination_softmax_loss", "pairwise_logsumexp_loss"),
        "margin": (
            "AMSoftmaxLoss",
            "ArcFaceLoss",
            "am_softmax_loss",
            "arcface_loss",
            "margin_loss",
        ),
        "multilabel": ("ZLPRLoss", "sparse_zlpr_loss", "zlpr_loss"),
        "multilabel_prediction": ("fit_temperature", "zlpr_predict", "zlpr_proba"),
        "multiway": ("NMWayLoss", "nmway_loss"),
        "pair_heads": ("MultiTaskPairLoss", "PairClassificationLoss"),
        "pairs": ("CoSENTLoss", "cosent_loss", "cosine_hinge_loss", "cosine_mse_loss"),
        "tailored": ("GammaWarmup", "TaiLrLoss", "tailr_loss"),
    },
    needs="torch",
    extra="train",
)
