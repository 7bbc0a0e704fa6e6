"""Texts and pairs of texts for training, from files and data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kexue.corpus.pairs import COLUMNS
from kexue.corpus.records import read_records
from kexue.errors import DataError

_PAIRS = tuple(dict.fromkeys(columns[:2] for columns in COLUMNS))
_SINGLE = ("text", "sentence", "question", "query")


class Example(NamedTuple):
    """A text, the text that means the same where there is one, and their label where there is one."""

    first: str
    second: str | None = None
    label: float | None = None


def read_examples(source: Any) -> Iterator[Example]:
    """Yield the examples of a file, or of an iterable of mappings such as a `datasets.Dataset`.

    A .txt file has a text a line. Tables and mappings have two columns, text_a and text_b or sentence1 and sentence2,
    and maybe a label (score), or one column: text, sentence, question or query.

    Raises:
        DataError: no such file, or none of these columns.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if path.removesuffix(".gz").endswith((".txt", ".text")):
            yield from (Example(record.text) for record in read_records([path]))
            return
        rows: Iterator[Mapping[str, Any]] = (
            {**record.metadata, _TEXT: record.text} for record in read_records([path], text=_first_column(path))
        )
        raise NotImplementedError
    yield from _from_rows(iter(source), "the data set")


def _first_column(path: str) -> str:
    raise NotImplementedError


_TEXT = "text"


def _from_rows(rows: Iterator[Mapping[str, Any]], where: str) -> Iterator[Example]:
    raise DataError(f"{where}: not read yet")


def split_columns(sources: Sequence[Any]) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the different texts of all sources, and the rows (number of the first text, of the second or -1)."""
    numbers: dict[str, int] = {}
    rows = []
    for source in sources:
        for example in read_examples(source):
            first = numbers.setdefault(example.first, len(numbers))
            second = -1 if example.second is None else numbers.setdefault(example.second, len(numbers))
            rows.append((first, second))
    return list(numbers), rows
