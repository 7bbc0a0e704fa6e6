"""Settings of the training of a sentence model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Stage = Literal["pretrain", "distill", "supervise"]
PairLoss = Literal["cosent", "classify", "mse", "hinge"]
Source = str | os.PathLike[str] | Any  # a file, or a `datasets.Dataset`


@dataclass(frozen=True)
class SentenceConfig:
    """Settings of one stage of the training of a `RoFormerSim`.

    Args:
        stage: ``"pretrain"``: writing and contrast, from pairs that mean the same; ``"distill"``: the vectors and
            similarities of a teacher, from any texts, and writing where the data are pairs; ``"supervise"``: labelled
            pairs.
        data: files (.txt with a text a line; .tsv, .csv, .jsonl with columns) or `datasets.Dataset`; a file named twice
            counts twice.
        out: folder of the run; the model is in its folder `model` at the end.
        init: model folder to start from; None starts a new model whose vocabulary is that of `data`.
        teacher: model of the stage ``"distill"``, as `kexue.text.Encoder` takes it.
        validation: labelled pairs, as `kexue.similarity.load_pairs` takes them; the step with the highest Spearman
            correlation on them is kept. None keeps the last step.
        loss: of the stage ``"supervise"``.
        batch_size: rows of a step; pairs count twice in ``"pretrain"``.
        chunk_size: rows encoded with a graph at a time (`GradCache`); None: all. For ``"pretrain"``, without writing.
        lr: largest learning rate, reached after a twentieth of the steps; it falls linearly to 0.
        steps: optimizer steps.
        noise: share of rows whose first text gets whole-word noise.
        max_length: tokens of a text, special ones included; the rest is cut off.
        hidden_size, num_layers, num_heads: shape of a new model.
        dropout: of the network in training.
        ema: decay of a moving average of the weights, which are then the ones kept; None: no average.
        eval_every: steps between evaluations and checkpoints.
        seed, device, precision, limit, resume: as of `kexue.train.TrainConfig`.
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
    dropout: float = 0.1
    ema: float | None = None
    eval_every: int = 1000
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    limit: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        for name, legal in (("stage", Stage), ("loss", PairLoss)):
            if getattr(self, name) not in get_args(legal):
                raise ValueError(f"{name} must be one of {', '.join(get_args(legal))}, got {getattr(self, name)!r}")
        if isinstance(self.data, (str, os.PathLike)) or not len(self.data):
            raise ValueError(f"data must be a list of one or more files or data sets, got {self.data!r}")
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(f"batch_size must be an even number of rows, at least 2, got {self.batch_size}")
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise is a share between 0 and 1, got {self.noise}")
        if self.max_length < 4:
            raise ValueError(f"max_length must be at least 4 tokens, got {self.max_length}")
        if (self.teacher is not None) != (self.stage == "distill"):
            raise ValueError(
                f"a teacher belongs to the stage 'distill' and no other, got {self.teacher!r}, {self.stage!r}"
            )
