"""The SQLite file of a store: its tables, and connections to it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from kexue._files import replacing
from kexue.search.store.base import IndexReadOnlyError, Value, now
from kexue.search.store.sqlite import passages
from kexue.search.store.sqlite.errors import Damage, error_code
from kexue.search.store.sqlite.files import APPLICATION_ID, FORMAT_VERSION, remove_old_store_files
from kexue.search.store.sqlite.tables import State, write_metadata, write_state
from kexue.search.store.sqlite.wal import PAGE, STATE_PAGE, has_log

_CACHE_KIB = 32_768
_TABLES = {  # in this order: the root of `state` is page 2
    "state": "CREATE TABLE state (line TEXT NOT NULL)",
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "documents": "CREATE TABLE documents (key INTEGER PRIMARY KEY AUTOINCREMENT, checksum INTEGER NOT NULL, "
    "id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL)",
    "vectors": "CREATE TABLE vectors (key INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, vector BLOB NOT NULL)",
    "tombstones": "CREATE TABLE tombstones (n INTEGER PRIMARY KEY AUTOINCREMENT, checksum INTEGER NOT NULL, "
    "key INTEGER NOT NULL, vector INTEGER NOT NULL)",
    "passages": passages.TABLE,
}
_SCHEMA = {  # rows of sqlite_schema: type, name, table, statement
    *(("table", name, name, statement) for name, statement in _TABLES.items()),
    ("table", "sqlite_sequence", "sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)"),
    ("index", "sqlite_autoindex_documents_1", "documents", None),
}
_SCHEMA_2 = {row for row in _SCHEMA if row[1] != "passages"}  # that of format 2


def create(path: Path, metadata: Mapping[str, Value], *, overwrite: bool = False, mode: int | None = None) -> None:
    """Write an empty store to `path` atomically; an existing store is replaced unless it is in use."""
    values = {"epoch": secrets.token_hex(8), "created": now(), "updated": now(), **metadata}
    with replacing(path, mode=mode) as temporary:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = MEMORY")  # no journal that a killed process leaves behind
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for statement in _TABLES.values():
                connection.execute(statement)
            state = State()
            write_metadata(connection, state, values)
            connection.execute("INSERT INTO state VALUES ('')")
            write_state(connection, state)
        remove_old_store_files(path, overwrite=overwrite)


class Opened:
    """A connection to the file of a store.

    Attributes:
        connection: the connection of SQLite.
        frozen: True if it reads the file as it was when opened, or a copy: nothing can be written beside the file.
        logged: True if it reads a copy with its log.
    """

    def __init__(self, connection: sqlite3.Connection, *, frozen: bool, copy: tempfile.TemporaryDirectory[str] | None):
        self.connection = connection
        self.frozen = frozen
        self.logged = copy is not None
        self._copy = copy

    def close(self) -> None:
        """Close the connection, and remove the copy."""
        self.connection.close()
        if self._copy is not None:
            self._copy.cleanup()


def connect(path: Path, *, readonly: bool, timeout: float) -> Opened:
    """Open an existing store, given its real path; call `check_file` first.

    A reader uses the log of SQLite where it can, which needs a small file beside the index. Where no file can be
    created (full or read-only disk, folder of another user), it reads the file as it is; and with a log that cannot
    be shared, a copy of both.
    """
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if not writable and not readonly:
        raise IndexReadOnlyError(
            f"{path} cannot be written.", remedy="Open it with readonly=True, or change its permissions."
        )
    if writable or has_log(path):
        try:  # a reader that may write leaves no log behind
            return Opened(
                connect_file(path, f"mode={'rw' if writable else 'ro'}", readonly, timeout), frozen=False, copy=None
            )
        except sqlite3.OperationalError as error:
            shared = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
            if not readonly or error_code(error) not in shared:
                raise
    if not has_log(path):
        return Opened(connect_file(path, "mode=ro&immutable=1", True, timeout), frozen=True, copy=None)
    folder = tempfile.TemporaryDirectory(prefix="kexue-")
    try:
        for ending in ("", "-wal"):
            shutil.copyfile(f"{path}{ending}", Path(folder.name, f"copy.kx{ending}"))
        return Opened(connect_file(Path(folder.name, "copy.kx"), "mode=rw", True, timeout), frozen=True, copy=folder)
    except BaseException:
        folder.cleanup()
        raise


def connect_file(path: Path, mode: str, readonly: bool, timeout: float) -> sqlite3.Connection:
    """Connect to a file in a mode of SQLite's URIs, after a check of its schema."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=timeout
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        _check_schema(connection)
        if not readonly:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")
        connection.execute(f"PRAGMA query_only = {int(readonly)}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_schema(connection: sqlite3.Connection) -> None:
    """Raise `Damage` for tables, views and triggers that no index has, before any of them is read."""
    rows = connection.execute("SELECT type, name, tbl_name, sql, rootpage FROM sqlite_master").fetchall()
    expected = _SCHEMA if any(row[1] == "passages" for row in rows) else _SCHEMA_2
    strange = {row[:4] for row in rows} ^ expected
    if strange or len(rows) != len(expected):
        kind, name, *_ = min(strange or expected, key=str)
        raise Damage(f"its schema is not that of an index (look at the {kind} {name!r:.60})")
    if next(row[4] for row in rows if row[1] == "state") != STATE_PAGE:
        raise Damage("its first table is not on the page where it was created")
