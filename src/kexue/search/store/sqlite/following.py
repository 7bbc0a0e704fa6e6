"""The search engine in memory, kept up to date with the file of a store."""

from __future__ import annotations

import sqlite3

import numpy as np

from kexue.search.engine import Engine, Position, build_engine, load_engine
from kexue.search.products import Keys, Scores, Vectors
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.snapshots import Follower
from kexue.search.store.sqlite.tables import ChecksumCounter, State
from kexue.search.store.sqlite.transactions import Transactions

_QUERIES = 64  # queries of an approximate search at a time


class EngineFollower(Follower):
    """The engine of a store, and its snapshot beside the file.

    A changed document gets a new key, and its old key goes to `tombstones`; keys and tombstones only increase. So the
    changes since any earlier state are a range of keys and a range of tombstones, and the same code brings up to date
    an engine in memory and one from a snapshot, no matter which process made the changes.

    Attributes:
        engine: None before the first search, and while there are no vectors.
    """

    def __init__(self, transactions: Transactions) -> None:
        super().__init__(transactions, "-snapshot")
        self.engine: Engine | None = None

    def follow(self, connection: sqlite3.Connection) -> Engine | None:
        """Return the engine with the vectors that this transaction sees; None while there are none."""
        version = self._transactions.version
        if self._version == version:
            return self.engine
        state, metadata = self._transactions.state(connection), self._transactions.metadata(connection)
        n, epoch, approx = state.vector_count, str(metadata["epoch"]), str(metadata.get("approx", "auto"))
        engine = self.engine or (load_engine(self.snapshot_path) if n else None)
        if engine is not None and not (engine.position.epoch == epoch and engine.suits(n, approx)):
            engine = None
        if engine is not None and not _catch_up(connection, engine, state):
            engine = None
        if engine is None and n:
            engine = self._build(connection, state, approx)
            self._stale = True
        if engine is not None:
            last, removed = tables.last_key(connection, "documents"), tables.last_key(connection, "tombstones")
            engine.position = Position(epoch, last, removed, state.vectors)
        self.engine, self._version = engine, version
        return engine

    def _build(self, connection: sqlite3.Connection, state: State, approx: str) -> Engine:
        dims = tables.scalar(connection, "SELECT length(vector) FROM vectors LIMIT 1") // 4
        tally = ChecksumCounter()

        def sample(size: int) -> Vectors:
            keys = np.array([key for (key,) in connection.execute("SELECT key FROM vectors")])
            some = np.random.default_rng(0).permutation(keys)[:size]
            return np.concatenate([block for _, block in tables.read_vectors(connection, np.sort(some))])

        blocks = tables.read_blocks(connection, "key > 0", (), tally)
        engine = build_engine(blocks, sample, n=state.vector_count, dims=dims, approx=approx)
        tally.check(state.vector_count, state.vectors, "vectors")
        return engine


def _catch_up(connection: sqlite3.Connection, engine: Engine, state: State) -> bool:
    """Bring an engine to the state of the store; False where it does not belong to this store."""
    _, last_key, last_removal, checksums = engine.position
    gone = [(key, vector) for key, vector in tables.removals(connection, last_removal) if key <= last_key]
    if gone:
        engine.remove(np.array([key for key, _ in gone], np.int64))
    tally = ChecksumCounter()
    for keys, vectors in tables.read_blocks(connection, "key > ?", (last_key,), tally):
        if vectors.shape[1] != engine.dims:
            return False
        engine.add(keys, vectors)
    checksums += tally.checksums - sum(vector for _, vector in gone)
    return (len(engine.keys), checksums) == (state.vector_count, state.vectors)


def search_approximate(
    connection: sqlite3.Connection,
    engine: Engine,
    vectors: Vectors,
    k: int,
    *,
    allowed: Keys | None,
    exact: bool,
    candidates: int | None,
) -> tuple[Scores, Keys]:
    """Score the candidates of an inverted file by their stored vectors; scan all where that is asked for or cheaper.

    Args:
        connection: to the stored vectors.
        engine: chooses the candidates.
        vectors: queries (m, d).
        k: answers per query, at most the number of vectors allowed.
        allowed: keys (ascending); None: all.
        exact, candidates: as in `Store.search`.
    """
    among = len(engine.keys if allowed is None else allowed)
    wanted = max(k, candidates or max(4 * k, 100))
    if exact or wanted >= among // 4 or (allowed is not None and among <= tables.BLOCK):
        return tables.scan(connection, vectors, k, allowed)
    scores, keys = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
    for start in range(0, len(vectors), _QUERIES):
        part = slice(start, start + _QUERIES)
        _, near = engine.search(vectors[part], wanted, allowed)
        union = np.unique(near[near >= 0])
        stored = np.concatenate([block for _, block in tables.read_vectors(connection, union)]) if len(union) else None
        for row, (query, some) in enumerate(zip(vectors[part], near, strict=True), start=start):
            some = np.sort(some[some >= 0])  # noqa: PLW2901
            if stored is None or len(some) < k:  # the opened cells hold too few
                scores[row], keys[row] = (best[0] for best in tables.scan(connection, query[None], k, allowed))
                continue
            exactly = stored[np.searchsorted(union, some)] @ query
            order = np.argsort(-exactly, kind="stable")[:k]
            scores[row], keys[row] = exactly[order], some[order]
    return scores, keys
