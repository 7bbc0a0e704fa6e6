"""Compare vectors and bags of vectors. numpy and scipy only; torch tensors are accepted where torch is loaded.

Public names load on first use, so importing this package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.similarity.calibration import (
        Probability as Probability,
        ScoreCalibrator as ScoreCalibrator,
        Threshold as Threshold,
    )
    from kexue.similarity.evaluation import (
        Evaluation as Evaluation,
        EvaluationRow as EvaluationRow,
        EvaluationTest as EvaluationTest,
        evaluate_pairs as evaluate_pairs,
    )
    from kexue.similarity.metrics import (
        known_item as known_item,
        pair_cosine as pair_cosine,
        retrieval_metrics as retrieval_metrics,
        spearman as spearman,
        spearman_ceiling as spearman_ceiling,
    )
    from kexue.similarity.neighbours.geodesic import (
        GeodesicIndex as GeodesicIndex,
        geodesic_distances as geodesic_distances,
    )
    from kexue.similarity.neighbours.graph import knn_graph as knn_graph
    from kexue.similarity.neighbours.occurrence import (
        ball_to_cube_ratio as ball_to_cube_ratio,
        k_occurrence as k_occurrence,
    )
    from kexue.similarity.neighbours.reducer import HubnessReducer as HubnessReducer
    from kexue.similarity.neighbours.report import HubnessReport as HubnessReport, hubness_report as hubness_report
    from kexue.similarity.neighbours.sampler import HubSample as HubSample, HubSampler as HubSampler
    from kexue.similarity.neighbours.summary import GeodesicSummarizer as GeodesicSummarizer, Summary as Summary
    from kexue.similarity.pairs import PairDataset as PairDataset, load_pairs as load_pairs
    from kexue.similarity.random_pairs import random_pair_scores as random_pair_scores
    from kexue.similarity.rotation import (
        RotationOperator as RotationOperator,
        align_mean as align_mean,
        rotation_between as rotation_between,
    )
    from kexue.similarity.transport.bounds import (
        relaxed_wmd as relaxed_wmd,
        relaxed_wrd as relaxed_wrd,
        wcd as wcd,
        wrd_centroid_bound as wrd_centroid_bound,
    )
    from kexue.similarity.transport.distances import (
        emd as emd,
        product_upper_bound as product_upper_bound,
        word_movers_distance as word_movers_distance,
        word_rotators_distance as word_rotators_distance,
        word_rotators_similarity as word_rotators_similarity,
    )
    from kexue.similarity.transport.entropic import SinkhornResult as SinkhornResult, sinkhorn as sinkhorn
    from kexue.similarity.transport.explanation import (
        ExplainedPair as ExplainedPair,
        Explanation as Explanation,
        explain as explain,
    )
    from kexue.similarity.transport.index import (
        TransportHits as TransportHits,
        TransportIndex as TransportIndex,
        TransportStats as TransportStats,
    )
    from kexue.similarity.transport.solvers import TransportPlan as TransportPlan
    from kexue.similarity.whitening.estimator import Whitening as Whitening
    from kexue.similarity.whitening.kernel import Kernel as Kernel, whitening_kernel as whitening_kernel
    from kexue.similarity.whitening.mapping import whiten as whiten
    from kexue.similarity.whitening.statistics import (
        Moments as Moments,
        merge_moments as merge_moments,
        moments as moments,
    )
    from kexue.similarity.whitening.tuning import Tuned as Tuned, TunedRow as TunedRow, tune_whitening as tune_whitening

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "transport.solvers": ("TransportPlan",),
        "whitening.kernel": ("Kernel", "whitening_kernel"),
        "whitening.statistics": ("Moments", "merge_moments", "moments"),
        "calibration": ("Probability", "ScoreCalibrator", "Threshold"),
        "transport.entropic": ("SinkhornResult", "sinkhorn"),
        "evaluation": ("Evaluation", "EvaluationRow", "EvaluationTest", "evaluate_pairs"),
        "metrics": ("known_item", "pair_cosine", "retrieval_metrics", "spearman", "spearman_ceiling"),
        "neighbours.geodesic": ("GeodesicIndex", "geodesic_distances"),
        "neighbours.graph": ("knn_graph",),
        "neighbours.occurrence": ("ball_to_cube_ratio", "k_occurrence"),
        "neighbours.reducer": ("HubnessReducer",),
        "neighbours.report": ("HubnessReport", "hubness_report"),
        "neighbours.sampler": ("HubSample", "HubSampler"),
        "pairs": ("PairDataset", "load_pairs"),
        "random_pairs": ("random_pair_scores",),
        "rotation": ("RotationOperator", "align_mean", "rotation_between"),
        "neighbours.summary": ("GeodesicSummarizer", "Summary"),
        "transport.distances": (
            "emd",
            "product_upper_bound",
            "word_movers_distance",
            "word_rotators_distance",
            "word_rotators_similarity",
        ),
        "transport.explanation": ("ExplainedPair", "Explanation", "explain"),
        "transport.bounds": ("relaxed_wmd", "relaxed_wrd", "wcd", "wrd_centroid_bound"),
        "transport.index": ("TransportHits", "TransportIndex", "TransportStats"),
        "whitening.tuning": ("Tuned", "TunedRow", "tune_whitening"),
        "whitening.estimator": ("Whitening",),
        "whitening.mapping": ("whiten",),
    },
)
