"""Fields of the metadata of an index: which there are, of which type, with which values."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from kexue.search.documents import Document, check_id
from kexue.search.filters import compared_fields, plain_filter
from kexue.search.store.base import Filter, Store, Value

DISTINCT = 1_000  # different values of one field that are counted
FIELDS = 1_000  # fields that are described
COMMON = 5  # values of a field that are listed
MAX_PAGE = 2**31 - 1  # documents, more than an index holds
LONGEST = 100  # characters of a value that is counted
_DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?", re.ASCII)


class FieldCatalogue:
    """Fields of the documents in a store; what it has read is kept until the store changes.

    Args:
        store: the documents.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: set[str] = set()  # fields that some document has, or had
        self._schema: tuple[Value | None, dict[str, Any]] | None = None

    def check(self, filter: Filter | None) -> Filter | None:
        """Return a filter in plain types; ValueError where it compares a field that no document has.

        The message names the fields there are. Cost: a field that most documents have is found at once, and looked up
        once; for another one all documents are read.
        """
        filter = None if filter is None else plain_filter(filter)
        for field in compared_fields(filter or {}):
            if field in self._seen:
                continue
            there = self._store.page(1, filter={field: {"exists": True}})
            if not there and self._store.count() and field not in recorded_columns(self._store).get("metadata", ()):
                names = list(self.schema()["fields"])
                listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
                raise ValueError(
                    f"the filter names the field {field!r}, which no document has; there are: {listed or 'none'}"
                )
            self._seen.update([field] if there else [])
        return filter

    def page(self, limit: int, *, after: str | None, filter: Filter | None) -> list[Document]:
        """Return one page of the documents; see `Index.list`."""
        if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1:
            raise ValueError(f"limit must be a whole number >= 1, got {limit!r}")
        last = None if after is None else check_id(after, "after") if after != "" else ""
        rows = self._store.page(min(int(limit), MAX_PAGE), after=last, filter=self.check(filter))
        return [Document(row.id, row.text, row.metadata) for row in rows]

    def schema(self) -> dict[str, Any]:
        """Return the columns that the index was built from, and the fields of its metadata.

        ``{"text", "id", "metadata"}`` name the columns (None: none, or not from files). ``"fields"`` gives for each
        field its ``type`` (text, number, boolean, date, list, object or mixed), ``count`` of documents, number of
        ``distinct`` values and the most ``common`` ones with their counts (None and [] beyond 1,000 values, and
        for lists, objects and texts of more than 100 characters), and ``low`` and ``high``
        of numbers and dates. All documents are read, once for each state of the index.
        """
        changed = self._store.metadata().get("updated")
        if self._schema is None or self._schema[0] != changed:
            columns = recorded_columns(self._store)
            fields = describe_fields(self._store)
            self._schema = (
                changed,
                {
                    "text": columns.get("text"),
                    "id": columns.get("id"),
                    "metadata": list(columns.get("metadata", ())),
                    "fields": fields,
                },
            )
        return self._schema[1]


def recorded_columns(store: Store) -> dict[str, Any]:
    """Return the columns of the files that an index was built from; empty where it was not built from files."""
    columns: dict[str, Any] = json.loads(str(store.metadata().get("columns", "{}")))
    return columns


class _Field:
    """Values of one field: their number, types, range, and how often each occurs while they are few."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.values: Counter[Any] | None = Counter()
        self.low: Any = None
        self.high: Any = None

    def add(self, value: Any) -> None:
        """Count one value, which is not null."""
        kind = _type_of(value)
        self.types[kind] += 1
        if kind in ("number", "date"):
            self.low = value if self.low is None else min(self.low, value, key=_order)
            self.high = value if self.high is None else max(self.high, value, key=_order)
        if self.values is None:
            return
        if kind in ("list", "object") or (isinstance(value, str) and len(value) > LONGEST):
            self.values = None
            return
        self.values[kind, value] += 1
        if len(self.values) > DISTINCT:
            self.values = None

    def describe(self) -> dict[str, Any]:
        """Return the field as a record."""
        kinds = set(self.types)
        kind = "text" if kinds == {"text", "date"} else kinds.pop() if len(kinds) == 1 else "mixed"
        ranged = kind in ("number", "date")
        values = self.values
        return {
            "type": kind,
            "count": self.types.total(),
            "distinct": None if values is None else len(values),
            "low": self.low if ranged else None,
            "high": self.high if ranged else None,
            "common": [] if values is None else [[value, n] for (_, value), n in values.most_common(COMMON)],
        }


def describe_fields(store: Store) -> dict[str, dict[str, Any]]:
    """Return type, count and values of each field of the documents in a store, the most frequent field first.

    Cost: all documents are read once; memory for `DISTINCT` values of each of at most `FIELDS` fields.
    """
    fields: dict[str, _Field] = {}
    for rows in store.iterate(vectors=False):
        for row in rows:
            for name, value in row.metadata.items():
                if value is None or (name not in fields and len(fields) >= FIELDS):
                    continue
                fields.setdefault(name, _Field()).add(value)
    described = {name: field.describe() for name, field in fields.items()}
    return dict(sorted(described.items(), key=lambda item: -int(item[1]["count"])))


def _type_of(value: Any) -> str:
    """Return the type of a JSON value; text in ISO form is a date."""
    if isinstance(value, str):
        return "date" if _DATE.fullmatch(value) else "text"
    if isinstance(value, bool):
        return "boolean"
    return "list" if isinstance(value, list) else "object" if isinstance(value, dict) else "number"


def _order(value: Any) -> tuple[bool, Any]:
    """Return a key by which values of two types can be ordered."""
    return isinstance(value, str), value
