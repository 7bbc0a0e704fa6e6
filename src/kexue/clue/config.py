"""Settings of a training on a task of CLUE."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal, get_args

from kexue._counts import check_count
from kexue.clue.catalogue import TASKS
from kexue.train.config import Precision

Tune = Literal["full", "ladder", "linear"]
OptimizerName = Literal["adafactor", "adamw"]
_RATES: dict[OptimizerName, dict[Tune, float]] = {
    "adafactor": {"full": 5e-4, "ladder": 5e-3, "linear": 5e-2},  # relative to the size of each parameter
    "adamw": {"full": 2e-5, "ladder": 1e-3, "linear": 1e-3},
}


@dataclass(frozen=True)
class ClueConfig:
    """Settings of a training on a task of CLUE.

    Args:
        task: such as ``"cluener"``, a name of `kexue.clue.list_tasks`.
        model: encoder: a folder of Hugging Face or sentence-transformers with safetensors, or a name that
            `kexue.text.find_model` takes, such as ``"kexue/roformer-sim-tiny-zh"``.
        data: folder of the task's files.
        out: folder of the run.
        tune: what is trained: ``"full"``: all weights; ``"ladder"``: a small network beside the frozen encoder;
            ``"linear"``: the head alone.
        optimizer: ``"adafactor"`` (without factors, momentum 0.9, a constant rate, as the article) or ``"adamw"``.
        lr: learning rate, > 0; None: by `optimizer` and `tune`. AdamW's of a head is 30 times that of its encoder.
        epochs, batch_size, max_length: passes over the data, examples of a batch, most tokens of a row; None: as the
            task has them.
        limit, seed, device, precision, resume: as of `kexue.train.TrainConfig`.

    Raises:
        ValueError: a value outside its range, with the range.
    """

    task: str
    model: str | os.PathLike[str]
    data: str | os.PathLike[str]
    out: str | os.PathLike[str]
    tune: Tune = "full"
    optimizer: OptimizerName = "adafactor"
    lr: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    max_length: int | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    resume: bool = True

    def __post_init__(self) -> None:
        for name, legal in (
            ("task", tuple(TASKS)), ("tune", get_args(Tune)), ("optimizer", get_args(OptimizerName)),
        ):  # fmt: skip
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} must be one of {', '.join(legal)}, got {getattr(self, name)!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_length", 16), ("limit", 1)):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name, least)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be > 0 and finite, got {self.lr}")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return _RATES[self.optimizer][self.tune] if self.lr is None else self.lr
