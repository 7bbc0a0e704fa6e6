"""The write-ahead log beside an index file: whether it belongs to the file, and whether it is damaged.

Every transaction writes one line into the table ``state``, whose root is page 2: the name of the previous change, its
own name (both random), and the checksums of the tables. The file contains the state after one of these changes, and the
log consecutive changes; so a log belongs to a file exactly when the change of the file is the one before the first in
the log, or one in the log. This detects a log left behind by a deleted file, and a backup copied over a file whose log
stayed.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import struct
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from kexue.errors import IndexFormatError
from kexue.search.store.base import IndexExistsError

SNAPSHOTS = ("-snapshot", "-words")  # endings of the files that only save time: of the engine, of the postings
PAGE = 16_384  # bytes; holds several vectors of usual length with little waste
STATE_PAGE = 2
_LINE = re.compile(rb"kexue-state ([0-9a-f]{16}) ([0-9a-f]{16}) ")
_LOG_HEADER, _FRAME_HEADER = 32, 24
_LOG_MAGIC = (0x377F0682, 0x377F0683)
_LOG = logging.getLogger(__name__)
TRIES = 20  # a writer may move changes from log to file between two reads


class Change(NamedTuple):
    """The name of a transaction, `own`, and of the one `before` it."""

    before: bytes
    own: bytes


# ---- the file and its log --------------------------------------------------------------------------------------------


def check_log(path: Path, descriptor: int) -> None:
    """Raise IndexFormatError for a log of another history than the file, or one that is damaged before its last change.

    Neither file nor log is changed.
    """
    log = Path(f"{path}-wal")
    for _ in range(TRIES):
        here, changes = file_change(descriptor), log_changes(log)
        belongs = not changes or here is None or here.own in {changes[0].before, *(change.own for change in changes)}
        broken = find_damage(log)
        if belongs and (broken is None or not broken.certain):
            if broken is not None:
                _LOG.warning("%s: its last change is incomplete and is ignored.", log)
            return
        time.sleep(0.002)
    if broken is not None and broken.certain:
        raise IndexFormatError(
            f"{log} is damaged at byte {broken.at:,}: changes after it exist, but cannot be read.",
            remedy=(
                f"Restore the index from a backup (kexue index restore); to continue without those changes, "
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
    """Return the last change of a file, read from its second page; None where that cannot be read."""
    return _page_change(os.pread(descriptor, PAGE, (STATE_PAGE - 1) * PAGE))


def log_changes(log: Path) -> list[Change]:
    """Return the changes in a log, oldest first: those that SQLite would recover, according to the frames."""
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


class LogDamage(NamedTuple):
    """Byte at which a log is damaged; `certain` if a later change follows: then the damaged one was once on disk."""

    at: int
    certain: bool


def find_damage(log: Path) -> LogDamage | None:
    """Return where the checksums of a log fail before a change that was completely written; None where they hold.

    SQLite stops reading there without an error. That is right for the last change, which a power failure may have cut;
    all earlier ones were on disk when the last began.
    """
    try:
        with log.open("rb") as file:
            return _find_damage(file)
    except OSError:
        return None


def _find_damage(file: BinaryIO) -> LogDamage | None:
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
                return LogDamage(broken, certain=True)
            committed = frame[4:8] != bytes(4)
        at += _FRAME_HEADER + PAGE
        frame = file.read(_FRAME_HEADER)
    return LogDamage(broken, certain=False) if broken is not None and committed else None


def _log_sums(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """Return SQLite's checksum a += x + b, b += y + a over pairs of words, with Fibonacci numbers as weights."""
    words, f, (a, b) = np.frombuffer(data, f"{order}u4").astype(np.uint32)[::-1], _weights(), sums
    n = len(words)
    first = int((words * f[:n]).sum(dtype=np.uint64)) + a * int(f[n - 1]) + b * int(f[n])
    second = int((words * f[1 : n + 1]).sum(dtype=np.uint64)) + a * int(f[n]) + b * int(f[n + 1])
    return first % 2**32, second % 2**32


@functools.cache
def _weights() -> npt.NDArray[np.uint32]:
    """Return the Fibonacci numbers modulo 2^32 from F(0) on: two more than a page has words."""
    numbers = [0, 1]
    for _ in range(PAGE // 4 + 1):
        numbers.append((numbers[-1] + numbers[-2]) % 2**32)
    return np.array(numbers, np.uint32)


def has_log(path: Path) -> bool:
    """Return whether a log beside the file has any content."""
    try:
        return os.path.getsize(f"{path}-wal") > _LOG_HEADER
    except OSError:
        return False


def _page_change(page: bytes) -> Change | None:
    """Return the change in the only cell of a leaf page; bytes beside the cell are older."""
    if len(page) < PAGE or page[0] != 13 or page[3:5] != b"\0\1":
        return None
    cell = int.from_bytes(page[8:10], "big")
    match = _LINE.search(page, cell, cell + 64)
    return None if match is None else Change(match[1], match[2])


# ---- files that an index leaves behind -------------------------------------------------------------------------------


def remove_leftover_files(path: Path, *, overwrite: bool) -> None:
    """Remove the log and the snapshot that a deleted index has left where a new file is about to be created.

    Raises:
        IndexExistsError: there is a log with changes, and not `overwrite`; or a file of that name that is not a log.
    """
    log = Path(f"{path}-wal")
    if has_log(path):
        with log.open("rb") as file:
            ours = struct.unpack(">I", file.read(4))[0] in _LOG_MAGIC
        if not ours:
            raise IndexExistsError(
                f"{log} exists, but is not the log of an index.", remedy="Move it away, or choose another name."
            )
        if not overwrite and log_changes(log):
            raise IndexExistsError(
                f"{log} holds the last changes of an index that is no longer at {path}.",
                remedy="Put the index back beside it; if it is no longer needed, delete the log "
                "or pass overwrite=True (--overwrite).",
            )
    remove_log_and_snapshot(path)


def remove_log_and_snapshot(path: Path) -> None:
    """Delete the log, its index and the snapshots beside a file that is deleted or about to be replaced."""
    for ending in ("-wal", "-shm", *SNAPSHOTS):
        Path(f"{path}{ending}").unlink(missing_ok=True)
