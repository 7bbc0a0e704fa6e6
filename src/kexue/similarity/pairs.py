"""Labelled sentence pairs from files and from the folder of data sets: never guessed at, never silently repaired."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kexue._arrays import Array
from kexue._text import parse_json
from kexue.corpus.rows import csv_rows
from kexue.corpus.streams import MAX_BYTES, Decoder, lines, split_suffix, without_end
from kexue.errors import DataError

_KNOWN = (("text_a", "text_b", "label"), ("sentence1", "sentence2", "label"), ("sentence1", "sentence2", "score"))
_LABEL_NAMES = {"label", "labels", "score", "similarity", "gold"}
_FORMATS = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class PairDataset:
    """Pairs of texts with one number each.

    Attributes:
        name: of the data set, or of the file without its suffixes.
        split: part of a named set, such as ``"test"``; empty for a file.
        texts_a: n texts.
        texts_b: n texts, the partners.
        labels: (n,), float64: 0/1 or a grade; larger = more alike.
        skipped: lines left out because they do not have the right number of fields.
        replaced: rows in which malformed characters were replaced (errors="replace").
    """

    name: str
    split: str
    texts_a: list[str]
    texts_b: list[str]
    labels: Array
    skipped: int = 0
    replaced: int = 0

    def __len__(self) -> int:
        return len(self.texts_a)


def load_pairs(
    name_or_path: str | os.PathLike[str],
    split: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    errors: Literal["strict", "replace"] = "strict",
    max_bytes: int = MAX_BYTES,
) -> PairDataset:
    """Read labelled pairs from a file, or a named set from the folder in `KEXUE_DATA`.

    A file is ``.tsv`` (split on tabs, no quoting), ``.csv`` or ``.jsonl``, also compressed (.gz .bz2 .xz .zst .lz4).
    A line holds text, text, number; lines and separators are those of `kexue.corpus.read_records`. A header is
    recognised by its names (text_a, text_b, label; sentence1, sentence2, label or score), by a third field such as
    "label" or "score", or by `columns`; otherwise line 1 is data.

    Args:
        name_or_path: a file, a folder of splits, or the name of a set: a folder below ``KEXUE_DATA/pairs_*``.
        split: file of a set, such as ``"train"``. None takes "test", else "valid", else the only one.
        columns: names of (text, text, label) where they differ.
        errors: ``"strict"`` stops at invalid UTF-8, NUL and half surrogates, ``"replace"`` puts U+FFFD and counts the
            rows in `.replaced`.
        max_bytes: a longer line is refused.

    Returns:
        PairDataset. Lines with a wrong number of fields are left out and counted in `.skipped`; blank ones are not.

    Raises:
        DataError: no such file, set or split (those found are listed); a label that is no finite number (path, line and
            column are named); invalid UTF-8; a damaged file; no pair at all.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pairs.tsv"
        >>> _ = file.write_text("a cat\\ta kitten\\t1\\na cat\\ta brick\\t0\\n")
        >>> load_pairs(file).labels.tolist()
        [1.0, 0.0]
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}.")
    if columns is not None and (isinstance(columns, str) or len(columns) != 3):
        raise ValueError(f"columns must name three columns (text, text, label), got {columns!r}.")
    path, name, chosen = _locate(name_or_path, split)
    reader = _Reader(path, None if columns is None else tuple(columns), Decoder(errors, max_bytes))
    texts_a, texts_b, labels = [], [], []
    for a, b, label in reader.triples():
        texts_a.append(a)
        texts_b.append(b)
        labels.append(label)
    if not labels:
        raise DataError(
            f"no pairs ({reader.skipped} lines without the right number of fields).",
            path=path,
            remedy="A line is text, text and number, separated by tabs (.tsv) or commas (.csv).",
        )
    return PairDataset(name, chosen, texts_a, texts_b, np.array(labels), reader.skipped, reader.replaced)


def pair_datasets(pairs: Any) -> list[PairDataset]:
    """What `evaluate_pairs` accepts as pairs, as a list of data sets.

    Args:
        pairs: a PairDataset, a path or name, three columns (texts_a, texts_b, labels), rows (a, b, label) or mappings
            with the columns of a file (a table of the datasets library, say), or a list of data sets, paths or names.

    Raises:
        TypeError: none of these. ValueError: columns of different lengths. DataError: see `load_pairs`.
    """
    if isinstance(pairs, PairDataset):
        return [pairs]
    if isinstance(pairs, str | os.PathLike):
        return [load_pairs(pairs)]
    if isinstance(pairs, tuple) and len(pairs) == 3 and _is_texts(pairs[0]):
        return [_from_columns(*pairs)]
    rows = list(pairs)
    if rows and all(isinstance(row, PairDataset | str | os.PathLike) for row in rows):
        return [row if isinstance(row, PairDataset) else load_pairs(row) for row in rows]
    names = next(
        (known for known in _KNOWN if rows and isinstance(rows[0], Mapping) and set(known) <= set(rows[0])), None
    )
    triples = [tuple(row[name] for name in names) for row in rows] if names else rows
    if not triples or any(isinstance(row, str) or not hasattr(row, "__len__") or len(row) != 3 for row in triples):
        raise TypeError(
            "pairs must be a PairDataset, a path or name, rows of (text, text, label), three columns, or a list of "
            f"data sets; got {type(pairs).__name__} of {type(rows[0]).__name__ if rows else 'nothing'}."
        )
    return [_from_columns(*zip(*triples, strict=True))]


def _from_columns(a: Any, b: Any, labels: Any) -> PairDataset:
    if not (_is_texts(a) and _is_texts(b)):
        raise TypeError(f"the first two columns of pairs must be texts, got {type(next(iter(a))).__name__}.")
    values = np.asarray(labels, dtype=np.float64)
    if not len(a) == len(b) == len(values):
        raise ValueError(f"three columns of one length needed, got {len(a)}, {len(b)} and {len(values)} rows.")
    return PairDataset("pairs", "", list(a), list(b), values)


def _is_texts(column: Any) -> bool:
    return not isinstance(column, str) and hasattr(column, "__iter__") and all(isinstance(text, str) for text in column)


# ---- where ---------------------------------------------------------------------------------------------------------


def _locate(name_or_path: str | os.PathLike[str], split: str | None) -> tuple[Path, str, str]:
    """File, name of the set, name of the split ("" for a plain file)."""
    path = Path(name_or_path)
    if path.is_file():
        if split is not None:
            raise DataError(f"a file has no splits, got split={split!r}.", path=path, remedy="Leave split out.")
        return path, _stem(path), ""
    folder = path if path.is_dir() else _named(os.fspath(name_or_path))
    splits = {_stem(file): file for file in sorted(folder.iterdir()) if _format(file)}
    wanted = [split] if split is not None else ["test", "valid", *(splits if len(splits) == 1 else ())]
    for candidate in wanted:
        if candidate in splits:
            return splits[candidate], folder.name, candidate
    raise DataError(
        f"{folder.name!r} has no split {split!r}." if split is not None else f"{folder.name!r} has no test or valid.",
        path=folder,
        remedy=f"Choose split from: {', '.join(splits) or 'nothing (no tsv, csv or jsonl file there)'}.",
    )


def _named(name: str) -> Path:
    root = os.environ.get("KEXUE_DATA")
    if not root:
        raise DataError(
            f"{name!r} is neither a file nor a folder, and KEXUE_DATA is not set.",
            remedy="Give the path of a tsv, csv or jsonl file, or set KEXUE_DATA to the folder of data sets.",
        )
    found = {folder.name: folder for folder in sorted(Path(root).glob("pairs_*/*")) if folder.is_dir()}
    if name not in found:
        raise DataError(
            f"{name!r} is neither a file nor a data set in KEXUE_DATA ({root}).",
            remedy=f"Data sets found: {', '.join(found) or 'none'}.",
        )
    return found[name]


def _stem(path: Path) -> str:
    ending, packing = split_suffix(path.name)
    return path.name[: len(path.name) - len(ending + packing)]


def _format(path: Path) -> str | None:
    return _FORMATS.get(split_suffix(path.name)[0])


# ---- what ----------------------------------------------------------------------------------------------------------


class _Reader:
    """One pass over a file, counting what was skipped and replaced."""

    def __init__(self, path: Path, columns: tuple[str, ...] | None, decoder: Decoder) -> None:
        self.path, self.columns, self.decoder = path, columns, decoder
        self.skipped = self.replaced = 0
        self.place: tuple[int, ...] = (0, 1, 2)  # where text, text and label stand
        self.names: tuple[str, ...] = ("text_a", "text_b", "label")
        self.width = 3

    def triples(self) -> Iterator[tuple[str, str, float]]:
        kind = _format(self.path)
        if kind is None:
            raise DataError(
                f"unknown format {self.path.suffix!r}.",
                path=self.path,
                remedy="Known are .tsv, .txt (tabs), .csv and .jsonl, each also compressed, as .gz.",
            )
        before = 0
        for triple in self._json() if kind == "jsonl" else self._table(kind):
            self.replaced += self.decoder.replaced > before
            before = self.decoder.replaced
            if triple is None:
                self.skipped += 1
            else:
                yield triple

    def _table(self, kind: str) -> Iterator[tuple[str, str, float] | None]:
        first = True
        rows = self._tabs() if kind == "tsv" else csv_rows(str(self.path), self.decoder, ",")
        for line, fields in rows:
            if first and self._header(fields):
                first = False
                continue
            if len(fields) == self.width:
                a, b, label = (fields[i] for i in self.place)
                yield a, b, self._number(label, line, first)
            else:
                yield None
            first = False

    def _tabs(self) -> Iterator[tuple[int, list[str]]]:
        for number, text in lines(str(self.path), self.decoder):
            if line := without_end(text):
                yield number, line.split("\t")

    def _json(self) -> Iterator[tuple[str, str, float] | None]:
        for number, text in lines(str(self.path), self.decoder):
            if not text.strip():
                continue
            record = parse_json(text, self.path, line=number)
            if not isinstance(record, dict):
                raise DataError(f"expected an object, got {text.strip()[:40]!r}.", path=self.path, line=number)
            names = next((known for known in self._candidates() if set(known) <= set(record)), None)
            if names is None:
                yield None
                continue
            self.names = names
            *pair, label = (record[name] for name in names)
            for i, (column, value) in enumerate(zip(names, pair, strict=False)):
                if not isinstance(value, str):
                    raise DataError(f"expected a text, got {value!r:.40}.", path=self.path, line=number, column=column)
                pair[i] = self.decoder.clean(value, path=str(self.path), line=number, column=column)
            yield pair[0], pair[1], self._number(label, number, False)

    def _candidates(self) -> Sequence[tuple[str, ...]]:
        return _KNOWN if self.columns is None else (self.columns,)

    def _header(self, fields: list[str]) -> bool:
        """Whether line 1 is a header; when it is, note where the three columns stand."""
        lowered = [field.strip().lower() for field in fields]
        exact = [field.strip() for field in fields]
        for names in self._candidates():
            row = exact if self.columns is not None else lowered
            if set(names) <= set(row):
                self.place, self.names, self.width = tuple(row.index(name) for name in names), names, len(row)
                return True
        if self.columns is not None:
            raise DataError(
                f"no columns {', '.join(map(repr, self.columns))} in the header.",
                path=self.path,
                line=1,
                remedy=f"Columns found: {', '.join(exact)}.",
            )
        return len(fields) == 3 and lowered[2] in _LABEL_NAMES

    def _number(self, label: Any, line: int, first: bool) -> float:
        try:
            value = float(label)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            hint = "If line 1 is a header, name its columns: columns=(text, text, label)." if first else ""
            raise DataError(
                f"the label must be a number, got {label!r:.40}.",
                path=self.path,
                line=line,
                column=self.names[2],
                remedy=hint or "Correct the line or leave it out.",
            )
        return value
