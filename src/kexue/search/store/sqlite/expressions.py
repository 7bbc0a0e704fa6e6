"""Conditions on metadata as an SQL expression."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from kexue.search.filters import Either, Negation, Part, conditions, join

_SQL = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def to_sql(filter: Mapping[str, Any], column: str = "metadata") -> tuple[str, list[Any]]:
    """Return an SQL condition on a column of JSON objects, and its parameters, which hold field names and values."""
    parameters: list[Any] = []
    return _all_of(conditions(filter), column, parameters) or "1", parameters


def _all_of(parts: Iterable[Part], column: str, parameters: list[Any]) -> str:
    """Return the condition that all parts hold; their parameters are appended, in the order of the text."""
    return join("AND", [_part(part, column, parameters) for part in parts])


def _part(part: Part, column: str, parameters: list[Any]) -> str:
    if isinstance(part, Either):
        return join("OR", [f"({_all_of(some, column, parameters)})" for some in part.parts])
    if isinstance(part, Negation):
        return f"NOT ({_all_of(part.parts, column, parameters)})"
    field, operator, value = part
    if "\0" in field or any(
        "\0" in one for one in (value if operator in ("in", "nin") else [value]) if isinstance(one, str)
    ):
        _check_nul(field)
    exists = f"EXISTS (SELECT 1 FROM json_each({column}) WHERE key = ? AND "
    parameters.append(field)
    if operator == "exists":
        return ("" if value else "NOT ") + exists + "type != 'null')"
    negated = "NOT " if operator in ("ne", "nin") else ""
    if operator in ("in", "nin"):
        parameters.append(json.dumps(value))
        return f"{negated}{exists}atom IN (SELECT value FROM json_each(?)))"
    parameters.append(value)
    if operator == "ne":
        return f"NOT {exists}atom = ?)"
    kind = "type = 'text'" if isinstance(value, str) else "type IN ('integer', 'real', 'true', 'false')"
    return f"{exists}{kind} AND atom {_SQL[operator]} ?)"


def _check_nul(field: str) -> None:
    """Raise ValueError where the JSON functions of this SQLite end a string at a NUL, as they did before 2023."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        [(read,)] = connection.execute("SELECT atom FROM json_each(?)", (json.dumps(["a\0b"]),))
        [(key,)] = connection.execute("SELECT key FROM json_each(?)", (json.dumps({"a\0b": 1}),))
    if (read, key) != ("a\0b", "a\0b"):
        raise ValueError(
            f"the filter on {field!r} holds a NUL character, which SQLite {sqlite3.sqlite_version} cannot compare"
        )
