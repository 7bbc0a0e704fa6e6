"""Shape of the network of dilated gated convolutions, and settings of a training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

from kexue._counts import check_counts
from kexue.extract.triples import TripleExample
from kexue.train.config import Precision

DILATIONS = (1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 1, 1)
SubjectSampling = Literal["mixed", "gold"]
ModelType = Literal["dgcnn", "gplinker"]
Source = str | os.PathLike[str] | Sequence[TripleExample]
_OF_DGCNN = ("word_vectors", "segmenter", "dim", "num_layers", "subject_sampling", "prior")
_OF_GPLINKER = ("encoder",)


@dataclass(frozen=True)
class DGCNNConfig:
    """Shape of a `DGCNNExtractor`.

    Args:
        dim: width d of the states, a multiple of `num_heads` and even.
        num_layers: dilated gated convolutions, 1 to 12, with the first of the dilations 1 2 5 1 2 5 1 2 5 1 1 1.
        max_length: characters of a text that are read; also the limit of distances.
        num_predicates: P.
        num_characters: characters with a vector, those for padding and for unknown ones included.
        num_words, word_dim: number and width of fixed word vectors; 0: none.
        num_heads: of the self-attention of either head.
        dropout: of the input.
        gate_dropout: of the gates.
        subject_sampling: which subject is learned from in a step. ``"mixed"``: one of the heads and one of the tails
            after it, drawn independently, as in the article's code: where they do not fit, no object is to be found;
            ``"gold"``: one of the subjects.
        prior: whether the network gets the features of `DistantSupervision`.

    Raises:
        ValueError: a value outside its range.
    """

    dim: int = 128
    num_layers: int = 12
    max_length: int = 512
    num_predicates: int = 50
    num_characters: int = 8000
    num_words: int = 0
    word_dim: int = 0
    num_heads: int = 8
    dropout: float = 0.25
    gate_dropout: float = 0.1
    subject_sampling: SubjectSampling = "mixed"
    prior: bool = False

    def __post_init__(self) -> None:
        check_counts(1, dim=self.dim, max_length=self.max_length, num_heads=self.num_heads)
        check_counts(1, num_predicates=self.num_predicates, num_layers=self.num_layers)
        check_counts(2, num_characters=self.num_characters)
        check_counts(0, num_words=self.num_words, word_dim=self.word_dim)
        if self.dim % self.num_heads:
            raise ValueError(f"dim must be a multiple of num_heads={self.num_heads}, got {self.dim}")
        if self.num_layers > len(DILATIONS):
            raise ValueError(f"num_layers must be at most {len(DILATIONS)}, got {self.num_layers}")
        if bool(self.num_words) != bool(self.word_dim):
            raise ValueError(f"num_words={self.num_words} and word_dim={self.word_dim}: give both, or neither")
        for name in ("dropout", "gate_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if self.subject_sampling not in get_args(SubjectSampling):
            raise ValueError(f"subject_sampling must be 'mixed' or 'gold', got {self.subject_sampling!r}")


@dataclass(frozen=True)
class ExtractConfig:
    """Settings of the training of an extractor.

    Args:
        train, dev: files as `read_triples` takes them, or lists of `TripleExample`; the step with the highest F1 on
            `dev` is kept.
        out: folder of the run; the model is in its folder ``model`` at the end.
        schema: file of the predicates, as `TripleSchema.load` takes it; None: those of `train` and
            `dev`.
        model_type: ``"dgcnn"``, or ``"gplinker"``: heads on an encoder.
        word_vectors: of ``"dgcnn"``: file in the text format of word2vec; None: characters only.
        segmenter: of ``"dgcnn"`` with word vectors: ``"jieba"``, ``"longest"`` (match among the words of the file) or
            ``"characters"``; None: jieba where it is installed and most words of the file have several characters,
            else the longest match.
        encoder: of ``"gplinker"``: a model as `kexue.text.Encoder` takes it.
        dim, num_layers, subject_sampling, prior: of ``"dgcnn"``, as of `DGCNNConfig`.
        max_length: characters, of ``"gplinker"`` tokens, of a text that are read; None: 512, or as many as the encoder
            can.
        augmentation: share of the texts in which a triple is replaced by another of its predicate; none with `prior`.
        batch_size: texts of a step; None: a 160th of the texts, from 8 to 64, so that an epoch of few texts has steps.
        lr: largest learning rate; None: 1e-3 for ``"dgcnn"``, 5e-5 for ``"gplinker"``. It rises over the first epoch.
        epochs: most epochs of the first stage.
        fine_epochs: epochs of the second stage, from the best step of the first, with a tenth of the rate; 0: none.
        patience: epochs without a better F1 after which the first stage ends; they count from the first right triple.
        ema: decay of the moving average of the weights, which are the ones evaluated and kept.
        seed, device, precision, limit, resume: as of `kexue.train.TrainConfig`.

    Raises:
        ValueError: a value outside its range, or a setting that the kind of model does not have.
    """

    train: Source
    dev: Source
    out: str | os.PathLike[str]
    schema: str | os.PathLike[str] | None = None
    model_type: ModelType = "dgcnn"
    word_vectors: str | os.PathLike[str] | None = None
    segmenter: str | None = None
    encoder: str | os.PathLike[str] = "kexue/roformer-sim-tiny-zh"
    dim: int = 128
    num_layers: int = 12
    max_length: int | None = None
    subject_sampling: SubjectSampling = "mixed"
    prior: bool = False
    augmentation: float = 0.5
    batch_size: int | None = None
    lr: float | None = None
    epochs: int = 50
    fine_epochs: int = 10
    patience: int = 8
    ema: float = 0.9999
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    limit: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        check_counts(1, epochs=self.epochs, patience=self.patience)
        if self.batch_size is not None:
            check_counts(1, batch_size=self.batch_size)
        check_counts(0, fine_epochs=self.fine_epochs, seed=self.seed)
        if self.model_type not in get_args(ModelType):
            raise ValueError(f"model_type must be one of {', '.join(get_args(ModelType))}, got {self.model_type!r}")
        others = _OF_GPLINKER if self.model_type == "dgcnn" else _OF_DGCNN
        for field in fields(self):
            if field.name in others and (value := getattr(self, field.name)) != field.default:
                raise ValueError(f"model_type={self.model_type!r} has no {field.name}, got {value!r}; leave it out")
        if self.segmenter is not None and self.word_vectors is None:
            raise ValueError(
                f"segmenter={self.segmenter!r} splits texts into words that have vectors: give word_vectors"
            )
        if not 0 <= self.augmentation <= 1:
            raise ValueError(f"augmentation must be in [0, 1], got {self.augmentation!r}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr!r}")
        if not 0 < self.ema < 1:
            raise ValueError(f"ema must be in (0, 1), got {self.ema!r}")
