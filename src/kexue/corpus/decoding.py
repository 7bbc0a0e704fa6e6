"""Lines of text files, decoded strictly or with malformed characters replaced and counted."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import shutil
import tempfile
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from kexue._text import not_utf8, refuse_lone_cr, standard_input
from kexue.corpus.encodings import Recoded, check_encoding, ends_with_cr, find_encoding, find_mark, show_encoding
from kexue.corpus.faults import Faults, RecordError, as_record_error
from kexue.corpus.open import STDIN, open_bytes
from kexue.errors import DataError

REPLACEMENT = "\ufffd"
MAX_BYTES = 16 << 20  # default limit of a line, a row or a document
_SWAP = str.maketrans("\r\n", "\n\r")


@dataclass
class InputFile:
    """One file as it was read.

    Attributes:
        path: the file.
        format: txt, csv, tsv, jsonl, parquet, xlsx or folder.
        encoding: encoding of a text file; None before it is read, and for other formats.
        delimiter: what separates the fields of a csv or tsv file.
        sheet: name of the sheet of a workbook.
        text: column of the text.
        uncomputed: formulas of a sheet without a stored value; they count as empty cells.
        records: number of records so far.
    """

    path: str
    format: str = ""
    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None
    text: str | None = None
    uncomputed: int = 0
    records: int = 0


class _KeptInput:
    """A stream that can be read once, kept in a temporary file without a name, which ends with this object."""

    def __init__(self, stream: BinaryIO) -> None:
        self._descriptor, path = tempfile.mkstemp()
        os.unlink(path)
        with open(self._descriptor, "wb", closefd=False) as file:
            shutil.copyfileobj(stream, file)

    def open(self) -> Any:
        """Return a new stream from the beginning."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return open(os.dup(self._descriptor), "rb", buffering=0)

    def __del__(self) -> None:
        os.close(self._descriptor)


class Decoder:
    """Decoder of the files of one call, with one rule for malformed characters and one limit of length.

    Args:
        errors: ``"strict"`` raises on the first malformed byte, NUL or unpaired surrogate; ``"replace"`` puts U+FFFD
            there.
        max_bytes: largest size of a line, row or document, in bytes.
        encoding: ``"auto"`` decides by `kexue.corpus.encodings`; else the name of an encoding.
        faults: what becomes of records that cannot be used; None: the first is raised.
        options: whether whoever reads has options for encoding, errors and max_bytes, which remedies then name.

    Attributes:
        replaced: number of characters replaced by U+FFFD so far.
        files: what was decided about each file.
        twice: whether inputs are read more than once; standard input is then kept in a temporary file.
    """

    def __init__(
        self,
        errors: str,
        max_bytes: int = MAX_BYTES,
        *,
        encoding: str = "auto",
        faults: Faults | None = None,
        options: bool = True,
    ) -> None:
        self.strict, self.options = errors == "strict", options
        self.max_bytes = max_bytes
        self.replaced = 0
        self.faults = Faults(collect=False) if faults is None else faults
        self.files: dict[str, InputFile] = {}
        self._encoding = check_encoding(encoding)
        self.twice = self._encoding == "auto"
        self._stdin: list[_KeptInput] = []  # shared with scouts

    def scout(self) -> Decoder:
        """Return a decoder of the same files for a first reading, whose faults and repairs do not count."""
        other = copy.copy(self)
        other.faults = Faults(collect=True)
        return other

    def file(self, path: str) -> InputFile:
        """Return what was decided about a file so far."""
        return self.files.setdefault(path, InputFile(path))

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open the bytes of a file, decompressed."""
        if path != STDIN or not self.twice:
            with open_bytes(path) as stream:
                yield stream
            return
        if not self._stdin:
            self._stdin.append(_KeptInput(standard_input()))
        with self._stdin[0].open() as raw, open_bytes(path, raw=raw) as stream:
            yield stream

    def encoding(self, path: str) -> str:
        """Return the encoding of a file, decided when it is first asked for."""
        file = self.file(path)
        if file.encoding is None:
            file.encoding = find_encoding(lambda: self.open(path)) if self._encoding == "auto" else self._encoding
        return file.encoding

    def believe(self, path: str, declared: str) -> None:
        """Take the encoding that a file declares; not an unknown one, nor against its first bytes or the caller."""
        with contextlib.suppress(ValueError):
            known = check_encoding(declared)
            if self._encoding == "auto" != known:
                with self.open(path) as stream:
                    self.file(path).encoding = find_mark(stream.read(4)) or known

    @contextmanager
    def open_utf8(self, path: str, *, swap: bool = False) -> Iterator[BinaryIO]:
        """Open the bytes of a text file as UTF-8; `swap`: with CR and LF exchanged."""
        encoding = self.encoding(path)
        with self.open(path) as stream:
            if encoding == "utf-8" and not swap:
                yield stream
            else:
                recoded = Recoded(stream, encoding, swap=swap, path=path, options=self.options)
                yield cast(BinaryIO, io.BufferedReader(recoded))

    def decode(self, raw: bytes, *, path: str, line: int, column: str | None = None) -> str:
        """Decode one line; an error names the line and the byte column (from 1), or the column of a table.

        Raises:
            RecordError: a malformed byte, NUL or half of a surrogate pair, in strict mode.
        """
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            encoding = self.file(path).encoding or "utf-8"
            if encoding != "utf-8":
                return self._decode_recoded(raw, encoding, path, line)
            if self.strict:
                bad = not_utf8(raw, error.start, path, line=line, column=column, replaceable=self.options)
                raise as_record_error("malformed", bad, line) from error
            text = raw.decode("utf-8", "replace")
            self.replaced += text.count(REPLACEMENT) - raw.count(REPLACEMENT.encode())
        return self.clean(text, path=path, line=line, column=column)

    def _decode_recoded(self, raw: bytes, encoding: str, path: str, line: int) -> str:
        """Decode a line of `Recoded` in which halves of surrogate pairs stand for malformed bytes."""
        text = raw.decode("utf-8", "surrogatepass")
        at = next((i for i, char in enumerate(text) if "\udc80" <= char <= "\udcff"), None)
        if self.strict and at is not None:
            place = len(text[:at].encode(encoding, "surrogatepass")) + 1
            raise RecordError(
                "malformed",
                f"byte 0x{ord(text[at]) & 0xFF:02x} is not {show_encoding(encoding)}.",
                path=path,
                line=line,
                column=place,
                remedy="Name another encoding with --encoding (in Python encoding=), or pass errors='replace' "
                "(--encoding-errors replace), which puts U+FFFD."
                if self.options
                else f"Save it as UTF-8: iconv -f {show_encoding(encoding)} -t UTF-8 OLD > NEW.",
            )
        return self.clean(text, path=path, line=line)

    def clean(self, text: str, *, path: str, line: int, column: str | None = None) -> str:
        """Refuse or replace NUL and unpaired surrogates; escapes in JSON can spell both."""
        if "\0" not in text and (text.isascii() or not _has_half_surrogates(text)):
            return text
        bad = [i for i, char in enumerate(text) if char == "\0" or "\ud800" <= char <= "\udfff"]
        if self.strict:
            nul = f"a NUL character (is this a binary file, or {'--encoding utf-16le' * self.options or 'UTF-16'}?)"
            raise RecordError(
                "malformed",
                f"the text holds {nul if text[bad[0]] == chr(0) else 'half a surrogate pair'}.",
                remedy="Remove it, or pass --encoding-errors replace (in Python errors='replace')."
                if self.options
                else "Remove it.",
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

        def data_error(message: str, remedy: str) -> RecordError:
            """Return an error with the place of the value."""
            return RecordError("malformed", message, path=path, line=line, column=column, remedy=remedy)

        try:
            return clean(value)
        except RecursionError:
            raise data_error("nested too deeply.", "Flatten it, or leave the column out.") from None

    def check_length(self, size: int, *, path: str, line: int | None, what: str = "the line") -> None:
        """Raise a `DataError` for a `size` above `max_bytes`."""
        if size > self.max_bytes:
            raise DataError(
                f"{what} is longer than {self.max_bytes:,} bytes.",
                remedy="If it really is one text, allow it with --max-bytes 64M (in Python max_bytes=)."
                if self.options
                else "Split it, or leave it out.",
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


def decode_lines(
    path: str, decoder: Decoder, *, flaws: dict[int, RecordError] | None = None
) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end); a byte order mark at the start is dropped.

    Lines end with LF or CRLF; with CR in a file that has no LF.

    Args:
        path: a file, also compressed, or ``"-"``.
        decoder: rule for malformed bytes, and limit of a line's length. A malformed line is a fault, and left out.
        flaws: for lines of CSV, whose rows may go on in the next line. A malformed line is repaired and yielded, and
            its error put here by its number; the first line end outside double quotes decides whether CR ends lines.
    """
    swap = False
    if path != STDIN or decoder.twice:
        with decoder.open_utf8(path) as stream:
            swap = ends_with_cr(stream, quoted=flaws is not None)
    with decoder.open_utf8(path, swap=swap) as stream:
        number = 0
        while raw := stream.readline(decoder.max_bytes + 1):
            number += 1
            decoder.check_length(len(raw), path=path, line=number)
            raw = raw.removeprefix(BOM_UTF8) if number == 1 else raw
            try:
                text = decoder.decode(raw, path=path, line=number)
            except RecordError as error:
                if flaws is None:
                    decoder.faults.add(error)
                    continue
                flaws[number], text = error, raw.decode("utf-8", "replace").replace("\0", REPLACEMENT)
            if swap:
                text = text.translate(_SWAP)
            elif number == 1 and path == STDIN and not text.endswith("\n"):
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
    with decoder.open_utf8(path) as stream:
        while raw := stream.readline(decoder.max_bytes - size + 1):  # by line, so that an error can name its line
            size += len(raw)
            decoder.check_length(size, path=path, line=None, what="the document")
            number = len(lines) + 1
            lines.append(decoder.decode(raw.removeprefix(BOM_UTF8) if number == 1 else raw, path=path, line=number))
    return "".join(lines)


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a text file, also compressed, or of standard input for ``"-"``, without their ends.

    Raises:
        DataError: it cannot be read, or a byte is malformed.
    """
    lines = decode_lines(os.fspath(path), Decoder("strict", options=False))
    return [strip_line_end(text) for _, text in lines]


def strip_line_end(line: str) -> str:
    r"""Return a line without the \n, \r\n or \r it ends with."""
    return line.removesuffix("\n").removesuffix("\r")
