"""Conditions on metadata: checked, read from a command line, and turned into SQL."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue.corpus import parse_scalar

MOST = 2_000  # conditions of one filter: SQLite plans that many in half a second, and ten times as many in fifty
OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "exists")
GRAMMAR = "field=value, with one of = != < <= > >= between"
_SIGNS = {"=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_EXPRESSION = re.compile(r"\s*([^<>=!]*[^<>=!\s])\s*(!=|<=|>=|=|<|>)\s*(?![<>=])(.*?)\s*", re.DOTALL)


class Condition(NamedTuple):
    """`field` compared with `value`; `operator` is one of `OPERATORS`."""

    field: str
    operator: str
    value: Any


def conditions(filter: Mapping[str, Any]) -> list[Condition]:
    """Check a filter and list its conditions, all of which must hold.

    A field's value is a plain value (equality), a dictionary of operators, or a list of these; numbers and arrays of
    numpy count as those of Python, and what ``in`` is given may be any iterable, which is read once. Numbers compare
    with numbers and strings with strings (by code point), never across; true is 1 and false is 0. `ne` is the negation
    of `eq`, so it holds where the field is missing. null counts as missing: `{"field": None}` is `{"exists": False}`.

    Raises:
        ValueError: an operator or value that is not legal (the message lists the legal ones), or too many conditions.

    >>> conditions({"lang": "en", "year": {"ge": 2020, "lt": 2024}})[1:]
    [Condition(field='year', operator='ge', value=2020), Condition(field='year', operator='lt', value=2024)]
    """
    if not isinstance(filter, Mapping):
        raise TypeError(f'filter must be a dictionary such as {{"year": {{"ge": 2020}}}}, got {filter!r:.60}')
    found: list[Condition] = []
    for field, wanted in filter.items():
        if not isinstance(field, str):
            raise TypeError(f"a filter's field must be a string, got {field!r}")
        wanted = _plain(wanted)  # noqa: PLW2901
        if isinstance(wanted, list | tuple) and not wanted:
            raise ValueError(f"the filter on {field!r} is an empty list, which would match everything")
        for one in wanted if isinstance(wanted, list | tuple) else [wanted]:
            clauses = one if isinstance(one, Mapping) else {"eq": one}
            if not clauses:
                raise ValueError(f"the filter on {field!r} has no operator; legal are {', '.join(OPERATORS)}")
            found += [_checked(Condition(_text(field, field), op, _plain(value))) for op, value in clauses.items()]
    if len(found) > MOST:
        raise ValueError(
            f"the filter has {len(found)} conditions, at most {MOST} are possible; use 'in' for many values"
        )
    return found


def plain_filter(filter: Mapping[str, Any]) -> dict[str, Any]:
    """The same filter in Python's own types, to be read as often as one likes.

    >>> plain_filter({"year": np.int64(2020), "lang": {"in": iter(["en", "de"])}})
    {'year': [{'eq': 2020}], 'lang': [{'in': ['en', 'de']}]}
    """
    plain: dict[str, Any] = {}
    for field, operator, value in conditions(filter):
        plain.setdefault(field, []).append({operator: value})
    return plain


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as those of Python."""
    if isinstance(value, np.longdouble):  # `tolist` leaves it as it is
        return float(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _text(field: str, text: str) -> str:
    """A string fit to be compared."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the filter on {field!r} holds half a surrogate pair, which no text has")
    return str(text)


def _checked(condition: Condition) -> Condition:
    field, operator, value = condition
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r} in the filter on {field!r}; legal are {', '.join(OPERATORS)}")
    if operator == "exists":
        if not isinstance(value, bool):
            raise ValueError(f"'exists' in the filter on {field!r} must be true or false, got {value!r}")
        return condition
    if value is None and operator in ("eq", "ne"):
        return Condition(field, "exists", operator == "ne")
    if operator == "in":
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise ValueError(f"'in' in the filter on {field!r} must be a list of values, got {value!r}")
        return Condition(field, operator, [_scalar(field, _plain(item)) for item in value])
    return Condition(field, operator, _scalar(field, value))


def _scalar(field: str, value: Any) -> str | int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the filter on {field!r} compares with {value}, which no metadata holds")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"the filter on {field!r} compares with a number beyond every float") from None
    if isinstance(value, str):
        return _text(field, value)
    if isinstance(value, int | float):
        return value
    raise ValueError(
        f"the filter on {field!r} must compare with a string, number or boolean, got {value!r:.60}; several values go "
        "into a list under 'in', a date into a string (its isoformat()), a decimal into a float"
    )


_SQL = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def to_sql(filter: Mapping[str, Any], column: str = "metadata") -> tuple[str, list[Any]]:
    """An SQL condition on a column of JSON objects, and its parameters; field names and values are never spliced in."""
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
    """Refuse NUL where SQLite's functions for JSON take it for the end of a string, as they did before 2023."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        [(read,)] = connection.execute("SELECT atom FROM json_each(?)", (json.dumps(["a\0b"]),))
        [(key,)] = connection.execute("SELECT key FROM json_each(?)", (json.dumps({"a\0b": 1}),))
    if (read, key) != ("a\0b", "a\0b"):
        raise ValueError(
            f"the filter on {field!r} holds a NUL character, which SQLite {sqlite3.sqlite_version} cannot compare"
        )


def join(word: str, clauses: Sequence[str]) -> str:
    """Clauses joined in a tree: a chain of thousands would go deeper than a parser likes.

    >>> join("or", ["a", "b", "c"])
    '(a or (b or c))'
    """
    if len(clauses) < 2:
        return clauses[0] if clauses else ""
    half = len(clauses) // 2
    return f"({join(word, clauses[:half])} {word} {join(word, clauses[half:])})"


def parse_filter(expressions: Iterable[str]) -> dict[str, Any]:
    """Read conditions written ``field>=value`` into a filter; several on one field all apply.

    A value is a number or boolean where it looks like one (as `parse_scalar` reads a CSV field); between double
    quotes it is a string whatever it looks like, and may begin with < > or =.

    Raises:
        ValueError: not of the form ``field=value``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``.

    >>> parse_filter(["lang=en", "year>=2020", "year<2024", 'version="3.10"'])
    {'lang': {'eq': 'en'}, 'year': {'ge': 2020, 'lt': 2024}, 'version': {'eq': '3.10'}}
    """
    parsed: dict[str, list[dict[str, Any]]] = {}
    for expression in expressions:
        match = _EXPRESSION.fullmatch(expression)
        if match is None:
            raise ValueError(f"a filter is written {GRAMMAR}; got {expression!r}")
        field, sign, text = match.groups()
        clauses = parsed.setdefault(field, [{}])
        operator = _SIGNS[sign]
        if operator in clauses[-1]:
            clauses.append({})
        clauses[-1][operator] = _filter_value(text)
    return {field: clauses if len(clauses) > 1 else clauses[0] for field, clauses in parsed.items()}


def _filter_value(text: str) -> str | int | float | bool:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            return text
    return parse_scalar(text)
