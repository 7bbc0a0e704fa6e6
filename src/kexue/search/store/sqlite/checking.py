"""Search for damage in everything an index file holds."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator

import numpy as np

from kexue._progress import Progress
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.errors import Damage
from kexue.search.store.sqlite.passages import read_groups
from kexue.search.store.sqlite.tables import ChecksumCounter, State

MAX_LISTED = 20  # problems of one kind


def find_problems(connection: sqlite3.Connection, progress: Progress | None = None) -> list[str]:
    """Check the structure, every row and every sum of a file; returns one sentence per problem."""
    problems: list[str] = []
    try:
        problems += [
            f"structure: {line}"
            for (line,) in connection.execute(f"PRAGMA integrity_check({MAX_LISTED})")
            if line != "ok"
        ]
        state = tables.read_state(connection)
    except (sqlite3.Error, Damage) as error:
        return [*problems, str(error)]
    done, total = 0, state.n + state.vector_count

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    documents, vectors = ChecksumCounter(), ChecksumCounter()
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _check_documents(connection, documents, tick),
        lambda: _check_vectors(connection, vectors, tick),
        lambda: _report_damage(lambda: tables.read_metadata(connection, state)),
        lambda: _report_damage(lambda: tables.removals(connection, 0)),
        lambda: _report_damage(lambda: documents.check(state.n, state.documents, "documents")),
        lambda: _report_damage(lambda: vectors.check(state.vector_count, state.vectors, "vectors")),
        lambda: _check_keys(connection, state),
    ]
    for check in checks:
        kind: list[str] = []
        try:
            for problem in check():
                kind.append(problem)
                if len(kind) > MAX_LISTED:
                    kind[-1] = "and more of these"
                    break
        except (sqlite3.Error, Damage) as error:
            kind.append(str(error))
        problems += kind
    return problems


def _check_documents(
    connection: sqlite3.Connection, tally: ChecksumCounter, tick: Callable[[int], None]
) -> Iterator[str]:
    """Yield the documents that differ from their checksums."""
    for row in connection.execute(f"SELECT {tables.DOCUMENT} FROM documents ORDER BY key"):
        try:
            tables.check_document(*row)
        except Damage as error:
            yield str(error)
        tally.add(row[1])
        tick(1)


def _check_vectors(
    connection: sqlite3.Connection, tally: ChecksumCounter, tick: Callable[[int], None]
) -> Iterator[str]:
    """Yield the vectors that differ from their checksums, from the common length, or are not finite."""
    length = None
    for key, checksum, data in connection.execute("SELECT key, checksum, vector FROM vectors ORDER BY key"):
        try:
            vector = tables.check_vector(key, checksum, data)
            length = length or len(vector)
            if len(vector) != length:
                words = tables.id_words(connection, key)
                yield f"the vector with key {key}{words} has {len(vector)} numbers, not {length}"
            if not math.isfinite(vector.sum()) and not np.isfinite(vector).all():
                yield f"the vector with key {key}{tables.id_words(connection, key)} holds NaN or infinity"
        except Damage as error:
            yield f"{error}{tables.id_words(connection, key)}"
        tally.add(checksum)
        tick(1)


def _report_damage(read: Callable[[], object]) -> Iterator[str]:
    """Yield the damage that `read` finds."""
    try:
        read()
    except Damage as error:
        yield str(error)


def _check_keys(connection: sqlite3.Connection, state: State) -> Iterator[str]:
    """Yield the keys of documents without a vector, and of vectors without a document; and damaged passages."""
    groups = read_groups(connection, state)
    expected = {*groups.vectors(groups.firsts).tolist()} - {*groups.firsts.tolist()}
    for (key,) in connection.execute(f"SELECT key FROM documents EXCEPT SELECT key FROM vectors LIMIT {MAX_LISTED}"):
        yield f"the key {key} is in the table documents, not in vectors"
    for (key,) in connection.execute("SELECT key FROM vectors EXCEPT SELECT key FROM documents"):
        if key in expected:
            expected.remove(key)
        else:
            yield f"the key {key} is in the table vectors, not in documents"
    yield from (f"the passage with key {key} has no vector" for key in sorted(expected))
    for (key,) in (
        connection.execute("SELECT key FROM passages EXCEPT SELECT key FROM documents") if state.split else ()
    ):
        yield f"the key {key} is in the table passages, not in documents"
