"""Stream of records from files: one text per line, per row of a table, or per file of a folder.

======== ================================= ==========================================================
format   endings                           one record is
======== ================================= ==========================================================
txt      .txt .text                        a line; blank lines are skipped
csv, tsv .csv, .tsv .tab                   a row under the header; quoted as the csv module does
jsonl    .jsonl .ndjson                    a line with a JSON object
parquet  .parquet .pq                      a row
document .md .markdown .html .htm .pdf     the file; id = its name, metadata = its headings or pages
         .docx
(folder) documents, and .txt .text .rst    a file, found recursively in sorted order; id = relative path
======== ================================= ==========================================================
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kexue._files import system_error
from kexue.corpus import documents
from kexue.corpus.columns import Columns
from kexue.corpus.decoding import MAX_BYTES, Decoder, decode_document, decode_lines, strip_line_end
from kexue.corpus.fields import Record
from kexue.corpus.open import STDIN, split_suffix
from kexue.errors import DataError

_NAMED = 5  # files of a folder that are named when they are not read
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
DOCUMENT_SUFFIXES = (".txt", ".text", ".rst", *documents.READERS)


class Records(Iterator[Record]):
    """Stream of records that `read_records` returns; its counts grow while it is read.

    Attributes:
        blank: number of empty lines of text files, and of empty files of folders, skipped so far.
    """

    def __init__(self, sources: Sequence[_Source], decoder: Decoder) -> None:
        self._decoder = decoder
        self._sources = sources
        self.blank = 0
        self._records = self._read(sources)

    @property
    def replaced(self) -> int:
        """Number of malformed characters replaced so far."""
        return self._decoder.replaced

    def remarks(self) -> list[str]:
        """Return sentences about what the user may not expect: files of a folder that are not read."""
        return [
            f"{source.path}: {len(source.others):,} files are not read, because of their endings: "
            f"{', '.join(source.others[:_NAMED])}{' and others' if len(source.others) > _NAMED else ''}."
            for source in self._sources
            if source.others
        ]

    def __next__(self) -> Record:
        return next(self._records)

    def _read(self, sources: Sequence[_Source]) -> Iterator[Record]:
        """Yield the records of all sources."""
        for source in sources:
            empty = True
            for record in source.read(source.path, self._decoder):
                if not record.text or record.text.isspace():
                    self.blank += 1
                    continue
                empty = False
                yield record
            if empty:
                raise DataError(
                    "the file has no text: it is empty, or has only a header or blank lines.",
                    path=source.path,
                    remedy="Add texts, or leave the file out.",
                )


class _Source(NamedTuple):
    """A file or folder, its reader, and the files of the folder that are not read."""

    path: str
    read: Callable[[str, Decoder], Iterator[Record]]
    others: Sequence[str] = ()


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

    Formats are txt (a record is a line), csv, tsv, jsonl and parquet (a row), documents, and folders of these (a file;
    see `kexue.corpus.documents`). Files
    may be compressed with gzip, bzip2, xz, zstd or lz4. Text is UTF-8, with or without a byte order mark. Lines end
    with LF or CRLF and nothing else; a file of one line with CR in it is refused, except for a document of a folder.
    In CSV and TSV a metadata field is read by `parse_scalar`, and an empty one is left out; if the header
    lacks the separator of its format but has ``,``, ``;``, a tab or ``|``, that separates the fields of the file.

    Args:
        paths: a file, a folder, ``"-"`` for standard input, or several of these.
        text: column of the text. None: the only column, else the first of text, sentence, question, content, title,
            document, body (in any case).
        id: column of the identifier; whole numbers become text. None: no ids (a folder's are the relative paths).
        metadata: columns to keep besides the text. A JSON object may lack some of them, a table may not.
        format: ``"auto"`` goes by the extension (standard input: txt); else txt, csv, tsv, jsonl or parquet. With
            ``"txt"`` a folder gives every file that is not hidden.
        errors: ``"strict"`` refuses malformed UTF-8, NUL and unpaired surrogates in texts, ids and metadata;
            ``"replace"`` puts U+FFFD and counts.
        max_bytes: largest size of a line, row, document or value of a table, >= 1: a small compressed file may hold
            one of any size.

    Returns:
        An iterator of `Record(id, text, metadata, path, line)`; its `replaced` and `blank` count replaced characters
        and skipped lines so far.

    Raises:
        DataError: a path that does not exist (at once); what cannot be read (when the stream reaches it), with path,
            line, column and remedy.
        ValueError: an unknown `format` or `errors`, or a `max_bytes` below 1.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "faq.csv")
    >>> _ = path.write_text("nr,question,year\\n7,How long do returns take?,2024\\n")
    >>> [record] = read_records(path, id="nr", metadata=["year"])
    >>> record.id, record.text, record.metadata, record.line
    ('7', 'How long do returns take?', {'year': 2024}, 2)
    """
    _check_arguments(metadata, format, errors, max_bytes)
    columns = Columns(text, id, tuple(metadata))
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    sources = [_source(os.fspath(path), columns, format) for path in several]
    if not sources:
        raise DataError("no input was given.", remedy="Name at least one file or folder, or '-' for standard input.")
    return Records(sources, Decoder(errors, max_bytes))


def _check_arguments(metadata: Sequence[str], format: str, errors: str, max_bytes: int) -> None:
    """Check arguments of `read_records`."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if isinstance(metadata, str):
        raise TypeError(f"metadata must be a sequence of column names, got the string {metadata!r}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes!r}")


def _source(path: str, columns: Columns, format: str) -> _Source:
    """Return the reader of a file, folder or standard input."""
    if path != STDIN and not os.path.exists(path):
        raise system_error(FileNotFoundError(errno.ENOENT, ""), path)
    if path != STDIN and os.path.isdir(path):
        columns.refuse_names(path, "a folder of documents")
        files, others = _find_documents(path, format)
        read = documents.read_document if format == "auto" else _read_plain
        return _Source(path, lambda _, decoder: _read_documents(files, decoder, read), others)
    kind = format
    if format == "auto":
        kind = "txt" if path == STDIN else _SUFFIXES.get(split_suffix(path)[0], "")
    if not kind and split_suffix(path)[0] in documents.READERS:
        columns.refuse_names(path, "a document")
        files = [(os.path.basename(path), path)]
        return _Source(path, lambda _, decoder: _read_documents(files, decoder, documents.read_document))
    if kind == "txt":
        columns.refuse_names(path, "a text file (one text a line)")
        return _Source(path, _read_text_lines)
    if kind == "parquet":
        return _Source(path, columns.read_parquet)
    if kind == "jsonl":
        return _Source(path, columns.read_jsonl)
    if kind:
        delimiter = "\t" if kind == "tsv" else ","
        return _Source(path, lambda name, decoder: columns.read_csv(name, decoder, delimiter))
    raise DataError(
        f"unknown file extension; known are {' '.join(_SUFFIXES)}.",
        remedy=f"Name the format with --format (in Python format=): {', '.join(FORMATS[1:])}.",
        path=path,
    )


def _read_text_lines(path: str, decoder: Decoder) -> Iterator[Record]:
    """Yield a record per line of a text file."""
    for line, content in decode_lines(path, decoder):
        yield Record(None, strip_line_end(content), {}, path, line)


def _read_plain(path: str, decoder: Decoder) -> documents.Parsed:
    """Return the text of a file of any ending as it is."""
    return documents.Parsed(decode_document(path, decoder), {})


def _read_documents(
    files: Sequence[tuple[str, str]], decoder: Decoder, read: Callable[[str, Decoder], documents.Parsed]
) -> Iterator[Record]:
    """Yield a record per file, given as id and path."""
    for name, path in files:
        parsed = read(path, decoder)
        yield Record(name, parsed.text, parsed.metadata, path, 1)


def _find_documents(folder: str, format: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (relative path, path) of the documents in a folder, sorted, and the relative paths of the other files.

    Names that start with a dot are passed over.
    """
    if format not in ("auto", "txt"):
        raise DataError(
            f"a folder is read as one document per file, not as {format}.", remedy="Name the files.", path=folder
        )
    found: list[tuple[str, str]] = []
    others: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(root, name)
            suffix = split_suffix(name)[0]
            if name.startswith(".") or not os.path.isfile(path):
                continue
            relative = Path(path).relative_to(folder).as_posix()
            if format == "txt" or suffix in DOCUMENT_SUFFIXES:
                found.append((relative, path))
            else:
                others.append(relative)
    if not found:
        kinds = sorted({split_suffix(name)[0] or name for name in others})
        there = f" It holds {', '.join(kinds[:8])} files." if others else " It is empty."
        raise DataError(
            f"the folder has no documents ({' '.join(DOCUMENT_SUFFIXES)}).{there}",
            remedy="Name the files themselves, or pass format='txt' to read every file as text.",
            path=folder,
        )
    return sorted(found), sorted(others)
