"""Everything the future of a run depends on, into a checkpoint and back."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kexue.errors import CheckpointError
from kexue.train._random import get_states, set_states
from kexue.train.checkpoint import MANIFEST, check_fit, load_checkpoint, save_checkpoint
from kexue.train.distributed import full_state, shard_like, shard_optimizer_state

if TYPE_CHECKING:
    from kexue.train.loop import Trainer

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


def save_run(trainer: Trainer, name: str = "last") -> None:
    """Write the checkpoint `name` of a run; every process calls it, the first one writes.

    Raises:
        NonFiniteLossError: a weight is infinite or NaN; nothing is written.
    """
    bad = [name for name, p in trainer.model.named_parameters() if not bool(torch.isfinite(full_state(p)).all())]
    if bad:
        trainer.diverged(f"{bad[0]} became infinite or NaN", trainer.place.step)
    averages = None
    if trainer.config.ema is not None:
        with trainer.averaged():
            averages = {key: full_state(value).clone() for key, value in trainer.model.state_dict().items()}
    parts = full_state(
        {
            "model": trainer.model.state_dict(),
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
        save_checkpoint(
            trainer.folder / name,
            **parts,
            step=trainer.place.step,
            place=asdict(trainer.place),
            settled=trainer.settled,
        )
    trainer.processes.any(False)  # nobody goes on before it is written


def restore_run(trainer: Trainer, path: Path) -> None:
    """Bring a run to where a checkpoint of it left off.

    Raises:
        CheckpointError: it is damaged, or of a run with other settings, data or weights; the message says which.
    """
    saved = load_checkpoint(path)
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
    check_fit(wanted, saved.model, f"{path}: model")
    trainer.model.load_state_dict(
        {k: shard_like(v, wanted[k]) if isinstance(v, Tensor) else v for k, v in saved.model.items()}
    )
    saved["optimizers"] = [
        shard_optimizer_state(s, o) for s, o in zip(saved.optimizers, trainer.optimizers, strict=True)
    ]
    saved.restore(**several, scaler=trainer.scaler)
    trainer.place = Place(**saved.place)
    mine = saved.rng[trainer.processes.rank]
    trainer.generator.set_state(mine["step"])
    set_states(mine["global"], trainer.processes.device)


def clear_run(folder: Path) -> None:
    """Remove the checkpoints and the log of an earlier run, and nothing else."""
    for name in ("last", ".last.old", "best", ".best.old"):
        if (folder / name / MANIFEST).exists():
            shutil.rmtree(folder / name)
    (folder / "log.jsonl").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
