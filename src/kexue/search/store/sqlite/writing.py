"""Documents written to the tables of a store, and removed from them; the state is kept up to date."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

import numpy as np

from kexue.search.store.base import Row, dump_metadata
from kexue.search.store.sqlite.errors import Damage
from kexue.search.store.sqlite.passages import remove_spans, write_spans
from kexue.search.store.sqlite.tables import (
    IDS,
    State,
    document_checksum,
    last_key,
    tombstone_checksum,
    vector_checksum,
)


def insert(connection: sqlite3.Connection, state: State, rows: Sequence[Row]) -> None:
    """Write new documents and their vectors; each vector takes the next key, and a document that of its first one."""
    documents, vectors, spans = [], [], []
    key = last_key(connection, "documents") + 1
    for row in rows:
        metadata = dump_metadata(row.metadata)
        ours = document_checksum(key, row.id.encode(), row.text.encode(), metadata.encode())
        documents.append((key, ours, row.id, row.text, metadata))
        state.documents += ours
        if row.spans:
            spans.append((key, row.spans))
        for blob in _blobs(row):
            theirs = vector_checksum(key, blob)
            vectors.append((key, theirs, blob))
            state.vectors, key = state.vectors + theirs, key + 1
    connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", documents)
    connection.executemany("INSERT INTO vectors VALUES (?, ?, ?)", vectors)
    if spans:
        write_spans(connection, state, spans)
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'documents'", (key - 1,))
    state.n += len(rows)


def remove(connection: sqlite3.Connection, state: State, ids: Sequence[str]) -> int:
    """Delete documents by id, and write a tombstone for each vector; returns how many documents were deleted."""
    gone = connection.execute(
        "SELECT key, documents.checksum, vectors.checksum FROM documents LEFT JOIN vectors USING (key) "
        f"WHERE id IN {IDS}",
        (json.dumps(ids),),
    ).fetchall()
    for key, ours, theirs in gone:
        if type(ours) is not int or type(theirs) is not int:
            raise Damage(f"the document with key {key} has no vector or no checksum")
        state.documents -= ours
    removed = [(key, theirs) for key, _, theirs in gone]
    if more := remove_spans(connection, state, [key for key, *_ in gone]):
        removed += connection.execute(f"SELECT key, checksum FROM vectors WHERE key IN {IDS}", (json.dumps(more),))
        if len(removed) < len(gone) + len(more) or any(type(checksum) is not int for _, checksum in removed):
            raise Damage("a document that was split has lost a vector or its checksum")
    first = last_key(connection, "tombstones") + 1
    tombstones = [(n, tombstone_checksum(n, *one), *one) for n, one in enumerate(removed, start=first)]
    state.vectors -= sum(checksum for _, checksum in removed)
    connection.executemany("INSERT INTO tombstones VALUES (?, ?, ?, ?)", tombstones)
    connection.executemany("DELETE FROM documents WHERE key = ?", [(key,) for key, *_ in gone])
    connection.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for key, _ in removed])
    state.n -= len(gone)
    return len(gone)


def _blobs(row: Row) -> list[bytes]:
    """Return the vectors of a document as they are stored: little-endian float32."""
    if row.vector is None:
        raise ValueError(f"document {row.id!r} comes without a vector")
    if not row.spans:
        return [np.ascontiguousarray(row.vector, "<f4").tobytes()]
    return [vector.tobytes() for vector in np.ascontiguousarray(row.vector, "<f4")]
