"""Texts out of files: one text a line, a column of a table, or one file a document, as a stream of records."""

from __future__ import annotations

import datetime
import decimal
import errno
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from kexue._files import explain
from kexue.corpus.decoding import MAX_BYTES, Decoder, decode_document, decode_lines, strip_line_end
from kexue.corpus.open import STDIN, split_suffix
from kexue.corpus.rows import parquet_columns, read_csv, read_jsonl, read_parquet, shown
from kexue.errors import DataError

TEXT_COLUMNS = ("text", "sentence", "question", "content", "title", "document", "body")
FORMATS = ("auto", "txt", "csv", "tsv", "jsonl", "parquet")
_SUFFIXES = {
    ".txt": "txt",
    ".text": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
DOCUMENT_SUFFIXES = (".txt", ".text", ".md", ".rst")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)


class Record(NamedTuple):
    """One text of a collection and where it stood.

    `id` is None where the input names none; `line` counts lines from 1 (rows in Parquet; 1 for a whole file).
    """

    id: str | None
    text: str
    metadata: dict[str, Any]
    path: str
    line: int


def parse_scalar(text: str) -> str | int | float | bool:
    """Read a CSV field, or the value of a filter: a plain decimal number, ``true`` or ``false``, else the text itself.

    Numbers with leading zeros, a plus sign or an exponent, and those too long to be held exactly, stay text.

    >>> [parse_scalar(text) for text in ("42", "-3.50", "007", "1e5", "true", "True", "3.1.2")]
    [42, -3.5, '007', '1e5', True, 'True', '3.1.2']
    """
    if text in ("true", "false"):
        return text == "true"
    match = _NUMBER.fullmatch(text)
    if match is None or len(text) > 18 or text == "-0":
        return text
    if match[1] is None:
        return int(text)
    return float(text) if len(text) <= 16 else text


class Records(Iterator[Record]):
    """The stream `read_records` returns; the counts grow as it is read.

    Attributes:
        blank: empty lines of text files, and empty files of folders, passed over so far.
    """

    def __init__(self, sources: Sequence[_Source], decoder: Decoder) -> None:
        self._decoder = decoder
        self.blank = 0
        self._records = self._read(sources)

    @property
    def replaced(self) -> int:
        """Malformed characters put right so far."""
        return self._decoder.replaced

    def __next__(self) -> Record:
        return next(self._records)

    def _read(self, sources: Sequence[_Source]) -> Iterator[Record]:
        for source in sources:
            found = False
            for record in source.read(source.path, self._decoder):
                if not record.text or record.text.isspace():
                    self.blank += 1
                    continue
                found = True
                yield record
            if not found:
                raise DataError(
                    "it holds no text: it is empty, or has only a header or blank lines.",
                    path=source.path,
                    remedy="Fill it, or leave it out.",
                )


class _Source(NamedTuple):
    path: str
    read: Callable[[str, Decoder], Iterator[Record]]


def read_records(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] = (),
    format: str = "auto",
    errors: str = "strict",
    max_bytes: int = MAX_BYTES,
) -> Records:
    """Read texts from files and folders, one record at a time, never a whole file.

    ======== ================================= ==========================================================
    format   endings                           one record is
    ======== ================================= ==========================================================
    txt      .txt .text                        a line; blank lines are passed over
    csv, tsv .csv, .tsv .tab                   a row under the header; quoted as the csv module does
    jsonl    .jsonl .ndjson                    a line with a JSON object
    parquet  .parquet .pq                      a row
    (folder) files ending .txt .text .md .rst  a file, found recursively in sorted order; id = relative path
    ======== ================================= ==========================================================

    Files may be compressed (.gz .bz2 .xz .zst .lz4) and ``"-"`` is standard input. Text is UTF-8, with or without a
    byte order mark. Lines end with LF or CRLF and nothing else; a file of one line with CR in it is refused, but for a
    document of a folder. In CSV and TSV a metadata field is read by `parse_scalar`, and an empty one is left out;
    where the header does not have the separator of its format but ``,``, ``;``, a tab or ``|``, that is the separator.

    Args:
        paths: a file, a folder, ``"-"``, or several of these.
        text: the column of the text. None: the only column, else the first of text, sentence, question, content,
            title, document, body (in any case) that is there.
        id: the column of the identifier; whole numbers become text. None: no ids (a folder's are its relative paths).
        metadata: columns to keep beside the text. A JSON object may lack some of them, a table may not.
        format: ``"auto"`` goes by the ending (standard input: txt; a folder: the endings above). With ``"txt"`` a
            folder gives every file that is not hidden.
        errors: ``"strict"`` refuses malformed UTF-8, NUL and half surrogates in texts, ids and metadata;
            ``"replace"`` puts U+FFFD and counts.
        max_bytes: a line, row, document or value of a table that is longer is refused: a small compressed file may
            hold one of any size.

    Returns:
        An iterator of `Record(id, text, metadata, path, line)`; its `replaced` and `blank` count what was put right
        and passed over so far.

    Raises:
        DataError: a path that is not there (at once); what cannot be read, when the stream comes to it: it names the
            path, the line, the column and the way out.
        ValueError: an unknown `format` or `errors`, or a `max_bytes` below 1.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "faq.csv")
    >>> _ = path.write_text("nr,question,year\\n7,How long do returns take?,2024\\n")
    >>> [record] = read_records(path, id="nr", metadata=["year"])
    >>> record.id, record.text, record.metadata, record.line
    ('7', 'How long do returns take?', {'year': 2024}, 2)
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if isinstance(metadata, str):
        raise TypeError(f"metadata must be a sequence of column names, got the string {metadata!r}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes!r}")
    columns = _Columns(text, id, tuple(metadata))
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    sources = [source for path in several for source in _sources(os.fspath(path), columns, format)]
    if not sources:
        raise DataError("no input was given.", remedy="Name at least one file or folder, or '-' for standard input.")
    return Records(sources, Decoder(errors, max_bytes))


def _sources(path: str, columns: _Columns, format: str) -> Iterator[_Source]:
    if path != STDIN and not os.path.exists(path):
        message, remedy = explain(FileNotFoundError(errno.ENOENT, ""))
        raise DataError(message, path=path, remedy=remedy)
    if path != STDIN and os.path.isdir(path):
        columns.refuse(path, "a folder of text files")
        yield _Source(path, _folder(_documents(path, format)))
        return
    kind = format
    if format == "auto":
        kind = "txt" if path == STDIN else _SUFFIXES.get(split_suffix(path)[0], "")
    if kind == "txt":
        columns.refuse(path, "a text file (one text a line)")
        yield _Source(path, _text_lines)
    elif kind == "parquet":
        yield _Source(path, columns.read_parquet)
    elif kind == "jsonl":
        yield _Source(path, columns.read_jsonl)
    elif kind:
        delimiter = "\t" if kind == "tsv" else ","
        yield _Source(path, lambda name, decoder: columns.read_csv(name, decoder, delimiter))
    else:
        raise DataError(
            f"the ending says no format kexue knows ({' '.join(_SUFFIXES)}).",
            remedy=f"Say which with format= (--format): {', '.join(FORMATS[1:])}.",
            path=path,
        )


def _text_lines(path: str, decoder: Decoder) -> Iterator[Record]:
    for line, content in decode_lines(path, decoder):
        yield Record(None, strip_line_end(content), {}, path, line)


def _documents(folder: str, format: str) -> list[tuple[str, str]]:
    """(relative path, path) of the documents in a folder, sorted; names that begin with a dot are not looked at."""
    if format not in ("auto", "txt"):
        raise DataError(
            f"a folder is read as one document a file, not as {format}.", remedy="Name the files.", path=folder
        )
    found, others = [], set()
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(root, name)
            suffix = split_suffix(name)[0]
            if name.startswith(".") or not os.path.isfile(path):
                continue
            if format == "txt" or suffix in DOCUMENT_SUFFIXES:
                found.append((Path(path).relative_to(folder).as_posix(), path))
            else:
                others.add(suffix or name)
    if not found:
        there = f" It holds {', '.join(sorted(others)[:8])} files." if others else " It is empty."
        raise DataError(
            f"the folder has no text files ({' '.join(DOCUMENT_SUFFIXES)}).{there}",
            remedy="Name the files themselves, or pass format='txt' to read every file as text.",
            path=folder,
        )
    return sorted(found)


def _folder(documents: Sequence[tuple[str, str]]) -> Callable[[str, Decoder], Iterator[Record]]:
    def read(_: str, decoder: Decoder) -> Iterator[Record]:
        for name, path in documents:
            yield Record(name, decode_document(path, decoder), {}, path, 1)

    return read


class _Columns:
    """Which columns of a table become a record's text, id and metadata."""

    def __init__(self, text: str | None, id: str | None, metadata: tuple[str, ...]) -> None:
        self.text, self.id, self.metadata = text, id, metadata

    def refuse(self, path: str, what: str) -> None:
        for name, value in (("text", self.text), ("id", self.id), ("metadata", self.metadata)):
            if value:
                raise DataError(
                    f"{name}={value!r} names a column, and {what} has none.",
                    remedy=f"Leave {name} out, or say the format with format= (--format).",
                    path=path,
                )

    def read_csv(self, path: str, decoder: Decoder, delimiter: str) -> Iterator[Record]:
        text: str | None = None
        for line, row in read_csv(path, decoder, delimiter):
            text = text or self._text_column(list(row), path)
            kept = {name: parse_scalar(row[name]) for name in self.metadata if row[name]}
            yield self._record(row, text, kept, decoder, path, line)

    def read_jsonl(self, path: str, decoder: Decoder) -> Iterator[Record]:
        text: str | None = None
        missing, fields = set(self.metadata), dict[str, None]()
        for line, row in read_jsonl(path, decoder):
            if text is None or text not in row or (self.id is not None and self.id not in row):
                text = self._text_column(list(row), path, line=line, settled=text)
            if missing:
                missing.difference_update(row)
                fields.update(dict.fromkeys(list(row)[:50]))
            kept = {}
            for name in self.metadata:
                if name in row:
                    kept[name] = decoder.clean_json(row[name], path=path, line=line, column=name)
            yield self._record(row, text, kept, decoder, path, line)
        if missing and fields:
            raise _no_column(sorted(missing)[0], "metadata", list(fields), path)

    def read_parquet(self, path: str, decoder: Decoder) -> Iterator[Record]:
        names = parquet_columns(path)
        text = self._text_column(names, path)
        if names.count(text) > 1:
            raise DataError(f"two columns are called {text!r}.", remedy="Rename one.", path=path, column=text)
        wanted = dict.fromkeys([text, *([self.id] if self.id else []), *self.metadata])
        for line, row in read_parquet(path, list(wanted), decoder):
            strings = {
                name: decoder.decode(value, path=path, line=line, column=name) if isinstance(value, bytes) else value
                for name, value in row.items()
            }
            kept = {name: _json_value(strings[name], name, decoder, path, line) for name in self.metadata}
            yield self._record(strings, text, kept, decoder, path, line)

    def _text_column(self, names: list[str], path: str, *, line: int | None = None, settled: str | None = None) -> str:
        """The text column among `names`; every column that was asked for must be there (metadata: in tables)."""
        needed = [("text", self.text or settled), ("id", self.id)]
        needed += [] if line else [("metadata", name) for name in self.metadata]
        for role, name in needed:
            if name is not None and name not in names:
                raise _no_column(name, role, names, path, line)
            if name is not None and names.count(name) > 1:
                raise DataError(f"two columns are called {name!r}.", remedy="Rename one.", path=path, column=name)
        if self.text or settled:
            return cast(str, self.text or settled)
        if len(names) == 1:
            return names[0]
        lower = {name.strip().lower(): name for name in reversed(names)}
        for name in TEXT_COLUMNS:
            if name in lower:
                return lower[name]
        raise DataError(
            f"which column holds the text? There are: {shown(names)}.",
            remedy="Name it with text= (--text).",
            path=path,
            line=line,
        )

    def _record(
        self, row: dict[str, Any], column: str, metadata: dict[str, Any], decoder: Decoder, path: str, line: int
    ) -> Record:
        text = row[column]
        if text is None or text == "" or (isinstance(text, str) and text.isspace()):
            raise DataError(
                "the text is empty.", remedy="Fill it in or remove the row.", path=path, line=line, column=column
            )
        if not isinstance(text, str):
            raise DataError(
                f"the text must be a string, got {text!r:.40}.",
                remedy="Name another column with text= (--text), or quote the value.",
                path=path,
                line=line,
                column=column,
            )
        text = decoder.clean(text, path=path, line=line, column=column)
        name = None if self.id is None else self._identifier(row[self.id], decoder, path, line)
        return Record(name, text, metadata, path, line)

    def _identifier(self, value: Any, decoder: Decoder, path: str, line: int) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return decoder.clean(value, path=path, line=line, column=self.id)
        raise DataError(
            f"the id must be a string or a whole number, got {value!r:.40}.", path=path, line=line, column=self.id
        )


def _no_column(name: str, role: str, names: list[str], path: str, line: int | None = None) -> DataError:
    return DataError(
        f"there is no column {name!r}. There are: {shown(names)}.",
        remedy=f"Name one of them with {role}= (--{role}).",
        path=path,
        line=line,
        column=name,
    )


def _json_value(value: Any, column: str, decoder: Decoder, path: str, line: int) -> Any:
    """A Parquet value as JSON can hold it: dates in ISO form, decimals as numbers, not-a-number as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)  # as `parse_scalar` has it
    if isinstance(value, bytes):
        return decoder.decode(value, path=path, line=line, column=column)
    if isinstance(value, list):
        return [_json_value(item, column, decoder, path, line) for item in value]
    if isinstance(value, dict):
        return {key: _json_value(item, column, decoder, path, line) for key, item in value.items()}
    raise DataError(
        f"metadata cannot hold a {type(value).__name__}.",
        remedy="Leave the column out.",
        path=path,
        line=line,
        column=column,
    )
