"""The SQLite file of the embedded store: its layout, how it is opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from kexue._files import replacing
from kexue.errors import DiskFullError, IndexFormatError, KexueError
from kexue.search.store.base import IndexBusyError, IndexMissingError, Value

APPLICATION_ID = int.from_bytes(b"kexu", "big")
FORMAT_VERSION = 1
_PAGE = 16_384  # holds several vectors of usual length with little waste
_CACHE_KIB = 32_768
_SCHEMA = f"""
PRAGMA page_size = {_PAGE};
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE vectors (key INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE tombstones (n INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL);
"""
_REBUILD = "Restore it from a copy, or build it again (kexue index build)."


def create(path: Path, metadata: Mapping[str, Value]) -> None:
    """Write an empty store to `path`, whole or not at all; a store that is there is replaced once it is free."""
    with replacing(path) as temporary:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
            values = {"epoch": secrets.token_hex(8), "created": now(), "updated": now(), **metadata}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
            connection.execute("PRAGMA journal_mode = WAL")
        release(path)


def connect(path: Path, *, readonly: bool, timeout: float) -> sqlite3.Connection:
    """Open a store that is there; `check_file` first."""
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if not writable and not readonly:
        raise KexueError(f"{path} cannot be written.", remedy="Open it with readonly=True, or change its rights.")
    mode = "mode=rw"  # a reader that may write leaves no log behind when it goes
    if not writable:
        mode = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?{mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=timeout,
    )
    try:
        if not readonly:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
        connection.execute(f"PRAGMA query_only = {int(readonly)}")
        connection.execute("SELECT key FROM meta LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def check_file(path: Path) -> None:
    """Refuse, from the first bytes, what is no index of ours: nothing, a folder, another file, a newer format."""
    if path.is_dir():
        raise IndexFormatError(f"{path} is a folder, not an index.", remedy="Name the index file.")
    try:
        with path.open("rb") as file:
            header = file.read(100)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise IndexMissingError(f"there is no index at {path}.", remedy="Build one: kexue index build.") from error
    if header[:16] != b"SQLite format 3\0" or len(header) < 100:
        raise IndexFormatError(f"{path} is not a kexue index, or its beginning is damaged.", remedy=_REBUILD)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise IndexFormatError(f"{path} is a SQLite database, but not a kexue index.", remedy="Name an index file.")
    version = int.from_bytes(header[60:64], "big")
    if version > FORMAT_VERSION:
        raise IndexFormatError(
            f"{path} has format {version}; this version of kexue reads up to {FORMAT_VERSION}.",
            remedy="Upgrade kexue: pip install -U kexue.",
        )
    pages, page = int.from_bytes(header[28:32], "big"), int.from_bytes(header[16:18], "big")
    if size < pages * page and not Path(f"{path}-wal").exists():  # on a full disk the rest may still be in the log
        raise IndexFormatError(f"{path} is cut short: {size} bytes are left.", remedy=_REBUILD)


def release(path: Path) -> None:
    """Make a store that is there, if any, a lone file that may be replaced; IndexBusyError while it is in use."""
    if not path.exists():
        return
    with sqlite_errors(path), contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # granted to the only connection; it takes the log in
    Path(f"{path}-snapshot").unlink(missing_ok=True)


def now() -> str:
    """The time in UTC, as ISO 8601 writes it, to the microsecond: no two writes share it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Raise what `explain` makes of an error in the block."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        told = explain(error, path)
        if told is None:
            raise
        raise told from error


def explain(error: Exception, path: Path, *, needed: int = 0, waited: float = 0.0) -> KexueError | None:
    """In our words what SQLite, or the system below it, ran into; None where its own words must do."""
    if isinstance(error, sqlite3.Error):
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        full = code == sqlite3.SQLITE_FULL
        suspect = code == sqlite3.SQLITE_IOERR
    else:
        code = None
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        suspect = False
    if full or suspect:
        free = shutil.disk_usage(path.absolute().parent).free
        if full or free < needed + (1 << 20):
            return DiskFullError(
                f"no room to write {path}: about {needed} bytes are needed, {free} are free.",
                needed=needed,
                free=free,
                remedy="Nothing of this step was written; make room and run it again.",
            )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return IndexBusyError(
            f"another process holds {path}; waited {waited:g} seconds.", remedy="Try again when it is done."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return IndexFormatError(f"{path} is damaged: {error}.", remedy=_REBUILD)
    if isinstance(error, sqlite3.OperationalError):
        return KexueError(
            f"{path} cannot be read or written: {error}.", remedy="Check the disk and the rights of the file."
        )
    return None
