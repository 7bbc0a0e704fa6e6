"""Journal of a shuffle: its state next to the buckets, replaced in one rename, so that a killed run can be resumed."""

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
from kexue.corpus.shuffle.buckets import Bucket
from kexue.corpus.shuffle.options import ShuffleOptions
from kexue.errors import DataError

_VERSION = 2
_DURABLE_AFTER = 60.0  # seconds of work that a loss of power may cost
_MANIFEST, _DURABLE = "manifest.json", "durable.json"


@dataclass
class State:
    """Progress of a shuffle.

    Attributes:
        seed: seed of the keys.
        phase: "scatter" (first pass), "gather" (second pass) or "publish" (the output is complete).
        position: start of the next chunk: file, byte offset, index of the record.
        header: header of the first file, as Latin-1.
        digest: digest of the lines read so far.
        records: number of records read so far.
        bytes: size of the records read so far.
        giants: size of the file of oversized records.
        buckets_made: number of the next bucket.
        output: state of the output, as `OutputWriter.state` returns it; None: nothing has been written.
        files: number of output files, once the output is complete.
        gathered: number of records written to the output so far.
        buckets: the buckets that are not in the output yet, in the order of their keys.
    """

    seed: int
    phase: Literal["scatter", "gather", "publish"] = "scatter"
    position: tuple[int, int, int] = (0, 0, 0)
    header: str = ""
    digest: str = "0" * 32
    records: int = 0
    bytes: int = 0
    giants: int = 0
    buckets_made: int = 0
    output: dict[str, Any] | None = None
    files: int = 0
    gathered: int = 0
    buckets: list[Bucket] = field(default_factory=list)


class Journal:
    """The folder of temporary files of one shuffle, with its lock and its state.

    Args:
        options: options of the shuffle. The folder is for its owner only. Where the output is a stream, nothing can be
            resumed, and the folder has a random name.

    Attributes:
        folder: the folder.
        lock: lock for changes of the state.

    Raises:
        DataError: the folder is in use, a link, or writable by others.
    """

    def __init__(self, options: ShuffleOptions) -> None:
        self._options = options
        self.lock = threading.RLock()
        folder = options.folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._opened = ExitStack()
        if options.to_stream:
            self.folder = self._opened.enter_context(temporary_folder(folder.parent, "kexue-shuffle"))
        else:
            self.folder = folder
            self._opened.callback(os.close, lock_folder(folder))
        self._synced = time.monotonic()

    def load(self) -> State | None:
        """Return the state of an interrupted run with the same result; None if there is none that can be resumed."""
        entry = self._read(_MANIFEST)
        if entry is not None and entry["boot"] != _boot_id():  # what was not synchronised may be lost
            entry = self._read(_DURABLE)
        if entry is None or entry["version"] != _VERSION or entry["job"] != self._options.identity():
            return None
        if entry["inputs"] != self._options.fingerprints():
            return None
        state = State(**entry["state"])
        state.buckets = [Bucket(*row) for row in entry["state"]["buckets"]]
        return state

    def commit(self, state: State, *, durable: bool = False) -> None:
        """Write the state; `durable`: every file it names has been written through to the disk."""
        with self.lock:
            entry = {name: value for name, value in vars(state).items() if name != "buckets"}
            entry["buckets"] = [[b.number, b.lo, b.hi, b.records, b.bytes, b.size] for b in state.buckets]
            record = {
                "version": _VERSION,
                "boot": _boot_id(),
                "job": self._options.identity(),
                "inputs": self._options.fingerprints(),
                "state": entry,
            }
            text = json.dumps(record)
            self._write(_MANIFEST, text, sync=False)
            if durable:
                self._write(_DURABLE, text, sync=True)
                self._synced = time.monotonic()

    @property
    def sync_due(self) -> bool:
        """Whether it is time to write through to the disk."""
        return time.monotonic() - self._synced > _DURABLE_AFTER

    @property
    def durable(self) -> bool:
        """Whether there is a state that survives a loss of power."""
        return (self.folder / _DURABLE).exists()

    def clear(self, keep: State | None) -> None:
        """Delete the files that the state `keep` does not name."""
        known = {b.path(self.folder).name for b in keep.buckets} | {_MANIFEST, _DURABLE, "giants"} if keep else set()
        if keep and keep.output:
            known.add(keep.output["pending"])
        for entry in os.scandir(self.folder):
            if entry.name not in known and entry.name != "lock" and not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)

    def release(self) -> None:
        """Unlock the folder, and keep it."""
        self._opened.close()

    def remove(self) -> None:
        """Delete the folder and unlock it; links in it are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._opened.close()

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object of the folder; None if it cannot be read."""
        try:
            entry = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def _write(self, name: str, text: str, *, sync: bool) -> None:
        """Replace a file of the folder in one rename."""
        temporary = self.folder / f"{name}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(self.folder / name)
        if sync:
            synchronise(self.folder)


def lock_folder(path: Path) -> int:
    """Lock a folder for this process, after making it if needed; return the open file that holds the lock.

    Raises:
        DataError: it is in use, a link, a file, of another user, or writable by others.
    """
    while True:
        with suppress(FileExistsError):
            path.mkdir(0o700)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise DataError("expected a folder, got a link or a file.", path=path, remedy=_AWAY) from error
        try:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise DataError(
                    "the folder belongs to another user, or others can write to it.", path=path, remedy=_AWAY
                )
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


_AWAY = "Remove it, or choose another folder for temporary files with --tmp (in Python tmp=)."


def _boot_id() -> str:
    """Return an identifier of this start of the machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
