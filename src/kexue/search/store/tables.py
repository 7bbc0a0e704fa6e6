"""Reading and writing rows of the embedded store's tables."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kexue.search.nearest import Keys, Scores, Vectors, nearest
from kexue.search.store.base import Found, Row

BLOCK = 4_096  # vectors read at a time
IDS = "(SELECT value FROM json_each(?))"
_decode = json.JSONDecoder().raw_decode


def scalar(connection: sqlite3.Connection, statement: str, parameters: Sequence[Any] = ()) -> Any:
    """The one value a statement gives."""
    return connection.execute(statement, parameters).fetchone()[0]


def dump(metadata: Mapping[str, Any]) -> str:
    """Metadata as the JSON that is stored."""
    return json.dumps(metadata, ensure_ascii=False, allow_nan=False) if metadata else "{}"


def _load(metadata: str) -> dict[str, Any]:
    return {} if metadata == "{}" else _decode(metadata)[0]  # skips the checks of json.loads for stray whitespace


def vector_length(row: Row) -> int:
    """How many numbers a document's vector has; 0 without one."""
    return 0 if row.vector is None else len(row.vector)


def blob(row: Row) -> bytes:
    """A document's vector as it is stored: float32, little end first."""
    if row.vector is None:
        raise ValueError(f"document {row.id!r} comes without a vector")
    return np.ascontiguousarray(row.vector, "<f4").tobytes()


def rows(connection: sqlite3.Connection, where: str, parameters: Sequence[Any], vectors: bool) -> list[Row]:
    """The documents that `where` selects, oldest first, with their vectors if wanted."""
    columns, tables = "id, text, metadata", "documents"
    if vectors:
        columns, tables = f"{columns}, vector", "documents JOIN vectors USING (key)"
    statement = f"SELECT {columns} FROM {tables} WHERE {where} ORDER BY key"
    cursor = connection.execute(statement, parameters)
    if not vectors:
        return [Row(one, text, _load(metadata)) for one, text, metadata in cursor]
    return [Row(one, text, _load(metadata), np.frombuffer(data, "<f4")) for one, text, metadata, data in cursor]


def blocks(connection: sqlite3.Connection, where: str, parameters: Sequence[Any]) -> Iterator[tuple[Keys, Vectors]]:
    """Keys and vectors of the documents that `where` selects, in ascending order, a block at a time."""
    cursor = connection.execute(f"SELECT key, vector FROM vectors WHERE {where} ORDER BY key", parameters)
    while block := cursor.fetchmany(BLOCK):
        keys = np.array([key for key, _ in block], np.int64)
        yield keys, np.frombuffer(b"".join(vector for _, vector in block), "<f4").reshape(len(block), -1)


def chosen(connection: sqlite3.Connection, keys: Keys) -> Iterator[tuple[Keys, Vectors]]:
    """The same for keys (ascending) that are named."""
    for start in range(0, len(keys), BLOCK):
        yield from blocks(connection, f"key IN {IDS}", (json.dumps(keys[start : start + BLOCK].tolist()),))


def scan(connection: sqlite3.Connection, queries: Vectors, k: int, allowed: Keys | None) -> tuple[Scores, Keys]:
    """The exact answer from the stored vectors, a block at a time."""
    source = blocks(connection, "key > 0", ()) if allowed is None else chosen(connection, allowed)
    return nearest(queries, source, k)


def found(connection: sqlite3.Connection, scores: Scores, keys: Keys, vectors: bool) -> list[list[Found]]:
    """The documents of a search's keys, with their scores, and with their vectors if wanted."""
    columns, tables = "key, id, text, metadata", "documents"
    if vectors:
        columns, tables = f"{columns}, vector", "documents JOIN vectors USING (key)"
    statement = f"SELECT {columns} FROM {tables} WHERE key IN {IDS}"
    documents = {row[0]: row for row in connection.execute(statement, (str(keys.ravel().tolist()),))}
    hits = []
    for best, places in zip(scores.tolist(), keys.tolist(), strict=True):
        row = [documents[key] for key in places]
        hits.append(
            [
                Found(id, text, _load(data), at, *(np.frombuffer(vector, "<f4") for vector in rest))
                for (_, id, text, data, *rest), at in zip(row, best, strict=True)
            ]
        )
    return hits
