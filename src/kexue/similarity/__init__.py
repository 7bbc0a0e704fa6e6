"""Compare vectors and bags of vectors. numpy and scipy only; torch tensors are accepted where torch is loaded.

Names load on first use, so importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kexue.similarity._kernel import Kernel, whitening_kernel
    from kexue.similarity._moments import Moments, merge_moments, moments
    from kexue.similarity.calibration import Probability, ScoreCalibrator, Threshold, random_pair_scores
    from kexue.similarity.evaluation import (
        Evaluation,
        EvaluationRow,
        EvaluationTest,
        evaluate_pairs,
        known_item,
        pair_cosine,
        retrieval_metrics,
        spearman,
        spearman_ceiling,
    )
    from kexue.similarity.geodesic import GeodesicIndex, geodesic_distances, knn_graph
    from kexue.similarity.hubness import (
        HubnessReducer,
        HubnessReport,
        HubSample,
        HubSampler,
        ball_to_cube_ratio,
        hubness_report,
        k_occurrence,
    )
    from kexue.similarity.pairs import PairDataset, load_pairs
    from kexue.similarity.rotation import RotationOperator, align_mean, rotation_between
    from kexue.similarity.summary import GeodesicSummarizer, Summary
    from kexue.similarity.tuning import Tuned, TunedRow, tune_whitening
    from kexue.similarity.whitening import Whitening, whiten

_HOME = {
    "summary": ("GeodesicSummarizer", "Summary"),
    "hubness": (
        "HubSample",
        "HubSampler",
        "HubnessReducer",
        "HubnessReport",
        "ball_to_cube_ratio",
        "hubness_report",
        "k_occurrence",
    ),
    "geodesic": ("GeodesicIndex", "geodesic_distances", "knn_graph"),
    "calibration": ("Probability", "ScoreCalibrator", "Threshold", "random_pair_scores"),
    "_moments": ("Moments", "merge_moments", "moments"),
    "_kernel": ("Kernel", "whitening_kernel"),
    "evaluation": (
        "Evaluation",
        "EvaluationRow",
        "EvaluationTest",
        "evaluate_pairs",
        "known_item",
        "pair_cosine",
        "retrieval_metrics",
        "spearman",
        "spearman_ceiling",
    ),
    "pairs": ("PairDataset", "load_pairs"),
    "rotation": ("RotationOperator", "align_mean", "rotation_between"),
    "tuning": ("Tuned", "TunedRow", "tune_whitening"),
    "whitening": ("Whitening", "whiten"),
}
_LAZY = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Evaluation",
    "EvaluationRow",
    "EvaluationTest",
    "GeodesicIndex",
    "GeodesicSummarizer",
    "HubSample",
    "HubSampler",
    "HubnessReducer",
    "HubnessReport",
    "Kernel",
    "Moments",
    "PairDataset",
    "Probability",
    "RotationOperator",
    "ScoreCalibrator",
    "Summary",
    "Threshold",
    "Tuned",
    "TunedRow",
    "Whitening",
    "align_mean",
    "ball_to_cube_ratio",
    "evaluate_pairs",
    "geodesic_distances",
    "hubness_report",
    "k_occurrence",
    "knn_graph",
    "known_item",
    "load_pairs",
    "merge_moments",
    "moments",
    "pair_cosine",
    "random_pair_scores",
    "retrieval_metrics",
    "rotation_between",
    "spearman",
    "spearman_ceiling",
    "tune_whitening",
    "whiten",
    "whitening_kernel",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
