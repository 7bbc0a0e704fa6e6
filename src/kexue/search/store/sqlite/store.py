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
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from kexue.errors import IndexFormatError, KexueError, SpaceMismatchError
from kexue.search.engine import Engine, Position, build_engine, load_engine, read_position
from kexue.search.products import Keys, Scores, Vectors
from kexue.search.store.base import (
    CompactReport,
    Filter,
    Match,
    IndexExistsError,
    IndexReadOnlyError,
    Row,
    Upserted,
    Value,
)
from kexue.search.store.sqlite import database, tables
from kexue.search.store.sqlite.expressions import to_sql
from kexue.search.store.sqlite.identity import Handle, Watch, has_log
from kexue.search.store.sqlite.tables import State, Tally

_LOG = logging.getLogger("kexue.search")
_FILTERS_KEPT = 8
_IDS_VERIFIED = 100_000  # documents: a tenth of a second
_SNAPSHOT_DRIFT = 0.1  # of the documents; beyond, closing writes a new snapshot


class EmbeddedStore:
    """The store in a file; see `kexue.search.Store` for what it does.

    One object may be used by several threads; they take turns. Processes that write wait for each other up to
    `busy_timeout` seconds, then IndexBusyError.
    """

    busy_timeout = 30.0

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self.path = path  # as it was given; what it leads to is `file`
        self.file = Path(os.path.realpath(path))
        self.readonly = readonly
        self._handle: Handle | None = Handle(self.file)
        self._lock = threading.RLock()
        self._watch = Watch(path, self._handle.descriptor)
        try:
            with database.sqlite_errors(path):
                self._opened = database.connect(self.file, readonly=readonly, timeout=self.busy_timeout)
        except BaseException:
            self._handle.close()
            raise
        self._writes = 0
        self._version = (0, 0)
        self._state: tuple[tuple[int, int], State] | None = None
        self._metadata: tuple[tuple[int, int], dict[str, Value]] | None = None
        self._engine: Engine | None = None
        self._engine_version: tuple[int, int] | None = None
        self._snapshot_stale = False
        self._verified = -1  # documents up to this key have been compared with their checksums
        self._ids_verified = False
        self._filters: dict[tuple[str, ...], Keys] = {}
        self._filters_version: tuple[int, int] | None = None

    # Opening and closing

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Value],
        *,
        overwrite: bool = False,
        mode: int | None = None,
    ) -> EmbeddedStore:
        """Make an empty store; what is at `path` stays unless `overwrite`, and anything but an index stays always.

        `mode` is the new file's permissions; None: those of the file that is replaced, else what the umask leaves.
        """
        target = Path(path)
        if os.path.lexists(target):
            if not overwrite:
                raise IndexExistsError(
                    f"{target} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
                )
            database.check_file(target, to_replace=True)
        with database.sqlite_errors(target):
            database.create(target, metadata, overwrite=overwrite, mode=mode)
        return cls.open(target)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, readonly: bool = False) -> EmbeddedStore:
        """Open a store that exists; the first line of defence against foreign, damaged and newer files."""
        target = Path(path).absolute()
        database.check_file(target)
        database.check_companions(Path(os.path.realpath(target)))
        store = cls(target, readonly=readonly)
        try:
            store.metadata()
        except BaseException:
            store.close(snapshot=False)
            raise
        return store

    def close(self, *, snapshot: bool = True) -> None:
        """Close the file; when much has changed since the last snapshot, write a new one first (or not, if False)."""
        with self._lock:
            if self._handle is None:
                return
            try:
                if snapshot and not self.readonly and (self._writes or self._engine is not None):
                    with contextlib.suppress(KexueError):  # a damaged file can be closed, too
                        self._save_snapshot_if_stale()
            finally:
                self._engine = None
                self._opened.close()
                self._handle.close()
                self._handle = None

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
        with self._writing(needed) as (connection, state):
            if expect:
                self._check_expected(self._recorded(connection), expect)
            if metadata:
                tables.write_metadata(connection, state, metadata)
            if not rows:
                return Upserted(0, 0)
            self._check_dims(connection, rows)
            replaced = tables.remove(connection, state, [row.id for row in rows])
            tables.insert(connection, state, rows, tables.last_key(connection, "documents") + 1)
        return Upserted(len(rows) - replaced, replaced)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id or by filter, exactly one of them."""
        if (ids is None) == (filter is None):
            raise ValueError("delete wants either ids or a filter")
        with self._writing(64 * 1024) as (connection, state):
            if filter is not None:
                keys = self._matching(connection, filter)
                where = f"key IN {tables.IDS}"
                ids = [row.id for row in tables.rows(connection, where, (json.dumps(keys.tolist()),), False)]
            wanted = list(dict.fromkeys(ids or ()))
            gone = tables.remove(connection, state, wanted)
            if gone < len(wanted):
                self._verify_ids(connection)
            return gone

    def compact(self) -> CompactReport:
        """Rewrite the file without the room of removed documents, and write a fresh snapshot."""
        before = self.size()
        with self._lock:
            with self._writing(before) as (connection, state):
                engine = self._follow(connection)
                connection.execute("DELETE FROM tombstones")
                epoch = secrets.token_hex(8)  # tells engines elsewhere that the removals they missed are gone
                tables.write_metadata(connection, state, {"epoch": epoch})
            if engine is not None:
                engine.position = engine.position._replace(epoch=epoch)
            with _Guard(self, before) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.save_snapshot()
        return CompactReport(before, self.size())

    def _recorded(self, connection: sqlite3.Connection) -> dict[str, Value]:
        version = self._version
        if self._metadata is None or self._metadata[0] != version:
            self._metadata = version, tables.read_metadata(connection, self._now(connection))
        return self._metadata[1]

    def _now(self, connection: sqlite3.Connection) -> State:
        """The state that this transaction began with."""
        version = self._version
        if self._state is None or self._state[0] != version:
            self._state = version, tables.read_state(connection)
        return self._state[1]

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

    # Reading

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """The documents with these ids that exist, in the order asked for."""
        with _View(self) as connection:
            found = {
                row.id: row for row in tables.rows(connection, f"id IN {tables.IDS}", (json.dumps(list(ids)),), vectors)
            }
            if len(found) < len(set(ids)):
                self._verify_ids(connection)
        return [found[one] for one in ids if one in found]

    def count(self, *, filter: Filter | None = None) -> int:
        """How many documents there are, or match."""
        with _View(self) as connection:
            return self._now(connection).n if filter is None else len(self._matching(connection, filter))

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """All documents in batches, oldest first."""
        last, tally, began = 0, Tally(), None
        while True:
            with _View(self) as connection:
                began = began or self._version
                keys = connection.execute(
                    "SELECT key FROM documents WHERE key > ? ORDER BY key LIMIT ?", (last, batch_size)
                ).fetchall()
                if not keys:
                    if began == self._version:  # nothing was written meanwhile: this must have been all
                        state = self._now(connection)
                        tally.check(state.n, state.documents, "documents")
                    return
                first, last = keys[0][0], keys[-1][0]
                batch = tables.rows(connection, "key BETWEEN ? AND ?", (first, last), vectors, tally)
            yield batch

    def metadata(self) -> Mapping[str, Value]:
        """What is recorded about the whole store."""
        with _View(self) as connection:
            return self._recorded(connection)

    def size(self) -> int:
        """Bytes of the database with its log, and of the snapshot."""
        names = (self.file, f"{self.file}-wal", self.snapshot_path)
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
    ) -> list[list[Match]]:
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
        return Path(f"{self.file}-snapshot")

    def save_snapshot(self) -> None:
        """Write the engine as it stands beside the file. It saves time, nothing else: a failure is logged."""
        with self._lock:
            with _View(self) as connection:
                engine = self._follow(connection)
            try:
                if engine is not None:
                    engine.save(self.snapshot_path, mode=stat.S_IMODE(os.stat(self.file).st_mode))
                    self._snapshot_stale = False
            except OSError as error:
                _LOG.warning("%s was not written, opening will take longer: %s", self.snapshot_path, error)

    def _save_snapshot_if_stale(self) -> None:
        with _View(self) as connection:
            epoch = self._recorded(connection)["epoch"]
            n = self._now(connection).n
            position = read_position(self.snapshot_path)
            changes = n
            if position is not None and position.epoch == epoch and not self._snapshot_stale:
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
        state, recorded = self._now(connection), self._recorded(connection)
        n, epoch, approx = state.n, str(recorded["epoch"]), str(recorded.get("approx", "auto"))
        engine = self._engine or (load_engine(self.snapshot_path) if n else None)
        if engine is not None and not (engine.position.epoch == epoch and engine.suits(n, approx)):
            engine = None
        if engine is not None and not self._catch_up(connection, engine, state):
            engine = None
        if engine is None and n:
            engine = self._build(connection, state, approx)
            self._snapshot_stale = True
        if engine is not None:
            last, removed = tables.last_key(connection, "documents"), tables.last_key(connection, "tombstones")
            engine.position = Position(epoch, last, removed, state.vectors)
        self._engine, self._engine_version = engine, version
        return engine

    def _build(self, connection: sqlite3.Connection, state: State, approx: str) -> Engine:
        dims = tables.scalar(connection, "SELECT length(vector) FROM vectors LIMIT 1") // 4
        tally = Tally()

        def sample(size: int) -> Vectors:
            keys = np.array([key for (key,) in connection.execute("SELECT key FROM vectors")])
            some = np.random.default_rng(0).permutation(keys)[:size]
            return np.concatenate([block for _, block in tables.chosen(connection, np.sort(some))])

        blocks = tables.blocks(connection, "key > 0", (), tally)
        engine = build_engine(blocks, sample, n=state.n, dims=dims, approx=approx)
        tally.check(state.n, state.vectors, "vectors")
        return engine

    def _catch_up(self, connection: sqlite3.Connection, engine: Engine, state: State) -> bool:
        """Bring an engine to what the store holds; False when it does not come from there: then it is built anew."""
        _, last_key, last_removal, checksums = engine.position
        gone = [(key, vector) for key, vector in tables.removals(connection, last_removal) if key <= last_key]
        if gone:
            engine.remove(np.array([key for key, _ in gone], np.int64))
        tally = Tally()
        for keys, vectors in tables.blocks(connection, "key > ?", (last_key,), tally):
            if vectors.shape[1] != engine.dims:
                return False
            engine.add(keys, vectors)
        checksums += tally.checksums - sum(vector for _, vector in gone)
        return (len(engine.keys), checksums) == (state.n, state.vectors)

    def _verify_documents(self, connection: sqlite3.Connection) -> None:
        """Compare documents with their checksums before a filter looks into them: all once, then what is new."""
        tally = Tally()
        tables.verify_documents(connection, self._verified, tally)
        if self._verified < 0:
            state = self._now(connection)
            tally.check(state.n, state.documents, "documents")
        self._verified = tables.last_key(connection, "documents")

    def _verify_ids(self, connection: sqlite3.Connection) -> None:
        """Make sure, once, that an id that is not found is not there; of larger files `check` tells."""
        if not self._ids_verified and self._now(connection).n <= _IDS_VERIFIED:
            tables.verify_ids(connection)
        self._ids_verified = True

    def _matching(self, connection: sqlite3.Connection, filter: Filter) -> Keys:
        """Keys of the documents that match; the answers to recent filters are kept until something changes."""
        version = self._version
        if self._filters_version != version or len(self._filters) > _FILTERS_KEPT:
            self._verify_documents(connection)
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
        if self._handle is None:
            raise KexueError(f"{self.path} is closed.", remedy="Open it again with Index.open.")
        return self._opened.connection

    def _look(self, connection: sqlite3.Connection) -> None:
        """Note the version of the transaction that has begun; it is another one after every commit, whoever's."""
        written = self._watch.check() and not self._opened.frozen
        try:
            self._version = connection.execute("PRAGMA data_version").fetchone()[0], self._writes
            if written:
                self._check_history(connection)
        except BaseException as error:
            if written:
                self._watch.forget()  # so that the next look is as close
                if database.is_damage(error) or isinstance(error, IndexFormatError):
                    raise self._watch.replaced(f"holds something else ({error})") from error
            raise

    def _check_history(self, connection: sqlite3.Connection) -> None:
        """Refuse a file that something else than SQLite has written to, such as a copy in its place."""
        database.check_companions(self.file)
        here, state = self._watch.change(), tables.read_state(connection)
        if here is None or (not has_log(self.file) and here.own.decode() != state.change):
            raise tables.Damage("not the state that is known here")

    def _refresh(self) -> None:
        """Open a file anew that was read as it stood, when it has changed since."""
        if self._opened.frozen and (self._watch.check() or has_log(self.file) != self._opened.logged):
            self._opened.close()
            self._opened = database.connect(self.file, readonly=True, timeout=self.busy_timeout)
            self._writes += 1  # another version
            self._verified = -1

    @contextlib.contextmanager
    def _writing(self, needed: int) -> Iterator[tuple[sqlite3.Connection, State]]:
        """A transaction that is durable when the block ends and undone when it raises; about `needed` bytes.

        The state it yields is to be kept up to date by whoever writes rows.
        """
        if self.readonly:
            raise IndexReadOnlyError(f"{self.path} was opened with readonly=True.", remedy="Open it without, to write.")
        with _Guard(self, needed) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._look(connection)
                state = replace(self._now(connection))
                yield connection, state
                tables.write_metadata(connection, state, {"updated": database.now()})
                tables.write_state(connection, state)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._writes += 1
            if self._watch.check():  # a file that was replaced meanwhile has not kept this
                self._watch.forget()


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
        if isinstance(error, sqlite3.Error | OSError | tables.Damage):
            store = self._store
            told = database.explain(error, store.path, needed=self._needed, waited=store.busy_timeout)
            if told is not None:
                raise told from error


class _View(_Guard):
    """One consistent view of the file: a transaction that reads."""

    def __enter__(self) -> sqlite3.Connection:
        connection = super().__enter__()
        try:
            if self._store._opened.frozen:
                self._store._refresh()
                connection = self._store._live
            connection.execute("BEGIN")
            self._store._look(connection)
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self._store._live.in_transaction:  # SQLite ends it itself on some errors
                self._store._live.execute("ROLLBACK")
        finally:
            super().__exit__(kind, error, trace)
