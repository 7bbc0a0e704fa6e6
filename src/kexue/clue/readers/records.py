"""Records of a file of CLUE: JSON Lines, or one JSON value for the whole file; errors name the line and the field."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kexue._text import parse_json, split_lines
from kexue.corpus.decoding import Decoder, decode_document
from kexue.errors import DataError

_MAX_BYTES = 1 << 31


@dataclass(frozen=True)
class Record:
    """A JSON value of a file, and its place.

    Attributes:
        value: the value.
        path: its file.
        line: its line; None in a file that is one JSON value, where `place` says which part it is.
        place: such as ``"item 3"``; empty where the line says it all.
        number: how many records are before it in the file.
    """

    value: Any
    path: str
    line: int | None
    place: str
    number: int

    def error(self, message: str, remedy: str | None = None) -> DataError:
        """Return the error about this record."""
        message = f"{self.place}: {message}" if self.place else message
        return DataError(message, path=self.path, line=self.line, remedy=remedy)

    def child(self, value: Any, place: str) -> Record:
        """Return a part of the record's value as a record; `place` says which."""
        return Record(value, self.path, self.line, f"{self.place}, {place}" if self.place else place, self.number)

    def field(self, name: str, kind: type[Any] | tuple[type[Any], ...], *, say: str) -> Any:
        """Return a field of an object; `kind` is the type it must have, and `say` that type in words."""
        if not isinstance(self.value, dict):
            raise self.error(f"expected an object with {name!r}, got {self.value!r:.40}.")
        if name not in self.value:
            names = ", ".join(map(str, self.value)) or "none"
            raise self.error(f"the field {name!r} is missing; the fields are: {names}.", "Add it.")
        value = self.value[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise self.error(f"{name!r} must be {say}, got {value!r:.40}.")
        return value

    def text(self, name: str) -> str:
        """Return a field that is a text and not blank."""
        value: str = self.field(name, str, say="a text")
        if not value.strip():
            raise self.error(f"{name!r} is empty.", "Give a text, or leave the record out.")
        return value

    def id(self, *names: str, default: int | None = None) -> str:
        """Return the first of these fields, a number or a text, as text; else `default` or the record's number."""
        for name in names:
            value = self.value.get(name)
            if value is not None:
                return str(self.field(name, (int, str), say="a whole number or a text"))
        return str(self.number if default is None else default)


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Return the records of a file, also compressed: its lines, or the items of the array that it is.

    Raises:
        DataError: it cannot be read, is not JSON (the error names the line), or holds nothing.
    """
    name = os.fspath(path)
    text = read_document(name)
    lines = [(number, line) for number, line in enumerate(split_lines(text), 1) if line.strip()]
    if not lines:
        raise DataError("the file is empty.", path=name, remedy="Fetch or write it again.")
    at, first = lines[0]
    if len(lines) > 1 and _is_json(first):
        return [Record(_parse(line, name, at), name, at, "", number) for number, (at, line) in enumerate(lines)]
    if len(lines) > 1 and _is_json(lines[1][1]) and not _is_json(text):
        parse_json(first, name, line=at)  # JSON Lines, the first of them broken
    value = _parse(text, name)
    items = _items(value)
    if items is None:
        return [Record(value, name, at if len(lines) == 1 else None, "", 0)]
    return [Record(item, name, None, f"item {number + 1}", number) for number, item in enumerate(items)]


def read_document(path: str | os.PathLike[str]) -> str:
    """Return the text of a file, also compressed."""
    return decode_document(os.fspath(path), Decoder("strict", max_bytes=_MAX_BYTES, options=False))


def _parse(text: str, path: str, line: int | None = None) -> Any:
    """Return a JSON value; its escapes can spell half of a surrogate pair, which is no character: a DataError."""
    value = parse_json(text, path, line=line)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("a text holds half a surrogate pair.", path=path, line=line, remedy="Remove it.") from None
    return value


def _is_json(text: str) -> bool:
    """Return whether a text is a JSON value. The first line of JSON Lines is, that of other files is not."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _items(value: Any) -> Sequence[Any] | None:
    """Return the records of a file that is one array; None where the value is one record itself.

    A record of C3 is an array, too; it begins with an array of texts.
    """
    if not isinstance(value, list) or not value:
        return None
    first = value[0]
    return (
        value if isinstance(first, dict) or (isinstance(first, list) and first and isinstance(first[0], list)) else None
    )
