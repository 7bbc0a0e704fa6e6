"""Transactions on the file of a store: one thread at a time, errors explained, a version for every state."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kexue.errors import IndexFormatError, KexueError
from kexue.search.store.base import Value, now, readonly_error
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.database import connect
from kexue.search.store.sqlite.errors import Damage, explain_error, explain_errors, is_damage
from kexue.search.store.sqlite.files import check_log_beside
from kexue.search.store.sqlite.handles import Handle, Watch
from kexue.search.store.sqlite.tables import State
from kexue.search.store.sqlite.wal import has_log

Version = tuple[int, int]


class Transactions:
    """Transactions of one store on its file; several threads take turns.

    Args:
        path: path of the file, as it was given.
        readonly: refuse writes.
        timeout: seconds to wait for another process.

    Attributes:
        file: real path of the file.
        version: version of the state that the current transaction sees; different after every commit of any process.
        openings: times the file was opened.
        writes: commits of this object.
        lock: held during a transaction.
    """

    def __init__(self, path: Path, *, readonly: bool, timeout: float) -> None:
        self.path = path
        self.file = Path(os.path.realpath(path))
        self.readonly = readonly
        self.timeout = timeout
        self.lock = threading.RLock()
        self.version: Version = (0, 0)
        self.writes = 0
        self.openings = 1
        self._state: tuple[Version, State] | None = None
        self._metadata: tuple[Version, dict[str, Value]] | None = None
        self._handle: Handle | None = Handle(self.file)
        self._watch = Watch(path, self._handle.descriptor)
        try:
            with explain_errors(path):
                self._opened = connect(self.file, readonly=readonly, timeout=timeout)
        except BaseException:
            self._handle.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle is None

    @property
    def frozen(self) -> bool:
        """Whether the file is read as it was when opened, because nothing can be written beside it."""
        return self._opened.frozen

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection; KexueError after `close`."""
        if self._handle is None:
            raise KexueError(f"{self.path} is closed.", remedy="Open it again with Index.open.")
        return self._opened.connection

    def close(self) -> None:
        """Close connection and file; a second call does nothing."""
        if self._handle is not None:
            self._opened.close()
            self._handle.close()
            self._handle = None

    # What the current transaction sees

    def state(self, connection: sqlite3.Connection) -> State:
        """Return the state that this transaction began with."""
        version = self.version
        if self._state is None or self._state[0] != version:
            self._state = version, tables.read_state(connection)
        return self._state[1]

    def metadata(self, connection: sqlite3.Connection) -> dict[str, Value]:
        """Return the metadata of the store that this transaction began with."""
        version = self.version
        if self._metadata is None or self._metadata[0] != version:
            self._metadata = version, tables.read_metadata(connection, self.state(connection))
        return self._metadata[1]

    # Beginning and ending

    def read(self) -> Reading:
        """Return a context with a connection that sees one state of the file."""
        return Reading(self)

    @contextlib.contextmanager
    def write(self, needed: int) -> Iterator[tuple[sqlite3.Connection, State]]:
        """Yield a connection and the state for a transaction that is durable at the end, and undone by an exception.

        Args:
            needed: bytes that will be written, about.

        The caller keeps the state up to date with the rows it writes.
        """
        if self.readonly:
            raise readonly_error(self.path)
        with ConnectionGuard(self, needed) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self.note_version(connection)
                state = replace(self.state(connection))
                yield connection, state
                tables.write_metadata(connection, state, {"updated": now()})
                tables.write_state(connection, state)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self.writes += 1
            if self._watch.check():  # a file that was replaced meanwhile does not hold this write
                self._watch.invalidate()

    def note_version(self, connection: sqlite3.Connection) -> None:
        """Note the version of the transaction that has begun."""
        written = self._watch.check() and not self._opened.frozen
        try:
            self.version = connection.execute("PRAGMA data_version").fetchone()[0], self.writes
            if written:
                self._check_history(connection)
        except BaseException as error:
            if written:
                self._watch.invalidate()  # so that the next transaction checks again
                if is_damage(error) or isinstance(error, IndexFormatError):
                    raise self._watch.replacement_error(f"holds something else ({error})") from error
            raise

    def _check_history(self, connection: sqlite3.Connection) -> None:
        """Raise `Damage` for a file that was not written by SQLite, such as a copy in its place."""
        check_log_beside(self.file)
        here, state = self._watch.change(), tables.read_state(connection)
        if here is None or (not has_log(self.file) and here.own.decode() != state.change):
            raise Damage("its content was changed without SQLite, for example by copying another file over it")

    def reopen_changed(self) -> None:
        """Open a frozen file again if it has changed since."""
        if self._watch.check() or has_log(self.file) != self._opened.logged:
            self._opened.close()
            self._opened = connect(self.file, readonly=True, timeout=self.timeout)
            self.writes += 1  # another version
            self.openings += 1


class ConnectionGuard:
    """Context that gives the connection to one thread at a time, and explains errors.

    About `needed` bytes may be written.

    A class, not a generator: every search enters one, and this saves 20 microseconds.
    """

    def __init__(self, transactions: Transactions, needed: int = 0) -> None:
        self.transactions = transactions
        self.needed = needed

    def __enter__(self) -> sqlite3.Connection:
        self.transactions.lock.acquire()
        try:
            return self.transactions.connection
        except BaseException:
            self.transactions.lock.release()
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        transactions = self.transactions
        transactions.lock.release()
        if isinstance(error, sqlite3.Error | OSError | Damage):
            explained = explain_error(error, transactions.path, needed=self.needed, waited=transactions.timeout)
            if explained is not None:
                raise explained from error


class Reading(ConnectionGuard):
    """A transaction that reads one state of the file."""

    def __enter__(self) -> sqlite3.Connection:
        connection = super().__enter__()
        try:
            if self.transactions.frozen:
                self.transactions.reopen_changed()
                connection = self.transactions.connection
            connection.execute("BEGIN")
            self.transactions.note_version(connection)
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self.transactions.connection.in_transaction:  # SQLite ends it itself on some errors
                self.transactions.connection.execute("ROLLBACK")
        finally:
            super().__exit__(kind, error, trace)
