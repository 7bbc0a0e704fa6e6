"""Checkpoints of a run: its state into a folder and back."""

from __future__ import annotations

from pathlib import Path

from kexue.train.checkpoint import load_newest, write_checkpoint
from kexue.train.config import nonfinite_error
from kexue.train.distributed import Processes
from kexue.train.folder import LAST, PREVIOUS, move_damaged_last
from kexue.train.state import RunState


def save_run(state: RunState, folder: Path, processes: Processes, name: str = LAST) -> None:
    """Write the checkpoint `name` of a run; every process calls it, the first one writes.

    Raises:
        NonFiniteLossError: a weight is infinite or NaN; nothing is written.
    """
    if (bad := state.find_nonfinite()) is not None:
        raise nonfinite_error(f"{bad} became infinite or NaN", state.position.step, folder)
    parts = state.pack(processes)
    if processes.rank == 0:
        path = folder / name
        # The target of a link may be on another disk, from where nothing can be moved here.
        keeps_older = name == LAST and not path.is_symlink()
        write_checkpoint(path, parts, older=folder / PREVIOUS if keeps_older else None)
    processes.any(False)  # every process waits until it is written


def restore_run(state: RunState, folder: Path, processes: Processes) -> None:
    """Load the last checkpoint of a run, or with a warning the one before where the last one is damaged.

    Raises:
        CheckpointError: both are damaged, or the run had other settings, data or weights; the message says which.
    """
    saved = load_newest(folder / LAST, folder / PREVIOUS)
    state.check(saved)
    state.load(saved)
    processes.any(False)  # every process has read it
    if Path(saved.path).name == PREVIOUS and processes.rank == 0:
        move_damaged_last(folder)
    state.load_position(saved, processes)
