"""Everything the future of a run depends on, into a checkpoint and back."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kexue._files import displaced, refuse_foreign
from kexue.errors import CheckpointError
from kexue.optim.stack import layers, unwrap
from kexue.train._random import get_states, set_states
from kexue.train.checkpoint import fit, foreign, load_newest, plain_state, write_checkpoint
from kexue.train.distributed import full_state, shard_like, shard_optimizer_state
from kexue.train.logs import EVENTS, refuse_foreign_log

if TYPE_CHECKING:
    from kexue.train.loop import Trainer

LAST, PREVIOUS, DAMAGED = "last", "previous", "damaged"
_FOLDERS = (LAST, PREVIOUS, DAMAGED, "best")
_PARTS = ("model", "optimizers", "schedulers", "scaler", "callbacks", "rng", "place", "settled")


@dataclass
class Place:
    """Where a run is: steps made, epoch, batches taken in it by each process, and the best evaluation so far."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0  # evaluations since the best
    loss: float | None = None
    evaluated: int = 0  # the step of the last evaluation that counts


def save_run(trainer: Trainer, name: str = "last") -> None:
    """Write the checkpoint `name` of a run; every process calls it, the first one writes.

    Raises:
        NonFiniteLossError: a weight is infinite or NaN; nothing is written.
    """
    bad = [name for name, p in trainer.model.named_parameters() if not bool(torch.isfinite(full_state(p)).all())]
    if bad:
        trainer.diverged(f"{bad[0]} became infinite or NaN", trainer.place.step)
    averages, frozen = None, trainer.frozen
    if trainer.config.ema is not None:
        with trainer.averaged():
            averages = {k: full_state(v).clone() for k, v in plain_state(trainer.model).items() if k not in frozen}
    parts = full_state(
        {
            "model": {k: v for k, v in plain_state(trainer.model).items() if k not in frozen},
            "ema": averages,
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in trainer.schedulers],
            "scaler": trainer.scaler.state_dict(),
            "callbacks": [callback.state_dict() for callback in trainer.keepers],
        }
    )
    device = trainer.processes.device
    parts["rng"] = trainer.processes.everyone({"global": get_states(device), "step": trainer.generator.get_state()})
    if trainer.processes.rank == 0:
        path = trainer.folder / name
        state = {"step": trainer.place.step, "place": asdict(trainer.place), "settled": trainer.settled}
        state |= {"frozen": sorted(frozen) or None}
        # What a link points to may be on another disk, whence nothing can be moved here.
        keeps = name == LAST and not path.is_symlink()
        write_checkpoint(path, {**parts, **state}, older=trainer.folder / PREVIOUS if keeps else None)
    trainer.processes.any(False)  # nobody goes on before it is written


def restore_run(trainer: Trainer) -> None:
    """Bring a run to where its last checkpoint left off, or the one before where the last one is damaged.

    Raises:
        CheckpointError: both are, or it is of a run with other settings, data or weights; the message says which.
    """
    last, damaged = trainer.folder / LAST, trainer.folder / DAMAGED
    saved = load_newest(last, trainer.folder / PREVIOUS)
    path = Path(saved.path)
    if absent := [part for part in _PARTS if part not in saved]:
        raise CheckpointError(f"{path} is no checkpoint of a Trainer: it has no {', '.join(absent)}.")
    differ = [
        f"{name} was {saved.settled.get(name)!r}, now {value!r}"
        for name, value in trainer.settled.items()
        if saved.settled.get(name) != value
    ]
    several = {"optimizers": trainer.optimizers, "schedulers": trainer.schedulers, "callbacks": trainer.keepers}
    differ += [
        f"{name} were {len(saved[name])}, now {len(now)}"
        for name, now in several.items()
        if len(saved[name]) != len(now)
    ]
    if differ:
        raise CheckpointError(
            f"the run in {trainer.folder} was another one: {'; '.join(differ)}.",
            remedy="Choose another folder, the old settings, or resume=False (--no-resume), which removes it.",
        )
    wanted = trainer.model.state_dict()
    state = fit(trainer.model, saved.model, f"{path}: model", trainer.frozen)
    trainer.model.load_state_dict(
        {k: shard_like(v, wanted[k]) if isinstance(v, Tensor) else v for k, v in state.items()}
    )
    saved["optimizers"] = [
        shard_optimizer_state(s, o) for s, o in zip(saved.optimizers, trainer.optimizers, strict=True)
    ]
    saved.restore(**several, scaler=trainer.scaler)
    trainer.processes.any(False)  # every process has read it
    if path.name == PREVIOUS and last.exists() and trainer.processes.rank == 0:
        shutil.rmtree(damaged, ignore_errors=True)
        last.rename(damaged)  # else the next checkpoint would put it in the place of the good one
    trainer.place = Place(**saved.place)
    mine = saved.rng[trainer.processes.rank]
    trainer.generator.set_state(mine["step"])
    set_states(mine["global"], trainer.processes.device)


def refuse_strangers(folder: Path, log: Sequence[str]) -> None:
    """Raise a DataError where a run could not write without harm to files that no run has written."""
    for name in _FOLDERS:
        refuse_foreign(folder / name, foreign)
    if "jsonl" in log:
        refuse_foreign_log(folder / "log.jsonl")


def is_begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    places = [path for name in (LAST, PREVIOUS) for path in (folder / name, displaced(folder / name))]
    return any(path.is_dir() and any(path.iterdir()) for path in places)


def clear_run(folder: Path, log: Sequence[str]) -> None:
    """Remove the checkpoints and the log of an earlier run, and nothing else; `refuse_strangers` comes first."""
    for name in _FOLDERS:
        for path in (folder / name, displaced(folder / name)):
            if path.exists():
                shutil.rmtree(path.resolve() if path.is_symlink() else path)
    if "jsonl" in log:
        (folder / "log.jsonl").unlink(missing_ok=True)
    for path in (folder / "tensorboard").glob(f"events.out.tfevents.*{EVENTS}"):
        path.unlink()


def describe_optimizer(optimizer: Optimizer) -> str:
    """Its class, and those of the wrappers around it."""
    return " ".join(type(layer).__name__ for layer in (unwrap(optimizer), *reversed([*layers(optimizer)])))


def digest_of(tensors: dict[str, Any]) -> str:
    """A hash of the bytes of tensors and their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole = full_state(tensor.detach()).cpu().contiguous()
        total.update(whole.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
