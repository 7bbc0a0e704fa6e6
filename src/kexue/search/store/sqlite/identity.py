"""Which file a store has open, and whether the write-ahead log beside it belongs to it.

Every transaction writes one line into the table ``state``, whose root is page 2: the change before it, its own name
(both drawn at random), and the checksums of what the tables hold. The file itself is at some change of its history,
and the log starts at one and goes on from there; so a log belongs to a file exactly when the file's change is the one
before the log's first, or one of the log's own. A log left behind by a file that was deleted, and a backup copied
over a file whose log stayed, are both told apart by this.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kexue.errors import IndexFormatError
from kexue.search.store.base import IndexExistsError, IndexReplacedError

PAGE = 16_384  # bytes; holds several vectors of usual length with little waste
STATE_PAGE = 2
_LINE = re.compile(rb"kexue-state ([0-9a-f]{16}) ([0-9a-f]{16}) ")
_LOG_HEADER, _FRAME_HEADER = 32, 24
_LOG_MAGIC = (0x377F0682, 0x377F0683)
_LOG = logging.getLogger(__name__)
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
    """Refuse a log that is of another history than the file, or that lost what was written after its damage.

    Raises:
        IndexFormatError: it is; neither is touched.
    """
    log = Path(f"{path}-wal")
    for _ in range(_TRIES):
        here, changes = file_change(descriptor), log_changes(log)
        belongs = not changes or here is None or here.own in {changes[0].before, *(change.own for change in changes)}
        broken = find_damage(log)
        if belongs and (broken is None or not broken.sure):
            if broken is not None:
                _LOG.warning("%s: its last change is not whole, and is left out.", log)
            return
        time.sleep(0.002)
    if broken is not None and broken.sure:
        raise IndexFormatError(
            f"{log} is damaged at byte {broken.at:,}: changes after it are there, but cannot be played back.",
            remedy=(
                f"Restore the index from a backup (kexue index restore); to go on without those changes, "
                f"delete {log.name} and {path.name}-shm."
            ),
        )
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


class Damage(NamedTuple):
    """Where a log breaks; `sure` when a later change began: its writer had made sure of the one before."""

    at: int
    sure: bool


def find_damage(log: Path) -> Damage | None:
    """Where the checksums of a log break before a change that was written to its end.

    SQLite stops there without a word. That is right for a change that a power cut tore, the last one; what comes
    before the last was on the disk when the last began.
    """
    try:
        with log.open("rb") as file:
            return _damage(file)
    except OSError:
        return None


def _damage(file: BinaryIO) -> Damage | None:
    header, frame = file.read(_LOG_HEADER), file.read(_FRAME_HEADER)
    if len(header) < _LOG_HEADER or len(frame) < _FRAME_HEADER:
        return None
    order = "<" if header[3] & 1 == 0 else ">"
    sums = _log_sums(header[:24], (0, 0), order)
    whole = struct.unpack(">2I", header[24:]) == sums
    salts = header[16:24] if whole else frame[8:16]
    at, broken, committed = _LOG_HEADER, None if whole else 0, False
    while len(frame) == _FRAME_HEADER and len(page := file.read(PAGE)) == PAGE:
        if broken is None:
            sums = _log_sums(page, _log_sums(frame[:8], sums, order), order)
            if frame[8:16] != salts or struct.unpack(">2I", frame[16:]) != sums:
                broken = at
        if broken is not None and frame[8:16] == salts:
            if committed:
                return Damage(broken, sure=True)
            committed = frame[4:8] != bytes(4)
        at += _FRAME_HEADER + PAGE
        frame = file.read(_FRAME_HEADER)
    return Damage(broken, sure=False) if broken is not None and committed else None


def _log_sums(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """SQLite's checksum a += x + b, b += y + a over pairs of words, with Fibonacci's numbers as weights."""
    words, f, (a, b) = np.frombuffer(data, f"{order}u4").astype(np.uint32)[::-1], _weights(), sums
    n = len(words)
    first = int((words * f[:n]).sum(dtype=np.uint64)) + a * int(f[n - 1]) + b * int(f[n])
    second = int((words * f[1 : n + 1]).sum(dtype=np.uint64)) + a * int(f[n]) + b * int(f[n + 1])
    return first % 2**32, second % 2**32


@functools.cache
def _weights() -> npt.NDArray[np.uint32]:
    """Fibonacci's numbers modulo 2^32, from F(0), as many as a page has words and two more."""
    numbers = [0, 1]
    for _ in range(PAGE // 4 + 1):
        numbers.append((numbers[-1] + numbers[-2]) % 2**32)
    return np.array(numbers, np.uint32)


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
