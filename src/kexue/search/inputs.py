"""Users' files read into a spool: columns, faults, and what was decided about each file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kexue.corpus import read_records
from kexue.corpus.decoding import MAX_BYTES
from kexue.search.fields import recorded_columns
from kexue.search.spool import Spool
from kexue.search.store.base import Store

Inputs = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class InputReport:
    """What was read from files.

    `records` can be indexed; `left_out` cannot, for the reasons in `faults`, each with kind, count, and path, line and
    message of the first. `duplicates` counts repeated texts without an id, `blank` empty lines and empty files of
    folders, `replaced` malformed characters. `files` says of each file its path, format, encoding, delimiter, sheet,
    text column and records. `columns` are text, id, metadata, and types of the metadata.
    """

    records: int
    left_out: int
    faults: list[dict[str, Any]]
    duplicates: int
    blank: int
    replaced: int
    files: list[dict[str, Any]]
    columns: dict[str, Any]
    warnings: list[str]


Notice = Callable[[InputReport], None]


@dataclass(frozen=True)
class Reading:
    """How files are read; the fields are those of `kexue.corpus.read_records`.

    `on_error`: ``"stop"`` raises one error about all records that cannot be used, ``"skip"`` leaves them out.
    """

    text: str | None = None
    id: str | None = None
    metadata: Sequence[str] = ()
    format: str = "auto"
    errors: str = "strict"
    encoding: str = "auto"
    delimiter: str | None = None
    sheet: str | None = None
    max_bytes: int = MAX_BYTES
    optional: Sequence[str] = ()
    types: Mapping[str, str] | None = None
    on_error: str = "stop"

    def fill(self, spool: Spool, inputs: Inputs) -> InputReport:
        """Read files into a spool, and report.

        Raises:
            FaultyRecordsError: (a DataError) records that cannot be used, unless they are left out; a single one raises
                its own DataError. DataError: a file that cannot be read.
        """
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error must be 'stop' or 'skip', got {self.on_error!r}")
        options = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "on_error"}
        records = read_records(inputs, **options, collect=True)
        spool.fill(records, records.faults)
        if self.on_error == "stop":
            records.faults.raise_all(len(spool) + spool.duplicates)
        files = [dataclasses.asdict(file) for file in records.files]
        texts = {file["text"] for file in files}
        return InputReport(
            records=len(spool),
            left_out=len(records.faults),
            faults=records.faults.records(),
            duplicates=spool.duplicates,
            blank=records.blank,
            replaced=records.replaced,
            files=[{name: value for name, value in file.items() if name != "uncomputed"} for file in files],
            columns={
                "text": texts.pop() if len(texts) == 1 else self.text,
                "id": self.id,
                "metadata": list(self.metadata),
                "types": records.columns.kinds.kinds(),
            },
            warnings=records.remarks(),
        )


def check_files(inputs: Inputs, *, reading: Reading | None = None, **options: Any) -> InputReport:
    """Read files as `build_index` does, and report all faults; nothing is encoded or written.

    Args:
        inputs: files, folders or ``"-"``.
        reading: how they are read; None: by `options`.
        options: arguments of `kexue.corpus.read_records`, such as `id` and `metadata`.

    Raises:
        DataError: a file that cannot be read at all.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "faq.csv")
    >>> _ = path.write_text("id,text\\n1,How long?\\n,Where?\\n1,When?\\n")
    >>> [(fault["kind"], fault["line"]) for fault in check_files(path, id="id").faults]
    [('no_id', 3), ('duplicate_id', 4)]
    """
    how = dataclasses.replace(reading or Reading(**options), on_error="skip")
    with closing(Spool()) as spool:
        return how.fill(spool, inputs)


def complete_reading(reading: Reading, store: Store | None) -> Reading:
    """Return how files are read for an index that exists: columns that are None are those it was built with.

    A store of None, for files without columns, has none. An empty name means that there is no such column.
    """
    built = {} if store is None else recorded_columns(store)
    metadata = reading.metadata if reading.metadata is not None else built.get("metadata", ())
    return dataclasses.replace(
        reading,
        text=(built.get("text") if reading.text is None else reading.text) or None,
        id=(built.get("id") if reading.id is None else reading.id) or None,
        metadata=tuple(metadata),
        optional=() if reading.metadata is not None else tuple(metadata),
        types=built.get("types"),
    )
