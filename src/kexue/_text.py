"""Text and JSON of users' files, with errors that name the place; text for terminals."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

from kexue.errors import DataError


def decode(data: bytes, path: str | os.PathLike[str]) -> str:
    """Return the text of UTF-8, with or without a byte order mark; a malformed byte is a DataError with its place."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        data = error.object  # without the mark
        start = data.rfind(b"\n", 0, error.start) + 1
        number = data.count(b"\n", 0, start) + 1
        raise not_utf8(data[start:].partition(b"\n")[0], error.start - start, path, line=number) from None


def not_utf8(
    raw: bytes,
    start: int,
    path: str | os.PathLike[str],
    *,
    line: int,
    column: str | None = None,
    replaceable: bool = False,
) -> DataError:
    """Return the error for byte `start` of a line, with its likely encoding and the command that converts the file."""
    encoding = _likely_encoding(raw, line)
    looks = f"; the file may be {encoding}" if encoding else ""
    remedy = f"Save it as UTF-8: iconv -f {encoding or 'ITS-ENCODING'} -t UTF-8 OLD > NEW"
    if replaceable:
        name = encoding.lower() if encoding else "NAME"
        remedy = f"Name its encoding: --encoding {name} (in Python encoding=). {remedy}"
        remedy += ". Or pass errors='replace' (--encoding-errors replace), which puts U+FFFD"
    message = f"byte 0x{raw[start]:02x} is not UTF-8{looks}."
    return DataError(message, path=path, line=line, column=column or start + 1, remedy=f"{remedy}.")


def is_utf16(raw: bytes) -> bool:
    """Return whether a file begins with the byte order mark of UTF-16 (or of UTF-32, little-endian)."""
    return raw[:2] in (b"\xff\xfe", b"\xfe\xff")


def _likely_encoding(raw: bytes, line: int) -> str | None:
    """Return UTF-16 for its mark or NUL, GB18030 for a line that reads as Chinese, two high bytes a character."""
    if line == 1 and is_utf16(raw):
        return "UTF-16"
    if b"\0" in raw:  # every other byte of the delimiters and line ends in UTF-16
        return "UTF-16LE" if raw[1::2].count(0) > raw[::2].count(0) else "UTF-16BE"
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return None
    high = sum(byte >= 0x80 for byte in raw)
    wide = [char for char in text if char > "\x7f"]
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in wide)
    return "GB18030" if 2 * chinese > len(wide) and 2 * high > 3 * len(wide) else None


def split_lines(text: str) -> list[str]:
    r"""Split text at \n and \r\n, and at nothing else: U+2028, \f and similar characters are text.

    >>> split_lines("a\u2028b\r\nc\n")
    ['a\u2028b', 'c']
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def standard_input() -> BinaryIO:
    """Return the stream of bytes of standard input; if it is closed, raise a `DataError`."""
    if sys.stdin is None:
        raise DataError("standard input is closed.", path="-", remedy="Pipe text in, or give the name of a file.")
    return sys.stdin.buffer


def refuse_lone_cr(line: str, path: str | os.PathLike[str]) -> None:
    """Raise a `DataError` if the only line of a file has CR inside: it ends lines in files of old systems."""
    if line.rstrip("\r").count("\r"):
        raise DataError(
            "lines end with CR alone, expected LF or CRLF.",
            path=path,
            remedy="Save the file with Unix line ends: tr '\\r' '\\n' < OLD > NEW.",
        )


def parse_json(
    data: str | bytes, path: str | os.PathLike[str], *, line: int | None = None, kind: type | None = None
) -> Any:
    """Return a JSON value of a user's file.

    Args:
        data: JSON; bytes must be UTF-8.
        path: the file, for errors.
        line: line of the value in the file; None: the value is the whole file.
        kind: dict or list, if the value must be one; None: any value.

    Raises:
        DataError: it is not JSON, not UTF-8, nested too deeply, or of another kind.
    """
    try:
        value = json.loads(decode(data, path) if isinstance(data, bytes) else data)
    except json.JSONDecodeError as error:
        number = error.lineno if line is None else line
        raise DataError(
            f"not JSON: {error.msg}.", path=path, line=number, column=error.colno, remedy=_CORRECT
        ) from None
    except RecursionError:
        raise DataError("JSON nested too deeply.", path=path, line=line, remedy=_CORRECT) from None
    except ValueError as error:  # a number of thousands of digits
        if isinstance(error, DataError):
            raise
        raise DataError(f"not JSON that can be read: {error}.", path=path, line=line, remedy=_CORRECT) from None
    if kind is not None and not isinstance(value, kind):
        expected = "an array" if kind is list else "an object"
        raise DataError(f"expected {expected}, got {value!r:.40}.", path=path, line=line, remedy=_CORRECT)
    return value


_CORRECT = "Correct the file, or fetch it again."


def visible(text: str) -> str:
    r"""Return a text with control characters made visible, safe to print on a terminal; \n and \t stay.

    Control characters of ASCII become their pictures (from U+2400 on); those of Latin-1, characters that change the
    direction of writing, and halves of surrogate pairs become escapes.

    >>> visible("a\x1b[31mb\x9b")
    'a␛[31mb\\x9b'
    """
    return text.translate(_VISIBLE)


_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    127: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in [0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]},
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},
}


def say_count(number: int, noun: str) -> str:
    """Return a number and what it counts, in words.

    >>> say_count(1, "document"), say_count(1200, "document")
    ('1 document', '1,200 documents')
    """
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def same_json(a: Any, b: Any) -> bool:
    """Return whether two values are the same in JSON: 1, 1.0 and true differ, the order of keys does not matter.

    >>> same_json({"a": 1, "b": 2}, {"b": 2, "a": 1}), same_json(1, True), same_json([1], [1.0])
    (True, False, False)
    """
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
