"""Types of the metadata columns of tables of cells: each is decided by all values of the column.

A cell of CSV does not say what it is, so one value decides nothing: 3.10 may be a price or a version. A column is
*numbers* if every value that is not empty reads as one (`parse_scalar`), and no two spellings would become one number:
where some value ends with a zero after the point (3.10), all that have a point have as many digits after it, and where
some value has nothing but zeros there (3.0), all have a point. It is
*booleans* or *dates* (year, month, day, perhaps a time) if every value is one. Otherwise it is text, as it is written.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from kexue.corpus.fields import parse_scalar

KINDS = ("text", "number", "boolean", "date")
_DATE = re.compile(
    r"(\d{4})([-/年])(\d{1,2})([-/月])(\d{1,2})(日?)(?:[ T](\d{1,2}):(\d\d)(?::(\d\d))?)?", re.ASCII
)  # 2024-05-01, 2024/5/1 9:30, 2024年5月1日
_CACHED = 4096  # values of metadata occur again and again
_ALMOST = 0.9  # share of numbers in a column of text from which the user is told


@lru_cache(_CACHED)
def read_date(text: str) -> str | None:
    """Return a date, perhaps with a time, in ISO form; None for anything else.

    >>> read_date("2024/5/1 9:30"), read_date("2024年5月1日"), read_date("2024-02-30"), read_date("1/5/2024")
    ('2024-05-01T09:30:00', '2024-05-01', None, None)
    """
    match = _DATE.fullmatch(text)
    if match is None or match.group(2, 4, 6) not in (("-", "-", ""), ("/", "/", ""), ("年", "月", "日")):
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.group(1, 3, 5, 7, 8, 9))
    try:
        when = datetime.datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
    return when.date().isoformat() if match[7] is None else when.isoformat()


def spell(value: Any) -> str:
    """Return a cell as text: numbers in digits without an exponent, booleans as JSON writes them, dates in ISO form.

    >>> spell(0.00002), spell(True), spell(datetime.date(2024, 5, 1))
    ('0.00002', 'true', '2024-05-01')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.datetime):
        return value.replace(microsecond=0).isoformat()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


_parse = lru_cache(_CACHED)(parse_scalar)


class _Column:
    """What the values of one column have in common."""

    def __init__(self) -> None:
        self.count = self.numbers = self.booleans = self.dates = 0
        self.places: set[int] = set()  # digits after the point
        self.zero = False  # a number ends with a zero after the point
        self.round = False  # a number has nothing but zeros there
        self.bare = False  # a number has no point
        self.odd: tuple[str, str, int] | None = None  # the first value that is no number, with path and line

    def add(self, value: Any, path: str, line: int) -> None:
        """Count a value that is not empty."""
        self.count += 1
        text = spell(value)
        read = _parse(text)
        if isinstance(read, bool):
            self.booleans += 1
        elif isinstance(read, int | float):
            self.numbers += 1
            _, point, digits = text.partition(".")
            if point:
                self.places.add(len(digits))
                self.zero = self.zero or digits.endswith("0")
                self.round = self.round or not digits.strip("0")
            self.bare = self.bare or not point
            return
        elif read_date(text):
            self.dates += 1
        self.odd = self.odd or (text, path, line)

    def kind(self) -> str:
        """Return the type that fits all values."""
        distinct = not (self.zero and len(self.places) > 1) and not (self.round and self.bare)
        if self.count == self.numbers and distinct:
            return "number"
        return "boolean" if self.count == self.booleans else "date" if self.count == self.dates else "text"


class ColumnKinds:
    """Types of the metadata columns of one input, which may be several files.

    Args:
        known: types that are decided already, such as those of an index; text stays text, another one holds where all
            values allow it.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = dict(known or {})
        self._columns: dict[str, _Column] = {}
        self._kinds: dict[str, str] = {}

    def add(self, name: str, value: Any, path: str, line: int) -> None:
        """Take one value into account; None and the empty string say nothing."""
        if value is not None and value != "":
            self._columns.setdefault(name, _Column()).add(value, path, line)

    def kinds(self) -> dict[str, str]:
        """Return the types of the columns that have values."""
        return {name: self._kind(name) for name in self._columns}

    def _kind(self, name: str) -> str:
        if name not in self._kinds:
            column = self._columns.get(name)
            decided = "text" if column is None else column.kind()
            self._kinds[name] = "text" if self._known.get(name) == "text" else decided
        return self._kinds[name]

    def read(self, name: str, value: Any) -> str | int | float | bool | None:
        """Return a cell in the type of its column; None for an empty one."""
        if value is None or value == "":
            return None
        text = spell(value)
        kind = self._kind(name)
        return (read_date(text) or text) if kind == "date" else text if kind == "text" else _parse(text)

    def remarks(self) -> list[str]:
        """Return a sentence for each column that a few values keep from being numbers, or from its known type."""
        found = []
        for name, column in self._columns.items():
            kind, known = self._kind(name), self._known.get(name, "")
            if kind != "text" or column.odd is None:
                continue
            if (column.count > column.numbers >= _ALMOST * column.count and known != "text") or known == "number":
                text, path, line = column.odd
                others = column.count - column.numbers
                found.append(
                    f"the column {name} is text, since {others:,} of its {column.count:,} values are no numbers "
                    f"(first: {text!r:.40}, {path}, line {line})."
                )
        return found
