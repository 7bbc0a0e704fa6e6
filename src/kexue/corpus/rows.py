"""Rows of a table, one reader per format: each yields (line, {column: value}) and says where a file is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from kexue._optional import import_optional
from kexue.corpus.streams import STDIN, Decoder, lines, split_suffix
from kexue.errors import DataError

Row = tuple[int, dict[str, Any]]
_FIELD_LIMIT = 1 << 30  # the csv module's default, 128 KiB, is smaller than documents people have
_BATCH = 1024


def read_csv(path: str, decoder: Decoder, delimiter: str) -> Iterator[Row]:
    """Rows of a CSV or TSV file whose first row names the columns; quoted fields may hold line breaks."""
    if csv.field_size_limit() < _FIELD_LIMIT:
        csv.field_size_limit(_FIELD_LIMIT)
    source = (text for _, text in lines(path, decoder))
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for fields in reader:
            line, start = start, reader.line_num + 1
            if not fields or fields == [""]:
                continue
            if header is None:
                header = fields
                for name in header:
                    if name and header.count(name) > 1:
                        raise DataError(
                            f"two columns are called {name!r}.", remedy="Rename one.", path=path, column=name
                        )
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"the row has {len(fields)} fields, the header {len(header)} ({', '.join(header)}).",
                    remedy="Put a field that holds the separator, a quote or a line break between double quotes.",
                    path=path,
                    line=line,
                )
            yield line, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"the row that begins here is malformed: {error}.",
            remedy='A field that begins with " must end with " and write an inner " as "".',
            path=path,
            line=start,
        ) from error


def read_jsonl(path: str, decoder: Decoder) -> Iterator[Row]:
    """Objects of a JSON Lines file; blank lines are skipped, `NaN` and `Infinity` are no JSON."""
    for line, text in lines(path, decoder):
        if not text.strip():
            continue
        try:
            value = json.loads(text.rstrip(), parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise DataError(
                f"not JSON: {error.msg}.", remedy=_ONE_PER_LINE, path=path, line=line, column=error.colno
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON that can be read: {error}.", path=path, line=line) from error
        if not isinstance(value, dict):
            raise DataError(f"expected a JSON object, got {_kind(value)}.", remedy=_ONE_PER_LINE, path=path, line=line)
        yield line, value


_ONE_PER_LINE = 'Write one JSON object a line: {"text": "..."}.'


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def read_parquet(path: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """Rows of a Parquet file, `columns` only; the line is the row's number from 1."""
    file = _parquet(path)
    try:
        line = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            for row in _binary_strings(batch).to_pylist():
                line += 1
                yield line, row
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot be read as Parquet: {error}.", path=path) from error
    finally:
        file.close()


def parquet_columns(path: str) -> list[str]:
    """Names of the columns of a Parquet file."""
    file = _parquet(path)
    try:
        return [str(name) for name in file.schema_arrow.names]
    finally:
        file.close()


def _parquet(path: str) -> Any:
    if path == STDIN or split_suffix(path)[1]:
        raise DataError(
            "Parquet must be a plain file: it is read from its end, and is compressed inside.",
            remedy="Give the .parquet file itself.",
            path=path,
        )
    pyarrow = import_optional("pyarrow")
    parquet = import_optional("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot be read as Parquet: {error}.", path=path) from error


def _binary_strings(batch: Any) -> Any:
    """Strings as bytes, so that malformed UTF-8 meets the same decoder as everywhere else."""
    pyarrow = import_optional("pyarrow")
    types = pyarrow.types

    def raw(column: Any) -> Any:
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if types.is_string(column.type) or types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())
        return column

    return pyarrow.table([raw(column) for column in batch.columns], names=batch.schema.names)
