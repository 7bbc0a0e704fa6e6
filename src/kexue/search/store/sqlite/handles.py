"""Descriptors of index files, and whether a path still leads to the file that was opened."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kexue.search.store.base import IndexReplacedError
from kexue.search.store.sqlite.wal import TRIES, Change, file_change

_handles: dict[tuple[int, int], list[int]] = {}  # (device, inode) -> [descriptor, users]
_handles_lock = threading.Lock()


class Handle:
    """A descriptor of an index file, shared by all stores of this process.

    Closing any descriptor of a file drops all locks of this process on it, also those of SQLite. So the file is never
    opened a second time while a store has it open.
    """

    def __init__(self, path: Path) -> None:
        with _handles_lock:
            status = os.stat(path)
            self._key = (status.st_dev, status.st_ino)
            if self._key not in _handles:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                status = os.fstat(descriptor)
                self._key = (status.st_dev, status.st_ino)
                _handles[self._key] = [descriptor, 0]
            _handles[self._key][1] += 1
            self.descriptor = _handles[self._key][0]

    def close(self) -> None:
        """Close the descriptor if this is its last user; only after the connection of SQLite is closed."""
        with _handles_lock:
            held = _handles[self._key]
            held[1] -= 1
            if not held[1]:
                os.close(held[0])
                del _handles[self._key]


@contextlib.contextmanager
def read_descriptor(path: Path) -> Iterator[int]:
    """Yield a descriptor of a file."""
    handle = Handle(path)
    try:
        yield handle.descriptor
    finally:
        handle.close()


class Watch:
    """Check whether the path of a store still leads to the file that was opened."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._file = (status.st_dev, status.st_ino)
        self._stamp = (status.st_mtime_ns, status.st_size)

    def check(self) -> bool:
        """Return whether the file was written since the last call.

        Raises:
            IndexReplacedError: there is no file at the path, or another one.
        """
        try:
            status = os.stat(self._path)
        except OSError:
            raise self.replacement_error("is gone") from None
        if (status.st_dev, status.st_ino) != self._file:
            raise self.replacement_error("is another file now")
        stamp = (status.st_mtime_ns, status.st_size)
        written, self._stamp = stamp != self._stamp, stamp
        return written

    def invalidate(self) -> None:
        """Let the next `check` return True."""
        self._stamp = (-1, -1)

    def change(self) -> Change | None:
        """Return the last change of the file itself; read again while another process is writing it."""
        for _ in range(TRIES):
            if (change := file_change(self._descriptor)) is not None:
                return change
            time.sleep(0.002)
        return None

    def replacement_error(self, how: str) -> IndexReplacedError:
        """Return the error for a file that was replaced; `how` completes the sentence."""
        return IndexReplacedError(
            f"{self._path} {how}: it was moved, deleted or replaced while open.",
            remedy="Open it again; the step that failed wrote nothing to the file that is there now.",
        )
