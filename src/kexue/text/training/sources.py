"""Texts for training, from files and data sets: single texts, pairs, and groups of texts that mean the same.

======================================== ============================================================
endings, each also compressed (as .gz)   one example is
======================================== ============================================================
.txt .text                               a line
.tsv .tab (no quoting), .csv, .xlsx      a row: columns below, or without a header 1 text, 2 texts, 2 texts and a label
.jsonl .ndjson .parquet                  an object or row: columns below
======================================== ============================================================

Columns are text_a and text_b, or sentence1 and sentence2, with a label or score where there is one; or texts, a list of
texts that mean the same; or one of text, sentence, question and query.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kexue._text import say_count
from kexue.corpus.decoding import Decoder, decode_lines, strip_line_end
from kexue.corpus.open import split_suffix
from kexue.corpus.pairs import COLUMNS
from kexue.corpus.rows import jsonl_objects, parquet_rows
from kexue.corpus.separated import csv_rows, list_names
from kexue.corpus.sheets import sheet_rows
from kexue.errors import DataError

Label = float | str
INFERENCE = ("contradiction", "entailment", "neutral")
_PAIRS = tuple(dict.fromkeys(columns[:2] for columns in COLUMNS))
_LABELS = tuple(dict.fromkeys(columns[2] for columns in COLUMNS))
_SINGLE = ("text", "sentence", "question", "query")
_UNNAMED = ((), ("text",), ("text_a", "text_b"), ("text_a", "text_b", "label"))  # by number of fields
_LOG = logging.getLogger(__name__)


class Example(NamedTuple):
    """One text, or several that belong together.

    Attributes:
        texts: one text, a pair, or a group of texts that mean the same.
        label: of a pair: a number, or the name of a relation such as "entailment"; None without.
        source: number of the file or data set.
    """

    texts: tuple[str, ...]
    label: Label | None
    source: int


class _Row(NamedTuple):
    """Values by column, and the place: a file or data set, and the number of the line or row."""

    values: Mapping[str, Any]
    path: str
    line: int


def read_examples(sources: Sequence[Any]) -> Iterator[Example]:
    """Yield the examples of files, and of iterables of mappings such as `datasets.Dataset`.

    Rows with an empty text are left out, and so are rows of a table with a wrong number of fields; a warning counts
    them.

    Raises:
        DataError: no such file, an unknown ending, none of the columns, a label that is neither a number nor a word;
            what cannot be decoded.
    """
    for number, source in enumerate(sources):
        empty: list[int] = []
        total = 0
        for row in _rows(source):
            total += 1
            texts, label = _example(row)
            if len(texts) > 0 and all(text.strip() for text in texts):
                yield Example(texts, label, number)
            else:
                empty.append(row.line)
        name = _name(source)
        if total == len(empty):
            raise DataError("there is no text.", path=name, remedy="Add texts, or leave it out.")
        if empty:
            _LOG.warning(
                "%s: %s without text left out, the first in line %d", name, say_count(len(empty), "row"), empty[0]
            )


def _name(source: Any) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"the data set ({type(source).__name__})"


def _rows(source: Any) -> Iterator[_Row]:
    """Yield the rows of a file or of an iterable of mappings."""
    if not isinstance(source, (str, os.PathLike)):
        for number, values in enumerate(source, start=1):
            if not isinstance(values, Mapping):
                raise DataError(
                    f"expected mappings with columns, got {type(values).__name__} in row {number}.", path=_name(source)
                )
            yield _Row(values, _name(source), number)
        return
    path, decoder = os.fspath(source), Decoder("strict")
    ending = split_suffix(path)[0]
    if ending in (".txt", ".text"):
        lines = decode_lines(path, decoder)
        yield from (_Row({"text": text}, path, n) for n, line in lines if (text := strip_line_end(line)).strip())
    elif ending in (".tsv", ".tab"):
        fields = ((n, strip_line_end(line).split("\t")) for n, line in decode_lines(path, decoder) if line.strip())
        yield from _table(fields, path)
    elif ending == ".csv":
        yield from _table(csv_rows(path, decoder, ","), path)
    elif ending in (".jsonl", ".ndjson"):
        yield from (_Row(values, path, n) for n, values in jsonl_objects(path, decoder))
    elif ending in (".xlsx", ".xlsm"):
        yield from (_Row(values, path, n) for n, values in sheet_rows(path, decoder, None))
    elif ending in (".parquet", ".pq"):
        for n, values in parquet_rows(path, None, decoder):
            plain = {
                name: decoder.decode(value, path=path, line=n, column=name) if isinstance(value, bytes) else value
                for name, value in values.items()
            }
            yield _Row(plain, path, n)
    else:
        raise DataError(
            f"unknown file extension {ending!r}.",
            path=path,
            remedy="Known are .txt, .tsv, .csv, .xlsx, .jsonl and .parquet, each also compressed, as .gz.",
        )


def _table(rows: Iterable[tuple[int, list[str]]], path: str) -> Iterator[_Row]:
    """Yield rows of fields under their header, or, where the first is none, under names by their number."""
    names: Sequence[str] = ()
    wrong: list[int] = []
    for line, fields in rows:
        if not names:
            header = [field.strip().lower() for field in fields]
            if _columns(header):
                names = header
                continue
            if not 1 <= len(fields) < len(_UNNAMED):
                raise _no_columns(header, path, line)
            names = _UNNAMED[len(fields)]
        if len(fields) == len(names):
            yield _Row(dict(zip(names, fields, strict=True)), path, line)
        else:
            wrong.append(line)
    if wrong:
        _LOG.warning(
            "%s: %s left out that have not %d fields, the first in line %d",
            path, say_count(len(wrong), "row"), len(names), wrong[0],
        )  # fmt: skip


def _columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of the texts among `names`; none where there are none."""
    among = set(names)
    choices = [*_PAIRS, ("texts",), *((name,) for name in _SINGLE)]
    return next((columns for columns in choices if among.issuperset(columns)), ())


def _no_columns(names: Sequence[str], path: str, line: int) -> DataError:
    return DataError(
        f"which columns hold the texts? There are: {list_names(names)}.",
        path=path,
        line=line,
        remedy="Name them text_a and text_b (sentence1, sentence2), or texts (a list), or text.",
    )


def _example(row: _Row) -> tuple[tuple[str, ...], Label | None]:
    """Return texts and label of a row."""
    columns = _columns(row.values)
    if not columns:
        raise _no_columns(list(row.values), row.path, row.line)
    values = [row.values[name] for name in columns]
    if columns == ("texts",):
        if isinstance(values[0], str) or not isinstance(values[0], Iterable):
            raise DataError(
                f"expected a list of texts, got {values[0]!r:.40}.", path=row.path, line=row.line, column="texts"
            )
        values = list(values[0])
    texts = ["" if value is None else value for value in values]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"expected a text, got {text!r:.40}.", path=row.path, line=row.line, column=columns[0])
    name = next((name for name in _LABELS if name in row.values), None)
    label = None if name is None or len(columns) != 2 else _label(row.values[name], row, name)
    return tuple(texts), label


def _label(value: Any, row: _Row, column: str) -> Label | None:
    """Return a label as a number or as a lower-case word; None where it is empty."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in INFERENCE or word == "-":  # "-": the annotators did not agree
        return word
    raise DataError(
        f"expected a number or one of {', '.join(INFERENCE)} as a label, got {value!r:.40}.",
        path=row.path,
        line=row.line,
        column=column,
    )
