"""Data sets of labelled sentence pairs, from files and from the folder of data sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kexue._arrays import Array
from kexue.corpus.decoding import MAX_BYTES, Decoder
from kexue.corpus.open import split_suffix
from kexue.corpus.pairs import PairReader, find_columns, pair_format
from kexue.errors import DataError


@dataclass(frozen=True)
class PairDataset:
    """Pairs of texts with one number each.

    Attributes:
        name: name of the data set, or of the file without its endings.
        split: part of a named set, such as ``"test"``; empty for a file.
        texts_a: n texts.
        texts_b: n texts, the partners.
        labels: (n,), float64: 0/1 or a grade; larger = more alike.
        skipped: number of lines left out because they have a wrong number of fields.
        replaced: number of rows in which malformed characters were replaced (errors="replace").
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
        errors: ``"strict"`` stops at invalid UTF-8, NUL and unpaired surrogates, ``"replace"`` puts U+FFFD and counts
            the rows in `.replaced`.
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
    path, name, part = _locate(name_or_path, split)
    names = None if columns is None else (columns[0], columns[1], columns[2])
    reader = PairReader(path, names, Decoder(errors, max_bytes))
    texts_a, texts_b, labels = [], [], []
    for a, b, label in reader:
        texts_a.append(a)
        texts_b.append(b)
        labels.append(label)
    if not labels:
        raise DataError(
            f"no pairs ({reader.skipped} lines without the right number of fields).",
            path=path,
            remedy="A line is text, text and number, separated by tabs (.tsv) or commas (.csv).",
        )
    return PairDataset(name, part, texts_a, texts_b, np.array(labels), reader.skipped, reader.replaced)


def pair_datasets(pairs: Any) -> list[PairDataset]:
    """Return data sets from any of the forms of pairs that `evaluate_pairs` accepts.

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
    names = find_columns(rows[0]) if rows and isinstance(rows[0], Mapping) else None
    triples = [tuple(row[name] for name in names) for row in rows] if names else rows
    if not triples or any(isinstance(row, str) or not hasattr(row, "__len__") or len(row) != 3 for row in triples):
        raise TypeError(
            "pairs must be a PairDataset, a path or name, rows of (text, text, label), three columns, or a list of "
            f"data sets; got {type(pairs).__name__} of {type(rows[0]).__name__ if rows else 'nothing'}."
        )
    return [_from_columns(*zip(*triples, strict=True))]


def _from_columns(a: Any, b: Any, labels: Any) -> PairDataset:
    """Return a data set of three columns."""
    if not (_is_texts(a) and _is_texts(b)):
        raise TypeError(f"the first two columns of pairs must be texts, got {type(next(iter(a))).__name__}.")
    values = np.asarray(labels, dtype=np.float64)
    if not len(a) == len(b) == len(values):
        raise ValueError(f"expected three columns of the same length, got {len(a)}, {len(b)} and {len(values)} rows.")
    return PairDataset("pairs", "", list(a), list(b), values)


def _is_texts(column: Any) -> bool:
    """Return whether a column is a sequence of strings."""
    return not isinstance(column, str) and hasattr(column, "__iter__") and all(isinstance(text, str) for text in column)


def _locate(name_or_path: str | os.PathLike[str], split: str | None) -> tuple[Path, str, str]:
    """Return the file, the name of the data set, and that of the split ("" for a plain file)."""
    path = Path(name_or_path)
    if path.is_file():
        if split is not None:
            raise DataError(f"a file has no splits, got split={split!r}.", path=path, remedy="Leave split out.")
        return path, _stem(path), ""
    folder = path if path.is_dir() else _data_set_folder(os.fspath(name_or_path))
    splits = {_stem(file): file for file in sorted(folder.iterdir()) if pair_format(file)}
    wanted = [split] if split is not None else ["test", "valid", *(splits if len(splits) == 1 else ())]
    for candidate in wanted:
        if candidate in splits:
            return splits[candidate], folder.name, candidate
    raise DataError(
        f"{folder.name!r} has no split {split!r}." if split is not None else f"{folder.name!r} has no test or valid.",
        path=folder,
        remedy=f"Choose split from: {', '.join(splits) or 'nothing (no tsv, csv or jsonl file there)'}.",
    )


def _data_set_folder(name: str) -> Path:
    """Return the folder of a data set by its name."""
    root = os.environ.get("KEXUE_DATA")
    if not root:
        raise DataError(
            f"{name!r} is neither a file nor a folder, and KEXUE_DATA is not set.",
            remedy="Give the path of a tsv, csv or jsonl file, or set KEXUE_DATA to the folder of data sets.",
        )
    folders = {folder.name: folder for folder in sorted(Path(root).glob("pairs_*/*")) if folder.is_dir()}
    if name not in folders:
        raise DataError(
            f"{name!r} is neither a file nor a data set in KEXUE_DATA ({root}).",
            remedy=f"Data sets found: {', '.join(folders) or 'none'}.",
        )
    return folders[name]


def _stem(path: Path) -> str:
    """Return a file's name without its endings."""
    ending, compression = split_suffix(path.name)
    return path.name[: len(path.name) - len(ending + compression)]
