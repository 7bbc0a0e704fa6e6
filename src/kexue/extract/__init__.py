"""Triples (subject, predicate, object) from texts: extractors, their training, data and scores.

Importing this package does not load torch; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.extract.config import DGCNNConfig as DGCNNConfig, ExtractConfig as ExtractConfig
    from kexue.extract.decoding import decode_triples as decode_triples
    from kexue.extract.dgcnn import DGCNNExtractor as DGCNNExtractor
    from kexue.extract.gplinker import GPLinkerExtractor as GPLinkerExtractor
    from kexue.extract.opening import open_extractor as open_extractor
    from kexue.extract.predictions import score_files as score_files, write_predictions as write_predictions
    from kexue.extract.reading import read_triples as read_triples
    from kexue.extract.scoring import (
        TripleScore as TripleScore,
        triple_f1 as triple_f1,
        triple_f1_interval as triple_f1_interval,
    )
    from kexue.extract.supervision import DistantSupervision as DistantSupervision
    from kexue.extract.train import train_extractor as train_extractor
    from kexue.extract.triples import Triple as Triple, TripleExample as TripleExample, TripleSchema as TripleSchema
    from kexue.extract.tuning import Thresholds as Thresholds, tune_thresholds as tune_thresholds

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "config": ("DGCNNConfig", "ExtractConfig"),
        "decoding": ("decode_triples",),
        "dgcnn": ("DGCNNExtractor",),
        "gplinker": ("GPLinkerExtractor",),
        "opening": ("open_extractor",),
        "predictions": ("score_files", "write_predictions"),
        "reading": ("read_triples",),
        "scoring": ("TripleScore", "triple_f1", "triple_f1_interval"),
        "supervision": ("DistantSupervision",),
        "train": ("train_extractor",),
        "triples": ("Triple", "TripleExample", "TripleSchema"),
        "tuning": ("Thresholds", "tune_thresholds"),
    },
    needs=dict.fromkeys(("dgcnn", "gplinker", "opening", "train", "tuning"), "torch"),
)
