"""The folder of a run: its checkpoints, its log, and files of other programs, which are never overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kexue._files import displaced_path, refuse_foreign, remove_folder
from kexue.errors import CheckpointError
from kexue.train.checkpoint import MANIFEST, find_foreign, read_manifest
from kexue.train.logs import EVENTS, refuse_foreign_log

LAST, PREVIOUS, BEST, DAMAGED = "last", "previous", "best", "damaged"
_FOLDERS = (LAST, PREVIOUS, DAMAGED, BEST)


def check_folder(folder: Path, log: Sequence[str]) -> None:
    """Raise a DataError where a run would overwrite files that no run has written."""

    def foreign(path: Path) -> list[str]:
        names = find_foreign(path)
        return [name for name in names if name not in _written_names(path)] if path.name == LAST else names

    for name in _FOLDERS:
        refuse_foreign(folder / name, foreign)
    if "jsonl" in log:
        refuse_foreign_log(folder / "log.jsonl")


def _written_names(last: Path) -> set[str]:
    """Return the names of the files in a `last` without manifest, taken from the checkpoint before it."""
    if (last / MANIFEST).exists():
        return set()
    try:
        return set(read_manifest(last.with_name(PREVIOUS))["files"])
    except CheckpointError:
        return set()


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint to resume from."""
    paths = [path for name in (LAST, PREVIOUS) for path in (folder / name, displaced_path(folder / name))]
    return any(path.is_dir() and any(path.iterdir()) for path in paths)


def clear_run(folder: Path, log: Sequence[str]) -> None:
    """Remove the checkpoints and the log of an earlier run, and nothing else; call `check_folder` first."""
    for name in _FOLDERS:
        remove_folder(folder / name)
        remove_folder(displaced_path(folder / name))
    if "jsonl" in log:
        (folder / "log.jsonl").unlink(missing_ok=True)
    for path in (folder / "tensorboard").glob(f"events.out.tfevents.*{EVENTS}"):
        path.unlink()


def move_damaged_last(folder: Path) -> None:
    """Move a damaged `last` away, so that it does not become `previous` with the next checkpoint."""
    if (folder / LAST).exists():
        remove_folder(folder / DAMAGED)
        (folder / LAST).rename(folder / DAMAGED)
