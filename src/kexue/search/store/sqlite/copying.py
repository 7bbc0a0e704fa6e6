"""A store checked for damage, and copied while it is in use."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

from kexue._files import replacing
from kexue._progress import Progress
from kexue.search.store.sqlite.checking import find_problems
from kexue.search.store.sqlite.database import connect, connect_file
from kexue.search.store.sqlite.errors import Damage, explain_errors
from kexue.search.store.sqlite.files import check_log_beside, remove_old_store_files
from kexue.search.store.sqlite.tables import read_state


def check(path: Path, *, progress: Progress | None = None) -> tuple[int, list[str]]:
    """Return the number of documents in a store, and its problems; the number is 0 where there are problems."""
    real = Path(os.path.realpath(path))
    check_log_beside(real)
    with explain_errors(path):
        opened = connect(real, readonly=True, timeout=30.0)
        try:
            opened.connection.execute("BEGIN")
            problems = find_problems(opened.connection, progress)
            return (0 if problems else read_state(opened.connection).n), problems
        finally:
            opened.close()


def copy(source: Path, target: Path, *, overwrite: bool, progress: Progress | None = None) -> int:
    """Copy one state of a store atomically, with the backup of SQLite, while others write to it; check the copy.

    The copy is one file with the permissions of `source`. Returns the number of documents in it.

    Raises:
        IndexFormatError: the source is damaged. IndexBusyError: an index at `target` is in use.
    """
    real = Path(os.path.realpath(source))
    check_log_beside(real)
    opened = connect(real, readonly=True, timeout=30.0)
    try:
        opened.connection.execute("BEGIN")
        n = read_state(opened.connection).n  # from here on the connection sees this state
        with replacing(target, mode=stat.S_IMODE(os.stat(real).st_mode)) as temporary:
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = MEMORY")  # no journal that a killed process leaves behind
                opened.connection.backup(
                    connection,
                    pages=1024,
                    progress=None if progress is None else lambda _, left, total: progress(total - left, total),
                )
            with temporary.open("r+b") as file:
                file.seek(18)  # format versions for writing and reading: 1 needs no log, so the file is complete
                file.write(b"\1\1")
            with contextlib.closing(connect_file(temporary, "mode=ro&immutable=1", True, 0)) as connection:
                if problems := find_problems(connection):
                    raise Damage(f"{len(problems)} problems, first: {problems[0]}")
            remove_old_store_files(target, overwrite=overwrite)
    finally:
        opened.close()
    return n
