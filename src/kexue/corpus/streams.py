"""Bytes from a path: plain, compressed or standard input; and lines decoded strictly or with a count of repairs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from kexue._optional import import_optional
from kexue.errors import DataError

STDIN = "-"
REPLACEMENT = "\ufffd"


def _arrow(codec: str) -> Callable[[str], BinaryIO]:
    def opener(path: str) -> BinaryIO:
        pyarrow = import_optional("pyarrow")
        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(path, codec)))

    return opener


_OPENERS: dict[str, Callable[[str], BinaryIO]] = {
    ".gz": cast(Callable[[str], BinaryIO], gzip.open),
    ".bz2": cast(Callable[[str], BinaryIO], bz2.open),
    ".xz": cast(Callable[[str], BinaryIO], lzma.open),
    ".zst": _arrow("zstd"),
    ".lz4": _arrow("lz4"),
}
COMPRESSED = frozenset(_OPENERS)


def split_suffix(path: str) -> tuple[str, str]:
    """Split a path's endings into the format's and the compression's, in lower case.

    >>> split_suffix("faq.JSONL.gz"), split_suffix("faq.csv"), split_suffix("faq")
    (('.jsonl', '.gz'), ('.csv', ''), ('', ''))
    """
    name = Path(path)
    packing = name.suffix.lower()
    if packing not in COMPRESSED:
        return packing, ""
    return name.with_suffix("").suffix.lower(), packing


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """Open a file, decompressed by its ending, or standard input for ``"-"``; a `DataError` when it cannot be read."""
    try:
        if path == STDIN:
            yield sys.stdin.buffer
            return
        opener = _OPENERS.get(split_suffix(path)[1])
        with Path(path).open("rb") if opener is None else opener(path) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"the compressed data are damaged or cut short ({error}).", path=path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}.", path=path) from error


class Decoder:
    """UTF-8 to text, strictly or with repairs that are counted in `replaced`.

    Args:
        errors: ``"strict"`` raises on the first malformed byte, NUL or half surrogate; ``"replace"`` puts U+FFFD there.
    """

    def __init__(self, errors: str) -> None:
        self.strict = errors == "strict"
        self.replaced = 0

    def decode(self, raw: bytes, *, path: str, line: int) -> str:
        """Decode one line; `DataError` names the line and the byte column (from 1)."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.strict:
                hint = " (the file begins like UTF-16)" if line == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"byte 0x{raw[error.start]:02x} is not valid UTF-8{hint}.",
                    remedy="Convert the file to UTF-8, or pass errors='replace' (--encoding-errors replace).",
                    path=path,
                    line=line,
                    column=error.start + 1,
                ) from error
            text = raw.decode("utf-8", "replace")
            self.replaced += text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode())
        return self.clean(text, path=path, line=line)

    def clean(self, text: str, *, path: str, line: int, column: str | None = None) -> str:
        """Refuse, or replace and count, the characters no text holds: NUL and half surrogates (JSON can spell them)."""
        if "\0" not in text and (text.isascii() or not _half_surrogates(text)):
            return text
        bad = [i for i, char in enumerate(text) if char == "\0" or "\ud800" <= char <= "\udfff"]
        if self.strict:
            what = "a NUL character (is this a binary file?)" if text[bad[0]] == "\0" else "half a surrogate pair"
            raise DataError(
                f"the text holds {what}.",
                remedy="Remove it, or pass errors='replace' (--encoding-errors replace).",
                path=path,
                line=line,
                column=column or bad[0] + 1,
            )
        self.replaced += len(bad)
        places = set(bad)
        return "".join(REPLACEMENT if i in places else char for i, char in enumerate(text))


def _half_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def lines(path: str, decoder: Decoder) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end); a byte order mark at the start is dropped."""
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]  # noqa: PLW2901 - the mark is no part of the line
            yield number, decoder.decode(raw, path=path, line=number)
