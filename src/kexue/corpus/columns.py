"""Columns of a table as the text, id and metadata of records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kexue.corpus.decoding import Decoder
from kexue.corpus.faults import RecordError, as_record_error
from kexue.corpus.fields import Record, to_json
from kexue.corpus.kinds import ColumnKinds, spell
from kexue.corpus.rows import jsonl_objects, parquet_columns, parquet_rows
from kexue.corpus.separated import Row, list_names, same_name
from kexue.errors import DataError

TEXT_COLUMNS = ("text", "sentence", "question", "content", "title", "document", "body")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold the text, id and metadata.

    Attributes:
        text: column of the text; None: the only column, else the first of `TEXT_COLUMNS`.
        id: column of the identifier; None: no ids.
        metadata: columns of the metadata.
        optional: those of them that a file may lack.
        kinds: types of the columns whose cells do not say theirs.
    """

    text: str | None
    id: str | None
    metadata: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    kinds: ColumnKinds = field(default_factory=ColumnKinds)

    def refuse_names(self, path: str, what: str) -> None:
        """Raise a DataError if a column is named; `what` is the input, which has no columns."""
        for name, value in (("text", self.text), ("id", self.id), ("metadata", self.metadata)):
            if value:
                raise DataError(
                    f"there is no column {value!r} for {name}: {what} has no columns.",
                    remedy=f"Remove --{name} (in Python {name}=), or give the format with --format (format=).",
                    path=path,
                )

    def survey(self, rows: Iterator[Row], path: str) -> None:
        """Take the metadata of a table of cells into account for the types of the columns."""
        for line, row in rows:
            for name in self.metadata:
                self.kinds.add(name, row.get(name), path, line)

    def read_cells(self, rows: Iterator[Row], path: str, decoder: Decoder) -> Iterator[Record]:
        """Yield the records of a table of cells: CSV, TSV or a sheet. Metadata of an empty cell is None."""
        text: str | None = None
        for line, row in rows:
            if text is None:
                text = decoder.file(path).text = self._text_column(list(row), path)
                there = [name for name in self.metadata if name in row]
            try:
                cells = row | {name: spell(row[name] or "") for name in (text, *([self.id] if self.id else []))}
                metadata = {name: self.kinds.read(name, row[name]) for name in there}
                yield self._record(cells, text, metadata, decoder, path, line)
            except RecordError as error:
                decoder.faults.add(error)

    def read_jsonl(self, path: str, decoder: Decoder) -> Iterator[Record]:
        """Yield the records of a JSON Lines file; an object may lack metadata, but not the text or the id."""
        text: str | None = None
        missing, fields = set(self.metadata) - self.optional, dict[str, None]()
        for line, row in jsonl_objects(path, decoder):
            try:
                if text is None or text not in row or (self.id is not None and self.id not in row):
                    text = self._text_column(list(row), path, line=line, text=text)
                    decoder.file(path).text = text
                if missing:
                    missing.difference_update(row)
                    fields.update(dict.fromkeys(list(row)[:50]))
                metadata = {
                    name: decoder.clean_json(row[name], path=path, line=line, column=name)
                    for name in self.metadata
                    if name in row
                }
                yield self._record(row, text, metadata, decoder, path, line)
            except RecordError as error:
                decoder.faults.add(error)
        if missing and fields:
            raise _no_column(sorted(missing)[0], "metadata", list(fields), path)

    def read_parquet(self, path: str, decoder: Decoder) -> Iterator[Record]:
        """Yield the records of a Parquet file."""
        names = parquet_columns(path)
        text = decoder.file(path).text = self._text_column(names, path)
        if names.count(text) > 1:
            raise same_name(text, path)
        there = [name for name in self.metadata if name in names]
        needed = dict.fromkeys([text, *([self.id] if self.id else []), *there])
        for line, row in parquet_rows(path, list(needed), decoder):
            try:
                values = dict(row)
                for name, value in row.items():
                    if isinstance(value, bytes):
                        values[name] = decoder.decode(value, path=path, line=line, column=name)
                metadata = {name: to_json(values[name], decoder, path=path, line=line, column=name) for name in there}
                yield self._record(values, text, metadata, decoder, path, line)
            except RecordError as error:
                decoder.faults.add(error)

    def _text_column(self, names: list[str], path: str, *, line: int | None = None, text: str | None = None) -> str:
        """Return the text column among `names`, and check that all named columns are there.

        Args:
            names: columns of the table, or of one object of a JSON Lines file.
            path: the file, for errors.
            line: line of the object, which may lack metadata; None: the names are those of a table.
            text: text column of the objects before this one.
        """
        text = self.text or text
        needed = [("text", text), ("id", self.id)]
        needed += [] if line else [("metadata", name) for name in self.metadata if name not in self.optional]
        for role, name in needed:
            if name is not None and name not in names:
                error = _no_column(name, role, names, path, line)
                raise error if line is None else as_record_error("no_id" if role == "id" else "empty", error, line)
            if name is not None and names.count(name) > 1:
                raise same_name(name, path)
        if text:
            return text
        if len(names) == 1:
            return names[0]
        lower = {name.strip().lower(): name for name in reversed(names)}
        for name in TEXT_COLUMNS:
            if name in lower:
                return lower[name]
        raise DataError(
            f"which column holds the text? There are: {list_names(names)}.",
            remedy="Name it with --text (in Python text=).",
            path=path,
            line=line,
        )

    def _record(
        self, row: dict[str, Any], column: str, metadata: dict[str, Any], decoder: Decoder, path: str, line: int
    ) -> Record:
        """Return the record of a row, after checking its text and id."""
        text = row[column]
        if text is None or text == "" or (isinstance(text, str) and text.isspace()):
            raise RecordError(
                "empty",
                "the text is empty.",
                remedy="Fill it in or remove the row.",
                path=path,
                line=line,
                column=column,
            )
        if not isinstance(text, str):
            raise RecordError(
                "malformed",
                f"the text must be a string, got {text!r:.40}.",
                remedy="Name another column with --text (in Python text=), or quote the value.",
                path=path,
                line=line,
                column=column,
            )
        text = decoder.clean(text, path=path, line=line, column=column)
        id = None if self.id is None else self._identifier(row[self.id], decoder, path, line)
        return Record(id, text, metadata, path, line)

    def _identifier(self, value: Any, decoder: Decoder, path: str, line: int) -> str:
        """Return an id as text."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return decoder.clean(value, path=path, line=line, column=self.id)
        blank = value is None or (isinstance(value, str) and not value.strip())
        raise RecordError(
            "no_id" if blank else "wrong_id",
            "the id is empty." if blank else f"the id must be a string or a whole number, got {value!r:.40}.",
            remedy="Correct the value, or name another column with --id (in Python id=).",
            path=path,
            line=line,
            column=self.id,
        )


def _no_column(name: str, role: str, names: list[str], path: str, line: int | None = None) -> DataError:
    """Return the error about a column that is missing."""
    first = "" if line else " If the names of the columns stand further down, remove the rows above them."
    return DataError(
        f"there is no column {name!r}. There are: {list_names([name for name in names if name])}.",
        remedy=f"Name one of them with --{role} (in Python {role}=).{first}",
        path=path,
        line=line,
        column=name,
    )
