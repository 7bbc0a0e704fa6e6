"""Compare vectors and bags of vectors. numpy and scipy only; torch tensors are accepted where torch is loaded.

Names load on first use, so importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kexue.similarity._emd import TransportPlan
    from kexue.similarity._kernel import Kernel, whitening_kernel
    from kexue.similarity._moments import Moments, merge_moments, moments
    from kexue.similarity.calibration import Probability, ScoreCalibrator, Threshold, random_pair_scores
    from kexue.similarity.entropic import SinkhornResult, sinkhorn
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
    from kexue.similarity.transport import (
        ExplainedPair,
        Explanation,
        emd,
        explain,
        product_upper_bound,
        word_movers_distance,
        word_rotators_distance,
        word_rotators_similarity,
    )
    from kexue.similarity.transport_bounds import relaxed_wmd, relaxed_wrd, wcd, wrd_centroid_bound
    from kexue.similarity.transport_index import TransportHits, TransportIndex, TransportStats
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
    "_emd": ("TransportPlan",),
    "entropic": ("SinkhornResult", "sinkhorn"),
    "transport": (
        "ExplainedPair",
        "Explanation",
        "emd",
        "explain",
        "product_upper_bound",
        "word_movers_distance",
        "word_rotators_distance",
        "word_rotators_similarity",
    ),
    "transport_bounds": ("relaxed_wmd", "relaxed_wrd", "wcd", "wrd_centroid_bound"),
    "transport_index": ("TransportHits", "TransportIndex", "TransportStats"),
    "whitening": ("Whitening", "whiten"),
}
_LAZY = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Evaluation",
    "EvaluationRow",
    "EvaluationTest",
    "ExplainedPair",
    "Explanation",
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
    "SinkhornResult",
    "Summary",
    "Threshold",
    "TransportHits",
    "TransportIndex",
    "TransportPlan",
    "TransportStats",
    "Tuned",
    "TunedRow",
    "Whitening",
    "align_mean",
    "ball_to_cube_ratio",
    "emd",
    "evaluate_pairs",
    "explain",
    "geodesic_distances",
    "hubness_report",
    "k_occurrence",
    "knn_graph",
    "known_item",
    "load_pairs",
    "merge_moments",
    "moments",
    "pair_cosine",
    "product_upper_bound",
    "random_pair_scores",
    "relaxed_wmd",
    "relaxed_wrd",
    "retrieval_metrics",
    "rotation_between",
    "sinkhorn",
    "spearman",
    "spearman_ceiling",
    "tune_whitening",
    "wcd",
    "whiten",
    "whitening_kernel",
    "word_movers_distance",
    "word_rotators_distance",
    "word_rotators_similarity",
    "wrd_centroid_bound",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
