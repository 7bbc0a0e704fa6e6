"""The SQLite file of the embedded store: its layout, how it is opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from kexue._files import is_disk_full, replacing
from kexue._progress import Progress
from kexue.errors import DiskFullError, IndexFormatError, KexueError
from kexue.search.store.base import IndexBusyError, IndexMissingError, IndexReadOnlyError, Value
from kexue.search.store.sqlite.checking import find_problems
from kexue.search.store.sqlite.identity import (
    PAGE,
    STATE_PAGE,
    check_log,
    clear_orphans,
    has_log,
    reading,
    remove_companions,
)
from kexue.search.store.sqlite.tables import Damage, State, read_state, write_metadata, write_state

APPLICATION_ID = int.from_bytes(b"kexu", "big")
FORMAT_VERSION = 2
_CACHE_KIB = 32_768
_TABLES = {  # in this order: the root of `state` is page 2
    "state": "CREATE TABLE state (line TEXT NOT NULL)",
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "documents": "CREATE TABLE documents (key INTEGER PRIMARY KEY AUTOINCREMENT, checksum INTEGER NOT NULL, "
    "id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL)",
    "vectors": "CREATE TABLE vectors (key INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, vector BLOB NOT NULL)",
    "tombstones": "CREATE TABLE tombstones (n INTEGER PRIMARY KEY AUTOINCREMENT, checksum INTEGER NOT NULL, "
    "key INTEGER NOT NULL, vector INTEGER NOT NULL)",
}
_OWN = {  # what sqlite_schema says of them: type, name, table, statement
    *(("table", name, name, statement) for name, statement in _TABLES.items()),
    ("table", "sqlite_sequence", "sqlite_sequence", "CREATE TABLE sqlite_sequence(name,seq)"),
    ("index", "sqlite_autoindex_documents_1", "documents", None),
}
_REBUILD = (
    "Restore it from a backup (kexue index restore), or build it again (kexue index build); "
    "kexue index check lists what is damaged."
)


def create(path: Path, metadata: Mapping[str, Value], *, overwrite: bool = False, mode: int | None = None) -> None:
    """Write an empty store to `path`, whole or not at all; a store that is there is replaced once it is free."""
    values = {"epoch": secrets.token_hex(8), "created": now(), "updated": now(), **metadata}
    with replacing(path, mode=mode) as temporary:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = MEMORY")  # no file beside one that a kill leaves behind
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for statement in _TABLES.values():
                connection.execute(statement)
            state = State()
            write_metadata(connection, state, values)
            connection.execute("INSERT INTO state VALUES ('')")
            write_state(connection, state)
        make_way(path, overwrite=overwrite)


class Opened:
    """A connection to a store's file, and how it reads it.

    Attributes:
        frozen: it reads the file as it is now, or a copy of it, because nothing can be written beside it.
        logged: the copy has a log.
    """

    def __init__(self, connection: sqlite3.Connection, *, frozen: bool, copy: tempfile.TemporaryDirectory[str] | None):
        self.connection = connection
        self.frozen = frozen
        self.logged = copy is not None
        self._copy = copy

    def close(self) -> None:
        """End it."""
        self.connection.close()
        if self._copy is not None:
            self._copy.cleanup()


def connect(path: Path, *, readonly: bool, timeout: float) -> Opened:
    """Open a store that is there, given its real path; `check_file` first.

    A reader takes part in SQLite's log where it can, which needs a small file beside the index. Where none can be
    made (a full or read-only disk, a folder of someone else's), it reads the file as it stands; and with a log that
    cannot be shared, a copy of both.
    """
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if not writable and not readonly:
        raise IndexReadOnlyError(
            f"{path} cannot be written.", remedy="Open it with readonly=True, or change its rights."
        )
    if writable or has_log(path):
        try:  # a reader that may write leaves no log behind when it goes
            return Opened(
                _connect(path, f"mode={'rw' if writable else 'ro'}", readonly, timeout), frozen=False, copy=None
            )
        except sqlite3.OperationalError as error:
            shared = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
            if not readonly or _code(error) not in shared:
                raise
    if not has_log(path):
        return Opened(_connect(path, "mode=ro&immutable=1", True, timeout), frozen=True, copy=None)
    folder = tempfile.TemporaryDirectory(prefix="kexue-")
    try:
        for ending in ("", "-wal"):
            shutil.copyfile(f"{path}{ending}", Path(folder.name, f"copy.kx{ending}"))
        return Opened(_connect(Path(folder.name, "copy.kx"), "mode=rw", True, timeout), frozen=True, copy=folder)
    except BaseException:
        folder.cleanup()
        raise


def _connect(path: Path, mode: str, readonly: bool, timeout: float) -> sqlite3.Connection:
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
    """Refuse tables, views and triggers that are not ours, before any of them is read."""
    rows = connection.execute("SELECT type, name, tbl_name, sql, rootpage FROM sqlite_master").fetchall()
    strange = {row[:4] for row in rows} ^ _OWN
    if strange or len(rows) != len(_OWN):
        kind, name, *_ = min(strange or _OWN, key=str)
        raise Damage(f"its schema is not that of an index (look at the {kind} {name!r:.60})")
    if next(row[4] for row in rows if row[1] == "state") != STATE_PAGE:
        raise Damage("its first table is not where it was put")


def check_file(path: Path, *, to_replace: bool = False) -> None:
    """Refuse, from the first bytes, what is no index of ours: nothing, a folder, another file, another format.

    `to_replace`: an index of another format, or a damaged one, may be replaced; anything else may not.
    """
    if path.is_dir():
        raise IndexFormatError(f"{path} is a folder, not an index.", remedy="Name the index file.")
    try:
        with reading(path) as descriptor:
            header = os.pread(descriptor, 100, 0)
            size = os.fstat(descriptor).st_size
    except FileNotFoundError as error:
        raise IndexMissingError(f"there is no index at {path}.", remedy="Build one: kexue index build.") from error
    if header[:16] != b"SQLite format 3\0" or len(header) < 100:
        raise IndexFormatError(f"{path} is not a kexue index, or its beginning is damaged.", remedy=_REBUILD)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise IndexFormatError(f"{path} is a SQLite database, but not a kexue index.", remedy="Name an index file.")
    if to_replace:
        return
    version = int.from_bytes(header[60:64], "big")
    if version != FORMAT_VERSION:
        newer = version > FORMAT_VERSION
        raise IndexFormatError(
            f"{path} has format {version}; this version of kexue reads format {FORMAT_VERSION}.",
            remedy="Upgrade kexue: pip install -U kexue."
            if newer
            else "Build it again (kexue index build): the format of before had no checksums.",
        )
    pages, page = int.from_bytes(header[28:32], "big"), int.from_bytes(header[16:18], "big")
    if page != PAGE:
        raise IndexFormatError(f"{path} is damaged: its pages have {page} bytes, not {PAGE}.", remedy=_REBUILD)
    if size < pages * page and not has_log(path):  # on a full disk the rest may still be in the log
        raise IndexFormatError(f"{path} is cut short: {size} bytes are left.", remedy=_REBUILD)


def check_companions(path: Path) -> None:
    """Refuse a log that does not belong to the file."""
    if has_log(path):
        with reading(path) as descriptor:
            check_log(path, descriptor)


def make_way(path: Path, *, overwrite: bool) -> None:
    """Let another file take the place of a store: IndexBusyError while it is in use; its companions go.

    Without a store there, a log that one has left behind is refused unless `overwrite`.
    """
    real = Path(os.path.realpath(path))
    if not real.exists():
        clear_orphans(real, overwrite=overwrite)
        return
    try:
        with contextlib.closing(sqlite3.connect(real, isolation_level=None, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # granted to the only connection; it takes the log in
    except sqlite3.Error as error:
        if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexBusyError(
                f"another process holds {path}.", remedy="Try again when it is closed everywhere."
            ) from error
        if _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise
    remove_companions(real)


def check(path: Path, *, progress: Progress | None = None) -> tuple[int, list[str]]:
    """How many documents a store says it holds, and what is wrong with it."""
    real = Path(os.path.realpath(path))
    check_companions(real)
    with sqlite_errors(path):
        opened = connect(real, readonly=True, timeout=30.0)
        try:
            opened.connection.execute("BEGIN")
            problems = find_problems(opened.connection, progress)
            return (0 if problems else read_state(opened.connection).n), problems
        finally:
            opened.close()


def copy(source: Path, target: Path, *, overwrite: bool, progress: Progress | None = None) -> int:
    """Copy a store while others write to it, by SQLite's own backup: one state of it, checked, whole or not at all.

    The copy is one file with the permissions of `source`, for its owner alone where those say so. Returns how many
    documents it holds.

    Raises:
        IndexFormatError: the source is damaged. IndexBusyError: an index at `target` is in use.
    """
    real = Path(os.path.realpath(source))
    check_companions(real)
    opened = connect(real, readonly=True, timeout=30.0)
    try:
        opened.connection.execute("BEGIN")
        n = read_state(opened.connection).n  # from here on this one state is seen
        with replacing(target, mode=stat.S_IMODE(os.stat(real).st_mode)) as temporary:
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = MEMORY")  # no file beside one that a kill leaves behind
                opened.connection.backup(
                    connection,
                    pages=1024,
                    progress=None if progress is None else lambda _, left, total: progress(total - left, total),
                )
            with temporary.open("r+b") as file:
                file.seek(18)  # the versions of writing and reading: 1 needs no log, so that the file stands alone
                file.write(b"\1\1")
            with contextlib.closing(_connect(temporary, "mode=ro&immutable=1", True, 0)) as connection:
                if problems := find_problems(connection):
                    raise Damage(f"{len(problems)} problems, first: {problems[0]}")
            make_way(target, overwrite=overwrite)
    finally:
        opened.close()
    return n


def now() -> str:
    """The time in UTC, as ISO 8601 writes it, to the microsecond: no two writes share it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Raise what `explain` makes of an error in the block."""
    try:
        yield
    except (sqlite3.Error, OSError, Damage) as error:
        told = explain(error, path)
        if told is None:
            raise
        raise told from error


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the file is not what was written."""
    torn = isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode")
    # a broken constraint: what is written was checked, so an index of the file is at odds with its table
    broken = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
    return torn or isinstance(error, Damage) or _code(error) in broken


def explain(error: Exception, path: Path, *, needed: int = 0, waited: float = 0.0) -> KexueError | None:
    """In our words what SQLite, or the system below it, ran into; None where its own words must do."""
    code = _code(error)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or is_disk_full(error):
        free = shutil.disk_usage(path.absolute().parent).free
        if code != sqlite3.SQLITE_IOERR or free < needed + (1 << 20):
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
    if code == sqlite3.SQLITE_READONLY:
        return IndexReadOnlyError(f"{path} cannot be written: {error}.", remedy="Check its rights and its disk.")
    if is_damage(error):
        return IndexFormatError(f"{path} is damaged: {error}.", remedy=_REBUILD)
    if isinstance(error, sqlite3.OperationalError | sqlite3.DataError) and code in (0, sqlite3.SQLITE_ERROR, 18):
        return KexueError(f"{path}: SQLite cannot take this request: {error}.", remedy="Ask for less at a time.")
    if isinstance(error, sqlite3.OperationalError):
        return KexueError(
            f"{path} cannot be read or written: {error}.", remedy="Check the disk and the rights of the file."
        )
    return None
