"""Rows of CSV and TSV files: fields separated by a character that the file itself shows, quoted by double quotes."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from kexue.corpus.decoding import Decoder, decode_lines
from kexue.corpus.faults import RecordError, as_record_error
from kexue.errors import DataError

Row = tuple[int, dict[str, Any]]
DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 200  # lines that show what separates the fields
_SAMPLE_CHARACTERS = 1 << 16
_NAMED = re.compile(r'"?sep=(.)"?[\r\n]*')  # first line that spreadsheets write to name the delimiter
_QUOTES = 'A field that begins with " must end with " and write an inner " as "".'


def csv_table(path: str, decoder: Decoder, expected: str, delimiter: str | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file whose first row names the columns; quoted fields may hold line breaks.

    Args:
        path, decoder, expected, delimiter: see `csv_rows`. A row without any text is skipped, as spreadsheets write
            empty rows; one with fewer fields than the header, or with more that are not empty, is a fault.
    """
    header: list[str] | None = None
    for line, fields in csv_rows(path, decoder, expected, delimiter):
        if not any(fields):
            continue
        if header is None:
            header = [name.strip() for name in fields]
            check_names(header, path)
            continue
        if len(fields) >= len(header) and not any(fields[len(header) :]):
            yield line, dict(zip(header, fields, strict=False))
            continue
        decoder.faults.add(
            RecordError(
                "malformed",
                f"the row has {len(fields)} fields, the header {len(header)} ({list_names(header)}).",
                remedy="Put a field that holds the separator, a quote or a line break between double quotes.",
                path=path,
                line=line,
            )
        )


def check_names(names: Iterable[str], path: str) -> None:
    """Raise a DataError where two columns have one name."""
    for name, times in Counter(names).items():
        if name and times > 1:
            raise same_name(name, path)


def same_name(name: str, path: str) -> DataError:
    """Return the error about two columns of one name."""
    return DataError(f"two columns are called {name!r}.", remedy="Rename one.", path=path, column=name)


def list_names(names: Sequence[str], most: int = 20) -> str:
    """Return names for a message, the first `most` of them."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def csv_rows(
    path: str, decoder: Decoder, expected: str, delimiter: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each row that is not blank.

    Args:
        path: the file.
        decoder: decodes it; rows that are malformed are faults. Reading goes on in the line after the one where such a
            row begins, since a quote that is not closed takes in the rows after it.
        expected: delimiter that the format names.
        delimiter: the one that is used; None: the file shows it, see `find_delimiter`.
    """
    if csv.field_size_limit() < decoder.max_bytes:  # its default, 128 KiB, is too small for some documents
        csv.field_size_limit(decoder.max_bytes)
    flaws: dict[int, RecordError] = {}
    source = (text for _, text in decode_lines(path, decoder, flaws=flaws))
    head = list(_take_sample(source))
    named = _NAMED.fullmatch(head[0]) if head else None
    skipped = 1 if named else 0
    found = named[1] if named else find_delimiter(head, expected)
    decoder.file(path).delimiter = delimiter = delimiter or found
    lines = _RowLines(chain(head[skipped:], source), skipped + 1, decoder, path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = True  # the first row: without it nothing else can be read
    while True:
        begin = lines.begin
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, RecordError) as error:
            fault = error if isinstance(error, RecordError) else _malformed(error, path, begin)
            if header:
                raise fault from error
            lines.end_line()
            flaws.pop(begin, None)
            decoder.faults.add(fault)
            continue
        end = lines.end_row()
        flaw = next((flaws.pop(line) for line in range(begin, end) if line in flaws), None) if flaws else None
        if flaw is not None:
            if header:
                raise flaw
            decoder.faults.add(flaw)
        elif fields and fields != [""]:
            header = False
            yield begin, fields


class _RowLines(Iterator[str]):
    """Lines of a file; those of the row that is being read are kept, so that they can be read again.

    Args:
        source: the lines.
        begin: number of the first of them.
        decoder: limit of the length of a row.
        path: the file, for errors.

    Attributes:
        begin: number of the line where the row begins.
    """

    def __init__(self, source: Iterator[str], begin: int, decoder: Decoder, path: str) -> None:
        self.begin = begin
        self._source = source
        self._decoder, self._path = decoder, path
        self._row: list[str] = []
        self._size = 0
        self._again: deque[str] = deque()

    def __next__(self) -> str:
        text = self._again.popleft() if self._again else next(self._source)
        self._row.append(text)
        self._size += len(text)
        try:
            self._decoder.check_length(
                self._size,
                path=self._path,
                line=self.begin,
                what='the row that begins here (perhaps a closing " is missing)',
            )
        except DataError as error:
            raise as_record_error("malformed", error, self.begin) from error
        return text

    def end_row(self) -> int:
        """End the row; return the number of the line after it."""
        self.begin += len(self._row)
        self._row, self._size = [], 0
        return self.begin

    def end_line(self) -> None:
        """End the row with its first line; its other lines are read again."""
        self._again.extendleft(reversed(self._row[1:]))
        del self._row[1:]
        self.end_row()


def _malformed(error: csv.Error, path: str, line: int) -> RecordError:
    """Return the error about a row that is not CSV."""
    return RecordError(
        "malformed", f"the row that begins here is malformed: {error}.", remedy=_QUOTES, path=path, line=line
    )


def _take_sample(source: Iterator[str]) -> Iterator[str]:
    """Yield the first lines: at least up to the first that is not blank."""
    size, texts = 0, 0
    for line in source:
        size, texts = size + len(line), texts + bool(line.strip())
        yield line
        if texts >= _SAMPLE or (texts and size >= _SAMPLE_CHARACTERS):
            return


def find_delimiter(sample: list[str], expected: str) -> str:
    """Return what separates the fields of a file that begins with the lines `sample`.

    It is a character of `DELIMITERS`, or `expected`, that stands in the header outside quotes. Where several do, it is
    the one by which most rows have as many fields as the header; among equals the one that gives more fields, then
    `expected`. Where none does, the file has one column.

    >>> find_delimiter(["id;question, in short;lang", "1;How long, please?;en", "2;Hello;en"], ",")
    ';'
    """
    header = next((line for line in sample if line.strip()), "")
    bare = re.sub(r'"[^"]*("|$)', "", header)
    present = [mark for mark in dict.fromkeys((expected, *DELIMITERS)) if mark in bare]
    if len(present) < 2:
        return present[0] if present else expected

    cut = len(sample) >= _SAMPLE or sum(map(len, sample)) >= _SAMPLE_CHARACTERS  # the last row may go on

    def agreement(mark: str) -> tuple[float, int, bool]:
        """Return the share of rows as wide as the header, and what decides between equals."""
        try:
            widths = [len(row) for row in csv.reader(sample, delimiter=mark) if row and row != [""]]
        except csv.Error:
            return 0.0, 0, False
        body = widths[1 : len(widths) - cut]
        share = sum(width == widths[0] for width in body) / len(body) if body else 1.0
        return share, widths[0], mark == expected

    return max(present, key=agreement)
