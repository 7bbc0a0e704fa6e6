"""Text from a user's file: lines and JSON, with errors that say where."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from kexue.errors import DataError


def decode(data: bytes, path: str | os.PathLike[str]) -> str:
    """UTF-8, with or without a byte order mark; a wrong byte is reported with its line and column."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        raise DataError(
            f"byte 0x{data[error.start]:02x} is not UTF-8.",
            path=path,
            line=before.count(b"\n") + 1,
            column=error.start - before.rfind(b"\n"),
            remedy="Save the file as UTF-8.",
        ) from None


def split_lines(text: str) -> list[str]:
    r"""Lines end with \n or \r\n and with nothing else: U+2028, \f and their like are text.

    >>> split_lines("a\u2028b\r\nc\n")
    ['a\u2028b', 'c']
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file (`-` is stdin), without their ends.

    Raises:
        DataError: a byte is not UTF-8, or lines end with CR alone.
    """
    data = sys.stdin.buffer.read() if os.fspath(path) == "-" else Path(path).read_bytes()
    text = decode(data, path)
    if "\r" in text and "\n" not in text and text.rstrip("\r").count("\r"):
        raise DataError(
            "lines end with CR alone, expected LF or CRLF.", path=path, remedy="Save the file with Unix line ends."
        )
    return split_lines(text)


def parse_json(data: str | bytes, path: str | os.PathLike[str], *, line: int | None = None) -> Any:
    """A JSON value of a user's file.

    Raises:
        DataError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(decode(data, path) if isinstance(data, bytes) else data)
    except json.JSONDecodeError as error:
        place = error.lineno if line is None else line
        raise DataError(f"not JSON: {error.msg}.", path=path, line=place, column=error.colno) from None
    except RecursionError:
        raise DataError("JSON nested too deeply.", path=path, line=line) from None


def visible(text: str) -> str:
    r"""A text that may be shown on a terminal: what would steer it becomes a picture or an escape; \n and \t stay.

    Control characters of ASCII become their pictures (U+2400 and on); those of Latin-1, what turns the direction of
    writing, and halves of surrogate pairs become escapes.

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
