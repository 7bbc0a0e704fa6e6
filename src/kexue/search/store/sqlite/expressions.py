"""Conditions on metadata as an SQL expression."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from kexue.search.filters import conditions, join

_SQL = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def to_sql(filter: Mapping[str, Any], column: str = "metadata") -> tuple[str, list[Any]]:
    """Return an SQL condition on a column of JSON objects, and its parameters, which hold field names and values."""
    clauses, parameters = [], []
    for field, operator, value in conditions(filter):
        if "\0" in field or any(
            "\0" in one for one in (value if operator == "in" else [value]) if isinstance(one, str)
        ):
            _check_nul(field)
        exists = f"EXISTS (SELECT 1 FROM json_each({column}) WHERE key = ? AND "
        parameters.append(field)
        if operator == "exists":
            clauses.append(("" if value else "NOT ") + exists + "type != 'null')")
        elif operator == "in":
            clauses.append(exists + "atom IN (SELECT value FROM json_each(?)))")
            parameters.append(json.dumps(value))
        elif operator == "ne":
            clauses.append("NOT " + exists + "atom = ?)")
            parameters.append(value)
        else:
            kind = "type = 'text'" if isinstance(value, str) else "type IN ('integer', 'real', 'true', 'false')"
            clauses.append(exists + f"{kind} AND atom {_SQL[operator]} ?)")
            parameters.append(value)
    return join("AND", clauses) or "1", parameters


def _check_nul(field: str) -> None:
    """Raise ValueError where the JSON functions of this SQLite end a string at a NUL, as they did before 2023."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        [(read,)] = connection.execute("SELECT atom FROM json_each(?)", (json.dumps(["a\0b"]),))
        [(key,)] = connection.execute("SELECT key FROM json_each(?)", (json.dumps({"a\0b": 1}),))
    if (read, key) != ("a\0b", "a\0b"):
        raise ValueError(
            f"the filter on {field!r} holds a NUL character, which SQLite {sqlite3.sqlite_version} cannot compare"
        )
