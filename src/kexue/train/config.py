"""What a training run is told, what a training step returns, and what the run answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from kexue.errors import KexueError

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Distributed = Literal["none", "ddp", "fsdp2"]
LOGS = ("jsonl", "tensorboard")


class NonFiniteLossError(KexueError, FloatingPointError):
    """The loss, a gradient or a weight became infinite or NaN; nothing was saved after the last good checkpoint."""


class RunBusyError(KexueError):
    """Another trainer holds the lock of the run's folder."""


class LossOutput(NamedTuple):
    """What `training_step` returns.

    Attributes:
        loss: scalar; its gradient trains the model.
        parts: named numbers for the log, such as the terms of the loss. Their gradient is not used.
    """

    loss: Tensor
    parts: Mapping[str, Tensor | float] = {}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. A step is one update by every optimizer, from `accumulate` batches.

    Args:
        out: folder of the run; it will hold `last`, `previous` (the one before, should a byte of `last` be lost) and
            `best` (checkpoints), `log.jsonl` and `tensorboard`. One trainer at a time holds its lock.
        steps, epochs: where to stop; at least one, the first that is reached.
        precision: of matrix products and convolutions, by autocast; weights stay as they are. ``"auto"`` is bf16 on
            a GPU that has it, fp16 (with a GradScaler) on one that has not, else fp32.
        accumulate: batches per step, >= 1; the gradient is that of the mean of their losses. The last step of an
            epoch takes what is left.
        weight: name of the part that says how much a loss is a mean over, such as its tokens, where batches differ in
            it: those of a step, in all processes, then count by it, and it is not logged. None: they count alike.
        clip: largest norm of each optimizer's gradient, > 0.
        ema: decay of a moving average of the weights, in (0, 1); it is what `evaluate` sees, and part of checkpoints.
        eval_every: steps between evaluations; None = at the end of each epoch. The last step is always evaluated.
        save_every: steps between checkpoints; None = as `eval_every`. The last step is always saved.
        patience: stop after this many evaluations in a row that are no better than the best; needs `monitor`.
        monitor: the metric that names the best checkpoint; None keeps the last one alone.
        mode: whether a better value of `monitor` is larger (``"max"``) or smaller (``"min"``).
        seed: everything random derives from it: the order of the data, dropout, the step's generator.
        device: ``"auto"`` (`KEXUE_DEVICE`, else cuda, mps, cpu) or torch's name of one.
        distributed: ``"ddp"`` copies the model to every process that torchrun started, ``"fsdp2"`` shards it.
        limit: stop after this many steps whatever `steps` and `epochs` say: a smoke run. Resumed without, it is the
            run that it would have been; so an evaluation at its end that is not due is logged, and counts for nothing.
        resume: go on from the checkpoint in `out`; False removes what an earlier run has left there.
        save_frozen: whether checkpoints hold the weights that take no gradient. False: the model must bring the same
            ones along when it is resumed.
        log: any of ``"jsonl"`` and ``"tensorboard"``.

    Raises:
        ValueError: a value outside its range, with the range.
    """

    out: str | os.PathLike[str]
    steps: int | None = None
    epochs: int | None = None
    precision: Precision = "auto"
    accumulate: int = 1
    weight: str | None = None
    clip: float | None = None
    ema: float | None = None
    eval_every: int | None = None
    save_every: int | None = None
    patience: int | None = None
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    seed: int = 0
    device: str = "auto"
    distributed: Distributed = "none"
    limit: int | None = None
    resume: bool = True
    save_frozen: bool = True
    log: tuple[str, ...] = LOGS

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            raise ValueError("the run has no end: give steps, epochs or both")
        for name in ("steps", "epochs", "accumulate", "eval_every", "save_every", "patience", "limit"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        for name, legal in (("precision", Precision), ("distributed", Distributed)):
            if getattr(self, name) not in get_args(legal):
                raise ValueError(f"{name} must be one of {get_args(legal)}, got {getattr(self, name)!r}")
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {self.mode!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be > 0, got {self.clip!r}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is a decay and must lie between 0 and 1, got {self.ema!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number >= 0, got {self.seed!r}")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience needs monitor: name the metric that has to get better")
        if not set(self.log) <= set(LOGS):
            raise ValueError(f"log must be a tuple of any of {LOGS}, got {self.log!r}")


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run: folder of the run.
        steps: updates made, those before a resume included.
        best_step: the step of the best evaluation; None without `monitor`.
        metric, value: `monitor` and its best value; without one, ``"loss"`` and that of the last step.
        seconds: spent in this call.
        checkpoint: the best checkpoint, or without `monitor` the last.
        interrupted: True when SIGTERM, SIGINT or SIGHUP ended the run; call again to go on.
    """

    run: str
    steps: int
    best_step: int | None
    metric: str | None
    value: float | None
    seconds: float
    checkpoint: str
    interrupted: bool
