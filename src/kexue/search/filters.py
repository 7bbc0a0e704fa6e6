"""Conditions on metadata: checked, and read from a command line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue.corpus import parse_scalar

MAX_CONDITIONS = 2_000  # of one filter: SQLite plans 2,000 in half a second, and 20,000 in fifty
OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "exists")
GRAMMAR = "field=value, with one of = != < <= > >= between"
_SIGNS = {"=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_EXPRESSION = re.compile(r"\s*([^<>=!]*[^<>=!\s])\s*(!=|<=|>=|=|<|>)\s*(?![<>=])(.*?)\s*", re.DOTALL)


class Condition(NamedTuple):
    """A comparison of the field `field` with `value`; `operator` is one of `OPERATORS`."""

    field: str
    operator: str
    value: Any


def conditions(filter: Mapping[str, Any]) -> list[Condition]:
    """Return the conditions of a filter, checked; all of them must hold.

    A field's value is a plain value (equality), a dictionary of operators, or a list of these; numbers and arrays of
    numpy count as those of Python, and the values of ``in`` may be any iterable, which is read once. Numbers compare
    with numbers and strings with strings (by code point), never across; true is 1 and false is 0. `ne` is the negation
    of `eq`, so it holds where the field is missing. null counts as missing: `{"field": None}` is `{"exists": False}`.

    Raises:
        ValueError: an operator or value that is not allowed (the message lists those that are), or too many conditions.

    >>> conditions({"lang": "en", "year": {"ge": 2020, "lt": 2024}})[1:]
    [Condition(field='year', operator='ge', value=2020), Condition(field='year', operator='lt', value=2024)]
    """
    if not isinstance(filter, Mapping):
        raise TypeError(f'filter must be a dictionary such as {{"year": {{"ge": 2020}}}}, got {filter!r:.60}')
    checked: list[Condition] = []
    for field, wanted in filter.items():
        if not isinstance(field, str):
            raise TypeError(f"a filter's field must be a string, got {field!r}")
        wanted = plain_value(wanted)  # noqa: PLW2901
        if isinstance(wanted, list | tuple) and not wanted:
            raise ValueError(f"the filter on {field!r} is an empty list, which would match everything")
        for one in wanted if isinstance(wanted, list | tuple) else [wanted]:
            clauses = one if isinstance(one, Mapping) else {"eq": one}
            if not clauses:
                raise ValueError(f"the filter on {field!r} has no operator; legal are {', '.join(OPERATORS)}")
            checked += [
                _check_condition(Condition(_text(field, field), op, plain_value(value)))
                for op, value in clauses.items()
            ]
    if len(checked) > MAX_CONDITIONS:
        raise ValueError(
            f"the filter has {len(checked)} conditions, at most {MAX_CONDITIONS} are possible; use 'in' for many values"
        )
    return checked


def plain_filter(filter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same filter in plain Python types, without iterators.

    >>> plain_filter({"year": np.int64(2020), "lang": {"in": iter(["en", "de"])}})
    {'year': [{'eq': 2020}], 'lang': [{'in': ['en', 'de']}]}
    """
    plain: dict[str, Any] = {}
    for field, operator, value in conditions(filter):
        plain.setdefault(field, []).append({operator: value})
    return plain


def plain_value(value: Any) -> Any:
    """Return numbers and arrays of numpy as Python numbers and lists."""
    if isinstance(value, np.longdouble):  # `tolist` does not convert it
        return float(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _text(field: str, text: str) -> str:
    """Return a string as a plain str; ValueError where it holds half a surrogate pair."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the filter on {field!r} contains half a surrogate pair, which is not valid text")
    return str(text)


def _check_condition(condition: Condition) -> Condition:
    """Return a condition in plain Python values; ValueError where its operator or value is not legal."""
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
        return Condition(field, operator, [_scalar(field, plain_value(item)) for item in value])
    return Condition(field, operator, _scalar(field, value))


def _scalar(field: str, value: Any) -> str | int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the filter on {field!r} compares with {value}, which no metadata holds")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"the filter on {field!r} compares with a number that is too large for a float") from None
    if isinstance(value, str):
        return _text(field, value)
    if isinstance(value, int | float):
        return value
    raise ValueError(
        f"the filter on {field!r} must compare with a string, number or boolean, got {value!r:.60}; several values go "
        "into a list under 'in', a date into a string (its isoformat()), a decimal into a float"
    )


def join(word: str, clauses: Sequence[str]) -> str:
    """Join clauses in a balanced tree, since parsers limit the depth of a chain of thousands.

    >>> join("or", ["a", "b", "c"])
    '(a or (b or c))'
    """
    if len(clauses) < 2:
        return clauses[0] if clauses else ""
    half = len(clauses) // 2
    return f"({join(word, clauses[:half])} {word} {join(word, clauses[half:])})"


def parse_filter(expressions: Iterable[str]) -> dict[str, Any]:
    """Parse conditions such as ``field>=value`` into a filter; several on one field must all hold.

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
