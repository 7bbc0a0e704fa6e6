"""Text to vectors: find a model, read its folder, encode and pool a list or a stream of texts.

Importing this package loads neither torch nor transformers; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.text.choice import find_model_for as find_model_for
    from kexue.text.encoder import Encoder as Encoder
    from kexue.text.identity import ModelIdentity as ModelIdentity
    from kexue.text.models import find_model as find_model
    from kexue.text.pooling import pool as pool
    from kexue.text.roformer_sim.model import RoFormerSimConfig as RoFormerSimConfig
    from kexue.text.roformer_sim.sentences import RoFormerSim as RoFormerSim
    from kexue.text.roformer_sim.similar import Similar as Similar
    from kexue.text.streaming import EncodeReport as EncodeReport
    from kexue.text.tokens import TokenVectors as TokenVectors
    from kexue.text.training.config import SentenceConfig as SentenceConfig
    from kexue.text.training.labels import harmonize_pairs as harmonize_pairs, interleave as interleave
    from kexue.text.training.mining import mine_pairs as mine_pairs
    from kexue.text.training.noise import whole_word_noise as whole_word_noise
    from kexue.text.training.rows import PairCollator as PairCollator
    from kexue.text.training.train import train_sentences as train_sentences

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "choice": ("find_model_for",),
        "encoder": ("Encoder",),
        "identity": ("ModelIdentity",),
        "models": ("find_model",),
        "pooling": ("pool",),
        "roformer_sim.model": ("RoFormerSimConfig",),
        "roformer_sim.sentences": ("RoFormerSim",),
        "roformer_sim.similar": ("Similar",),
        "streaming": ("EncodeReport",),
        "tokens": ("TokenVectors",),
        "training.config": ("SentenceConfig",),
        "training.labels": ("harmonize_pairs", "interleave"),
        "training.mining": ("mine_pairs",),
        "training.noise": ("whole_word_noise",),
        "training.rows": ("PairCollator",),
        "training.train": ("train_sentences",),
    },
    needs=dict.fromkeys(
        (
            "encoder",
            "pooling",
            "roformer_sim.model",
            "roformer_sim.sentences",
            "tokens",
            "training.rows",
            "training.train",
        ),
        "torch",
    ),
)
