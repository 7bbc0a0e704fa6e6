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
from kexue.train._random import generator_of, isolated
from kexue.train._signals import ending_signals
from kexue.train.config import LossOutput, NonFiniteLossError, TrainConfig, TrainResult
from kexue.train.data import count_batches, epoch_batches, group, move
from kexue.train.distributed import full_state, join
from kexue.train.gradcache import gradient_weight
from kexue.train.logs import RunLog
from kexue.train.snapshot import Place, clear_run, restore_run, save_run

Evaluate = Callable[[Any], Mapping[str, float]]
Callback = Callable[["Trainer", Mapping[str, float]], None]
_SETTLED = ("seed", "accumulate", "precision", "ema")  # settings that a resumed run must share


class Trainer:
    """Train a model: mixed precision, accumulation, clipping, averages, evaluation, logs, checkpoints, many processes.

    Args:
        model: has `training_step`. A GAN returns another loss for each `optimizer_index`; noise comes from `generator`,
            or, as dropout's does, from torch's global one, which `fit` seeds and afterwards puts back.
        optimizers: one or a list, taken in turn within a step; their parameters must belong to `model`.
        config: the settings.
        schedulers: one or a list of `torch.optim.lr_scheduler`, stepped once a step (`ReduceLROnPlateau`: once an
            evaluation). A step that the GradScaler skips does not count for them.
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
        self._averages: list[Any] = []
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

        SIGTERM and SIGINT end the run after the step under way, with a checkpoint; a second one acts as usual.

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
            ValueError: an empty loader, a monitor that `evaluate` does not return, settings that contradict each other.
        """
        config, started = self.config, time.monotonic()
        if config.monitor is not None and evaluate is None:
            raise ValueError(f"monitor={config.monitor!r} needs evaluate, which returns it")
        over = interrupted = False
        with ExitStack() as stack:
            self.processes = join(config.distributed, config.device)
            device = self.processes.device
            stack.enter_context(isolated(config.seed, self.processes.rank, device=device))
            self._prepare(loader)
            quiet = self.processes.rank > 0
            log = stack.enter_context(RunLog(self.folder, () if quiet else config.log, step=self.place.step))
            stopped = stack.enter_context(ending_signals())
            over = self._is_over(epoch_ended=self.place.position == 0)
            batches = self._groups(loader)
            while not over and not interrupted:
                gathered, epoch_ends = next(batches)
                record = self._update(gathered)
                self._advance(len(gathered), epoch_ends)
                log.write("train", self.place.step, record)
                over = self._is_over(epoch_ends)
                if evaluate is not None and (over or self._due(config.eval_every, epoch_ends)):
                    log.write("eval", self.place.step, self._evaluate(evaluate))
                    over = self._is_over(epoch_ends)
                for callback in self.callbacks:
                    callback(self, record)
                interrupted = self.processes.any(bool(stopped)) and not over
                if over or interrupted or self._due(config.save_every or config.eval_every, epoch_ends):
                    log.flush()
                    save_run(self)
        best, place = config.monitor is not None and self.place.best_step is not None, self.place
        return TrainResult(
            run=str(self.folder),
            steps=place.step,
            best_step=place.best_step,
            metric=config.monitor or "loss",
            value=place.best_value if config.monitor else place.loss,
            seconds=time.monotonic() - started,
            checkpoint=str(self.folder / ("best" if best else "last")),
            interrupted=interrupted,
        )

    def _update(self, batches: list[Any]) -> dict[str, float]:
        """One step: every optimizer in turn, each on the mean loss of the batches. Returns what to log."""
        record: dict[str, float] = {"epoch": self.place.epoch}
        losses, scale = [], self.scaler.get_scale()
        for index, optimizer in enumerate(self.optimizers):
            self.model.zero_grad(set_to_none=True)
            values: dict[str, list[Tensor]] = {"loss": []}
            for number, batch in enumerate(batches, start=1):
                with self.processes.accumulating(self.step, last=number == len(batches)):
                    with self.autocast, gradient_weight(scale / len(batches)):
                        output: LossOutput = self.step(
                            move(batch, self.processes.device), optimizer_index=index, generator=self.generator
                        )
                    self.scaler.scale(output.loss / len(batches)).backward()  # type: ignore[no-untyped-call]
                for name, value in {"loss": output.loss, **output.parts}.items():
                    values.setdefault(name, []).append(value.detach().float().mean())
            names, sums = list(values), [torch.stack(many).mean() for many in values.values()]
            if self.config.clip is not None:
                self.scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(_parameters(optimizer), self.config.clip)
                names.append("gradient_norm")
                sums.append(full_state(norm))
            read = dict(zip(names, self.processes.mean(torch.stack(sums)).tolist(), strict=True))
            self._check_finite(read)
            self.scaler.step(optimizer)
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

    def _advance(self, batches: int, epoch_ends: bool) -> None:
        place = self.place
        place.step += 1
        place.epoch, place.position = (place.epoch + 1, 0) if epoch_ends else (place.epoch, place.position + batches)

    def _due(self, every: int | None, epoch_ends: bool) -> bool:
        return epoch_ends if every is None else self.place.step % every == 0

    def _is_over(self, epoch_ended: bool) -> bool:
        config, place = self.config, self.place
        steps = min(config.steps or math.inf, config.limit or math.inf)
        tired = config.patience is not None and place.stale >= config.patience
        return place.step >= steps or tired or (epoch_ended and place.epoch >= (config.epochs or math.inf))

    def _groups(self, loader: Iterable[Any]) -> Iterator[tuple[list[Any], bool]]:
        """The batches of each step to come, and whether an epoch ends with them; without end."""
        while True:
            epoch, start, among = self.place.epoch, self.place.position, self.processes
            batches = epoch_batches(
                loader, seed=self.config.seed, epoch=epoch, start=start, rank=among.rank, world=among.world
            )
            ends = False
            for gathered, ends in group(batches, self.config.accumulate):
                yield gathered, ends
            if not ends:
                raise ValueError(
                    f"the loader gave no batch in epoch {epoch} from batch {start} on; expected at least one"
                )

    def _evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        config, place = self.config, self.place
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        with (
            isolated(config.seed, place.step, 1, device=self.processes.device),
            torch.no_grad(),
            self.averaged(),
            self.processes.whole(self.model),
        ):
            metrics = self.processes.first({name: _number(value) for name, value in evaluate(self.model).items()})
        for module, training in modes.items():
            module.training = training
        if config.monitor is not None:
            if config.monitor not in metrics:
                raise ValueError(f"monitor is {config.monitor!r}, evaluate returned {', '.join(metrics)}")
            value, best = metrics[config.monitor], place.best_value
            better = best is None or (value > best if config.mode == "max" else value < best)
            place.stale = 0 if better and not math.isnan(value) else place.stale + 1
            if place.stale == 0:
                place.best_step, place.best_value = place.step, value
                save_run(self, "best")
            for scheduler in self.schedulers:
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(value)
        return {"epoch": place.epoch, **metrics}

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
        batches = self.settled["batches"]
        ends = [config.steps, config.limit]
        ends.append(batches and config.epochs and config.epochs * math.ceil(batches / config.accumulate))
        self.total = min((end for end in ends if end), default=None)
        saved = self.folder / "last"
        there = among.first(saved.exists() or saved.with_name(".last.old").exists())
        if there and config.resume:
            restore_run(self, saved)
        elif among.rank == 0:
            clear_run(self.folder)


def reporting(progress: Progress) -> Callback:
    """A callback that tells `progress`, such as a bar, how many of how many steps are done."""
    return lambda trainer, _record: progress(trainer.place.step, trainer.total)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for given in optimizer.param_groups for parameter in given["params"]]


def _number(value: Any) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
