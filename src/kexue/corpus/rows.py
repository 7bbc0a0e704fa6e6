"""Rows of JSON Lines and Parquet files, as (line, {column: value}); errors name the place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from kexue._files import system_error
from kexue._optional import import_optional
from kexue.corpus.decoding import Decoder, decode_lines
from kexue.corpus.faults import RecordError
from kexue.corpus.open import STDIN, explain_errors, read_codec
from kexue.corpus.separated import Row
from kexue.errors import DataError

_BATCH = 1024  # rows of Parquet read at a time
_BATCH_BYTES = 64 << 20  # bytes of their strings converted at a time


def jsonl_objects(path: str, decoder: Decoder) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file; blank lines are skipped, `NaN` and `Infinity` are refused."""
    for line, text in decode_lines(path, decoder):
        if not text.strip():
            continue
        try:
            value = json.loads(text.rstrip(" \t\r\n"), parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            message, column = f"not JSON: {error.msg}.", error.colno
        except (ValueError, RecursionError) as error:
            message, column = f"not JSON that can be read: {error}.", None
        else:
            if isinstance(value, dict):
                yield line, value
                continue
            message, column = f"expected a JSON object, got {_kind(value)}.", None
        decoder.faults.add(RecordError("malformed", message, remedy=_ONE_PER_LINE, path=path, line=line, column=column))


_ONE_PER_LINE = 'Write one JSON object per line: {"text": "..."}.'


def _refuse_constant(name: str) -> NoReturn:
    """Raise a ValueError for NaN and Infinity."""
    raise ValueError(f"{name} is not a JSON value")


def _kind(value: object) -> str:
    """Return the name of a JSON value's type."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def parquet_rows(path: str, columns: Sequence[str] | None, decoder: Decoder) -> Iterator[Row]:
    """Yield the rows of a Parquet file, `columns` only, strings as bytes; the line is the row's number from 1."""
    file = open_parquet(path)
    try:
        line = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            table = _binary_strings(batch)
            longest = [_longest(column) for column in table.columns]
            for name, size in zip(table.column_names, longest, strict=True):
                decoder.check_length(size, path=path, line=None, what=f"a value of the column {name!r}")
            step = max(1, min(_BATCH, _BATCH_BYTES // max(1, sum(longest))))
            for start in range(0, len(table), step):
                for row in table.slice(start, step).to_pylist():
                    line += 1
                    yield line, row
    except DataError:
        raise
    except (OSError, ValueError, NotImplementedError, MemoryError) as error:
        reason = str(error) or "not enough memory"
        raise DataError(f"cannot be read as Parquet: {reason}.", path=path, remedy=_FETCH) from error
    finally:
        file.close()


_FETCH = "Fetch or write the file again."


def _longest(column: Any) -> int:
    """Return the length of the longest string of a column of strings, also of a dictionary; 0 for other columns."""
    pyarrow, compute = import_optional("pyarrow"), import_optional("pyarrow.compute")
    parts = [part.dictionary if pyarrow.types.is_dictionary(part.type) else part for part in column.chunks]
    strings = [part for part in parts if pyarrow.types.is_large_binary(part.type) or pyarrow.types.is_binary(part.type)]
    return max((compute.max(compute.binary_length(part)).as_py() or 0 for part in strings), default=0)


def parquet_columns(path: str) -> list[str]:
    """Return the names of the columns of a Parquet file."""
    file = open_parquet(path)
    try:
        return [str(name) for name in file.schema_arrow.names]
    finally:
        file.close()


def open_parquet(path: str) -> Any:
    """Open a Parquet file."""
    with explain_errors(path):
        codec = None if path == STDIN else read_codec(path)
    if path == STDIN or codec is not None:
        raise DataError(
            "Parquet must be a plain file: it is read from its end, and compressed inside.",
            remedy="Give the .parquet file itself.",
            path=path,
        )
    pyarrow = import_optional("pyarrow")
    parquet = import_optional("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise system_error(error, path) from error
        raise DataError(f"cannot be read as Parquet: {error}.", path=path, remedy=_FETCH) from error


def _binary_strings(batch: Any) -> Any:
    """Return a table with strings as bytes, so that `Decoder` sees malformed UTF-8 as everywhere else."""
    pyarrow = import_optional("pyarrow")
    columns = [column.cast(_binary(column.type)) for column in batch.columns]
    return pyarrow.table(columns, names=batch.schema.names)


def _binary(kind: Any) -> Any:
    """Return a type with bytes in place of strings, at any depth; an outer dictionary stays, as it saves memory."""
    pyarrow = import_optional("pyarrow")
    types = pyarrow.types
    if types.is_string(kind) or types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _binary(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_binary(field.type)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(_binary(kind.key_type), _binary(kind.item_type))
    if types.is_large_list(kind):
        return pyarrow.large_list(_binary(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(_binary(kind.value_type), kind.list_size)
    if types.is_list(kind):
        return pyarrow.list_(_binary(kind.value_type))
    return kind
