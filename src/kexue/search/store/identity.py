"""Which file a store has open, and whether the write-ahead log beside it belongs to it.

Every transaction writes one line into the table ``state``, whose root is page 2: the change before it, its own name
(both drawn at random), and the checksums of what the tables hold. The file itself is at some change of its history,
and the log starts at one and goes on from there; so a log belongs to a file exactly when the file's change is the one
before the log's first, or one of the log's own. A log left behind by a file that was deleted, and a backup copied
over a file whose log stayed, are both told apart by this.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kexue.errors import IndexFormatError
from kexue.search.store.base import IndexExistsError, IndexReplacedError

PAGE = 16_384  # bytes; holds several vectors of usual length with little waste
STATE_PAGE = 2
_LINE = re.compile(rb"kexue-state ([0-9a-f]{16}) ([0-9a-f]{16}) ")
_LOG_HEADER, _FRAME_HEADER = 32, 24
_LOG_MAGIC = (0x377F0682, 0x377F0683)
_TRIES = 20  # a living writer may move from file to log between two looks


class Change(NamedTuple):
    """The name of a transaction, and of the one before it."""

    before: bytes
    own: bytes


# ---- file handles ----------------------------------------------------------------------------------------------------

_handles: dict[tuple[int, int], list[int]] = {}  # (device, inode) -> [descriptor, users]
_handles_lock = threading.Lock()


class Handle:
    """A descriptor of an index file, one for all stores of this process.

    Closing any descriptor of a file drops the locks this process has on it, SQLite's own included. So nothing here
    opens the file a second time while a store has it open.
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
        """Give it back; after the connection to SQLite, never before."""
        with _handles_lock:
            held = _handles[self._key]
            held[1] -= 1
            if not held[1]:
                os.close(held[0])
                del _handles[self._key]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[int]:
    """A descriptor of the file for the block."""
    handle = Handle(path)
    try:
        yield handle.descriptor
    finally:
        handle.close()


class Watch:
    """The file as a store opened it; `moved` tells whether the path still leads there."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._file = (status.st_dev, status.st_ino)
        self._stamp = (status.st_mtime_ns, status.st_size)

    def check(self) -> bool:
        """Whether the file was written since the last look.

        Raises:
            IndexReplacedError: the path leads nowhere, or to another file.
        """
        try:
            status = os.stat(self._path)
        except OSError:
            raise self.replaced("is gone") from None
        if (status.st_dev, status.st_ino) != self._file:
            raise self.replaced("is another file now")
        stamp = (status.st_mtime_ns, status.st_size)
        written, self._stamp = stamp != self._stamp, stamp
        return written

    def forget(self) -> None:
        """Look again at the next check."""
        self._stamp = (-1, -1)

    def change(self) -> Change | None:
        """The change the file itself is at; read again where another process is just writing it."""
        for _ in range(_TRIES):
            if (change := file_change(self._descriptor)) is not None:
                return change
            time.sleep(0.002)
        return None

    def replaced(self, how: str) -> IndexReplacedError:
        """The error that says so."""
        return IndexReplacedError(
            f"{self._path} {how}: it was moved, deleted or replaced while open.",
            remedy="Open it again; the step that failed wrote nothing to the file that is there now.",
        )


# ---- the file and its log --------------------------------------------------------------------------------------------


def check_log(path: Path, descriptor: int) -> None:
    """Refuse a log that is of another history than the file.

    Raises:
        IndexFormatError: it is; neither is touched.
    """
    log = Path(f"{path}-wal")
    for _ in range(_TRIES):
        here, changes = file_change(descriptor), log_changes(log)
        if not changes or here is None or here.own in {changes[0].before, *(change.own for change in changes)}:
            return
        time.sleep(0.002)
    raise IndexFormatError(
        f"{log} does not belong to {path}: it holds changes of another index, or of another state of this one.",
        remedy=(
            f"If {path.name} was copied here to replace a damaged or deleted index, delete {log.name} and "
            f"{path.name}-shm (kexue index restore does this); else put the file that belongs to the log back."
        ),
    )


def file_change(descriptor: int) -> Change | None:
    """The change a file is at, read from its second page; None where that cannot be read."""
    return _page_change(os.pread(descriptor, PAGE, (STATE_PAGE - 1) * PAGE))


def log_changes(log: Path) -> list[Change]:
    """The changes in a log, oldest first: what SQLite would play back, as far as the frames tell."""
    changes: list[Change] = []
    pending: list[Change] = []
    try:
        with log.open("rb") as file:
            header = file.read(_LOG_HEADER)
            if len(header) < _LOG_HEADER or struct.unpack(">I", header[:4])[0] not in _LOG_MAGIC:
                return []
            salts = header[16:24]
            while len(frame := file.read(_FRAME_HEADER)) == _FRAME_HEADER and frame[8:16] == salts:
                number, committed = struct.unpack(">II", frame[:8])
                if number == STATE_PAGE:
                    pending += filter(None, [_page_change(file.read(PAGE))])
                else:
                    file.seek(PAGE, os.SEEK_CUR)
                if committed:
                    changes += pending
                    pending = []
    except OSError:
        return []
    return changes


def has_log(path: Path) -> bool:
    """Whether a log beside the file holds anything."""
    try:
        return os.path.getsize(f"{path}-wal") > _LOG_HEADER
    except OSError:
        return False


def _page_change(page: bytes) -> Change | None:
    """The change in the only cell of a leaf of a table; what lies beside the cell is older."""
    if len(page) < PAGE or page[0] != 13 or page[3:5] != b"\0\1":
        return None
    cell = int.from_bytes(page[8:10], "big")
    match = _LINE.search(page, cell, cell + 64)
    return None if match is None else Change(match[1], match[2])


# ---- what an index leaves behind -------------------------------------------------------------------------------------


def clear_orphans(path: Path, *, overwrite: bool) -> None:
    """Make sure that a file about to appear at `path` meets no log of one that is gone.

    Raises:
        IndexExistsError: there is a log with changes, and not `overwrite`; or a file of that name that is no log.
    """
    log = Path(f"{path}-wal")
    if has_log(path):
        with log.open("rb") as file:
            ours = struct.unpack(">I", file.read(4))[0] in _LOG_MAGIC
        if not ours:
            raise IndexExistsError(
                f"{log} is in the way: it is no log of an index.", remedy="Move it away, or choose another name."
            )
        if not overwrite and log_changes(log):
            raise IndexExistsError(
                f"{log} holds the last changes of an index that is no longer at {path}.",
                remedy="Put the index back beside it; if it is not needed any more, delete the log "
                "or pass overwrite=True (--overwrite).",
            )
    remove_companions(path)


def remove_companions(path: Path) -> None:
    """Delete the log, its index and the snapshot beside a file that is gone or about to be replaced."""
    for ending in ("-wal", "-shm", "-snapshot"):
        Path(f"{path}{ending}").unlink(missing_ok=True)
