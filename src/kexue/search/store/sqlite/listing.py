"""Pages of the documents in a file, in the order of their ids."""

from __future__ import annotations

import json
import sqlite3

from kexue.search.store.base import Filter, Row
from kexue.search.store.sqlite import tables
from kexue.search.store.sqlite.expressions import to_sql


def read_page(connection: sqlite3.Connection, limit: int, after: str | None, filter: Filter | None) -> list[Row]:
    """Return the first `limit` documents whose id is above `after` and which match, by id."""
    where, parameters = ("1", []) if filter is None else to_sql(filter)
    if after is not None:
        where, parameters = f"id > ? AND {where}", [after, *parameters]
    found = connection.execute(f"SELECT key FROM documents WHERE {where} ORDER BY id LIMIT ?", [*parameters, limit])
    keys = json.dumps([key for (key,) in found])
    rows = tables.read_rows(connection, f"documents.key IN {tables.IDS}", (keys,), False)
    return sorted(rows, key=lambda row: row.id)
