"""Conditions on metadata: checked, and read from a command line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue.corpus import parse_scalar
from kexue.corpus.kinds import read_date

MAX_CONDITIONS = 2_000  # of one filter: SQLite plans 2,000 in half a second, and 20,000 in fifty
OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "nin", "exists")
CONNECTIVES = ("and", "or", "not")
DEPTH = 32  # levels of `and`, `or` and `not` inside each other
GRAMMAR = "field=value, with one of = != < <= > >= between, several values as a|b; or as a JSON object"
_SIGNS = {"=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_LISTS = {"eq": "in", "ne": "nin"}  # what a sign means before several values
_EXPRESSION = re.compile(r"\s*([^<>=!]*[^<>=!\s])\s*(!=|<=|>=|=|<|>)\s*(?![<>=])(.*?)\s*", re.DOTALL)
_VALUES = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^|]*?)\s*(?:\||$)', re.DOTALL)  # the values of a|"b|c"


class Condition(NamedTuple):
    """A comparison of the field `field` with `value`; `operator` is one of `OPERATORS`."""

    field: str
    operator: str
    value: Any


class Either(NamedTuple):
    """Alternatives, one of which must hold; all parts of an alternative must hold together."""

    parts: list[list[Part]]


class Negation(NamedTuple):
    """Parts that must not all hold."""

    parts: list[Part]


Part = Condition | Either | Negation


def conditions(filter: Mapping[str, Any]) -> list[Part]:
    """Return the parts of a filter, checked; all of them must hold.

    A field's value is a plain value (equality), a dictionary of operators, or a list of these; numbers and arrays of
    numpy count as those of Python, and the values of ``in`` may be any iterable, which is read once. Numbers compare
    with numbers and strings with strings (by code point, so dates in ISO form compare by time), never across; true is 1
    and false is 0. `ne` and `nin` are the negations of `eq` and `in`, so they hold where the field is missing. null
    counts as missing: `{"field": None}` is `{"exists": False}`. ``{"and": [...]}`` and ``{"or": [...]}`` hold a list of
    filters, ``{"not": {...}}`` one; all three may stand inside each other, beside fields, up to `DEPTH` levels.

    Raises:
        ValueError: an operator or value that is not allowed (the message lists those that are), or too many conditions.

    >>> conditions({"lang": "en", "year": {"ge": 2020, "lt": 2024}})[1:]
    [Condition(field='year', operator='ge', value=2020), Condition(field='year', operator='lt', value=2024)]
    >>> len(conditions({"or": [{"lang": "zh"}, {"year": {"ge": 2024}, "draft": False}]})[0].parts)
    2
    """
    parts = _parse(filter, 0)
    if (n := sum(1 for _ in comparisons(parts))) > MAX_CONDITIONS:
        raise ValueError(
            f"the filter has {n} conditions, at most {MAX_CONDITIONS} are possible; use 'in' for many values"
        )
    return parts


def _parse(filter: Mapping[str, Any], depth: int) -> list[Part]:
    """Return the parts of a filter, without counting them."""
    if not isinstance(filter, Mapping):
        raise TypeError(f'filter must be a dictionary such as {{"year": {{"ge": 2020}}}}, got {filter!r:.60}')
    if depth > DEPTH:
        raise ValueError(f"the filter is nested too deeply, expected at most {DEPTH} levels of and, or, not")
    parts: list[Part] = []
    for field, wanted in filter.items():
        if not isinstance(field, str):
            raise TypeError(f"a filter's field must be a string, got {field!r}")
        if field in CONNECTIVES:
            parts += _parse_connective(field, wanted, depth + 1)
            continue
        wanted = plain_value(wanted)  # noqa: PLW2901
        if isinstance(wanted, list | tuple) and not wanted:
            raise ValueError(f"the filter on {field!r} is an empty list, which would match everything")
        for one in wanted if isinstance(wanted, list | tuple) else [wanted]:
            clauses = one if isinstance(one, Mapping) else {"eq": one}
            if not clauses:
                raise ValueError(f"the filter on {field!r} has no operator; legal are {', '.join(OPERATORS)}")
            parts += [
                _check_condition(Condition(_text(field, field), op, plain_value(value)))
                for op, value in clauses.items()
            ]
    return parts


def _parse_connective(word: str, wanted: Any, depth: int) -> list[Part]:
    """Return the parts of ``{word: wanted}``, where the word is one of `CONNECTIVES`."""
    filters = [wanted] if word == "not" else wanted
    if isinstance(filters, str | Mapping) or not isinstance(filters, Iterable):
        raise ValueError(f"{word!r} in a filter must be a list of filters, got {filters!r:.60}")
    filters = list(filters)
    for one in filters:
        if not isinstance(one, Mapping):
            raise ValueError(f"{word!r} in a filter must hold filters such as {{'lang': 'en'}}, got {one!r:.60}")
    if not filters or not all(filters):
        raise ValueError(f"{word!r} in a filter holds an empty filter, which would match everything")
    parts = [_parse(one, depth) for one in filters]
    if word == "and":
        return [part for some in parts for part in some]
    return [Either(parts)] if word == "or" else [Negation(parts[0])]


def comparisons(parts: Iterable[Part]) -> Iterator[Condition]:
    """Yield the conditions among parts of a filter, at any depth."""
    for part in parts:
        if isinstance(part, Condition):
            yield part
        elif isinstance(part, Negation):
            yield from comparisons(part.parts)
        else:
            for some in part.parts:
                yield from comparisons(some)


def compared_fields(filter: Mapping[str, Any]) -> list[str]:
    """Return the fields whose values a filter compares; ``exists`` compares none.

    >>> compared_fields({"or": [{"lang": "en"}, {"year": {"ge": 2020}}], "draft": {"exists": False}})
    ['lang', 'year']
    """
    return list(dict.fromkeys(one.field for one in comparisons(conditions(filter)) if one.operator != "exists"))


def plain_filter(filter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same filter in plain Python types, without iterators.

    >>> plain_filter({"year": np.int64(2020), "lang": {"in": iter(["en", "de"])}})
    {'year': [{'eq': 2020}], 'lang': [{'in': ['en', 'de']}]}
    """
    return _to_plain(conditions(filter))


def _to_plain(parts: Iterable[Part]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for part in parts:
        if isinstance(part, Condition):
            plain.setdefault(part.field, []).append({part.operator: part.value})
        elif isinstance(part, Either):
            plain.setdefault("and", []).append({"or": [_to_plain(some) for some in part.parts]})
        else:
            plain.setdefault("and", []).append({"not": _to_plain(part.parts)})
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
    if operator in ("in", "nin"):
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise ValueError(f"{operator!r} in the filter on {field!r} must be a list of values, got {value!r}")
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

    A value that looks like a number or boolean (as `parse_scalar` reads a CSV field) is one; after ``=`` and ``!=`` its
    spelling counts as well, since the column may be text. A date such as 2024/5/1 is read in ISO form. Between double
    quotes a value is a string whatever it looks like, and may hold any character. ``field=a|b`` means one of these
    values, ``field!=a|b`` none of them. An expression that begins with ``{`` is a filter in JSON, which may hold
    ``and``, ``or`` and ``not``.

    Raises:
        ValueError: not of the form ``field=value``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``, or not JSON.

    >>> parse_filter(["lang=en|zh", "year>=2020", "year<2024", "version=3.10"])
    {'lang': {'in': ['en', 'zh']}, 'year': {'ge': 2020, 'lt': 2024}, 'version': {'in': [3.1, '3.10']}}
    """
    parsed: dict[str, list[dict[str, Any]]] = {}
    groups: list[Any] = []
    for expression in expressions:
        if expression.lstrip().startswith("{"):
            groups.append(_parse_object(expression))
            continue
        match = _EXPRESSION.fullmatch(expression)
        if match is None:
            raise ValueError(f"a filter is written {GRAMMAR}; got {expression!r}")
        field, sign, text = match.groups()
        if field in CONNECTIVES:
            raise ValueError(f"and, or, not need JSON, such as {_EXAMPLE}; got {expression!r}")
        clauses = parsed.setdefault(field, [{}])
        operator, value = _parse_values(_SIGNS[sign], text, expression)
        if operator in clauses[-1]:
            clauses.append({})
        clauses[-1][operator] = value
    filter: dict[str, Any] = {field: clauses if len(clauses) > 1 else clauses[0] for field, clauses in parsed.items()}
    return filter | ({"and": groups} if groups else {})


_EXAMPLE = '{"or": [{"lang": "zh"}, {"year": {"ge": 2024}}]}'


def _parse_object(expression: str) -> dict[str, Any]:
    """Return a filter written in JSON."""
    try:
        filter: dict[str, Any] = json.loads(expression)
    except ValueError as error:
        raise ValueError(
            f"the filter is not JSON ({error}); write for example {_EXAMPLE}, got {expression!r}"
        ) from None
    conditions(filter)
    return filter


def _parse_values(operator: str, text: str, expression: str) -> tuple[str, Any]:
    """Return the operator and the value of an expression, whose values are separated by bars."""
    if "|" not in text or _is_quoted(text):
        value = _filter_value(text)
        if operator in _LISTS and not isinstance(value, str):
            return _LISTS[operator], [value, text]
        return operator, value
    if operator not in _LISTS:
        raise ValueError(f"several values need = or !=, got {expression!r}")
    values: list[Any] = []
    at = 0
    while at <= len(text):
        match = _VALUES.match(text, at)
        assert match is not None  # the second alternative matches anything
        value = _filter_value(match[1])
        values += [value] if isinstance(value, str) else [value, match[1]]
        if match.end() == len(text) and not match[0].endswith("|"):
            break
        at = match.end()
    return _LISTS[operator], values


def _is_quoted(text: str) -> bool:
    """Whether a text is one JSON string."""
    try:
        return isinstance(json.loads(text), str)
    except ValueError:
        return False


def _filter_value(text: str) -> str | int | float | bool:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            return text
    return read_date(text) or parse_scalar(text)
