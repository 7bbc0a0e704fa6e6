"""Lock of a run's folder: one trainer at a time; the lock ends with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kexue.errors import DataError
from kexue.train.config import RunBusyError

LOCK = ".lock"
_locked: set[Path] = set()  # folders locked by this process: a file lock works between processes only


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if missing.

    The lock belongs to this process, not to processes it starts, and ends with it; the file stays.

    Raises:
        RunBusyError: another trainer holds it.
        DataError: `folder` is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError("exists, but is not a folder.", path=folder, remedy="Choose another one for the run.") from None
    path = folder.resolve() / LOCK
    busy = RunBusyError(
        f"another trainer is at work in {folder} and holds its lock.", remedy="Wait for it, or choose another folder."
    )
    if path in _locked:
        raise busy
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise busy from None
        except OSError:  # a file system without locks
            pass
        _locked.add(path)
        try:
            yield
        finally:
            _locked.discard(path)
            with suppress(OSError):
                fcntl.lockf(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)
