"""The training loop: read it from top to bottom, or copy it.

A model says what a step is, ``training_step(batch, *, optimizer_index=0, generator=None) -> LossOutput``; the loop does
the rest, in the order that `Trainer.fit` shows. Everything the future of a run depends on is in its `RunState`, and so
in its checkpoints. A run that was killed and called again therefore gives the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kexue._progress import Progress
from kexue.errors import KexueError
from kexue.optim.stack import parameters
from kexue.train._lock import run_lock
from kexue.train._random import fork_random
from kexue.train._signals import ending_signals
from kexue.train.config import TrainConfig, TrainResult
from kexue.train.data import count_batches, epoch_batches, group
from kexue.train.distributed import choose_precision, join
from kexue.train.evaluation import Evaluate, compute_metrics, record_metrics, step_plateaus
from kexue.train.folder import BEST, LAST, check_folder, clear_run, has_checkpoint
from kexue.train.logs import RunLog
from kexue.train.snapshot import restore_run, save_run
from kexue.train.state import Position, RunState
from kexue.train.step import StepRunner

Callback = Callable[["Trainer", Mapping[str, float]], None]


class Trainer:
    """Train a model: mixed precision, accumulation, clipping, averages, evaluation, logs, checkpoints, many processes.

    Args:
        model: a module with `training_step`. A GAN returns another loss for each `optimizer_index`; noise comes from
            `generator`, or, as dropout's does, from torch's global generator, which `fit` seeds and then puts back.
        optimizers: one or a list, taken in turn within a step; their parameters must belong to `model`.
        config: settings of the run.
        schedulers: one or a list of `torch.optim.lr_scheduler`, stepped once a step (`ReduceLROnPlateau`: once an
            evaluation, with the value of `monitor`). A step skipped by the GradScaler does not count for them.
        callbacks: each called as ``callback(trainer, record)`` after every step, with the numbers that were logged. One
            with `state_dict` and `load_state_dict` becomes part of checkpoints.

    Attributes:
        place: `Position` of the run; `place.step` counts finished steps.
        total: steps of the whole run; None while that is unknown.
        state: `RunState`, all that a checkpoint holds.
        log: `RunLog` to which a callback may write images; None outside of `fit`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        config: TrainConfig,
        *,
        schedulers: Any = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if not callable(getattr(model, "training_step", None)):
            raise TypeError(f"{type(model).__name__} has no training_step(batch, *, optimizer_index, generator)")
        several = isinstance(schedulers, Iterable)
        self.state = RunState(
            model,
            [optimizers] if isinstance(optimizers, Optimizer) else optimizers,
            schedulers if several else [] if schedulers is None else [schedulers],
        )
        self.model, self.config = model, config
        self.callbacks = tuple(callbacks)
        self.folder = Path(config.out)
        self.total: int | None = None
        self.log: RunLog | None = None
        self._metrics: Mapping[str, float] = {}  # of the last evaluation, also of one that does not count
        self._epoch_ends = False  # whether the step under way is the last of its epoch
        own_ids = {id(parameter) for parameter in model.parameters()}
        for index, optimizer in enumerate(self.state.optimizers):
            foreign = sum(id(parameter) not in own_ids for parameter in parameters(optimizer))
            if foreign:
                raise ValueError(
                    f"optimizer {index} trains {foreign} tensors that are not parameters of the model, so no "
                    "checkpoint would hold them: make their module an attribute of the model"
                )

    @property
    def place(self) -> Position:
        """How far the run has come."""
        return self.state.position

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers; during `fit` with `ema` each is inside a wrapper that averages the weights."""
        return self.state.optimizers

    @property
    def schedulers(self) -> list[Any]:
        """The learning rate schedulers; they may be replaced before `fit`."""
        return self.state.schedulers

    @schedulers.setter
    def schedulers(self, schedulers: Sequence[Any]) -> None:
        self.state.schedulers = list(schedulers)

    def fit(
        self,
        loader: Iterable[Any],
        *,
        evaluate: Evaluate | None = None,
        start: Callable[[Trainer], None] | None = None,
    ) -> TrainResult:
        """Train until the configured end, from the checkpoint in `config.out` if there is one.

        SIGTERM, SIGINT and SIGHUP end the run after the present step, with a checkpoint; a second one has its
        usual effect.

        Args:
            loader: a `DataLoader`, or any iterable that gives the same batches in each pass. A DataLoader that shuffles
                gets a new order each epoch from `config.seed`; resuming loads no batch twice. With several processes
                each takes its share of the batches.
            evaluate: called as ``evaluate(model)`` in evaluation mode, without gradients, with the averaged weights if
                `ema` is set, and with separate random generators; returns numbers by name. Every process calls it,
                the answer of the first one counts.
            start: called as ``start(trainer)`` by the first process before the first step, when no other trainer can
                change the folder any more, and the last checkpoint has been loaded or an earlier run removed: the place
                to write files about the run.

        Returns:
            Result of the run. The model holds the weights of the last step; the best ones are in
            ``load_checkpoint(result.checkpoint)``, under `ema` if that is set, else under `model`.

        Raises:
            NonFiniteLossError: the loss is infinite or NaN; the message names the step.
            CheckpointError: the checkpoint in `config.out` does not fit; the message says what differs.
            RunBusyError: another trainer is running in `config.out`.
            DataError: `config.out` holds other files under the names of a run's files.
            ValueError: an empty loader, a monitor that `evaluate` does not return, settings that contradict each other.
        """
        config, started = self.config, time.monotonic()
        if config.monitor is not None and evaluate is None:
            raise ValueError(f"monitor={config.monitor!r} needs evaluate, which returns it")
        if config.monitor is None and any(isinstance(one, ReduceLROnPlateau) for one in self.state.schedulers):
            raise ValueError("ReduceLROnPlateau needs monitor, the name of the metric that it follows")
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            self.processes = join(config.distributed, config.device)
            self._lock(stack)
            stack.enter_context(fork_random(config.seed, self.processes.rank, device=self.processes.device))
            self._prepare(loader)
            if start is not None and self.processes.rank == 0:
                start(self)
            kinds = () if self.processes.rank > 0 else config.log
            step, evaluated = self.place.step, self.place.evaluated
            log = self.log = stack.enter_context(RunLog(self.folder, kinds, step=step, evaluated=evaluated))
            stack.callback(setattr, self, "log", None)
            stopped = stack.enter_context(ending_signals())
            interrupted = self._train(self._groups(loader), evaluate, log, stopped)
        return self._result(time.monotonic() - started, interrupted)

    def _prepare(self, loader: Iterable[Any]) -> None:
        """Distribute the model, prepare the state of the run, and load the last checkpoint into it."""
        config, among, state = self.config, self.processes, self.state
        forward = among.distribute(self.model, state.optimizers)
        self.model.train()
        precision = choose_precision(config.precision, among)
        batches = count_batches(loader, among.world)
        state.prepare(config, among, precision=precision, batches=batches, callbacks=self.callbacks)
        self._runner = StepRunner(state, forward, among, config, precision)
        ends = [config.steps, config.limit]
        ends.append(batches and config.epochs and config.epochs * math.ceil(batches / config.accumulate))
        self.total = min((end for end in ends if end), default=None)
        check_folder(self.folder, config.log)
        if among.first(has_checkpoint(self.folder)) and config.resume:
            restore_run(state, self.folder, among)
        elif among.rank == 0:
            clear_run(self.folder, config.log)

    def _train(self, batches: Iterator[list[Any]], evaluate: Evaluate | None, log: RunLog, stopped: list[int]) -> bool:
        """Train until the end; return whether a signal came before it."""
        before = self.place.evaluated
        interrupted = self._evaluate_if_due(evaluate, log, stopped)  # where a stop cut an evaluation off
        if interrupted or self.place.evaluated != before:
            log.flush()
            self._save()
        while not (interrupted or self._is_over()):
            if (gathered := self._next(batches, stopped)) is None:
                self._save()
                return True
            record = self._runner.run(gathered)
            self.place.advance(len(gathered), epoch_ends=self._epoch_ends)
            log.write("train", self.place.step, record)
            cut_off = self._evaluate_if_due(evaluate, log, stopped)
            for callback in self.callbacks:
                callback(self, record)
            over = self._is_over()
            interrupted = self.processes.any(bool(stopped) or cut_off) and (cut_off or not over)
            if over or interrupted or self._is_due(self.config.save_every or self.config.eval_every):
                log.flush()
                self._save()
        return interrupted

    def _groups(self, loader: Iterable[Any]) -> Iterator[list[Any]]:
        """The batches of each step to come, without end; `_epoch_ends` tells whether an epoch ends with them."""
        while True:
            epoch, start, among = self.place.epoch, self.place.position, self.processes
            batches = epoch_batches(
                loader, seed=self.config.seed, epoch=epoch, start=start, rank=among.rank, world=among.world
            )
            ends = False
            for gathered, ends in group(batches, self.config.accumulate):
                self._epoch_ends = ends
                yield gathered
            if not ends:
                raise ValueError(
                    f"the loader returned no batch in epoch {epoch} from batch {start} on; expected at least one"
                )

    def _next(self, batches: Iterator[list[Any]], stopped: list[int]) -> list[Any] | None:
        """The batches of the next step; None where a signal ended the workers that load them."""
        try:
            return next(batches)
        except RuntimeError:
            if not stopped or self.processes.world > 1:  # the others wait for this one in their step
                raise
            return None

    def _evaluate_if_due(self, evaluate: Evaluate | None, log: RunLog, stopped: list[int]) -> bool:
        """Evaluate and log after the last step; return whether a signal cut the evaluation off."""
        config, place = self.config, self.place
        counts = self._is_over(limited=False) or self._is_due(config.eval_every)
        if evaluate is None or place.evaluated == place.step or not (counts or self._is_over()):
            return False
        try:
            metrics = compute_metrics(self.state, evaluate, config, self.processes)
        except RuntimeError:
            if not stopped or self.processes.world > 1:
                raise
            return True
        log.write("eval", place.step, {"epoch": place.epoch, **metrics}, drawn=counts)
        if counts:
            if record_metrics(self.state, metrics, config):
                self._save(BEST)
            if config.monitor is not None:
                step_plateaus(self.state, metrics[config.monitor])
        self._metrics = metrics
        return False

    def _is_due(self, every: int | None) -> bool:
        """Return whether something done `every` steps, or at the end of each epoch for None, is due now."""
        place = self.place
        return place.step > 0 and (place.position == 0 if every is None else place.step % every == 0)

    def _is_over(self, *, limited: bool = True) -> bool:
        """Return whether the run has come to its end, or if `limited` to that of a smoke run."""
        config, place = self.config, self.place
        steps = min(config.steps or math.inf, (limited and config.limit) or math.inf)
        out_of_patience = config.patience is not None and place.stale >= config.patience
        epochs_over = place.position == 0 and place.epoch >= (config.epochs or math.inf)
        return place.step >= steps or out_of_patience or epochs_over

    def _save(self, name: str = LAST) -> None:
        save_run(self.state, self.folder, self.processes, name)

    def _result(self, seconds: float, interrupted: bool) -> TrainResult:
        config, place = self.config, self.place
        best = config.monitor is not None and place.best_step is not None
        value = place.best_value if config.monitor else place.loss
        return TrainResult(
            run=str(self.folder),
            steps=place.step,
            best_step=place.best_step,
            metric=config.monitor or "loss",
            value=self._metrics.get(config.monitor or "") if value is None else value,
            seconds=seconds,
            checkpoint=str(self.folder / (BEST if best else LAST)),
            interrupted=interrupted,
        )

    def _lock(self, stack: ExitStack) -> None:
        """Hold the folder against other trainers; the first process does so for all."""
        busy = None
        if self.processes.rank == 0:
            try:
                stack.enter_context(run_lock(self.folder))
            except KexueError as error:
                busy = error
        if (refusal := self.processes.first(busy)) is not None:
            raise refusal


def reporting(progress: Progress) -> Callback:
    """A callback that calls `progress`, such as a bar, with the number of finished steps and the total."""
    return lambda trainer, _record: progress(trainer.place.step, trainer.total)
