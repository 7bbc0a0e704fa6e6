"""Where a shuffle stands: a manifest beside the buckets, replaced in one rename, so that a killed run can go on."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kexue._files import synchronise, temporary_folder
from kexue.corpus.shuffle.job import Job, is_stream
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
        folder: for its owner only. Where the output is a stream there is nothing to go on with, and one beside it, of
            a name that nobody can foretell, is taken instead.
        job: whose state it holds.

    Raises:
        DataError: the folder is in use, a link, or not this user's alone.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self._job = job
        self.lock = threading.RLock()
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._opened = ExitStack()
        if is_stream(job.output):
            self.folder = self._opened.enter_context(temporary_folder(folder.parent, "kexue-shuffle"))
        else:
            self.folder = folder
            self._opened.callback(os.close, own_folder(folder))
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
        self._opened.close()

    def remove(self) -> None:
        """Delete the folder; links in it are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._opened.close()

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


def own_folder(path: Path) -> int:
    """A folder of this user alone, made if need be: the open, locked file in it that keeps other processes out.

    Raises:
        DataError: it is in use, a link or a file, another user's, or others may write to it.
    """
    while True:
        with suppress(FileExistsError):
            path.mkdir(0o700)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise DataError("a link or a file, where a folder is expected.", path=path, remedy=_AWAY) from error
        try:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise DataError("a folder of another user, or one that others can write to.", path=path, remedy=_AWAY)
            handle = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise DataError(
                "another process is writing this output.", remedy="Wait for it, or stop it.", path=path
            ) from error
        except OSError:  # a file system without locks
            return handle
        if os.fstat(handle).st_nlink:  # 0: its owner has just removed the folder
            return handle
        os.close(handle)


_AWAY = "Remove it, or choose another folder for temporary files with tmp (--tmp)."

fdatasync = getattr(os, "fdatasync", os.fsync)  # the bytes of a file to the disk


def _boot() -> str:
    """Tells one start of the machine from another, where the system says."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
