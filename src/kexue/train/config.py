"""Settings and result of a training run, result of a training step, and errors of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from kexue.errors import KexueError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Distributed = Literal["none", "ddp", "fsdp2"]
LOGS = ("jsonl", "tensorboard")


class NonFiniteLossError(KexueError, FloatingPointError):
    """The loss, a gradient or a weight became infinite or NaN; nothing was saved after the last good checkpoint."""


def nonfinite_error(what: str, step: int, folder: Path) -> NonFiniteLossError:
    """The error of a run in `folder` in whose step `step` something became infinite or NaN."""
    return NonFiniteLossError(
        f"{what} in step {step}.",
        remedy=f"The checkpoints in {folder} come from before; lower the learning rate, clip, or use fp32.",
    )


class RunBusyError(KexueError):
    """Another trainer holds the lock of the folder."""


class LossOutput(NamedTuple):
    """The result of `training_step`.

    Attributes:
        loss: scalar; its gradient trains the model.
        parts: numbers for the log by name, such as the terms of the loss. Their gradient is not used.
    """

    loss: Tensor
    parts: Mapping[str, Tensor | float] = {}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. A step is one update by every optimizer, from `accumulate` batches.

    Args:
        out: folder of the run, with the checkpoints `last`, `previous` (the one before, used when `last` is damaged)
            and `best`, `log.jsonl` and `tensorboard`. One trainer at a time holds its lock.
        steps, epochs: length of the run, each >= 1; at least one is needed, the run ends at the first one reached.
        precision: precision of matrix products and convolutions (autocast); weights keep their type. ``"auto"``: bf16
            on a GPU that supports it, fp16 (with a GradScaler) on other GPUs, else fp32.
        accumulate: batches per step, >= 1; the gradient is that of the mean of their losses. The last step of an epoch
            takes the batches that are left.
        weight: name of the part with the number of elements, such as tokens, over which a loss is a mean, if batches
            have different numbers of them: the losses of a step, in all processes, are then weighted by it, and it is
            not logged. None: equal weights.
        clip: largest norm of the gradient of each optimizer, > 0; None: no clipping.
        ema: decay of a moving average of the weights, in (0, 1). `evaluate` gets the averaged weights, and checkpoints
            hold them; None: no average.
        eval_every: steps between evaluations, >= 1; None: at the end of each epoch. The last step is always evaluated.
        save_every: steps between checkpoints, >= 1; None: as `eval_every`. The last step is always saved.
        patience: number of evaluations in a row no better than the best one after which the run ends, >= 1; needs
            `monitor`. None: no early stop.
        monitor: metric that decides which checkpoint is the best; None: no best checkpoint.
        mode: ``"max"`` if larger values of `monitor` are better, ``"min"`` if smaller ones are.
        seed: random seed, >= 0, of the order of the data, of dropout and of the generator of the steps.
        device: torch's name of a device, or ``"auto"`` (`KEXUE_DEVICE`, else cuda, mps, cpu).
        distributed: ``"ddp"``: a copy of the model in every process started by torchrun; ``"fsdp2"``: the model sharded
            over them.
        limit: stop after this many steps whatever `steps` and `epochs` are, for a smoke run. Resumed without a limit,
            the run continues to its full length; so an evaluation at the limit that is not due is logged, but does not
            count, for example for `patience`.
        resume: whether to continue from the checkpoint in `out`; False removes the files of an earlier run there.
        save_frozen: whether checkpoints hold weights that take no gradient. False: the resumed model must bring the
            same frozen weights.
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
            raise ValueError("patience needs monitor, the metric that has to get better")
        if not set(self.log) <= set(LOGS):
            raise ValueError(f"log must be a tuple of any of {LOGS}, got {self.log!r}")


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        run: folder of the run.
        steps: finished steps, those before a resume included.
        best_step: step of the best evaluation; None without `monitor`.
        metric, value: `monitor` and its best value; without `monitor`, ``"loss"`` and the loss of the last step.
        seconds: time of this call, in seconds.
        checkpoint: folder of the best checkpoint, or without `monitor` of the last one.
        interrupted: True when SIGTERM, SIGINT or SIGHUP ended the run; call again to continue.
    """

    run: str
    steps: int
    best_step: int | None
    metric: str | None
    value: float | None
    seconds: float
    checkpoint: str
    interrupted: bool
