"""Files added to an existing index."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from kexue._progress import Progress
from kexue.corpus import read_records
from kexue.corpus.decoding import MAX_BYTES
from kexue.corpus.open import STDIN
from kexue.errors import DataError
from kexue.search.build import Inputs
from kexue.search.index import Index
from kexue.search.ingest import AddReport
from kexue.search.partial import add_spool
from kexue.search.splitting import Splitting, Truncate, refuse_cut
from kexue.search.spool import Spool

_TABLES = ("csv", "tsv", "jsonl", "parquet")
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq")


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
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> AddReport:
    """Add the texts of files to an index; all of them are read and checked before the first is added.

    A document whose id exists is replaced; an unchanged one is skipped. Long texts are split as those of the index are.

    Args:
        index, inputs, format, truncate, errors, max_bytes, progress: as in `build_index`.
        text, id, metadata: columns, as in `build_index`. None: those the index was built with, if any, so that
            replaced documents keep their id. If the input lacks some, a warning names the metadata they lose.
            ``""`` and ``()`` mean that there are none. Files of plain text have none; their documents are named by
            their text.

    Raises:
        DataError: input that cannot be read or has other columns, or an id twice in it; the index is unchanged.
    """
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    built: dict[str, Any] = {}
    if format in _TABLES or (format == "auto" and any(map(_is_table, inputs))):
        built = json.loads(str(index.store.metadata().get("columns", "{}")))
    recorded = list(built.get("metadata", []))
    given = {"text": text, "id": id, "metadata": metadata}
    columns: dict[str, Any] = {
        "text": (built.get("text") if text is None else text) or None,
        "id": (built.get("id") if id is None else id) or None,
        "metadata": list(recorded if metadata is None else metadata),
    }
    options = {"format": format, "errors": errors, "max_bytes": max_bytes}
    with ExitStack() as stack:
        spool = _fill_spool(stack, inputs, given, columns, options)
        if lost := [name for name in recorded if name not in columns["metadata"]]:
            warnings.warn(
                f"the index was built with the metadata {', '.join(recorded)}; documents that this input replaces lose "
                f"{', '.join(lost)}.",
                stacklevel=2,
            )
        index.encoder.choose_model(spool.sample())
        if truncate == "error":
            refuse_cut(spool, index.load_encoder(), Splitting.load(index.store.metadata()))
        return add_spool(index.ingest, spool, progress) + AddReport(0, 0, spool.duplicates)


def _fill_spool(
    stack: ExitStack,
    inputs: Sequence[str | os.PathLike[str]],
    given: dict[str, Any],
    columns: dict[str, Any],
    options: dict[str, Any],
) -> Spool:
    """Read all inputs into a spool; recorded metadata columns that the input lacks are removed from `columns`."""
    while True:
        spool = stack.enter_context(closing(Spool()))
        try:
            spool.fill(read_records(inputs, **columns, **options))
            return spool
        except DataError as error:
            if given["metadata"] is None and error.column in columns["metadata"] and STDIN not in inputs:
                columns["metadata"].remove(error.column)  # recorded, but not asked for by the caller
                continue
            if columns != given and any(columns.values()):
                used = "; ".join(f"{name}: {value}" for name, value in columns.items() if value)
                error.remedy = (
                    f"{error.remedy or ''} Columns that you do not name are those the index was built with ({used}). "
                    "Use id='' (--id '') for no id column."
                ).strip()
            raise


def _is_table(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a file with columns."""
    return not set(_TABLE_SUFFIXES).isdisjoint(Path(path).suffixes) and not os.path.isdir(path)
