"""Damage of an index file, and errors of SQLite explained."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from kexue._files import is_disk_full
from kexue.errors import DiskFullError, IndexFormatError, KexueError
from kexue.search.store.base import IndexBusyError, IndexReadOnlyError

REBUILD = (
    "Restore it from a backup (kexue index restore), or build it again (kexue index build); "
    "kexue index check lists what is damaged."
)


class Damage(Exception):  # noqa: N818 - never leaves the store: it becomes an IndexFormatError that names the file
    """Something in the file is not what was written; the message names it."""


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Replace errors of SQLite and of the system in the block by those of `explain_error`."""
    try:
        yield
    except (sqlite3.Error, OSError, Damage) as error:
        explained = explain_error(error, path)
        if explained is None:
            raise
        raise explained from error


def error_code(error: BaseException) -> int:
    """Return the primary error code of SQLite; 0 for other errors."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_damage(error: BaseException) -> bool:
    """Whether an error means that the file is damaged."""
    torn = isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode")
    # a broken constraint: rows are checked before they are written, so an index of the file contradicts its table
    broken = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
    return torn or isinstance(error, Damage) or error_code(error) in broken


def explain_error(error: Exception, path: Path, *, needed: int = 0, waited: float = 0.0) -> KexueError | None:
    """Return the error of this package that explains one of SQLite or of the system; None where there is none.

    Args:
        error: raised by SQLite, by the system, or `Damage`.
        path: path of the index. needed: bytes the step would have written. waited: seconds it waited for a lock.
    """
    code = error_code(error)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or is_disk_full(error):
        free = shutil.disk_usage(path.absolute().parent).free
        if code != sqlite3.SQLITE_IOERR or free < needed + (1 << 20):
            return DiskFullError(
                f"the disk is too full to write {path}: about {needed} bytes are needed, {free} are free.",
                needed=needed,
                free=free,
                remedy="Nothing of this step was written; free some space and run it again.",
            )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return IndexBusyError(
            f"another process holds {path}; waited {waited:g} seconds.", remedy="Try again when it is done."
        )
    if code == sqlite3.SQLITE_READONLY:
        return IndexReadOnlyError(f"{path} cannot be written: {error}.", remedy="Check its permissions and its disk.")
    if is_damage(error):
        return IndexFormatError(f"{path} is damaged: {error}.", remedy=REBUILD)
    if isinstance(error, sqlite3.OperationalError | sqlite3.DataError) and code in (0, sqlite3.SQLITE_ERROR, 18):
        return KexueError(f"{path}: SQLite cannot take this request: {error}.", remedy="Ask for less at a time.")
    if isinstance(error, sqlite3.OperationalError):
        return KexueError(
            f"{path} cannot be read or written: {error}.", remedy="Check the disk and the permissions of the file."
        )
    return None
