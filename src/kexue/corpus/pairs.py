"""Reader of labelled pairs, two texts and a number, from TSV, CSV and JSON Lines files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue._text import parse_json
from kexue.corpus.decoding import Decoder, decode_lines, strip_line_end
from kexue.corpus.open import split_suffix
from kexue.corpus.separated import csv_rows
from kexue.errors import DataError

Pair = tuple[str, str, float]
COLUMNS = (("text_a", "text_b", "label"), ("sentence1", "sentence2", "label"), ("sentence1", "sentence2", "score"))
_LABEL_NAMES = {"label", "labels", "score", "similarity", "gold"}
_FORMATS = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def pair_format(path: Path) -> str | None:
    """Return the format by a file's extension: tsv, csv or jsonl; None for another extension."""
    return _FORMATS.get(split_suffix(path.name)[0])


def find_columns(names: Sequence[str] | Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the first of `COLUMNS` that is among `names`; None where there is none."""
    return next((columns for columns in COLUMNS if all(name in names for name in columns)), None)


class PairReader:
    """Reader of one file of pairs; iterate over it once.

    Args:
        path: a file, also compressed.
        columns: names of (text, text, number); None: one of `COLUMNS`.
        decoder: rule for malformed bytes, and limit of a line's length.

    Attributes:
        skipped: lines with a wrong number of fields so far, which are left out.
        replaced: pairs in which malformed characters were replaced so far.

    Raises:
        DataError: when iterated: an unknown extension, missing columns, a label that is not a finite number,
            or what `decode_lines` raises.
    """

    def __init__(self, path: Path, columns: tuple[str, str, str] | None, decoder: Decoder) -> None:
        self._path, self._columns, self._decoder = path, columns, decoder
        self.skipped = self.replaced = 0
        self._positions: tuple[int, ...] = (0, 1, 2)  # of text, text and number in a row
        self._names: tuple[str, str, str] = COLUMNS[0]
        self._width = 3

    def __iter__(self) -> Iterator[Pair]:
        kind = pair_format(self._path)
        if kind is None:
            raise DataError(
                f"unknown format {self._path.suffix!r}.",
                path=self._path,
                remedy="Known are .tsv, .txt (tabs), .csv and .jsonl, each also compressed, as .gz.",
            )
        before = 0
        for pair in self._json_pairs() if kind == "jsonl" else self._table_pairs(kind):
            self.replaced += self._decoder.replaced > before
            before = self._decoder.replaced
            if pair is None:
                self.skipped += 1
            else:
                yield pair

    def _table_pairs(self, kind: str) -> Iterator[Pair | None]:
        """Yield the pairs of a TSV or CSV file; None for a row with a wrong number of fields."""
        first = True
        rows = self._tsv_rows() if kind == "tsv" else csv_rows(str(self._path), self._decoder, ",")
        for line, fields in rows:
            if first and self._read_header(fields):
                first = False
                continue
            if len(fields) == self._width:
                a, b, label = (fields[i] for i in self._positions)
                yield a, b, self._number(label, line, first=first)
            else:
                yield None
            first = False

    def _tsv_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield (line, fields) of each line that is not blank; quotes are characters like others."""
        for line, text in decode_lines(str(self._path), self._decoder):
            if content := strip_line_end(text):
                yield line, content.split("\t")

    def _json_pairs(self) -> Iterator[Pair | None]:
        """Yield the pairs of a JSON Lines file; None for an object without the columns."""
        path = str(self._path)
        for line, text in decode_lines(path, self._decoder):
            if not text.strip():
                continue
            record = parse_json(text, path, line=line)
            if not isinstance(record, dict):
                raise DataError(f"expected an object, got {text.strip()[:40]!r}.", path=path, line=line)
            names = self._match_columns(record)
            if names is None:
                yield None
                continue
            self._names = names
            *texts, label = (record[name] for name in names)
            for i, (column, value) in enumerate(zip(names, texts, strict=False)):
                if not isinstance(value, str):
                    raise DataError(f"expected a text, got {value!r:.40}.", path=path, line=line, column=column)
                texts[i] = self._decoder.clean(value, path=path, line=line, column=column)
            yield texts[0], texts[1], self._number(label, line, first=False)

    def _match_columns(self, names: Sequence[str] | Mapping[str, Any]) -> tuple[str, str, str] | None:
        """Return the columns of (text, text, number), if all three are among `names`."""
        if self._columns is None:
            return find_columns(names)
        return self._columns if all(name in names for name in self._columns) else None

    def _read_header(self, fields: list[str]) -> bool:
        """Return whether the first row is a header; if so, note where the three columns are."""
        header = [field.strip() for field in fields]
        lowered = [name.lower() for name in header]
        row = lowered if self._columns is None else header
        names = self._match_columns(row)
        if names is not None:
            self._positions, self._names, self._width = tuple(map(row.index, names)), names, len(row)
            return True
        if self._columns is not None:
            raise DataError(
                f"no columns {', '.join(map(repr, self._columns))} in the header.",
                path=self._path,
                line=1,
                remedy=f"Columns found: {', '.join(header)}.",
            )
        return len(fields) == 3 and lowered[2] in _LABEL_NAMES

    def _number(self, label: Any, line: int, *, first: bool) -> float:
        """Return a label as a finite number; `first`: in a first row that may be a header."""
        try:
            value = float(label)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            hint = "If line 1 is a header, name its columns: columns=(text, text, label)." if first else ""
            raise DataError(
                f"the label must be a number, got {label!r:.40}.",
                path=self._path,
                line=line,
                column=self._names[2],
                remedy=hint or "Correct the line or leave it out.",
            )
        return value
