"""Records of users' files that cannot be used: each raised at once, or all counted and reported together."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from kexue._text import say_count
from kexue.errors import DataError

KINDS = {
    "malformed": "malformed",
    "empty": "empty",
    "no_id": "without id",
    "wrong_id": "with a wrong id",
    "duplicate_id": "duplicate id",
}  # kind: words for a count of one


class RecordError(DataError):
    """One record that cannot be used, while the rest of its file can; `kind` is one of `KINDS`."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        path: str | os.PathLike[str],
        line: int,
        column: str | int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, path=path, line=line, column=column, remedy=remedy)
        self.kind = kind


def as_record_error(kind: str, error: DataError, line: int) -> RecordError:
    """Return an error about a file as one about a single record of it; its message names the place already."""
    other = RecordError(kind, "", path=error.path or "", line=line, column=error.column, remedy=error.remedy)
    other.message, other.args = error.message, error.args
    return other


class FaultyRecordsError(DataError):
    """Several records that cannot be used; `faults` counts them by kind, `path`, `line`, `column` are of the first."""

    def __init__(self, message: str, *, remedy: str, first: RecordError, faults: list[dict[str, Any]]) -> None:
        super().__init__(message, remedy=remedy)
        self.path, self.line, self.column = first.path, first.line, first.column
        self.faults = faults


class _Kind(NamedTuple):
    """Number of records of one kind of fault, and the first of them."""

    records: int
    first: RecordError


class Faults:
    """Records that cannot be used, by kind.

    Args:
        collect: count them; otherwise `add` raises the first.

    >>> faults = Faults(collect=True)
    >>> for line in (17, 19):
    ...     faults.add(RecordError("empty", "the text is empty.", path="faq.csv", line=line))
    >>> faults.summary()
    '2 empty (first: line 17)'
    """

    def __init__(self, *, collect: bool) -> None:
        self.collect = collect
        self._kinds: dict[str, _Kind] = {}

    def add(self, error: RecordError) -> None:
        """Count a record that cannot be used, or raise its error."""
        if not self.collect:
            raise error
        count, first = self._kinds.get(error.kind, (0, error))
        self._kinds[error.kind] = _Kind(count + 1, first)

    def __len__(self) -> int:
        return sum(kind.records for kind in self._kinds.values())

    def _ordered(self) -> list[tuple[str, _Kind]]:
        return [(name, self._kinds[name]) for name in KINDS if name in self._kinds]

    def records(self) -> list[dict[str, Any]]:
        """Return kind, count, and the first place with its message, of each kind."""
        return [
            {"kind": name, "count": count, "path": first.path, "line": first.line, "message": first.message}
            for name, (count, first) in self._ordered()
        ]

    def summary(self) -> str:
        """Return the counts and first places as words."""
        return summarize_faults(self.records())

    def raise_all(self, records: int) -> None:
        """Raise one error about all faults, if there are any; `records` is the number of records without fault."""
        if not len(self):
            return
        first = min((first for _, (_, first) in self._ordered()), key=lambda error: error.line or 0)
        skip = "--on-error skip (in Python on_error='skip')"
        if len(self) == 1:
            first.remedy = f"{(first.remedy or 'Correct it.').rstrip('.')}. {skip} leaves it out."
            raise first
        raise FaultyRecordsError(
            f"{first.path}: {len(self):,} of {records + len(self):,} records cannot be indexed: {self.summary()}. "
            f"The first: {first.message}",
            remedy=f"Correct them, or leave them out with {skip}."
            + (f" For the first: {first.remedy}" if first.remedy else ""),
            first=first,
            faults=self.records(),
        )


def _say_kind(kind: str, count: int) -> str:
    words = KINDS[kind]
    return say_count(count, words) if kind == "duplicate_id" else f"{count:,} {words}"


def summarize_faults(faults: list[dict[str, Any]]) -> str:
    """Return the counts and first places of `Faults.records` as words."""
    several = len({fault["path"] for fault in faults}) > 1
    return ", ".join(
        f"{_say_kind(fault['kind'], fault['count'])} "
        f"(first: {fault['path'] + ', ' if several else ''}line {fault['line']})"
        for fault in faults
    )
