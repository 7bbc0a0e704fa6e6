"""The store in one SQLite file: documents, metadata and vectors, and search through an engine in memory.

The file is in write-ahead mode with full synchronisation: what a call has written survives a crash of the process and
of the machine, and readers in other processes continue while one writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue.errors import KexueError
from kexue.search.grouping import search_documents
from kexue.search.products import Keys, Scores, Vectors
from kexue.search.store.base import (
    CompactReport,
    Filter,
    Match,
    PassageCounts,
    Row,
    Upserted,
    Value,
    Words,
    check_dims,
    check_distinct,
    check_expected,
    check_selection,
    check_spans,
    dimension_error,
    vector_length,
)
from kexue.search.store.sqlite import database, tables
from kexue.search.store.sqlite.errors import explain_errors
from kexue.search.store.sqlite.files import FORMAT_VERSION, check_file, check_log_beside, check_target
from kexue.search.store.sqlite.following import EngineFollower, search_approximate
from kexue.search.store.sqlite.listing import read_page
from kexue.search.store.sqlite.matching import Matching
from kexue.search.store.sqlite.passages import GroupReader, add_table, attach_best, attach_passages, attach_worded
from kexue.search.store.sqlite.tables import ChecksumCounter
from kexue.search.store.sqlite.transactions import ConnectionGuard, Transactions
from kexue.search.store.sqlite.words import WordFollower, search_both
from kexue.search.store.sqlite.writing import insert, remove


class EmbeddedStore:
    """The store in a file; see `kexue.search.Store`.

    One object may be used by several threads; they take turns. Processes that write wait for each other up to
    `busy_timeout` seconds, then IndexBusyError.

    Attributes:
        path: of the file, as it was given.
        readonly: whether writes are refused.
        transactions: on the file.
        follower: the search engine.
        words: the postings.
    """

    busy_timeout = 30.0
    searches_words = True
    keeps_passages = True  # in format 2 there are no passages, but nor does it record that texts are to be split

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self.transactions = Transactions(path, readonly=readonly, timeout=self.busy_timeout)
        self.follower = EngineFollower(self.transactions)
        self.words = WordFollower(self.transactions)
        self._matching = Matching(self.transactions)
        self._groups = GroupReader()

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
        """Create an empty store; an index at `path` is replaced if `overwrite`, anything else never.

        `mode` is the permissions of the new file; None: those of the file that is replaced, else the system's default.
        """
        target = Path(path)
        check_target(target, overwrite=overwrite)
        with explain_errors(target):
            database.create(target, metadata, overwrite=overwrite, mode=mode)
        return cls.open(target)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, readonly: bool = False) -> EmbeddedStore:
        """Open an existing store; IndexFormatError for foreign, damaged and newer files."""
        target = Path(path).absolute()
        check_file(target)
        check_log_beside(Path(os.path.realpath(target)))
        store = cls(target, readonly=readonly)
        try:
            store.metadata()
        except BaseException:
            store.close(snapshot=False)
            raise
        return store

    def close(self, *, snapshot: bool = True) -> None:
        """Close the file; unless `snapshot` is False, write a snapshot first if much has changed since the last."""
        with self.transactions.lock:
            if self.transactions.closed:
                return
            try:
                used = self.transactions.writes or self.follower.engine or self.words.postings
                if snapshot and not self.readonly and used:
                    with contextlib.suppress(KexueError):  # a damaged file can be closed, too
                        self.follower.save_stale_snapshot()
                        self.words.save_stale_snapshot()
            finally:
                self.follower.engine = self.words.postings = None
                self.transactions.close()

    # Writing

    def upsert(
        self,
        rows: Sequence[Row],
        *,
        metadata: Mapping[str, Value] | None = None,
        expect: Mapping[str, Value | None] | None = None,
    ) -> Upserted:
        """Write `rows` and `metadata` in one durable step."""
        check_distinct(rows)
        check_spans(rows)
        needed = sum(2 * len(row.text) + 512 + (0 if row.vector is None else row.vector.nbytes) for row in rows)
        with self.transactions.write(needed) as (connection, state):
            if expect:
                self._check_expected(connection, expect)
            if metadata:
                tables.write_metadata(connection, state, metadata)
            if not rows:
                return Upserted(0, 0)
            _check_dims(connection, rows)
            replaced = remove(connection, state, [row.id for row in rows])
            insert(connection, state, rows)
        return Upserted(len(rows) - replaced, replaced)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id or by filter, exactly one of them."""
        check_selection(ids, filter)
        with self.transactions.write(64 * 1024) as (connection, state):
            if filter is not None:
                keys = self._matching.find_keys(connection, filter)
                where = f"key IN {tables.IDS}"
                ids = [row.id for row in tables.read_rows(connection, where, (json.dumps(keys.tolist()),), False)]
            wanted = list(dict.fromkeys(ids or ()))
            gone = remove(connection, state, wanted)
            if gone < len(wanted):
                self._matching.verify_ids(connection)
            return gone

    def compact(self) -> CompactReport:
        """Rewrite the file in the present format without the space of removed documents; write a fresh snapshot."""
        before = self.size()
        with self.transactions.lock:
            with self.transactions.write(before) as (connection, state):
                engine = self.follower.follow(connection)
                self.words.follow(connection)
                if not state.extended:
                    add_table(connection, state, FORMAT_VERSION)
                connection.execute("DELETE FROM tombstones")
                epoch = secrets.token_hex(8)  # engines of an older epoch have missed removals that are now forgotten
                tables.write_metadata(connection, state, {"epoch": epoch})
            if engine is not None:
                engine.position = engine.position._replace(epoch=epoch)
            self.words.renew(epoch)
            with ConnectionGuard(self.transactions, before) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.save_snapshot()
        return CompactReport(before, self.size())

    def save_snapshot(self) -> None:
        """Write engine and postings beside the file, which makes the next opening faster; a failure is logged."""
        self.follower.save_snapshot()
        self.words.save_snapshot()

    def _check_expected(self, connection: sqlite3.Connection, expect: Mapping[str, Value | None]) -> None:
        """Raise SpaceMismatchError where the metadata of the store are not those expected."""
        check_expected(self.path, self.transactions.metadata(connection).get, expect)

    # Reading

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """Return the documents with these ids that exist, in the order of `ids`."""
        with self.transactions.read() as connection:
            rows = self._read_rows(connection, f"id IN {tables.IDS}", (json.dumps(list(ids)),), vectors)
            stored = {row.id: row for row in rows}
            if len(stored) < len(set(ids)):
                self._matching.verify_ids(connection)
        return [stored[one] for one in ids if one in stored]

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the number of documents, or of those that match."""
        with self.transactions.read() as connection:
            if filter is None:
                return self.transactions.state(connection).n
            return len(self._matching.find_keys(connection, filter))

    def page(self, limit: int, *, after: str | None = None, filter: Filter | None = None) -> list[Row]:
        """Return the first `limit` documents whose id is above `after`, by id."""
        with self.transactions.read() as connection:
            if filter is not None:
                self._matching.verify_documents(connection)
            return read_page(connection, limit, after, filter)

    def count_passages(self) -> PassageCounts:
        """Return the numbers of split documents and of vectors."""
        with self.transactions.read() as connection:
            state = self.transactions.state(connection)
            return PassageCounts(state.split, state.vector_count)

    @property
    def format_version(self) -> int:
        """Version of the format of the file."""
        with self.transactions.read() as connection:
            return FORMAT_VERSION if self.transactions.state(connection).extended else FORMAT_VERSION - 1

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """Yield all documents in batches, oldest first."""
        last, tally, began = 0, ChecksumCounter(), None
        while True:
            with self.transactions.read() as connection:
                began = began or self.transactions.version
                keys = connection.execute(
                    "SELECT key FROM documents WHERE key > ? ORDER BY key LIMIT ?", (last, batch_size)
                ).fetchall()
                if not keys:
                    if began == self.transactions.version:  # nothing was written meanwhile: this must have been all
                        state = self.transactions.state(connection)
                        tally.check(state.n, state.documents, "documents")
                    return
                first, last = keys[0][0], keys[-1][0]
                batch = self._read_rows(connection, "key BETWEEN ? AND ?", (first, last), vectors, tally)
            yield batch

    def metadata(self) -> Mapping[str, Value]:
        """Return the metadata of the store as a whole."""
        with self.transactions.read() as connection:
            return self.transactions.metadata(connection)

    def size(self) -> int:
        """Return the bytes of the database with its log, and of the snapshots."""
        file = self.transactions.file
        names = (file, f"{file}-wal", self.follower.snapshot_path, self.words.snapshot_path)
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
        words: Words | None = None,
    ) -> list[list[Match]]:
        """Return the `k` documents of largest inner product for each row of `vectors` (m, d)."""
        with self.transactions.read() as connection:
            engine = self.follower.follow(connection)
            if expect:
                self._check_expected(connection, expect)
            allowed = None if filter is None else self._matching.find_keys(connection, filter)
            state = self.transactions.state(connection)
            among = state.n if allowed is None else len(allowed)
            if engine is None or not among or not len(vectors):
                return [[] for _ in vectors]
            if vectors.shape[1] != engine.dims:
                raise dimension_error("the query", vectors.shape[1], engine.dims)
            groups = self._groups.read(connection, state)

            def search_engine(queries: Vectors, k: int, allowed: Keys | None) -> tuple[Scores, Keys]:
                if engine.exact:
                    return engine.search(queries, k, allowed)
                return search_approximate(
                    connection, engine, queries, k, allowed=allowed, exact=exact, candidates=candidates
                )

            def search_grouped(queries: Vectors, k: int, allowed: Keys | None) -> tuple[Scores, Keys]:
                k = min(k, state.n if allowed is None else len(allowed))
                return search_documents(search_engine, groups, queries, k, allowed, total=state.vector_count)

            if words is None:
                scores, keys = search_grouped(vectors, k, allowed)
            else:
                postings = self.words.follow(connection)
                scores, keys = search_both(search_grouped, postings, vectors, words, k, allowed)
            matches = tables.read_matches(connection, scores, keys, with_vectors)
            if groups.any:
                matches = attach_best(connection, groups, vectors, matches, keys, vectors=with_vectors)
            return matches

    def _read_rows(
        self,
        connection: sqlite3.Connection,
        where: str,
        parameters: Sequence[Any],
        vectors: bool,
        tally: ChecksumCounter | None = None,
    ) -> list[Row]:
        """Return the documents that `where` selects, oldest first, with all their vectors if `vectors`."""
        rows = tables.read_rows(connection, where, parameters, vectors, tally)
        state = self.transactions.state(connection)
        if vectors and rows and state.split:
            rows = attach_passages(connection, self._groups.read(connection, state), rows, where, parameters)
        return rows

    def search_words(self, queries: Sequence[str], k: int, *, filter: Filter | None = None) -> list[list[Match]]:
        """Return the `k` documents of largest BM25 for each query."""
        with self.transactions.read() as connection:
            allowed = None if filter is None else self._matching.find_keys(connection, filter)
            postings = self.words.follow(connection)
            groups = self._groups.read(connection, self.transactions.state(connection))
            answers = []
            for query in queries:
                scores, keys = postings.search(query, k, allowed)
                [matches] = tables.read_matches(connection, scores[None], keys[None], False)
                answers.append(attach_worded(connection, groups, query, matches, keys) if groups.any else matches)
            return answers


def _check_dims(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Raise SpaceMismatchError where the vectors differ in length from each other or from the stored ones."""
    stored = connection.execute("SELECT length(vector) FROM vectors LIMIT 1").fetchone()
    check_dims(rows, stored[0] // 4 if stored else vector_length(rows[0]))
