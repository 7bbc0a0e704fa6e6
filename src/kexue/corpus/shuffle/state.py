"""Where a shuffle stands: a manifest beside the buckets, replaced in one rename, so that a killed run can go on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kexue._files import synchronise
from kexue.corpus.shuffle.job import Job
from kexue.corpus.shuffle.keys import SPACE
from kexue.errors import DataError

_VERSION = 1
_DURABLE_AFTER = 60.0  # seconds of work that a loss of power may cost
_MANIFEST, _DURABLE = "manifest.json", "durable.json"


@dataclass
class Bucket:
    """Records whose keys are lo <= u < hi, in a file (`size` bytes of it count) or, if `frames` is a list, there."""

    number: int
    lo: int = 0
    hi: int = SPACE
    records: int = 0
    bytes: int = 0
    size: int = 0
    frames: list[Any] | None = None

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / f"bucket-{self.number:06}"


@dataclass
class State:
    """What has been done. `place` is where the next chunk begins, `sink` where the output stands."""

    seed: int
    phase: Literal["scatter", "gather", "publish"] = "scatter"
    place: tuple[int, int, int] = (0, 0, 0)
    header: str = ""
    digest: str = "0" * 32
    records: int = 0
    bytes: int = 0
    giants: int = 0
    made: int = 0
    sink: dict[str, Any] | None = None
    files: int = 0
    gathered: int = 0
    started_with: int = 0
    buckets: list[Bucket] = field(default_factory=list)


class Workplace:
    """The folder of temporary files of one job: its lock, its manifest, and the way to be rid of it.

    Args:
        folder: created with mode 0700.
        job: whose state it holds.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder, self._job = folder, job
        self.lock = threading.RLock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink():
            raise DataError("it is a link.", remedy="Remove it.", path=folder)
        self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_file)
            raise DataError(
                "another process is doing this very shuffle.", remedy="Wait for it, or stop it.", path=folder
            ) from error
        self._marked = time.monotonic()

    def load(self) -> State | None:
        """The state of a run of this job that was interrupted; None where there is none that can be gone on with."""
        found = self._read(_MANIFEST)
        if found is not None and found["boot"] != _boot():  # what was not synchronised may be lost
            found = self._read(_DURABLE)
        if found is None or found["version"] != _VERSION or found["job"] != self._job.identity():
            return None
        if found["inputs"] != self._job.fingerprints():
            return None
        state = State(**found["state"])
        state.buckets = [Bucket(*row) for row in found["state"]["buckets"]]
        return state

    def commit(self, state: State, *, durable: bool = False) -> None:
        """Write the state; `durable`: what it speaks of has been synchronised."""
        with self.lock:
            entry = {name: value for name, value in vars(state).items() if name != "buckets"}
            entry["buckets"] = [[b.number, b.lo, b.hi, b.records, b.bytes, b.size] for b in state.buckets]
            record = {
                "version": _VERSION,
                "boot": _boot(),
                "job": self._job.identity(),
                "inputs": self._job.fingerprints(),
                "state": entry,
            }
            text = json.dumps(record)
            self._write(_MANIFEST, text, sync=False)
            if durable:
                self._write(_DURABLE, text, sync=True)
                self._marked = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to synchronise."""
        return time.monotonic() - self._marked > _DURABLE_AFTER

    @property
    def durable(self) -> bool:
        """Whether there is a state that outlives a loss of power."""
        return (self.folder / _DURABLE).exists()

    def tidy(self, keep: State | None) -> None:
        """Delete what `keep` does not speak of."""
        known = {b.path(self.folder).name for b in keep.buckets} | {_MANIFEST, _DURABLE, "giants"} if keep else set()
        if keep and keep.sink:
            known.add(keep.sink["pending"])
        for entry in os.scandir(self.folder):
            if entry.name not in known and entry.name != "lock" and not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)

    def leave(self) -> None:
        """Let go of the folder, and keep it."""
        os.close(self._lock_file)

    def remove(self) -> None:
        """Delete the folder; links in it are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock_file)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, text: str, *, sync: bool) -> None:
        temporary = self.folder / f"{name}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(self.folder / name)
        if sync:
            synchronise(self.folder)


fdatasync = getattr(os, "fdatasync", os.fsync)  # the bytes of a file to the disk


def _boot() -> str:
    """Tells one start of the machine from another, where the system says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
