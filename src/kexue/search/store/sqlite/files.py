"""Index files: recognised by their first bytes, and replaced only where that is allowed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from kexue.errors import IndexFormatError
from kexue.search.store.base import IndexBusyError, IndexExistsError, IndexMissingError
from kexue.search.store.sqlite.errors import REBUILD, error_code
from kexue.search.store.sqlite.handles import read_descriptor
from kexue.search.store.sqlite.wal import PAGE, check_log, has_log, remove_leftover_files, remove_log_and_snapshot

APPLICATION_ID = int.from_bytes(b"kexu", "big")
FORMAT_VERSION = 3
READABLE = (2, 3)  # in format 2 every document has one vector


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise IndexExistsError for an existing file unless `overwrite`, and IndexFormatError for one that is no index."""
    if os.path.lexists(path):
        if not overwrite:
            raise IndexExistsError(
                f"{path} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
            )
        check_file(path, to_replace=True)


def check_file(path: Path, *, to_replace: bool = False) -> None:
    """Raise IndexFormatError unless the first bytes of a file are those of an index of a format that can be read.

    Args:
        path: path of the file.
        to_replace: accept an index of another format, or a damaged one, because it is to be replaced.
    """
    if path.is_dir():
        raise IndexFormatError(f"{path} is a folder, not an index.", remedy="Name the index file.")
    try:
        with read_descriptor(path) as descriptor:
            header = os.pread(descriptor, 100, 0)
            size = os.fstat(descriptor).st_size
    except FileNotFoundError as error:
        raise IndexMissingError(f"there is no index at {path}.", remedy="Build one: kexue index build.") from error
    if header[:16] != b"SQLite format 3\0" or len(header) < 100:
        raise IndexFormatError(f"{path} is not a kexue index, or its beginning is damaged.", remedy=REBUILD)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise IndexFormatError(f"{path} is a SQLite database, but not a kexue index.", remedy="Name an index file.")
    if to_replace:
        return
    version = int.from_bytes(header[60:64], "big")
    if version not in READABLE:
        newer = version > FORMAT_VERSION
        raise IndexFormatError(
            f"{path} has format {version}; this version of kexue reads formats {READABLE[0]} to {FORMAT_VERSION}.",
            remedy="Upgrade kexue: pip install -U kexue."
            if newer
            else "Build it again (kexue index build): that format had no checksums.",
        )
    pages, page = int.from_bytes(header[28:32], "big"), int.from_bytes(header[16:18], "big")
    if page != PAGE:
        raise IndexFormatError(f"{path} is damaged: its pages have {page} bytes, not {PAGE}.", remedy=REBUILD)
    if size < pages * page and not has_log(path):  # on a full disk the rest may still be in the log
        raise IndexFormatError(f"{path} is cut short: only {size} bytes are left.", remedy=REBUILD)


def check_log_beside(path: Path) -> None:
    """Raise IndexFormatError where the log beside a file does not belong to it."""
    if has_log(path):
        with read_descriptor(path) as descriptor:
            check_log(path, descriptor)


def remove_old_store_files(path: Path, *, overwrite: bool) -> None:
    """Remove the log and the snapshot of a store that another file is about to replace.

    Raises:
        IndexBusyError: the store is in use. IndexExistsError: there is no store, but the log of a deleted one, and not
            `overwrite`.
    """
    real = Path(os.path.realpath(path))
    if not real.exists():
        remove_leftover_files(real, overwrite=overwrite)
        return
    try:
        with contextlib.closing(sqlite3.connect(real, isolation_level=None, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # only a single connection may; it merges the log
    except sqlite3.Error as error:
        if error_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexBusyError(
                f"another process holds {path}.", remedy="Try again when it is closed everywhere."
            ) from error
        if error_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise
    remove_log_and_snapshot(real)
