"""Readers of annotated triples: JSON Lines with a `spo_list`, and tables with a triple in each row."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from kexue._text import parse_json
from kexue.corpus.decoding import Decoder, decode_lines
from kexue.corpus.open import split_suffix
from kexue.corpus.separated import csv_table
from kexue.errors import DataError
from kexue.extract.triples import Triple, TripleExample, TripleSchema, annotate, read_name

SAMPLE = "sample"  # name of the file of 32 sentences that is a part of kexue
COLUMNS = ("text", "subject", "predicate", "object")
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}


class _Row(NamedTuple):
    """A text, one of its triples as three texts, None where a line has none, and the number of the line."""

    text: str
    triple: tuple[str, str, str] | None
    line: int


def read_triples(path: str | os.PathLike[str], *, schema: TripleSchema | None = None) -> list[TripleExample]:
    """Read examples from a file, also compressed (gzip, bzip2, xz, zstd, lz4).

    JSON Lines (.jsonl, .json) have a text and its triples in each line, as the data sets of DuIE do,
    ``{"text": ..., "spo_list": [{"subject": ..., "predicate": ..., "object": ...}]}``; of an object with several parts,
    as in DuIE 2.0, the one under ``"@value"`` counts. Tables (.csv, .tsv) have the columns text, subject, predicate and
    object; a row whose last three fields are empty says that a text has no triple. All lines of one text are one
    example, and a triple that is there twice counts once.

    Args:
        path: the file; ``"sample"``: 32 sentences of kexue's own, to try things out.
        schema: predicates that are allowed; None: all.

    Warns:
        UserWarning: subjects or objects that are not in their text: they can be scored, but not learned.

    Raises:
        DataError: what cannot be read, with line and field: an unknown ending, a field that is missing or blank, a
            predicate that is not in the schema; a file without any text.
    """
    path = os.fspath(path) if path != SAMPLE else os.path.join(os.path.dirname(__file__), "sample.jsonl")
    kind = _FORMATS.get(split_suffix(path)[0])
    if kind is None:
        raise DataError(
            f"unknown format {os.path.basename(path)!r}.",
            path=path,
            remedy="Known are .jsonl, .json (a JSON object a line), .csv and .tsv, each also compressed, as .gz.",
        )
    decoder = Decoder("strict", options=False)
    rows = _json_rows(path, decoder) if kind == "jsonl" else _table_rows(path, decoder, "\t" if kind == "tsv" else ",")
    texts: dict[str, dict[Triple, None]] = {}
    absent: list[tuple[int, str, str]] = []
    for text, triple, line in rows:
        triples = texts.setdefault(text, {})
        if triple is None:
            continue
        if schema is not None and triple[1] not in schema.predicates:
            raise DataError(
                f"the predicate {triple[1]!r} is not in the schema.",
                path=path,
                line=line,
                column="predicate",
                remedy="Add it to the schema, or correct the line.",
            )
        annotated = annotate(text, *triple)
        triples[annotated] = None
        spans = {"subject": annotated.subject_span, "object": annotated.object_span}
        absent += [(line, name, getattr(annotated, name)) for name, span in spans.items() if span is None]
    if not texts:
        raise DataError("the file has no text.", path=path, remedy="Write a text and its triples in each line.")
    if absent:
        line, name, value = absent[0]
        warnings.warn(
            f"{path}: {len(absent):,} of the subjects and objects are not in their text, first in line {line}: the "
            f"{name} {value!r:.60}. Such triples are scored, but not learned.",
            stacklevel=2,
        )
    return [TripleExample(text, tuple(triples)) for text, triples in texts.items()]


def _json_rows(path: str, decoder: Decoder) -> Iterator[_Row]:
    """Yield the triples of JSON Lines; a text without any gives one row."""
    for line, raw in decode_lines(path, decoder):
        if not raw.strip():
            continue
        record = parse_json(raw, path, line=line, kind=dict)
        text = read_name(record, "text", path, line)
        yield _Row(text, None, line)
        triples = record.get("spo_list")
        if not isinstance(triples, list) or not all(isinstance(one, dict) for one in triples):
            what = "is missing" if triples is None else f"must be a list of objects, got {triples!r:.40}"
            raise DataError(
                f"spo_list {what}.",
                path=path,
                line=line,
                column="spo_list",
                remedy="Write the triples of the text as a list, [] for none.",
            )
        for one in triples:
            yield _Row(text, _read_triple(one, path, line), line)


def _table_rows(path: str, decoder: Decoder, delimiter: str) -> Iterator[_Row]:
    """Yield the rows of a table."""
    for line, record in csv_table(path, decoder, delimiter):
        if missing := [name for name in COLUMNS if name not in record]:
            raise DataError(
                f"no column {missing[0]!r}, only {', '.join(record)}.",
                path=path,
                line=1,
                column=missing[0],
                remedy=f"The first line must name the columns {', '.join(COLUMNS)}.",
            )
        text = read_name(record, "text", path, line)
        if not any(record[name].strip() for name in COLUMNS[1:]):
            yield _Row(text, None, line)
            continue
        yield _Row(text, _read_triple(record, path, line), line)


def _read_triple(record: dict[str, Any], path: str, line: int) -> tuple[str, str, str]:
    """Return the three fields of a triple, without space at their ends."""
    if isinstance(parts := record.get("object"), dict):
        record = {**record, "object": parts.get("@value")}
    subject, predicate, object = (read_name(record, field, path, line).strip() for field in COLUMNS[1:])
    return subject, predicate, object
