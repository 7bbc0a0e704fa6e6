"""The training loop: read it from top to bottom, or copy it.

A model says what a step is, ``training_step(batch, *, optimizer_index=0, generator=None) -> LossOutput``; the loop does
the rest in the order that `Trainer.fit` shows. Whatever the future of a run depends on is in its checkpoint (weights,
averages, optimizers, schedules, scaler, generators, place in the data), so a run that was killed and called again gives
the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kexue._progress import Progress
from kexue.errors import KexueError
from kexue.train._lock import run_lock
from kexue.train._random import generator_of, isolated
from kexue.train._signals import ending_signals
from kexue.train._weights import Weights
from kexue.train.checkpoint import plain_name
from kexue.train.config import LossOutput, NonFiniteLossError, TrainConfig, TrainResult
from kexue.train.data import count_batches, epoch_batches, group, move
from kexue.train.distributed import full_state, join
from kexue.train.gradcache import gradient_weight
from kexue.train.logs import RunLog
from kexue.train.snapshot import (
    Place,
    clear_run,
    describe_optimizer,
    digest_of,
    is_begun,
    refuse_strangers,
    restore_run,
    save_run,
)

Evaluate = Callable[[Any], Mapping[str, float]]
Callback = Callable[["Trainer", Mapping[str, float]], None]
_SETTLED = ("seed", "accumulate", "weight", "precision", "ema")  # settings that a resumed run must share


class Trainer:
    """Train a model: mixed precision, accumulation, clipping, averages, evaluation, logs, checkpoints, many processes.

    Args:
        model: has `training_step`. A GAN returns another loss for each `optimizer_index`; noise comes from `generator`,
            or, as dropout's does, from torch's global one, which `fit` seeds and afterwards puts back.
        optimizers: one or a list, taken in turn within a step; their parameters must belong to `model`.
        config: the settings.
        schedulers: one or a list of `torch.optim.lr_scheduler`, stepped once a step (`ReduceLROnPlateau`: once an
            evaluation, with the value of `monitor`). A step that the GradScaler skips does not count for them.
        callbacks: each called as ``callback(trainer, record)`` after every step, `record` being what was logged. One
            with `state_dict` and `load_state_dict` becomes part of checkpoints.

    Attributes:
        place: a `Place`; `place.step` counts finished steps.
        total: steps of the whole run, None while that is not known.
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
        self.model, self.config = model, config
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        several = isinstance(schedulers, Iterable)
        self.schedulers: list[Any] = list(schedulers) if several else [] if schedulers is None else [schedulers]
        self.callbacks = tuple(callbacks)
        self.keepers = [callback for callback in self.callbacks if hasattr(callback, "state_dict")]
        self.folder = Path(config.out)
        self.place = Place()
        self.total: int | None = None
        self.frozen: set[str] = set()  # names that checkpoints leave out
        self._averages: list[Any] = []
        self._preview: Mapping[str, float] = {}  # an evaluation that does not count
        self._epoch_ends = False
        own = {id(parameter) for parameter in model.parameters()}
        for index, optimizer in enumerate(self.optimizers):
            strange = sum(id(parameter) not in own for parameter in _parameters(optimizer))
            if strange:
                raise ValueError(
                    f"optimizer {index} trains {strange} tensors that are no parameters of the model, so no checkpoint "
                    "would hold them: make their module an attribute of the model"
                )

    def fit(self, loader: Iterable[Any], *, evaluate: Evaluate | None = None) -> TrainResult:
        """Train until the configured end, from the checkpoint in `config.out` if there is one.

        SIGTERM, SIGINT and SIGHUP end the run after the step under way, with a checkpoint; a second one acts as usual.

        Args:
            loader: a `DataLoader`, or any iterable that gives the same batches in each pass. The order of a DataLoader
                that shuffles is drawn anew each epoch from `config.seed`; resuming loads no batch twice. With several
                processes each takes its share of the batches.
            evaluate: called as ``evaluate(model)`` in evaluation mode, without gradients, with the averaged weights if
                `ema` is set, and with generators of its own; returns numbers by name. Every process calls it, the
                first one's answer counts.

        Returns:
            What the run came to. The model holds the weights of the last step; those of the best are in
            ``load_checkpoint(result.checkpoint)``, under `ema` if that is set, else under `model`.

        Raises:
            NonFiniteLossError: the loss is no number any more; the message names the step.
            CheckpointError: what is in `config.out` does not fit; the message says what differs.
            RunBusyError: another trainer is at work in `config.out`.
            DataError: `config.out` holds files of others in the places of those of a run.
            ValueError: an empty loader, a monitor that `evaluate` does not return, settings that contradict each other.
        """
        config, started = self.config, time.monotonic()
        if config.monitor is not None and evaluate is None:
            raise ValueError(f"monitor={config.monitor!r} needs evaluate, which returns it")
        if config.monitor is None and any(isinstance(one, ReduceLROnPlateau) for one in self.schedulers):
            raise ValueError("ReduceLROnPlateau needs monitor, the name of what evaluate returns and it shall watch")
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            self.processes = join(config.distributed, config.device)
            self._lock(stack)
            device = self.processes.device
            stack.enter_context(isolated(config.seed, self.processes.rank, device=device))
            self._prepare(loader)
            kinds, place = () if self.processes.rank > 0 else config.log, self.place
            log = stack.enter_context(RunLog(self.folder, kinds, step=place.step, evaluated=place.evaluated))
            stopped = stack.enter_context(ending_signals())
            interrupted = self._train(self._groups(loader), evaluate, log, stopped)
        best = config.monitor is not None and place.best_step is not None
        value = place.best_value if config.monitor else place.loss
        return TrainResult(
            run=str(self.folder),
            steps=place.step,
            best_step=place.best_step,
            metric=config.monitor or "loss",
            value=self._preview.get(config.monitor or "") if value is None else value,
            seconds=time.monotonic() - started,
            checkpoint=str(self.folder / ("best" if best else "last")),
            interrupted=interrupted,
        )

    def _train(self, batches: Iterator[list[Any]], evaluate: Evaluate | None, log: RunLog, stopped: list[int]) -> bool:
        """Steps until the end; whether a signal came before it."""
        before = self.place.evaluated
        interrupted = self._evaluate_if_due(evaluate, log, stopped)  # where a stop cut an evaluation off
        if interrupted or self.place.evaluated != before:
            log.flush()
            save_run(self)
        while not (interrupted or self._is_over()):
            if (gathered := self._next(batches, stopped)) is None:
                save_run(self)
                return True
            record = self._update(gathered)
            self._advance(len(gathered))
            log.write("train", self.place.step, record)
            cut_off = self._evaluate_if_due(evaluate, log, stopped)
            for callback in self.callbacks:
                callback(self, record)
            over = self._is_over()
            interrupted = self.processes.any(bool(stopped) or cut_off) and (cut_off or not over)
            if over or interrupted or self._due(self.config.save_every or self.config.eval_every):
                log.flush()
                save_run(self)
        return interrupted

    def _next(self, batches: Iterator[list[Any]], stopped: list[int]) -> list[Any] | None:
        """The batches of the coming step; None where a signal ended the workers that should have made them."""
        try:
            return next(batches)
        except RuntimeError:
            if not stopped or self.processes.world > 1:  # the others wait for this one in their step
                raise
            return None

    def _evaluate_if_due(self, evaluate: Evaluate | None, log: RunLog, stopped: list[int]) -> bool:
        """Evaluate, judge and log after the step just made; whether a signal cut the evaluation off."""
        place = self.place
        counts = self._is_over(limited=False) or self._due(self.config.eval_every)
        if evaluate is None or place.evaluated == place.step or not (counts or self._is_over()):
            return False
        try:
            metrics = self._evaluate(evaluate)
        except RuntimeError:
            if not stopped or self.processes.world > 1:
                raise
            return True
        log.write("eval", place.step, {"epoch": place.epoch, **metrics}, drawn=counts)
        if counts:
            place.evaluated = place.step
            self._judge(metrics)
        self._preview = metrics
        return False

    def _update(self, batches: list[Any]) -> dict[str, float]:
        """One step: every optimizer in turn, each on the mean loss of the batches. Returns what to log."""
        record: dict[str, float] = {"epoch": self.place.epoch}
        losses, scale = [], self.scaler.get_scale()
        for index, optimizer in enumerate(self.optimizers):
            read = self._step_with(index, optimizer, batches, scale)
            losses.append(read.pop("loss"))
            suffix = f"_{index}" if len(self.optimizers) > 1 else ""
            record[f"loss{suffix}"] = losses[-1]
            if (rate := optimizer.param_groups[0].get("lr")) is not None:  # Adafactor may have none
                record[f"lr{suffix}"] = float(rate)
            record |= {(f"{name}{suffix}" if name == "gradient_norm" else name): value for name, value in read.items()}
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step was skipped: a gradient in fp16 was too large
            for scheduler in self.schedulers:
                if not isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step()
        self.place.loss = record["loss"] = sum(losses)
        return record

    def _step_with(self, index: int, optimizer: Optimizer, batches: list[Any], scale: float) -> dict[str, float]:
        """The step of one optimizer; the loss, its parts and the norm of the gradient."""
        self.model.zero_grad(set_to_none=True)
        size = len(batches)
        weights = Weights(self.processes, size, self.config.weight)
        values: dict[str, list[Tensor]] = {"loss": []}
        counts: dict[str, list[float]] = {}
        for number, batch in enumerate(batches, start=1):
            with self.processes.accumulating(self.step, last=number == size):
                with self.autocast, gradient_weight(scale / size):
                    output: LossOutput = self.step(
                        move(batch, self.processes.device), optimizer_index=index, generator=self.generator
                    )
                parts = dict(output.parts)
                share = weights.add(output.loss, parts)
                loss = output.loss / size if share is None else output.loss * share
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": output.loss, **parts}.items():
                values.setdefault(name, []).append(torch.as_tensor(value).detach().float().mean())
                counts.setdefault(name, []).append(1.0 if share is None else share)
        mine, factor = weights.close()
        if factor != 1:
            torch._foreach_mul_([p.grad for p in self.model.parameters() if p.grad is not None], factor)
        names = list(values)
        sums = [torch.stack(many).mean() if mine is None else _mean(many, counts[n]) for n, many in values.items()]
        if self.config.clip is not None:
            self.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(_parameters(optimizer), self.config.clip)
            names.append("gradient_norm")
            sums.append(full_state(norm))
        means = self.processes.mean(torch.stack(sums) if mine is None else torch.stack(sums) * mine)
        read = dict(zip(names, means.tolist(), strict=True))
        self._check_finite(read)
        self.scaler.step(optimizer)
        return read

    def _advance(self, batches: int) -> None:
        place = self.place
        place.step += 1
        place.epoch, place.position = (
            (place.epoch + 1, 0) if self._epoch_ends else (place.epoch, place.position + batches)
        )

    def _due(self, every: int | None) -> bool:
        place = self.place
        return place.step > 0 and (place.position == 0 if every is None else place.step % every == 0)

    def _is_over(self, *, limited: bool = True) -> bool:
        """Whether the run has come to its end, or if `limited` to that of a smoke run."""
        config, place = self.config, self.place
        steps = min(config.steps or math.inf, (limited and config.limit) or math.inf)
        tired = config.patience is not None and place.stale >= config.patience
        return place.step >= steps or tired or (place.position == 0 and place.epoch >= (config.epochs or math.inf))

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
                    f"the loader gave no batch in epoch {epoch} from batch {start} on; expected at least one"
                )

    def _evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        """What `evaluate` makes of the model as it is."""
        config, place = self.config, self.place
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        with (
            isolated(config.seed, place.step, 1, device=self.processes.device),
            torch.no_grad(),
            self.averaged(),
            self.processes.whole(self.model),
        ):
            metrics: dict[str, float] = self.processes.first(_read_metrics(evaluate(self.model)))
        for module, training in modes.items():
            module.training = training
        if config.monitor is not None and config.monitor not in metrics:
            raise ValueError(f"monitor is {config.monitor!r}, evaluate returned {', '.join(metrics)}")
        return metrics

    def _judge(self, metrics: Mapping[str, float]) -> None:
        """See whether the model is the best so far, and tell the schedulers that wait for it."""
        config, place = self.config, self.place
        if config.monitor is None:
            return
        value, best = metrics[config.monitor], place.best_value
        better = best is None or (value > best if config.mode == "max" else value < best)
        place.stale = 0 if better and not math.isnan(value) else place.stale + 1
        if place.stale == 0:
            place.best_step, place.best_value = place.step, value
            save_run(self, "best")
        for scheduler in self.schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(value)

    def _check_finite(self, read: Mapping[str, float]) -> None:
        wrong = "loss" if not math.isfinite(read["loss"]) else None
        if "gradient_norm" in read and not math.isfinite(read["gradient_norm"]) and not self.scaler.is_enabled():
            wrong = wrong or "gradient_norm"
        if wrong is not None:
            self.diverged(f"the {wrong.replace('_', ' ')} is {read[wrong]}", self.place.step + 1)

    def diverged(self, what: str, step: int) -> None:
        """Raise the error of a run that has become no number."""
        raise NonFiniteLossError(
            f"{what} in step {step}.",
            remedy=f"What was saved in {self.folder} comes from before; lower the learning rate, clip, or use fp32.",
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, where there are such."""
        with ExitStack() as stack:
            for average in self._averages:
                stack.enter_context(average.averaged_weights())
            yield

    def _prepare(self, loader: Iterable[Any]) -> None:
        """Model in place, everything else around it, and the state of the last checkpoint in all of them."""
        config, among = self.config, self.processes
        self.place = Place()
        self.step = among.place(self.model, self.optimizers)
        self.model.train()
        precision = _choose_precision(config.precision, among.device)
        if precision == "fp16" and among.kind == "fsdp2":
            raise ValueError("precision 'fp16' scales gradients, which fsdp2 shards: choose 'bf16'")
        half = torch.float16 if precision == "fp16" else torch.bfloat16
        self.autocast = torch.autocast(among.device.type, dtype=half, enabled=precision != "fp32")
        self.scaler = torch.amp.GradScaler(among.device.type, enabled=precision == "fp16")
        if config.ema is not None and not self._averages:
            from kexue.optim import EMA

            self._averages = [EMA(optimizer, config.ema) for optimizer in self.optimizers]
            self.optimizers = list(self._averages)
        self.generator = generator_of(config.seed, among.rank, 1, device=among.device)
        self.settled = {name: getattr(config, name) for name in _SETTLED} | {"precision": precision}
        self.settled |= {"processes": among.world, "batches": count_batches(loader, among.world)}
        self.settled["optimizers"] = [describe_optimizer(optimizer) for optimizer in self.optimizers]
        self.settled["schedulers"] = [type(scheduler).__name__ for scheduler in self.schedulers]
        if not config.save_frozen:
            named = self.model.named_parameters(remove_duplicate=False)
            frozen = {plain_name(self.model, name): p for name, p in named if not p.requires_grad}
            self.frozen, self.settled["frozen"] = set(frozen), digest_of(frozen)
        batches = self.settled["batches"]
        ends = [config.steps, config.limit]
        ends.append(batches and config.epochs and config.epochs * math.ceil(batches / config.accumulate))
        self.total = min((end for end in ends if end), default=None)
        refuse_strangers(self.folder, config.log)
        if among.first(is_begun(self.folder)) and config.resume:
            restore_run(self)
        elif among.rank == 0:
            clear_run(self.folder, config.log)

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
    """A callback that tells `progress`, such as a bar, how many of how many steps are done."""
    return lambda trainer, _record: progress(trainer.place.step, trainer.total)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for given in optimizer.param_groups for parameter in given["params"]]


def _mean(values: list[Tensor], weights: list[float]) -> Tensor:
    return sum((value * weight for value, weight in zip(values, weights, strict=True)), start=0 * values[0]) / (
        sum(weights) or 1.0
    )


def _read_metrics(metrics: Any) -> dict[str, float]:
    """What `evaluate` returned, as floats."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"evaluate must return numbers by name, got {metrics!r}")
    read = {}
    for name, value in metrics.items():
        try:
            read[name] = float("" if isinstance(value, str) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"evaluate must return numbers, got {value!r} for {name!r}") from error
    return read


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
