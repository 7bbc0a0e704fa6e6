"""Bytes from a path: plain, compressed or standard input; and lines decoded strictly or with a count of repairs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from kexue._files import explain
from kexue._optional import import_optional
from kexue._text import is_utf16, not_utf8, refuse_lone_cr, standard_input
from kexue.errors import DataError

STDIN = "-"
REPLACEMENT = "\ufffd"
MAX_BYTES = 16 << 20  # of a line, a row or a document, unless the caller says otherwise
_BOM = b"\xef\xbb\xbf"


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
            yield standard_input()
            return
        opener = _OPENERS.get(split_suffix(path)[1])
        with Path(path).open("rb") if opener is None else opener(path) as stream:
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise damaged(error, path) from error
    except OSError as error:
        if error.errno is None:  # bz2 and Arrow say it so
            raise damaged(error, path) from error
        message, remedy = explain(error)
        raise DataError(message, path=path, remedy=remedy) from error
    except MemoryError as error:
        raise DataError("there is not enough memory to decompress it.", path=path, remedy="Decompress it.") from error


def damaged(error: BaseException, path: str) -> DataError:
    """The error that says that a compressed file is not whole."""
    return DataError(
        f"the compressed data are damaged or cut short ({error}).",
        path=path,
        remedy="Fetch or write the file again; its ending must name its compression.",
    )


class Decoder:
    """UTF-8 to text, strictly or with repairs that are counted in `replaced`.

    Args:
        errors: ``"strict"`` raises on the first malformed byte, NUL or half surrogate; ``"replace"`` puts U+FFFD there.
        max_bytes: the longest line, row or document that is read.
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

    def clean_json(self, value: Any, *, path: str, line: int, column: str) -> Any:
        """A JSON value, with `clean` applied to every string and key in it."""
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, str):
            return self.clean(value, path=path, line=line, column=column)

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                return self.clean(value, path=path, line=line, column=column)
            if isinstance(value, list):
                return [clean(item) for item in value]
            if isinstance(value, dict):
                made = {clean(key): clean(item) for key, item in value.items()}
                if len(made) < len(value):
                    raise refused("two keys are the same once repaired.", "Rename one.")
                return made
            if isinstance(value, float) and not math.isfinite(value):
                raise refused("a number is too large for a double.", "Write it as a string.")
            return value

        def refused(message: str, remedy: str) -> DataError:
            return DataError(message, path=path, line=line, column=column, remedy=remedy)

        try:
            return clean(value)
        except RecursionError:
            raise refused("nested too deeply.", "Flatten it, or leave the column out.") from None

    def check_length(self, size: int, *, path: str, line: int | None, what: str = "the line") -> None:
        """Refuse what is longer than `max_bytes`."""
        if size > self.max_bytes:
            raise DataError(
                f"{what} is longer than {self.max_bytes:,} bytes.",
                remedy="Is it one text? If so, allow it with max_bytes= (--max-bytes 64M).",
                path=path,
                line=line,
            )


def _half_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def lines(path: str, decoder: Decoder, *, whole: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end); a byte order mark at the start is dropped.

    Args:
        path: a file, also compressed, or ``"-"``.
        decoder: how bytes become text, and how long a line may be.
        whole: the file is one text: its length counts, and CR is a character like others.
    """
    number = size = 0
    with open_bytes(path) as stream:
        while raw := stream.readline(decoder.max_bytes - size + 1):
            number += 1
            size = size + len(raw) if whole else 0
            what = "the document" if whole else "the line"
            decoder.check_length(size or len(raw), path=path, line=None if whole else number, what=what)
            raw = raw.removeprefix(_BOM) if number == 1 else raw
            text = decoder.decode(raw, path=path, line=number)
            if number == 1 and not whole and not text.endswith("\n"):
                refuse_lone_cr(text, path)
            yield number, text


def without_end(line: str) -> str:
    r"""A line without the \n or \r\n it ends with."""
    return line.removesuffix("\n").removesuffix("\r")
