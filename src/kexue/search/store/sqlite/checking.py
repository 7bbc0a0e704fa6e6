"""Everything in an index file looked at, and what is wrong with it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator

import numpy as np

from kexue._progress import Progress
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.tables import Damage, Tally

MAX_LISTED = 20  # problems of one kind


def find_problems(connection: sqlite3.Connection, progress: Progress | None = None) -> list[str]:
    """Compare the structure, every row and every sum with what was written; one sentence a problem, none when whole."""
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
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, 2 * state.n), 2 * state.n)

    documents, vectors = Tally(), Tally()
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _documents(connection, documents, tick),
        lambda: _vectors(connection, vectors, tick),
        lambda: _whole(lambda: tables.read_metadata(connection, state)),
        lambda: _whole(lambda: tables.removals(connection, 0)),
        lambda: _whole(lambda: documents.check(state.n, state.documents, "documents")),
        lambda: _whole(lambda: vectors.check(state.n, state.vectors, "vectors")),
        lambda: _strangers(connection),
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


def _documents(connection: sqlite3.Connection, tally: Tally, tick: Callable[[int], None]) -> Iterator[str]:
    for row in connection.execute(f"SELECT {tables.DOCUMENT} FROM documents ORDER BY key"):
        try:
            tables.check_document(*row)
        except Damage as error:
            yield str(error)
        tally.add(row[1])
        tick(1)


def _vectors(connection: sqlite3.Connection, tally: Tally, tick: Callable[[int], None]) -> Iterator[str]:
    length = None
    for key, checksum, data in connection.execute("SELECT key, checksum, vector FROM vectors ORDER BY key"):
        try:
            vector = tables.check_vector(key, checksum, data)
            length = length or len(vector)
            if len(vector) != length:
                yield f"the vector with key {key}{tables.name(connection, key)} has {len(vector)} numbers, not {length}"
            if not math.isfinite(vector.sum()) and not np.isfinite(vector).all():
                yield f"the vector with key {key}{tables.name(connection, key)} holds NaN or infinity"
        except Damage as error:
            yield f"{error}{tables.name(connection, key)}"
        tally.add(checksum)
        tick(1)


def _whole(look: Callable[[], object]) -> Iterator[str]:
    try:
        look()
    except Damage as error:
        yield str(error)


def _strangers(connection: sqlite3.Connection) -> Iterator[str]:
    for one, other in (("documents", "vectors"), ("vectors", "documents")):
        for (key,) in connection.execute(f"SELECT key FROM {one} EXCEPT SELECT key FROM {other} LIMIT {MAX_LISTED}"):
            yield f"the key {key} is in the table {one}, not in {other}"
