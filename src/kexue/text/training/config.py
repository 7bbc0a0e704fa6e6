"""Settings of the training of a sentence model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kexue.train.config import Precision

Stage = Literal["pretrain", "distill", "supervise"]
PairLoss = Literal["cosent", "classify", "mse", "hinge"]
Source = str | os.PathLike[str] | Any  # a file, or an iterable of mappings such as a `datasets.Dataset`

FROM_TEACHER = "teacher"  # as `init`


@dataclass(frozen=True)
class SentenceConfig:
    """Settings of one stage of the training of a `RoFormerSim`.

    Args:
        stage: ``"pretrain"``: writing and contrast, from texts that mean the same; ``"distill"``: the vectors and
            similarities of a teacher, from any texts, and writing where the data are pairs; ``"supervise"``: labelled
            pairs.
        data: files (.txt with a text a line; .tsv, .csv, .jsonl, .xlsx, .parquet with columns), or mappings such as the
            rows of a `datasets.Dataset`; `kexue.text.training.sources` lists the columns. A file named twice counts
            twice.
        out: folder of the run; the model is in its folder ``model`` at the end.
        init: model folder to start from; ``"teacher"``: a new model with the first `num_layers` layers of the teacher,
            a BERT, and its vectors of the characters of `data`; None: a new one with random weights.
        teacher: of the stage ``"distill"``: a model, as `kexue.text.Encoder` takes it, of any width.
        validation: labelled pairs, as `kexue.similarity.load_pairs` takes them, of a named set the split "valid"; the
            step with the highest Spearman correlation on them is kept. None keeps the last step.
        loss: of the stage ``"supervise"``: ``"cosent"`` (order), ``"classify"`` (a head on both vectors), ``"mse"`` or
            ``"hinge"`` (value of the cosine).
        batch_size: rows of a step, an even number; a pair has two.
        chunk_size: rows encoded with a graph at a time (`kexue.train.GradCache`), of the same gradient; None: all.
        lr: largest learning rate, reached after a twentieth of the steps; it falls linearly to 0.
        steps: optimizer steps.
        noise: share of rows whose first text gets noise on whole words, where a second is to be written.
        max_length: tokens of a text, special ones included; a longer one ends with its last punctuation mark before.
        hidden_size, num_layers, num_heads: shape of a new model; only `num_layers` where it starts from the teacher.
        vector_size: width of the vectors; None: as in `init`, and `hidden_size` for a new model. The first dimensions
            of `init` are kept.
        dropout: of the network in training.
        ema: decay of a moving average of the weights, which are then the ones kept; None: no average.
        eval_every: steps between evaluations and checkpoints.
        seed, device, precision, limit, resume: as of `kexue.train.TrainConfig`.

    Raises:
        ValueError: a value outside its range, with the range.
    """

    stage: Stage
    data: Sequence[Source]
    out: str | os.PathLike[str]
    init: str | os.PathLike[str] | None = None
    teacher: str | os.PathLike[str] | None = None
    validation: str | os.PathLike[str] | None = None
    loss: PairLoss = "cosent"
    batch_size: int = 128
    chunk_size: int | None = None
    lr: float = 5e-4
    steps: int = 10_000
    noise: float = 0.5
    max_length: int = 64
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    vector_size: int | None = None
    dropout: float = 0.1
    ema: float | None = None
    eval_every: int = 1000
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    limit: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        for name, legal in (("stage", Stage), ("loss", PairLoss)):
            if getattr(self, name) not in get_args(legal):
                raise ValueError(f"{name} must be one of {', '.join(get_args(legal))}, got {getattr(self, name)!r}")
        if not isinstance(self.data, (list, tuple)) or not self.data:
            raise ValueError(f"data must be a list of one or more files or data sets, got {self.data!r:.80}; use [...]")
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(
                f"batch_size must be an even number of rows, at least 2, since a pair has two rows, got "
                f"{self.batch_size}"
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 row, got {self.chunk_size}")
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        for name in ("noise", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")
        if self.max_length < 4:
            raise ValueError(f"max_length must be at least 4 tokens, got {self.max_length}")
        if (self.teacher is not None) != (self.stage == "distill"):
            raise ValueError(
                "the stage 'distill' needs a teacher"
                if self.teacher is None
                else f"a teacher belongs to the stage 'distill', got teacher={os.fspath(self.teacher)!r} for the stage "
                f"{self.stage!r}"
            )
        if self.init == FROM_TEACHER and self.teacher is None:
            raise ValueError("init='teacher' needs a teacher and the stage 'distill'")
