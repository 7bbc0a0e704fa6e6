"""Files added to an existing index."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from kexue._progress import Progress
from kexue.corpus.decoding import MAX_BYTES
from kexue.corpus.faults import FaultyRecordsError, RecordError
from kexue.errors import DataError
from kexue.search.fields import recorded_columns
from kexue.search.index import Index
from kexue.search.ingest import AddReport
from kexue.search.inputs import InputReport, Inputs, Notice, Reading, check_files, complete_reading
from kexue.search.partial import add_spool
from kexue.search.splitting import Splitting, Truncate, refuse_cut
from kexue.search.spool import Spool
from kexue.search.store.base import Store

_TABLES = ("csv", "tsv", "jsonl", "parquet", "xlsx")
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq", ".xlsx", ".xlsm")


def add_files(
    index: Index,
    inputs: Inputs,
    *,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] | None = None,
    format: str = "auto",
    truncate: Truncate = "allow",
    errors: str = "strict",
    encoding: str = "auto",
    delimiter: str | None = None,
    sheet: str | None = None,
    max_bytes: int = MAX_BYTES,
    on_error: Literal["stop", "skip"] = "stop",
    replace: bool = False,
    notice: Notice | None = None,
    progress: Progress | None = None,
) -> AddReport:
    """Add the texts of files to an index; all of them are read and checked before the first is added.

    Where the id exists, the document gets the new text and metadata; an unchanged one is skipped. Long texts are split
    as those of the index are.

    Args:
        index, inputs, format, truncate, errors, encoding, delimiter, sheet, max_bytes, on_error, notice, progress: as
            in `build_index`.
        text, id, metadata: columns, as in `build_index`. None: those the index was built with, if any, so that
            documents keep their id; metadata columns that the input lacks are passed over. ``""`` and ``()`` mean that
            there are none. Files of plain text have none; their documents are named by their text.
        replace: False: a document keeps the metadata fields that its new row does not have; an empty cell and null
            remove a field. True: it has the fields of the new row only.

    Raises:
        DataError: input that cannot be read or has other columns, or records that cannot be used; the index is
            unchanged.
    """
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    given: Any = {"text": text, "id": id, "metadata": metadata}
    cells: dict[str, Any] = {"encoding": encoding, "delimiter": delimiter, "sheet": sheet}
    reading = Reading(**given, format=format, errors=errors, **cells, max_bytes=max_bytes, on_error=on_error)
    reading = _complete(reading, inputs, index.store)
    with closing(Spool()) as spool:
        read = _fill(reading, spool, inputs, given)
        if notice is not None:
            notice(read)
        index.encoder.choose_model(spool.sample())
        if truncate == "error":
            refuse_cut(spool, index.load_encoder(), Splitting.load(index.store.metadata()))
        _record_columns(index.store, read)
        columns = any(file["text"] for file in read.files)  # the metadata of a document belong to its text
        keep = index.store if columns and not replace else None
        return add_spool(index.ingest, spool, progress, keep=keep) + AddReport(0, 0, spool.duplicates)


def check_additions(index: Index, inputs: Inputs, **reading: Any) -> InputReport:
    """Read files as `add_files` does, and report all faults; nothing is encoded or written; see `check_files`."""
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    given = {"metadata": None, **reading}
    return check_files(inputs, reading=_complete(Reading(**given), inputs, index.store))


def _complete(reading: Reading, inputs: Sequence[str | os.PathLike[str]], store: Store) -> Reading:
    """Return how the files are read, with the columns of the index where they have columns."""
    if reading.format in _TABLES or (reading.format == "auto" and any(map(_is_table, inputs))):
        return complete_reading(reading, store)
    return complete_reading(reading, None)


def _fill(reading: Reading, spool: Spool, inputs: Inputs, given: dict[str, Any]) -> InputReport:
    """Read all inputs into a spool; an error about a column says where its name comes from."""
    try:
        return reading.fill(spool, inputs)
    except (RecordError, FaultyRecordsError):
        raise
    except DataError as error:
        columns = {"text": reading.text, "id": reading.id, "metadata": list(reading.metadata)}
        if error.column is not None and columns != given and any(columns.values()):
            shown = columns | {"metadata": ", ".join(reading.metadata)}
            used = "; ".join(f"{name}: {value}" for name, value in shown.items() if value)
            error.remedy = (
                f"{error.remedy or ''} Columns that you do not name are those the index was built with ({used}). "
                "Use id='' (--id '') for no id column."
            ).strip()
        raise


def _record_columns(store: Store, read: InputReport) -> None:
    """Add columns and types that the index does not know to those it records; a type that changes becomes text."""
    built = recorded_columns(store)
    new = read.columns
    if new["text"] is None:
        return
    types = {**new["types"], **built.get("types", {})}
    types |= {name: "text" for name, kind in new["types"].items() if types[name] != kind}
    columns = {
        "text": built.get("text") or new["text"],
        "id": built.get("id") if built else new["id"],
        "metadata": list(dict.fromkeys([*built.get("metadata", ()), *new["metadata"]])),
        "types": types,
    }
    if columns != built:
        store.upsert([], metadata={"columns": json.dumps(columns)})


def _is_table(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a file with columns."""
    return not set(_TABLE_SUFFIXES).isdisjoint(Path(path).suffixes) and not os.path.isdir(path)
