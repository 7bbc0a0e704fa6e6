"""Documents, metadata and vectors in one SQLite file; search through an engine in memory that follows the file.

The file is in write-ahead mode with full synchronisation: what a call has written survives the end of the process and
of the machine, and readers in other processes go on while one writes. A document that changes gets a new key, and the
old key goes to `tombstones`; both count upwards, so "what is new since" is a range of each. An engine, and its
snapshot beside the file, are therefore brought up to date by the same few lines, whoever made the change.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from kexue.errors import KexueError, SpaceMismatchError
from kexue.search.engine import Engine, Position, build_engine, load_engine, read_position
from kexue.search.filters import to_sql
from kexue.search.nearest import Keys, Scores, Vectors
from kexue.search.store import database, tables
from kexue.search.store.base import (
    CompactReport,
    Filter,
    Found,
    IndexExistsError,
    Row,
    Upserted,
    Value,
)

_LOG = logging.getLogger("kexue.search")
_FILTERS_KEPT = 8
_SNAPSHOT_DRIFT = 0.1  # of the documents; beyond, closing writes a new snapshot


class EmbeddedStore:
    """The store in a file; see `kexue.search.Store` for what it does.

    One object may be used by several threads; they take turns. Processes that write wait for each other up to
    `busy_timeout` seconds, then IndexBusyError.
    """

    busy_timeout = 30.0

    def __init__(self, path: Path, connection: sqlite3.Connection, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self._connection: sqlite3.Connection | None = connection
        self._lock = threading.RLock()
        self._writes = 0
        self._version = (0, 0)
        self._metadata: tuple[tuple[int, int], dict[str, Value]] | None = None
        self._engine: Engine | None = None
        self._engine_version: tuple[int, int] | None = None
        self._filters: dict[tuple[str, ...], Keys] = {}
        self._filters_version: tuple[int, int] | None = None

    # Opening and closing

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], metadata: Mapping[str, Value], *, overwrite: bool = False
    ) -> EmbeddedStore:
        """Make an empty store; what is at `path` stays unless `overwrite`, and anything but an index stays always."""
        target = Path(path)
        if os.path.lexists(target):
            if not overwrite:
                raise IndexExistsError(
                    f"{target} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
                )
            database.check_file(target)
        database.create(target, metadata)
        return cls.open(target)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, readonly: bool = False) -> EmbeddedStore:
        """Open a store that exists; the first line of defence against foreign, damaged and newer files."""
        target = Path(path)
        database.check_file(target)
        target = target.absolute()
        with database.sqlite_errors(target):
            connection = database.connect(target, readonly=readonly, timeout=cls.busy_timeout)
        return cls(target, connection, readonly=readonly)

    def close(self, *, snapshot: bool = True) -> None:
        """Close the file; when much has changed since the last snapshot, write a new one first (or not, if False)."""
        with self._lock:
            if self._connection is None:
                return
            try:
                if snapshot and not self.readonly and (self._writes or self._engine is not None):
                    with contextlib.suppress(KexueError):  # a damaged file can be closed, too
                        self._save_snapshot_if_stale()
            finally:
                self._engine = None
                self._connection.close()
                self._connection = None

    # Writing

    def upsert(
        self,
        rows: Sequence[Row],
        *,
        metadata: Mapping[str, Value] | None = None,
        expect: Mapping[str, Value | None] | None = None,
    ) -> Upserted:
        """Write `rows` and `metadata` in one durable step."""
        if len({row.id for row in rows}) < len(rows):
            raise ValueError("an id comes twice among the rows of one upsert.")
        needed = sum(2 * len(row.text) + 512 + (0 if row.vector is None else row.vector.nbytes) for row in rows)
        with self._writing(needed) as connection:
            if expect:
                self._check_expected(self._recorded(connection), expect)
            if metadata:
                self._set_metadata(connection, metadata)
            if not rows:
                return Upserted(0, 0)
            self._check_dims(connection, rows)
            replaced = self._remove(connection, [row.id for row in rows])
            first = (
                tables.scalar(connection, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'documents'")
                + 1
            )
            connection.executemany(
                "INSERT INTO documents (key, id, text, metadata) VALUES (?, ?, ?, ?)",
                ((key, row.id, row.text, tables.dump(row.metadata)) for key, row in enumerate(rows, start=first)),
            )
            connection.executemany(
                "INSERT INTO vectors (key, vector) VALUES (?, ?)",
                ((key, tables.blob(row)) for key, row in enumerate(rows, start=first)),
            )
        return Upserted(len(rows) - replaced, replaced)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id or by filter, exactly one of them."""
        if (ids is None) == (filter is None):
            raise ValueError("delete wants either ids or a filter")
        with self._writing(64 * 1024) as connection:
            if filter is not None:
                where, parameters = to_sql(filter)
                found = connection.execute(f"SELECT id FROM documents WHERE {where}", parameters)
                ids = [row[0] for row in found]
            return self._remove(connection, list(dict.fromkeys(ids or ())))

    def compact(self) -> CompactReport:
        """Rewrite the file without the room of removed documents, and write a fresh snapshot."""
        before = self.size()
        with self._lock:
            with self._writing(before) as connection:
                engine = self._follow(connection)
                connection.execute("DELETE FROM tombstones")
                epoch = secrets.token_hex(8)  # tells engines elsewhere that the removals they missed are gone
                self._set_metadata(connection, {"epoch": epoch})
            if engine is not None:
                engine.position = engine.position._replace(epoch=epoch)
            with _Guard(self, before) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.save_snapshot()
        return CompactReport(before, self.size())

    def _set_metadata(self, connection: sqlite3.Connection, values: Mapping[str, Value]) -> None:
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _recorded(self, connection: sqlite3.Connection) -> dict[str, Value]:
        version = self._version
        if self._metadata is None or self._metadata[0] != version:
            self._metadata = version, dict(connection.execute("SELECT key, value FROM meta"))
        return self._metadata[1]

    def _check_expected(self, recorded: Mapping[str, Value], expect: Mapping[str, Value | None]) -> None:
        for key, value in expect.items():
            if recorded.get(key) != value:
                raise SpaceMismatchError(
                    f"{self.path} was given another {key} while this was prepared.",
                    expected=recorded.get(key),
                    received=value,
                    remedy="Repeat the call.",
                )

    def _check_dims(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        stored = connection.execute("SELECT length(vector) FROM vectors LIMIT 1").fetchone()
        expected = stored[0] // 4 if stored else tables.vector_length(rows[0])
        for row in rows:
            length = tables.vector_length(row)
            if length != expected:
                raise SpaceMismatchError(
                    f"the vector of {row.id!r} has {length} numbers, the index holds vectors of {expected}.",
                    expected=expected,
                    received=length,
                )

    def _remove(self, connection: sqlite3.Connection, ids: Sequence[str]) -> int:
        found = connection.execute(f"SELECT key FROM documents WHERE id IN {tables.IDS}", (json.dumps(ids),)).fetchall()
        for statement in (
            "INSERT INTO tombstones (key) VALUES (?)",
            "DELETE FROM documents WHERE key = ?",
            "DELETE FROM vectors WHERE key = ?",
        ):
            connection.executemany(statement, found)
        return len(found)

    # Reading

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """The documents with these ids that exist, in the order asked for."""
        with _View(self) as connection:
            found = {
                row.id: row for row in tables.rows(connection, f"id IN {tables.IDS}", (json.dumps(list(ids)),), vectors)
            }
        return [found[one] for one in ids if one in found]

    def count(self, *, filter: Filter | None = None) -> int:
        """How many documents there are, or match."""
        where, parameters = ("1", []) if filter is None else to_sql(filter)
        with _View(self) as connection:
            return int(tables.scalar(connection, f"SELECT count(*) FROM documents WHERE {where}", parameters))

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """All documents in batches, oldest first."""
        last = 0
        while True:
            with _View(self) as connection:
                keys = connection.execute(
                    "SELECT key FROM documents WHERE key > ? ORDER BY key LIMIT ?", (last, batch_size)
                ).fetchall()
                if not keys:
                    return
                first, last = keys[0][0], keys[-1][0]
                batch = tables.rows(connection, "key BETWEEN ? AND ?", (first, last), vectors)
            yield batch

    def metadata(self) -> Mapping[str, Value]:
        """What is recorded about the whole store."""
        with _View(self) as connection:
            return self._recorded(connection)

    def size(self) -> int:
        """Bytes of the database with its log, and of the snapshot."""
        names = (self.path, f"{self.path}-wal", self.snapshot_path)
        return sum(os.path.getsize(name) for name in names if os.path.exists(name))

    def search(
        self,
        vectors: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
        candidates: int | None = None,
        with_vectors: bool = False,
        expect: Mapping[str, Value | None] | None = None,
    ) -> list[list[Found]]:
        """The `k` documents of largest inner product for each row of `vectors` (m, d)."""
        with _View(self) as connection:
            engine = self._follow(connection)
            if expect:
                self._check_expected(self._recorded(connection), expect)
            allowed = None if filter is None else self._matching(connection, filter)
            among = 0 if engine is None else len(engine.keys if allowed is None else allowed)
            if engine is None or among == 0 or not len(vectors):
                return [[] for _ in vectors]
            if vectors.shape[1] != engine.dims:
                raise SpaceMismatchError(
                    f"the query has {vectors.shape[1]} numbers, the index holds vectors of {engine.dims}.",
                    expected=engine.dims,
                    received=vectors.shape[1],
                )
            k = min(k, among)
            if engine.exact:
                scores, keys = engine.search(vectors, k, allowed)
            else:
                scores, keys = self._search_approximate(connection, engine, vectors, k, allowed, exact, candidates)
            return tables.found(connection, scores, keys, with_vectors)

    # The engine

    @property
    def snapshot_path(self) -> Path:
        """Where the engine's state is kept between runs."""
        return Path(f"{self.path}-snapshot")

    def save_snapshot(self) -> None:
        """Write the engine as it stands beside the file. It saves time, nothing else: a failure is logged."""
        with self._lock:
            with _View(self) as connection:
                engine = self._follow(connection)
            try:
                if engine is not None:
                    engine.save(self.snapshot_path)
            except OSError as error:
                _LOG.warning("%s was not written, opening will take longer: %s", self.snapshot_path, error)

    def _save_snapshot_if_stale(self) -> None:
        with _View(self) as connection:
            epoch = self._recorded(connection)["epoch"]
            n = tables.scalar(connection, "SELECT count(*) FROM documents")
            position = read_position(self.snapshot_path)
            changes = n
            if position is not None and position.epoch == epoch:
                changes = tables.scalar(connection, "SELECT count(*) FROM vectors WHERE key > ?", [position.last_key])
                changes += tables.scalar(
                    connection, "SELECT count(*) FROM tombstones WHERE n > ?", [position.last_removal]
                )
        if changes > _SNAPSHOT_DRIFT * n:
            self.save_snapshot()

    def _follow(self, connection: sqlite3.Connection) -> Engine | None:
        """The engine, brought up to what this transaction sees; None while there are no vectors."""
        version = self._version
        if self._engine_version == version:
            return self._engine
        epoch = str(tables.scalar(connection, "SELECT value FROM meta WHERE key = 'epoch'"))
        n = tables.scalar(connection, "SELECT count(*) FROM documents")
        approx = str(
            tables.scalar(connection, "SELECT coalesce((SELECT value FROM meta WHERE key = 'approx'), 'auto')")
        )
        engine = self._engine or (load_engine(self.snapshot_path) if n else None)
        if engine is not None and not (engine.position.epoch == epoch and engine.suits(n, approx)):
            engine = None
        if engine is not None:
            self._catch_up(connection, engine)
        if engine is None or len(engine.keys) != n:
            engine = self._build(connection, n, approx) if n else None
        if engine is not None:
            engine.position = Position(epoch, _last(connection, "documents"), _last(connection, "tombstones"))
        self._engine, self._engine_version = engine, version
        return engine

    def _build(self, connection: sqlite3.Connection, n: int, approx: str) -> Engine:
        dims = tables.scalar(connection, "SELECT length(vector) FROM vectors LIMIT 1") // 4

        def sample(size: int) -> Vectors:
            keys = np.array([key for (key,) in connection.execute("SELECT key FROM vectors")])
            some = np.random.default_rng(0).permutation(keys)[:size]
            return np.concatenate([block for _, block in tables.chosen(connection, np.sort(some))])

        return build_engine(tables.blocks(connection, "key > 0", ()), sample, n=n, dims=dims, approx=approx)

    def _catch_up(self, connection: sqlite3.Connection, engine: Engine) -> None:
        _, last_key, last_removal = engine.position
        gone = connection.execute("SELECT key FROM tombstones WHERE n > ?", (last_removal,)).fetchall()
        if gone:
            engine.remove(np.array(gone, np.int64).ravel())
        for keys, vectors in tables.blocks(connection, "key > ?", (last_key,)):
            if vectors.shape[1] != engine.dims:
                return  # the count will not agree, and the engine is built anew
            engine.add(keys, vectors)

    def _matching(self, connection: sqlite3.Connection, filter: Filter) -> Keys:
        """Keys of the documents that match; the answers to recent filters are kept until something changes."""
        version = self._version
        if self._filters_version != version or len(self._filters) > _FILTERS_KEPT:
            self._filters, self._filters_version = {}, version
        where, parameters = to_sql(filter)
        wanted = (where, *map(repr, parameters))
        if wanted not in self._filters:
            found = connection.execute(f"SELECT key FROM documents WHERE {where} ORDER BY key", parameters)
            self._filters[wanted] = np.fromiter(chain.from_iterable(found), np.int64)
        return self._filters[wanted]

    def _search_approximate(
        self,
        connection: sqlite3.Connection,
        engine: Engine,
        vectors: Vectors,
        k: int,
        allowed: Keys | None,
        exact: bool,
        candidates: int | None,
    ) -> tuple[Scores, Keys]:
        """Candidates from the inverted file, scored by their stored vectors; a scan where that is exact or cheaper."""
        among = len(engine.keys if allowed is None else allowed)
        wanted = max(k, candidates or max(4 * k, 100))
        if exact or wanted >= among // 4 or (allowed is not None and among <= tables.BLOCK):
            return tables.scan(connection, vectors, k, allowed)
        scores, keys = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        for start in range(0, len(vectors), 64):
            part = slice(start, start + 64)
            _, found = engine.search(vectors[part], wanted, allowed)
            chosen = np.unique(found[found >= 0])
            stored = np.concatenate([block for _, block in tables.chosen(connection, chosen)]) if len(chosen) else None
            for row, (query, some) in enumerate(zip(vectors[part], found, strict=True), start=start):
                some = np.sort(some[some >= 0])  # noqa: PLW2901
                if stored is None or len(some) < k:  # the open cells hold too few
                    scores[row], keys[row] = (best[0] for best in tables.scan(connection, query[None], k, allowed))
                    continue
                exactly = stored[np.searchsorted(chosen, some)] @ query
                order = np.argsort(-exactly, kind="stable")[:k]
                scores[row], keys[row] = exactly[order], some[order]
        return scores, keys

    # Transactions

    @property
    def _live(self) -> sqlite3.Connection:
        if self._connection is None:
            raise KexueError(f"{self.path} is closed.", remedy="Open it again with Index.open.")
        return self._connection

    def _look(self, connection: sqlite3.Connection) -> None:
        """Note the version of the transaction that has begun; it is another one after every commit, whoever's."""
        self._version = connection.execute("PRAGMA data_version").fetchone()[0], self._writes

    @contextlib.contextmanager
    def _writing(self, needed: int) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable when the block ends and undone when it raises; about `needed` bytes."""
        if self.readonly:
            raise KexueError(f"{self.path} was opened with readonly=True.", remedy="Open it without, to write.")
        with _Guard(self, needed) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._look(connection)
                yield connection
                self._set_metadata(connection, {"updated": database.now()})
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._writes += 1


class _Guard:
    """The connection of a store, for one thread at a time, with errors explained; `needed` bytes may be written.

    A class, not a generator: every search enters one, and this is the cheaper by 20 microseconds.
    """

    def __init__(self, store: EmbeddedStore, needed: int = 0) -> None:
        self._store = store
        self._needed = needed

    def __enter__(self) -> sqlite3.Connection:
        self._store._lock.acquire()
        try:
            return self._store._live
        except BaseException:
            self._store._lock.release()
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._store._lock.release()
        if isinstance(error, sqlite3.Error | OSError):
            store = self._store
            told = database.explain(error, store.path, needed=self._needed, waited=store.busy_timeout)
            if told is not None:
                raise told from error


class _View(_Guard):
    """One consistent view of the file: a transaction that reads."""

    def __enter__(self) -> sqlite3.Connection:
        connection = super().__enter__()
        try:
            connection.execute("BEGIN")
            self._store._look(connection)
        except BaseException as error:
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self._store._live.in_transaction:  # SQLite ends it itself on some errors
                self._store._live.execute("ROLLBACK")
        finally:
            super().__exit__(kind, error, trace)


def _last(connection: sqlite3.Connection, table: str) -> int:
    """The largest key a table has ever had."""
    return int(tables.scalar(connection, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", [table]))
