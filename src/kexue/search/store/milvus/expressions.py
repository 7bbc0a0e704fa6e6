"""Conditions on metadata as a Boolean expression of Milvus.

A document's metadata are stored twice: as JSON text, which is what a reader gets back, and as a JSON object `fields`
made for comparing. There a field `year` is found under ``n_year`` if it is a number or a boolean (as 0 or 1), under
``s_year`` if it is a string, under ``o_year`` if it is a list or an object, and nowhere if it is null. So a comparison
meets values of its own type only, and what versions of Milvus make of missing fields, null and mixed types does not
matter. A name that is not of letters, digits and _ is written in hexadecimal, ``nx_6f...``; values are escaped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from kexue.search.filters import conditions, join

NOTHING = "key < 0"
_PLAIN = re.compile(r"[A-Za-z0-9_]{1,64}")
_SIGNS = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})


def literal(value: str | float) -> str:
    """A string or number as an expression holds it.

    >>> literal('a "b"')
    '"a \\\\"b\\\\""'
    """
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPED)}"'
    return repr(_number(value))


def searchable(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The object `fields` of a document.

    >>> searchable({"lang": "en", "draft": True, "tags": ["a"], "none": None})
    {'s_lang': 'en', 'n_draft': 1, 'o_tags': 1}
    """
    found: dict[str, Any] = {}
    for field, value in metadata.items():
        if isinstance(value, str):
            found[_name("s", field)] = value
        elif isinstance(value, int | float):
            found[_name("n", field)] = _number(value)
        elif value is not None:
            found[_name("o", field)] = 1
    return found


def to_expression(filter: Mapping[str, Any]) -> str:
    """An expression that holds for the documents a filter matches; the empty one for an empty filter.

    >>> to_expression({"year": {"ge": 2020}, "lang": {"ne": "en"}})
    '((fields["n_year"] >= 2020) and (not (exists fields["s_lang"]) or fields["s_lang"] != "en"))'
    """
    return join("and", [f"({_clause(*condition)})" for condition in conditions(filter)])


def _clause(field: str, operator: str, value: Any) -> str:
    if operator == "exists":
        there = join("or", [f"exists {_place(kind, field)}" for kind in "nso"])
        return there if value else f"not ({there})"
    if operator == "in":
        return join("or", [f"{_of(field, one)} == {literal(one)}" for one in value]) or NOTHING
    if operator == "ne":
        return f"not (exists {_of(field, value)}) or {_of(field, value)} != {literal(value)}"
    return f"{_of(field, value)} {_SIGNS[operator]} {literal(value)}"


def _of(field: str, value: str | float) -> str:
    return _place("s" if isinstance(value, str) else "n", field)


def _place(kind: str, field: str) -> str:
    return f'fields["{_name(kind, field)}"]'


def _name(kind: str, field: str) -> str:
    return f"{kind}_{field}" if _PLAIN.fullmatch(field) else f"{kind}x_{field.encode().hex()}"


def _number(value: float) -> int | float:
    """Of 64 bits, as Milvus has them; larger ones are rounded, as the embedded store does."""
    if isinstance(value, int) and -(2**63) < value < 2**63:
        return int(value)
    return float(max(-sys.float_info.max, min(sys.float_info.max, value)))
