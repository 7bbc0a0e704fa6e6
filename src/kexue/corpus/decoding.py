"""Lines of UTF-8 files, decoded strictly or with malformed characters replaced and counted."""

from __future__ import annotations

import math
import os
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any

from kexue._text import decode, is_utf16, not_utf8, refuse_lone_cr, split_lines
from kexue.corpus.open import open_bytes
from kexue.errors import DataError

REPLACEMENT = "\ufffd"
MAX_BYTES = 16 << 20  # default limit of a line, a row or a document


class Decoder:
    """Decoder of UTF-8 with one rule for malformed characters and one limit of length.

    Args:
        errors: ``"strict"`` raises on the first malformed byte, NUL or unpaired surrogate; ``"replace"`` puts U+FFFD
            there.
        max_bytes: largest size of a line, row or document, in bytes.

    Attributes:
        replaced: number of characters replaced by U+FFFD so far.
    """

    def __init__(self, errors: str, max_bytes: int = MAX_BYTES) -> None:
        self.strict = errors == "strict"
        self.max_bytes = max_bytes
        self.replaced = 0

    def decode(self, raw: bytes, *, path: str, line: int, column: str | None = None) -> str:
        """Decode one line; `DataError` names the line and the byte column (from 1), or the column of a table."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.strict or (line == 1 and is_utf16(raw)):
                raise not_utf8(raw, error.start, path, line=line, column=column, replaceable=True) from error
            text = raw.decode("utf-8", "replace")
            self.replaced += text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode())
        return self.clean(text, path=path, line=line, column=column)

    def clean(self, text: str, *, path: str, line: int, column: str | None = None) -> str:
        """Refuse or replace NUL and unpaired surrogates; escapes in JSON can spell both."""
        if "\0" not in text and (text.isascii() or not _has_half_surrogates(text)):
            return text
        bad = [i for i, char in enumerate(text) if char == "\0" or "\ud800" <= char <= "\udfff"]
        if self.strict:
            what = "a NUL character (is this a binary file?)" if text[bad[0]] == "\0" else "half a surrogate pair"
            raise DataError(
                f"the text holds {what}.",
                remedy="Remove it, or pass --encoding-errors replace (in Python errors='replace').",
                path=path,
                line=line,
                column=column or bad[0] + 1,
            )
        self.replaced += len(bad)
        positions = set(bad)
        return "".join(REPLACEMENT if i in positions else char for i, char in enumerate(text))

    def clean_json(self, value: Any, *, path: str, line: int, column: str) -> Any:
        """Return a JSON value with `clean` applied to every string and key in it."""
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, str):
            return self.clean(value, path=path, line=line, column=column)

        def clean(value: Any) -> Any:
            """Clean a value at any depth."""
            if isinstance(value, str):
                return self.clean(value, path=path, line=line, column=column)
            if isinstance(value, list):
                return [clean(item) for item in value]
            if isinstance(value, dict):
                cleaned = {clean(key): clean(item) for key, item in value.items()}
                if len(cleaned) < len(value):
                    raise data_error("two keys are the same once malformed characters are replaced.", "Rename one.")
                return cleaned
            if isinstance(value, float) and not math.isfinite(value):
                raise data_error("a number is too large for a double.", "Write it as a string.")
            return value

        def data_error(message: str, remedy: str) -> DataError:
            """Return an error with the place of the value."""
            return DataError(message, path=path, line=line, column=column, remedy=remedy)

        try:
            return clean(value)
        except RecursionError:
            raise data_error("nested too deeply.", "Flatten it, or leave the column out.") from None

    def check_length(self, size: int, *, path: str, line: int | None, what: str = "the line") -> None:
        """Raise a `DataError` for a `size` above `max_bytes`."""
        if size > self.max_bytes:
            raise DataError(
                f"{what} is longer than {self.max_bytes:,} bytes.",
                remedy="If it really is one text, allow it with --max-bytes 64M (in Python max_bytes=).",
                path=path,
                line=line,
            )


def _has_half_surrogates(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def decode_lines(path: str, decoder: Decoder) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end); a byte order mark at the start is dropped.

    Args:
        path: a file, also compressed, or ``"-"``.
        decoder: rule for malformed bytes, and limit of a line's length.
    """
    with open_bytes(path) as stream:
        number = 0
        while raw := stream.readline(decoder.max_bytes + 1):
            number += 1
            decoder.check_length(len(raw), path=path, line=number)
            text = decoder.decode(raw.removeprefix(BOM_UTF8) if number == 1 else raw, path=path, line=number)
            if number == 1 and not text.endswith("\n"):
                refuse_lone_cr(text, path)
            yield number, text


def decode_document(path: str, decoder: Decoder) -> str:
    """Return the text of a file; a byte order mark at the start is dropped, every other character is kept.

    Args:
        path: a file, also compressed, or ``"-"``.
        decoder: rule for malformed bytes, and limit of the document's length.
    """
    lines: list[str] = []
    size = 0
    with open_bytes(path) as stream:
        while raw := stream.readline(decoder.max_bytes - size + 1):  # by line, so that an error can name its line
            size += len(raw)
            decoder.check_length(size, path=path, line=None, what="the document")
            number = len(lines) + 1
            lines.append(decoder.decode(raw.removeprefix(BOM_UTF8) if number == 1 else raw, path=path, line=number))
    return "".join(lines)


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a UTF-8 file, also compressed, or of standard input for ``"-"``, without their ends.

    Raises:
        DataError: it cannot be read, a byte is not UTF-8, or lines end with CR alone.
    """
    with open_bytes(os.fspath(path)) as stream:
        text = decode(stream.read(), path)
    if "\n" not in text:
        refuse_lone_cr(text, path)
    return split_lines(text)


def strip_line_end(line: str) -> str:
    r"""Return a line without the \n or \r\n it ends with."""
    return line.removesuffix("\n").removesuffix("\r")
