"""Conditions on metadata as a Boolean expression of Milvus.

The metadata of a document are stored twice: as JSON text, which readers get, and as a JSON object `fields` for
comparisons. There a field `year` is found under ``n_year`` if it is a number or a boolean (as 0 or 1), under
``s_year`` if it is a string, under ``o_year`` if it is a list or an object, and nowhere if it is null. So a comparison
only meets values of its own type, and does not depend on how a version of Milvus treats missing fields, null and mixed
types. A name with characters other than letters, digits and _ is written in hexadecimal, ``nx_6f...``; values are
escaped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from kexue.search.filters import Either, Negation, Part, conditions, join

NOTHING, EVERYTHING = "key < 0", "key >= 0"
_PLAIN = re.compile(r"[A-Za-z0-9_]{1,64}")
_OPPOSITES = {"eq": "ne", "ne": "eq", "in": "nin", "nin": "in"}
_SIGNS = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def literal(value: str | float) -> str:
    """Return a string or number as a literal of an expression.

    >>> literal('a "b"')
    '"a \\\\"b\\\\""'
    """
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPED)}"'
    return repr(_number(value))


def searchable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object `fields` of a document.

    >>> searchable({"lang": "en", "draft": True, "tags": ["a"], "none": None})
    {'s_lang': 'en', 'n_draft': 1, 'o_tags': 1}
    """
    fields: dict[str, Any] = {}
    for field, value in metadata.items():
        if isinstance(value, str):
            fields[_name("s", field)] = value
        elif isinstance(value, int | float):
            fields[_name("n", field)] = _number(value)
        elif value is not None:
            fields[_name("o", field)] = 1
    return fields


def to_expression(filter: Mapping[str, Any]) -> str:
    """Return the expression for the documents that a filter matches; empty for an empty filter.

    >>> to_expression({"year": {"ge": 2020}, "lang": {"ne": "en"}})
    '((fields["n_year"] >= 2020) and (not (exists fields["s_lang"]) or fields["s_lang"] != "en"))'
    """
    return _all_of(conditions(filter))


def _all_of(parts: Iterable[Part]) -> str:
    return join("and", [f"({_part(part)})" for part in parts])


def _none_of(parts: Iterable[Part]) -> str:
    """Return the negation of `_all_of`: it is pushed down to the comparisons, where missing fields are handled."""
    return join("or", [f"({_negated(part)})" for part in parts])


def _part(part: Part) -> str:
    if isinstance(part, Either):
        return join("or", [f"({_all_of(some)})" for some in part.parts])
    return _none_of(part.parts) if isinstance(part, Negation) else _clause(*part)


def _negated(part: Part) -> str:
    if isinstance(part, Either):
        return join("and", [f"({_none_of(some)})" for some in part.parts])
    if isinstance(part, Negation):
        return _all_of(part.parts)
    field, operator, value = part
    if operator == "exists":
        return _clause(field, operator, not value)
    if operator in _OPPOSITES:
        return _clause(field, _OPPOSITES[operator], value)
    there = _field_of(field, value)
    return f"not (exists {there}) or not ({there} {_SIGNS[operator]} {literal(value)})"


def _clause(field: str, operator: str, value: Any) -> str:
    if operator == "exists":
        there = join("or", [f"exists {_field(kind, field)}" for kind in "nso"])
        return there if value else f"not ({there})"
    if operator == "in":
        return join("or", [f"{_field_of(field, one)} == {literal(one)}" for one in value]) or NOTHING
    if operator == "nin":
        return join("and", [f"({_clause(field, 'ne', one)})" for one in value]) or EVERYTHING
    if operator == "ne":
        return f"not (exists {_field_of(field, value)}) or {_field_of(field, value)} != {literal(value)}"
    return f"{_field_of(field, value)} {_SIGNS[operator]} {literal(value)}"


def _field_of(field: str, value: str | float) -> str:
    return _field("s" if isinstance(value, str) else "n", field)


def _field(kind: str, field: str) -> str:
    return f'fields["{_name(kind, field)}"]'


def _name(kind: str, field: str) -> str:
    return f"{kind}_{field}" if _PLAIN.fullmatch(field) else f"{kind}x_{field.encode().hex()}"


def _number(value: float) -> int | float:
    """Return a number of 64 bits, as Milvus stores it; larger ones are rounded, as in the SQLite store."""
    if isinstance(value, int) and -(2**63) < value < 2**63:
        return int(value)
    return float(max(-sys.float_info.max, min(sys.float_info.max, value)))
