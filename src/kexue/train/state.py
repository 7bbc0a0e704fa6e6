"""The state of a run: everything its future depends on, and therefore everything a checkpoint holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kexue.errors import CheckpointError
from kexue.optim.stack import layers, unwrap
from kexue.train._module_state import match_state, plain_name, plain_state
from kexue.train._random import generator_of, get_states, set_states
from kexue.train.checkpoint import Checkpoint
from kexue.train.config import TrainConfig
from kexue.train.distributed import Processes, full_state, shard_like, shard_optimizer_state

PARTS = ("model", "optimizers", "schedulers", "scaler", "callbacks", "rng", "place", "settled")
_SHARED = ("seed", "accumulate", "weight", "precision", "ema")  # settings that a resumed run must have too


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: finished steps.
        epoch: finished epochs.
        position: batches that each process has taken in the present epoch.
        best_step, best_value: step and value of the best evaluation so far; None before the first one.
        stale: number of evaluations since the best one.
        loss: loss of the last step.
        evaluated: step of the last evaluation that counts.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0
    loss: float | None = None
    evaluated: int = 0

    def advance(self, batches: int, *, epoch_ends: bool) -> None:
        """Count a step that took this many batches."""
        self.step += 1
        self.epoch, self.position = (self.epoch + 1, 0) if epoch_ends else (self.epoch, self.position + batches)


class RunState:
    """Weights, averages, optimizers, schedulers, scaler, callbacks, random generators and position of a run.

    Attributes:
        settings: values that must be equal in a resumed run: settings, numbers of processes and batches, kinds of
            optimizers and schedulers.
        frozen: names of weights that checkpoints leave out.
        averages: wrappers that average the weights, one per optimizer; empty without `ema`.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        self.model = model
        self.optimizers = list(optimizers)
        self.schedulers = list(schedulers)
        self.averages: list[Any] = []
        self.callbacks: list[Any] = []
        self.position = Position()
        self.settings: dict[str, Any] = {}
        self.frozen: set[str] = set()

    def prepare(
        self,
        config: TrainConfig,
        processes: Processes,
        *,
        precision: str,
        batches: int | None,
        callbacks: Sequence[Any],
    ) -> None:
        """Start a run at its first step: averages, scaler, generator, and the settings a resumed run must share.

        Args:
            config: settings of the run.
            processes: the model is distributed to them already.
            precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
            batches: batches of an epoch for each process, if known.
            callbacks: those with `state_dict` become part of checkpoints.
        """
        self.position = Position()
        self.callbacks = [callback for callback in callbacks if hasattr(callback, "state_dict")]
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "fp16")
        self.generator = generator_of(config.seed, processes.rank, 1, device=processes.device)
        if config.ema is not None and not self.averages:
            from kexue.optim import EMA

            self.averages = [EMA(optimizer, config.ema) for optimizer in self.optimizers]
            self.optimizers = list(self.averages)
        self.settings = {name: getattr(config, name) for name in _SHARED} | {"precision": precision}
        self.settings |= {"processes": processes.world, "batches": batches}
        self.settings["optimizers"] = [describe_optimizer(optimizer) for optimizer in self.optimizers]
        self.settings["schedulers"] = [type(scheduler).__name__ for scheduler in self.schedulers]
        if not config.save_frozen:
            named = self.model.named_parameters(remove_duplicate=False)
            frozen = {plain_name(self.model, name): p for name, p in named if not p.requires_grad}
            self.frozen, self.settings["frozen"] = set(frozen), hash_tensors(frozen)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the `with` the model has the averaged weights, if there are any."""
        with ExitStack() as stack:
            for average in self.averages:
                stack.enter_context(average.averaged_weights())
            yield

    def find_nonfinite(self) -> str | None:
        """The name of a weight that is infinite or NaN; None if there is none."""
        named = self.model.named_parameters()
        return next((name for name, p in named if not bool(torch.isfinite(full_state(p)).all())), None)

    def pack(self, processes: Processes) -> dict[str, Any]:
        """The parts of a checkpoint; every process must call it."""
        averages = None
        if self.averages:
            with self.averaged_weights():
                averages = {k: full_state(v).clone() for k, v in self._model_state().items()}
        parts: dict[str, Any] = full_state(
            {
                "model": self._model_state(),
                "ema": averages,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
                "scaler": self.scaler.state_dict(),
                "callbacks": [callback.state_dict() for callback in self.callbacks],
            }
        )
        states = {"global": get_states(processes.device), "step": self.generator.get_state()}
        parts["rng"] = processes.gather(states)
        parts |= {"step": self.position.step, "place": asdict(self.position), "settled": self.settings}
        return parts | {"frozen": sorted(self.frozen) or None}

    def check(self, saved: Checkpoint) -> None:
        """Raise a CheckpointError that says what differs, unless `saved` is of a run with these settings and data."""
        if absent := [part for part in PARTS if part not in saved]:
            raise CheckpointError(f"{saved.path} is not a checkpoint of a Trainer: it has no {', '.join(absent)}.")
        differ = [
            f"{name} was {saved.settled.get(name)!r}, now {value!r}"
            for name, value in self.settings.items()
            if saved.settled.get(name) != value
        ]
        differ += [
            f"number of {name} was {len(saved[name])}, now {len(objects)}"
            for name, objects in self._stateful().items()
            if len(saved[name]) != len(objects)
        ]
        if differ:
            raise CheckpointError(
                f"{saved.path} is of another run: {'; '.join(differ)}.",
                remedy="Choose another folder or the old settings, or delete this run by resume=False (--no-resume).",
            )

    def load(self, saved: Checkpoint) -> None:
        """Load everything but the position and the random generators, which `load_position` takes last."""
        wanted = self.model.state_dict()
        state = match_state(self.model, saved.model, f"{saved.path}: model", self.frozen)
        self.model.load_state_dict(
            {k: shard_like(v, wanted[k]) if isinstance(v, Tensor) else v for k, v in state.items()}
        )
        saved["optimizers"] = [
            shard_optimizer_state(s, o) for s, o in zip(saved.optimizers, self.optimizers, strict=True)
        ]
        saved.restore(**self._stateful(), scaler=self.scaler)

    def load_position(self, saved: Checkpoint, processes: Processes) -> None:
        """Set the position, and the random generators of this process."""
        self.position = Position(**saved.place)
        mine = saved.rng[processes.rank]
        self.generator.set_state(mine["step"])
        set_states(mine["global"], processes.device)

    def _model_state(self) -> dict[str, Any]:
        return {k: v for k, v in plain_state(self.model).items() if k not in self.frozen}

    def _stateful(self) -> dict[str, list[Any]]:
        return {"optimizers": self.optimizers, "schedulers": self.schedulers, "callbacks": self.callbacks}


def describe_optimizer(optimizer: Optimizer) -> str:
    """Names of the classes of an optimizer and of the wrappers around it, innermost first."""
    return " ".join(type(layer).__name__ for layer in (unwrap(optimizer), *reversed([*layers(optimizer)])))


def hash_tensors(tensors: dict[str, Any]) -> str:
    """SHA-256 of the names and bytes of tensors, in hexadecimal."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole = full_state(tensor.detach()).cpu().contiguous()
        total.update(whole.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
