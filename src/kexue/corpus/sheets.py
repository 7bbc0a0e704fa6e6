"""Rows of a sheet of an .xlsx workbook, read one at a time with openpyxl.

A formula counts with the value that the spreadsheet program stored, a merged cell for every row and column it covers,
an error such as #N/A as an empty cell. Numbers without a fraction are whole numbers, and text
where the format 0000 shows them with leading zeros.
"""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any

from kexue._optional import import_optional
from kexue.corpus.decoding import Decoder
from kexue.corpus.kinds import spell
from kexue.corpus.open import STDIN, explain_errors
from kexue.corpus.separated import Row, check_names, list_names
from kexue.errors import DataError

_OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # start of an .xls file, and of a workbook with a password
_BATCH = 256  # rows read at a time
_BLOCK = 1 << 20  # bytes of a sheet searched at a time
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\b[^>]*\bref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')
_UNCOMPUTED = re.compile(
    rb"(?:</(?:\w+:)?f>|<(?:\w+:)?f\b[^>]*/>)\s*(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v>\s*</|</(?:\w+:)?c>)"
)
_PADDED = re.compile("00+")  # format of whole numbers that are shown with leading zeros
_ESCAPED = re.compile(r"_x00(0[9AaDd])_")  # how a workbook writes a tab and the ends of lines


def sheet_rows(path: str, decoder: Decoder, name: str | None) -> Iterator[Row]:
    """Yield (row number, {column: value}) of the rows of a sheet that are not empty.

    The first row that is not empty names the columns. A title above it is skipped: one cell that is merged across
    columns, or the only one of its row while the next row has several. Cells in columns without a name are left out.

    Args:
        path: the workbook.
        decoder: limit of a cell's length.
        name: of the sheet; None: the first one that is shown.
    """
    workbook = _open_workbook(path)
    try:
        sheet = _choose_sheet(workbook, name, path)
        merged, decoder.file(path).uncomputed = _scan(path, sheet)
        decoder.file(path).sheet = str(sheet.title)
        header: dict[int, str] | None = None
        for line, values in _skip_titles(_fill(_cells(sheet, path), merged), merged):
            if header is None:
                header = {at: spell(value).strip() for at, value in sorted(values.items())}
                check_names(header.values(), path)
                continue
            row = {column: values.get(at) for at, column in header.items()}
            for column, value in row.items():
                if isinstance(value, str):
                    decoder.check_length(len(value), path=path, line=line, what=f"the cell of {column!r}")
            if any(value is not None for value in row.values()):
                yield line, row
    finally:
        workbook.close()


def _open_workbook(path: str) -> Any:
    """Open a workbook, of which the sheets are read when they are asked for."""
    if path == STDIN:
        raise DataError("a workbook must be a file: it is read from its end.", path=path, remedy="Give the .xlsx file.")
    with explain_errors(path), open(path, "rb") as stream:
        head = stream.read(len(_OLD))
    if head == _OLD:
        raise DataError(
            "the workbook has a password, or is an old .xls file.",
            path=path,
            remedy="Save it as .xlsx without a password, or as CSV.",
        )
    openpyxl = import_optional("openpyxl")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and other parts that are not read
            return openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # damaged files raise KeyError, BadZipFile, errors of XML and others
        raise _damaged(error, path) from error


def _damaged(error: Exception, path: str) -> DataError:
    """Return the error about a file that is no workbook, or a damaged one."""
    reason = (str(error).strip("'") if isinstance(error, KeyError) else str(error)) or type(error).__name__
    return DataError(f"cannot be read as .xlsx: {reason}.", path=path, remedy="Save it as .xlsx again, or as CSV.")


def _choose_sheet(workbook: Any, name: str | None, path: str) -> Any:
    """Return the sheet of this name, or the first that is shown."""
    sheets = list(workbook.worksheets)
    if name is None and sheets:
        return next((sheet for sheet in sheets if sheet.sheet_state == "visible"), sheets[0])
    found = next((sheet for sheet in sheets if sheet.title == name), None)
    if found is None:
        wanted = f"there is no sheet {name!r}" if name is not None else "there is no sheet of cells"
        raise DataError(
            f"{wanted}. There are: {list_names([str(sheet.title) for sheet in sheets])}.",
            path=path,
            remedy="Name one of them with --sheet (in Python sheet=).",
        )
    return found


def _cells(sheet: Any, path: str) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield (number, {column from 1: value}) of all rows."""
    sheet.reset_dimensions()  # some programs write wrong ones
    rows = enumerate(sheet.iter_rows(), start=1)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                batch = list(islice(rows, _BATCH))
        except Exception as error:
            raise _damaged(error, path) from error
        if not batch:
            return
        for line, row in batch:
            yield line, {at: _value(cell) for at, cell in enumerate(row, start=1) if cell.value is not None}


def _value(cell: Any) -> Any:
    """Return the value of a cell: text, number, boolean, date or time; None for an error.

    A whole number that is shown with leading zeros (format 0000) is text with them: a code, not a quantity.
    """
    value = cell.value
    if isinstance(value, str):
        return None if cell.data_type == "e" else _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)
    if isinstance(value, float) and value.is_integer():
        value = int(Decimal(repr(value)))  # the digits of the file: a large one is written there as 1.2E+19
    if type(value) is int and value >= 0 and _PADDED.fullmatch(cell.number_format):
        return str(value).zfill(len(cell.number_format))
    return str(value) if isinstance(value, datetime.timedelta) else value


def _fill(
    rows: Iterator[tuple[int, dict[int, Any]]], merged: list[tuple[int, int, int, int]]
) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield the rows with the value of a merged cell in every place that it covers."""
    waiting = sorted(merged, reverse=True)
    active: dict[int, tuple[int, Any]] = {}  # column: last row and value
    for line, values in rows:
        while waiting and waiting[-1][0] <= line:
            first, left, last, right = waiting.pop()
            if first == line:
                active |= dict.fromkeys(range(left, right + 1), (last, values.get(left)))
        active = {at: held for at, held in active.items() if held[0] >= line}
        yield line, values | {at: value for at, (_, value) in active.items()}


def _skip_titles(
    rows: Iterator[tuple[int, dict[int, Any]]], merged: list[tuple[int, int, int, int]]
) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield the rows that are not empty, with their cells that are not empty, from below the titles on."""
    wide = {first for first, left, _, right in merged if right > left}
    filled = (
        (line, there)
        for line, values in rows
        if (there := {at: value for at, value in values.items() if value is not None and value != ""})
    )
    row = next(filled, None)
    while row is not None:
        following = next(filled, None)
        line, there = row
        lone = len(there) == 1 and following is not None and len(following[1]) > 1
        if not lone and not (line in wide and len(set(map(spell, there.values()))) == 1):
            yield row
            if following is not None:
                yield following
            yield from filled
            return
        row = following


def _scan(path: str, sheet: Any) -> tuple[list[tuple[int, int, int, int]], int]:
    """Return the merged cells as (first row, left, last row, right), and the number of formulas without a value."""
    merged: list[tuple[int, int, int, int]] = []
    uncomputed, rest = 0, b""
    with zipfile.ZipFile(path) as archive, archive.open(sheet._worksheet_path) as stream:
        while True:
            block = stream.read(_BLOCK)
            data = rest + block
            cut = max(data.rfind(b"<c "), data.rfind(b"<mergeCell ")) if block else len(data)
            done, rest = (data[:cut], data[cut:]) if cut > 0 else (data, b"")
            uncomputed += len(_UNCOMPUTED.findall(done))
            for left, first, right, last in _MERGED.findall(done):
                merged.append((int(first), _column(left), int(last), _column(right)))
            if not block:
                return merged, uncomputed


def _column(letters: bytes) -> int:
    """Return the number of a column, from 1.

    >>> _column(b"A"), _column(b"AB")
    (1, 28)
    """
    number = 0
    for letter in letters:
        number = 26 * number + letter - 64
    return number
