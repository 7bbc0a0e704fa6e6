"""Passages of split documents: which characters each is, and which vectors belong to it.

A split document with the key n has the vectors n, n + 1, ..., one for each passage; its row of ``passages`` holds their
spans. Files of format 2 have no such table.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

from kexue.errors import NotSupported
from kexue.search.grouping import NO_GROUPS, Groups
from kexue.search.lexical import query_terms, read_terms
from kexue.search.products import Keys, Vectors
from kexue.search.store.base import Match, Row, Span
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.errors import Damage
from kexue.search.store.sqlite.tables import ChecksumCounter, State

TABLE = "CREATE TABLE passages (key INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, spans BLOB NOT NULL)"
_WIDTH = 8  # bytes of a span: start and end, unsigned, little-endian
_TIE = 1e-6  # inner products that differ by less are equal, up to rounding of float32


def add_table(connection: sqlite3.Connection, state: State, version: int) -> None:
    """Bring a file without passages to the format `version`, which has them."""
    connection.execute(TABLE)
    connection.execute(f"PRAGMA user_version = {version}")
    state.extended = True


def write_spans(connection: sqlite3.Connection, state: State, spans: Iterable[tuple[int, Sequence[Span]]]) -> None:
    """Write the passages of new documents, given as key and spans."""
    rows = []
    for key, some in spans:
        blob = np.array(some, "<u4").tobytes()
        rows.append((key, checksum := _checksum(key, blob), blob))
        state.split, state.extra, state.passages = (
            state.split + 1,
            state.extra + len(some) - 1,
            state.passages + checksum,
        )
    if rows and not state.extended:
        raise NotSupported(
            "this index file has format 2, which keeps one vector for each document.",
            remedy="Bring it to the present format: kexue index compact.",
        )
    connection.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)


def remove_spans(connection: sqlite3.Connection, state: State, documents: Sequence[int]) -> list[int]:
    """Delete the passages of documents that were split; returns the keys of their vectors but the first ones."""
    if not state.split:
        return []
    more: list[int] = []
    gone = []
    for key, checksum, spans in _read(connection, f"key IN {tables.IDS}", (json.dumps(documents),)):
        gone.append((key,))
        more += range(key + 1, key + len(spans))
        state.split, state.extra, state.passages = (
            state.split - 1,
            state.extra - len(spans) + 1,
            state.passages - checksum,
        )
    connection.executemany("DELETE FROM passages WHERE key = ?", gone)
    return more


class GroupReader:
    """The groups of vectors of a file, read again when the passages have changed."""

    def __init__(self) -> None:
        self._groups = NO_GROUPS
        self._known = (0, 0, 0)

    def read(self, connection: sqlite3.Connection, state: State) -> Groups:
        """Return the groups that this transaction sees."""
        current = (state.split, state.extra, state.passages)
        if current != self._known:
            self._groups, self._known = read_groups(connection, state), current
        return self._groups


def read_groups(connection: sqlite3.Connection, state: State) -> Groups:
    """Return the groups of vectors, after comparing all passages with their checksums and the sums."""
    tally = ChecksumCounter()
    firsts, counts = [], []
    if state.extended:
        for key, checksum, spans in _read(connection, "key > 0", ()):
            tally.add(checksum)
            firsts.append(key)
            counts.append(len(spans))
    tally.check(state.split, state.passages, "split documents")
    if sum(counts) - len(counts) != state.extra:
        raise Damage("its passages are not what was written")
    return Groups(np.array(firsts, np.int64), np.array(counts, np.int64))


def attach_passages(
    connection: sqlite3.Connection, groups: Groups, rows: Sequence[Row], where: str, parameters: Sequence[object]
) -> list[Row]:
    """Return rows that were read with their first vectors; those of split documents with all vectors, and their spans.

    Args:
        connection: to the file.
        groups: of all vectors.
        rows: the documents.
        where, parameters: condition that has selected them.
    """
    keys = dict(connection.execute(f"SELECT id, key FROM documents WHERE {where}", parameters))
    spans = _read_spans(connection, groups, [keys[row.id] for row in rows])
    found = _read_vectors(connection, spans)
    return [
        row._replace(vector=found[key], spans=spans[key]) if (key := keys[row.id]) in spans else row for row in rows
    ]


def attach_best(
    connection: sqlite3.Connection,
    groups: Groups,
    queries: Vectors,
    answers: Sequence[Sequence[Match]],
    keys: Keys,
    *,
    vectors: bool,
) -> list[list[Match]]:
    """Return the answers to queries with the best passage of each document that was split.

    Args:
        connection: to the file.
        groups: of all vectors.
        queries: (m, d).
        answers: of each query, with the `keys` (m, k) of their documents.
        vectors: add the vector of the passage.
    """
    spans = _read_spans(connection, groups, np.unique(keys).tolist())
    stored = _read_vectors(connection, spans)

    def attach(query: Vectors, match: Match, key: int) -> Match:
        if key not in spans:
            return match
        products = stored[key] @ query
        best = int(np.flatnonzero(products >= products.max() - _TIE)[0])
        return match._replace(span=spans[key][best], vector=stored[key][best] if vectors else None)

    return [
        [attach(query, match, key) for match, key in zip(matches, places, strict=True)]
        for query, matches, places in zip(queries, answers, keys.tolist(), strict=True)
    ]


def attach_worded(
    connection: sqlite3.Connection, groups: Groups, query: str, answers: Sequence[Match], keys: Keys
) -> list[Match]:
    """Return the answers to a search for words with the passage of each split document that holds most of its terms.

    Args:
        connection: to the file.
        groups: of all vectors.
        query: as text.
        answers: with the `keys` (k,) of their documents.
    """
    spans, wanted = _read_spans(connection, groups, keys.tolist()), query_terms(query)

    def attach(match: Match, key: int) -> Match:
        if key not in spans:
            return match
        found = read_terms([match.text[start:end] for start, end in spans[key]])
        here = np.isin(found.terms, wanted)
        pairs = np.unique(np.stack([found.texts[here].astype(np.uint64), found.terms[here]]), axis=1)
        counts = np.bincount(pairs[0].astype(np.int64), minlength=len(spans[key]))
        return match._replace(span=spans[key][int(counts.argmax())])

    return [attach(match, key) for match, key in zip(answers, keys.tolist(), strict=True)]


def _read_spans(
    connection: sqlite3.Connection, groups: Groups, documents: Sequence[int]
) -> dict[int, tuple[Span, ...]]:
    """Return the passages of those of the documents that were split, by key, ascending."""
    keys = np.unique(np.array(documents, np.int64))
    sizes = groups.sizes(keys)
    rows = _read(connection, f"key IN {tables.IDS}", (json.dumps(keys[sizes > 1].tolist()),))
    spans = {key: tuple((start, end) for start, end in some.tolist()) for key, _, some in rows}
    if [len(some) for some in spans.values()] != sizes[sizes > 1].tolist():
        raise Damage("the passages of a document are missing, or were changed")
    return spans


def _read_vectors(connection: sqlite3.Connection, spans: Mapping[int, tuple[Span, ...]]) -> dict[int, Vectors]:
    """Return the vectors (m, d) of split documents, given by key, ascending."""
    if not spans:
        return {}
    keys = [np.arange(key, key + len(some)) for key, some in spans.items()]
    matrix = np.concatenate([block for _, block in tables.read_vectors(connection, np.concatenate(keys))])
    parts = np.split(matrix, np.cumsum([len(some) for some in keys])[:-1])
    return dict(zip(spans, parts, strict=True))


def _read(
    connection: sqlite3.Connection, where: str, parameters: Sequence[object]
) -> Iterator[tuple[int, int, npt.NDArray[np.uint32]]]:
    """Yield key, checksum and spans (m, 2) of the rows that `where` selects, after comparing them; ascending."""
    cursor = connection.execute(f"SELECT key, checksum, spans FROM passages WHERE {where} ORDER BY key", parameters)
    for key, checksum, blob in cursor.fetchall():
        if type(blob) is not bytes or len(blob) % _WIDTH or len(blob) < 2 * _WIDTH or checksum != _checksum(key, blob):
            raise Damage(f"the passages of the document with key {key}{tables.id_words(connection, key)} are not right")
        yield key, checksum, np.frombuffer(blob, "<u4").reshape(-1, 2)


def _checksum(key: int, spans: bytes) -> int:
    return crc32(b"%d " % key + spans)
