"""Rows of the tables of a store, read and written with a checksum each.

The checksum of a row covers its key, which also detects a row in the place of another. The sums of the checksums of
each table are in ``state``; reading a whole table compares them, which detects missing rows.
"""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from kexue.search.products import Keys, Scores, Vectors, largest_products
from kexue.search.store.base import Match, Row, Value
from kexue.search.store.sqlite.errors import Damage

BLOCK = 4_096  # vectors read at a time
IDS = "(SELECT value FROM json_each(?))"
_MASK = 0xFFFF_FFFF
DOCUMENT = "documents.key, documents.checksum, CAST(id AS BLOB), CAST(text AS BLOB), CAST(metadata AS BLOB)"
_VECTOR = "vectors.checksum, vector"
_decode = json.JSONDecoder().raw_decode


# ---- checksums -------------------------------------------------------------------------------------------------------


def document_checksum(key: int, id: bytes, text: bytes, metadata: bytes) -> int:
    """Return the checksum of a row of documents."""
    return crc32(b"%d %d %d " % (key, len(id), len(text)) + id + text + metadata)


def vector_checksum(key: int, vector: bytes) -> int:
    """Return the checksum of a row of vectors."""
    return crc32(vector, key & _MASK)


def tombstone_checksum(n: int, key: int, vector: int) -> int:
    """Return the checksum of a row of tombstones: `key` was removed, and its vector had the checksum `vector`."""
    return crc32(b"%d %d %d" % (n, key, vector))


def _metadata_checksum(key: bytes, kind: str, value: bytes) -> int:
    return crc32(b"%d %s " % (len(key), kind.encode()) + key + value)


@dataclass
class State:
    """Numbers of rows in the tables of a store after a transaction, and the sums of their checksums.

    `change` is the name of the transaction and `before` that of the previous one; see `wal`. `split` documents have
    more than one vector, `extra` more in all; `passages` is the sum of the checksums of their spans. A file of format 2
    has none, and its state is not `extended` by these numbers.
    """

    before: str = "0" * 16
    change: str = "0" * 16
    n: int = 0
    documents: int = 0
    vectors: int = 0
    entries: int = 0
    metadata: int = 0
    split: int = 0
    extra: int = 0
    passages: int = 0
    extended: bool = field(default=True, kw_only=True)

    @property
    def vector_count(self) -> int:
        """Number of vectors."""
        return self.n + self.extra

    def line(self) -> str:
        """Return the state as the line that is stored."""
        numbers = [self.n, self.documents, self.vectors, self.entries, self.metadata]
        numbers += [self.split, self.extra, self.passages] if self.extended else []
        words = " ".join(["kexue-state", self.before, self.change, *map(str, numbers)])
        return f"{words} {crc32(words.encode()):08x}"

    @classmethod
    def parse(cls, line: bytes) -> State:
        """Read a stored line."""
        words, _, checksum = line.rpartition(b" ")
        if checksum != b"%08x" % crc32(words):
            raise Damage("its table 'state' is not what was written")
        _, before, change, *numbers = words.decode().split(" ")
        return cls(before, change, *map(int, numbers), extended=len(numbers) > 5)


def read_state(connection: sqlite3.Connection) -> State:
    """Return the state that this transaction sees."""
    rows = connection.execute("SELECT CAST(line AS BLOB) FROM state").fetchall()
    if len(rows) != 1:
        raise Damage("its table 'state' is not what was written")
    return State.parse(rows[0][0])


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Name a transaction that is about to end, and store its state."""
    state.before, state.change = state.change, secrets.token_hex(8)
    connection.execute("UPDATE state SET line = ?", (state.line(),))


class ChecksumCounter:
    """The number of rows read, and the sum of their checksums."""

    def __init__(self) -> None:
        self.n = 0
        self.checksums = 0

    def add(self, checksum: int) -> None:
        """Count one row."""
        self.n += 1
        self.checksums += checksum if isinstance(checksum, int) else 0

    def check(self, n: int, checksums: int, what: str) -> None:
        """Raise `Damage` where number or sum differ from those in the state."""
        if (self.n, self.checksums) != (n, checksums):
            raise Damage(f"it has {self.n} {what}, {n} were written; or their content has changed")


# ---- metadata of the store -------------------------------------------------------------------------------------------


def read_metadata(connection: sqlite3.Connection, state: State) -> dict[str, Value]:
    """Return the metadata of the store as a whole."""
    found: dict[str, Value] = {}
    tally = ChecksumCounter()
    columns = "CAST(key AS BLOB), typeof(value), CAST(value AS BLOB), checksum"
    for key, kind, value, checksum in connection.execute(f"SELECT {columns} FROM meta"):
        if checksum != _metadata_checksum(key, kind, value):
            raise Damage(f"its metadata entry {key.decode(errors='replace')!r:.60} is not what was written")
        tally.add(checksum)
        found[key.decode()] = value if kind == "blob" else value.decode()
    tally.check(state.entries, state.metadata, "entries of metadata")
    return found


def write_metadata(connection: sqlite3.Connection, state: State, values: Mapping[str, Value]) -> None:
    """Write entries of the metadata, replacing existing ones."""
    for key, value in values.items():
        old = connection.execute("SELECT checksum FROM meta WHERE key = ?", (key,)).fetchone()
        kind, data = ("text", value.encode()) if isinstance(value, str) else ("blob", value)
        checksum = _metadata_checksum(key.encode(), kind, data)
        connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum))
        state.entries += old is None
        state.metadata += checksum - (0 if old is None else old[0])


# ---- documents and vectors -------------------------------------------------------------------------------------------


def scalar(connection: sqlite3.Connection, statement: str, parameters: Sequence[Any] = ()) -> Any:
    """Return the single value of a statement."""
    return connection.execute(statement, parameters).fetchone()[0]


def removals(connection: sqlite3.Connection, after: int) -> list[tuple[int, int]]:
    """Return the keys removed after the tombstone `after`, and the checksums of their vectors."""
    found = connection.execute("SELECT n, checksum, key, vector FROM tombstones WHERE n > ?", (after,)).fetchall()
    for n, checksum, key, vector in found:
        if checksum != tombstone_checksum(n, key, vector):
            raise Damage(f"the tombstone {n} is not what was written")
    return [(key, vector) for _, _, key, vector in found]


def last_key(connection: sqlite3.Connection, table: str) -> int:
    """Return the largest key that a table has ever had."""
    return int(scalar(connection, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", [table]))


def read_rows(
    connection: sqlite3.Connection,
    where: str,
    parameters: Sequence[Any],
    vectors: bool,
    tally: ChecksumCounter | None = None,
) -> list[Row]:
    """Return the documents that `where` selects, oldest first, with their vectors if `vectors`."""
    columns, tables = DOCUMENT, "documents"
    if vectors:
        columns, tables = f"{DOCUMENT}, {_VECTOR}", "documents LEFT JOIN vectors USING (key)"
    statement = f"SELECT {columns} FROM {tables} WHERE {where} ORDER BY documents.key"
    found = []
    for key, checksum, id, text, metadata, *vector in connection.execute(statement, parameters):
        check_document(key, checksum, id, text, metadata)
        found.append(
            Row(id.decode(), text.decode(), _load(key, metadata), check_vector(key, *vector) if vectors else None)
        )
        if tally is not None:
            tally.add(checksum)
    return found


def verify_documents(connection: sqlite3.Connection, after: int, tally: ChecksumCounter) -> None:
    """Compare the documents with keys above `after` with their checksums."""
    statement = f"SELECT {DOCUMENT} FROM documents WHERE key > ? ORDER BY key"
    for key, checksum, id, text, metadata in connection.execute(statement, (after,)):
        check_document(key, checksum, id, text, metadata)
        tally.add(checksum)


def verify_ids(connection: sqlite3.Connection) -> None:
    """Compare the index of ids with the documents; a document missing in it would be taken for a new one."""
    lost = scalar(
        connection,
        "SELECT count(*) FROM documents AS one NOT INDEXED WHERE NOT EXISTS (SELECT 1 FROM documents AS other "
        "INDEXED BY sqlite_autoindex_documents_1 WHERE other.id = one.id AND other.key = one.key)",
    )
    if lost:
        raise Damage(f"{lost} of its documents cannot be looked up by their ids")


def read_blocks(
    connection: sqlite3.Connection, where: str, parameters: Sequence[Any], tally: ChecksumCounter | None = None
) -> Iterator[tuple[Keys, Vectors]]:
    """Yield keys and vectors of the documents that `where` selects, in ascending order, in blocks."""
    cursor = connection.execute(f"SELECT key, checksum, vector FROM vectors WHERE {where} ORDER BY key", parameters)
    while block := cursor.fetchmany(BLOCK):
        width = len(block[0][2]) if type(block[0][2]) is bytes else 0
        for key, checksum, vector in block:
            if type(vector) is not bytes or crc32(vector, key & _MASK) != checksum or len(vector) != width or width % 4:
                raise Damage(f"the vector with key {key}{id_words(connection, key)} is not what was written")
        keys = np.array([key for key, _, _ in block], np.int64)
        vectors = np.frombuffer(b"".join([vector for _, _, vector in block]), "<f4").reshape(len(block), -1)
        if not math.isfinite(vectors.sum()) and not (finite := np.isfinite(vectors).all(axis=1)).all():
            key = int(keys[finite.argmin()])
            raise Damage(f"the vector with key {key}{id_words(connection, key)} holds NaN or infinity")
        if tally is not None:
            tally.n += len(block)
            tally.checksums += sum([checksum for _, checksum, _ in block])
        yield keys, vectors


def read_vectors(connection: sqlite3.Connection, keys: Keys) -> Iterator[tuple[Keys, Vectors]]:
    """Yield keys and vectors for the given keys (ascending), in blocks."""
    for start in range(0, len(keys), BLOCK):
        some = keys[start : start + BLOCK]
        done = 0
        for block in read_blocks(connection, f"key IN {IDS}", (json.dumps(some.tolist()),)):
            done += len(block[0])
            yield block
        if done != len(some):
            raise Damage(f"{len(some) - done} of {len(some)} vectors are missing")


def scan(connection: sqlite3.Connection, queries: Vectors, k: int, allowed: Keys | None) -> tuple[Scores, Keys]:
    """Search the stored vectors exactly, reading them in blocks; `allowed`: keys (ascending), None: all."""
    source = read_blocks(connection, "key > 0", ()) if allowed is None else read_vectors(connection, allowed)
    return largest_products(queries, source, k)


def read_matches(connection: sqlite3.Connection, scores: Scores, keys: Keys, vectors: bool) -> list[list[Match]]:
    """Return the documents of the keys that a search has found, with scores, and with vectors if `vectors`."""
    columns, tables = DOCUMENT, "documents"
    if vectors:
        columns, tables = f"{DOCUMENT}, {_VECTOR}", "documents LEFT JOIN vectors USING (key)"
    statement = f"SELECT {columns} FROM {tables} WHERE documents.key IN {IDS}"
    documents = {row[0]: row for row in connection.execute(statement, (str(keys.ravel().tolist()),))}
    for row in documents.values():
        check_document(*row[:5])
    hits = []
    for best, places in zip(scores.tolist(), keys.tolist(), strict=True):
        if missing := [key for key in places if key not in documents]:
            raise Damage(f"the document with key {missing[0]} is missing")
        hits.append(
            [
                Match(id.decode(), text.decode(), _load(key, data), at, check_vector(key, *vector) if vectors else None)
                for (key, _, id, text, data, *vector), at in zip([documents[at] for at in places], best, strict=True)
            ]
        )
    return hits


def check_document(key: int, checksum: int, id: bytes, text: bytes, metadata: bytes) -> None:
    """Raise `Damage` for a document that differs from its checksum."""
    if not type(id) is type(text) is type(metadata) is bytes or checksum != document_checksum(key, id, text, metadata):
        name = id.decode(errors="replace") if isinstance(id, bytes) else "?"
        raise Damage(f"the document with key {key} (id {name!r:.80}) is not what was written")


def _load(key: int, metadata: bytes) -> dict[str, Any]:
    if metadata == b"{}":
        return {}
    try:
        loaded: dict[str, Any] = _decode(metadata.decode())[0]  # json.loads also checks whitespace
    except (ValueError, RecursionError):
        raise Damage(f"the metadata of the document with key {key} are no JSON") from None
    return loaded


def check_vector(key: int, checksum: int, vector: bytes) -> Vectors:
    """Return the vector of a row; `Damage` where it differs from its checksum."""
    if type(vector) is not bytes or len(vector) % 4 or checksum != vector_checksum(key, vector):
        raise Damage(f"the vector with key {key} is not what was written")
    return np.frombuffer(vector, "<f4")


def id_words(connection: sqlite3.Connection, key: int) -> str:
    """Return the id of a document for a message; empty where it cannot be read."""
    found = connection.execute("SELECT CAST(id AS BLOB) FROM documents WHERE key = ?", (key,)).fetchone()
    return f" (id {found[0].decode(errors='replace')!r:.80})" if found and isinstance(found[0], bytes) else ""
