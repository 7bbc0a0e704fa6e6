"""Stream of records from files: one text per line, per row of a table, or per file of a folder.

======== ================================= ==========================================================
format   endings                           one record is
======== ================================= ==========================================================
txt      .txt .text                        a line; blank lines are skipped
csv, tsv .csv, .tsv .tab                   a row under the header; quoted as the csv module does
xlsx     .xlsx .xlsm                       a row under the header of one sheet
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kexue._files import system_error
from kexue._text import say_count
from kexue.corpus import documents
from kexue.corpus.columns import Columns
from kexue.corpus.decoding import MAX_BYTES, Decoder, InputFile, decode_document, decode_lines, strip_line_end
from kexue.corpus.faults import Faults, as_record_error
from kexue.corpus.fields import Record
from kexue.corpus.kinds import ColumnKinds
from kexue.corpus.open import STDIN, split_suffix
from kexue.corpus.separated import Row, csv_table
from kexue.corpus.sheets import sheet_rows
from kexue.errors import DataError

_NAMED = 5  # files of a folder that are named when they are not read
FORMATS = ("auto", "txt", "csv", "tsv", "jsonl", "parquet", "xlsx")
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
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}
DOCUMENT_SUFFIXES = (".txt", ".text", ".rst", *documents.READERS)


class _Source(NamedTuple):
    """A file or folder, its reader, for a table of cells the reader of its rows, and the files that are not read."""

    path: str
    format: str
    read: Callable[[str, Decoder], Iterator[Record]]
    rows: Callable[[str, Decoder], Iterator[Row]] | None = None
    others: Sequence[str] = ()


class Records(Iterator[Record]):
    """Stream of records that `read_records` returns; its counts grow while it is read.

    Attributes:
        blank: number of empty lines of text files, and of empty files of folders, skipped so far.
        faults: records that cannot be used, if they are collected.
        columns: the columns that are read, and their types.
    """

    def __init__(self, sources: Sequence[_Source], decoder: Decoder, columns: Columns) -> None:
        self._decoder = decoder
        self._sources = sources
        self.columns = columns
        self.faults = decoder.faults
        self.blank = 0
        self._records = self._read()

    @property
    def replaced(self) -> int:
        """Number of malformed characters replaced so far."""
        return self._decoder.replaced

    @property
    def files(self) -> list[InputFile]:
        """What was decided about each file, and how many records it gave so far."""
        return [self._decoder.file(path) for path in dict.fromkeys(source.path for source in self._sources)]

    def remarks(self) -> list[str]:
        """Return sentences about what the user may not expect in what was read, and about files that were not."""
        return [
            *(
                f"{source.path}: {say_count(len(source.others), 'file')} not read, because of the ending: "
                f"{', '.join(source.others[:_NAMED])}{' and others' if len(source.others) > _NAMED else ''}."
                for source in self._sources
                if source.others
            ),
            *self.columns.kinds.remarks(),
            *(
                f"{file.path}: {say_count(file.uncomputed, 'formula')} without a stored value, read as empty cells; "
                "open the file in a spreadsheet program and save it."
                for file in self.files
                if file.uncomputed
            ),
        ]

    def __next__(self) -> Record:
        return next(self._records)

    def _survey(self) -> None:
        """Read all tables of cells once, for the types of their columns; errors are left to the second reading."""
        scout = self._decoder.scout()
        for source in self._sources:
            if source.rows is not None and self.columns.metadata:
                with suppress(DataError):
                    self.columns.survey(source.rows(source.path, scout), source.path)

    def _read(self) -> Iterator[Record]:
        """Yield the records of all sources."""
        self._survey()
        for source in self._sources:
            file, faults, empty = self._decoder.file(source.path), len(self.faults), True
            file.format = source.format
            for record in source.read(source.path, self._decoder):
                if not record.text or record.text.isspace():
                    self.blank += 1
                    continue
                empty = False
                file.records += 1
                yield record
            if empty and len(self.faults) == faults:
                raise DataError(
                    "the file has no text: it is empty, or has only a header or blank lines.",
                    path=source.path,
                    remedy="Add texts, or leave the file out.",
                )


def read_records(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] = (),
    format: str = "auto",
    errors: str = "strict",
    encoding: str = "auto",
    delimiter: str | None = None,
    sheet: str | None = None,
    max_bytes: int = MAX_BYTES,
    optional: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    collect: bool = False,
) -> Records:
    """Read texts from files and folders, one record at a time, never a whole file.

    Formats are txt (a record is a line), csv, tsv, xlsx, jsonl and parquet (a row), documents, and folders of these (a
    file; see `kexue.corpus.documents`). Files may be compressed with gzip, bzip2, xz, zstd or lz4. The encoding is
    found by reading the file first (see `kexue.corpus.encodings`): UTF-8, UTF-16 with its mark, or GB18030. Lines end
    with LF or CRLF, in a file without LF with CR, and with nothing else. The delimiter of CSV and TSV is found from the
    first rows: ``,``, ``;``, a tab or ``|``. In CSV, TSV and XLSX all values of a metadata column decide its type (see
    `kexue.corpus.kinds`), so these files are read twice; an empty cell is None. Standard input is kept in a temporary
    file where it is read twice: with a named encoding, and without such metadata, it is read as it comes.

    Args:
        paths: a file, a folder, ``"-"`` for standard input, or several of these.
        text: column of the text. None: the only column, else the first of text, sentence, question, content, title,
            document, body (in any case).
        id: column of the identifier; whole numbers become text. None: no ids (a folder's are the relative paths).
        metadata: columns to keep besides the text. A JSON object may lack some of them, a table may not.
        format: ``"auto"`` goes by the extension (standard input: txt); else txt, csv, tsv, jsonl, parquet or xlsx. With
            ``"txt"`` a folder gives every file that is not hidden.
        errors: ``"strict"`` refuses malformed bytes, NUL and unpaired surrogates in texts, ids and metadata;
            ``"replace"`` puts U+FFFD and counts.
        encoding: ``"auto"``, or the name of an encoding that Python knows.
        delimiter: one character that separates the fields of csv and tsv; None: found.
        sheet: name of the sheet of xlsx; None: the first one that is shown.
        max_bytes: largest size of a line, row, document or value of a table, >= 1: a small compressed file may hold
            one of any size.
        optional: those of `metadata` that a file may lack.
        types: types of columns that are decided already, by name: ``"text"`` stays text.
        collect: count records that cannot be used in `faults` of the result, and go on; False raises the first.

    Returns:
        An iterator of `Record(id, text, metadata, path, line)`; its `replaced` and `blank` count replaced characters
        and skipped lines so far, `files` says how each file was read.

    Raises:
        DataError: a path that does not exist (at once); what cannot be read (when the stream reaches it), with path,
            line, column and remedy.
        ValueError: an unknown `format`, `errors` or `encoding`, a `delimiter` of more than one character, or a
            `max_bytes` below 1.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "faq.csv")
    >>> _ = path.write_text("nr,question,year\\n7,How long do returns take?,2024\\n")
    >>> [record] = read_records(path, id="nr", metadata=["year"])
    >>> record.id, record.text, record.metadata, record.line
    ('7', 'How long do returns take?', {'year': 2024}, 2)
    """
    _check_arguments(metadata, format, errors, delimiter, max_bytes)
    columns = Columns(text, id, tuple(metadata), frozenset(optional), ColumnKinds(types))
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    sources = [_source(os.fspath(path), columns, format, delimiter, sheet) for path in several]
    if not sources:
        raise DataError("no input was given.", remedy="Name at least one file or folder, or '-' for standard input.")
    decoder = Decoder(errors, max_bytes, encoding=encoding, faults=Faults(collect=collect))
    decoder.twice |= bool(metadata) and any(source.rows is not None for source in sources)
    return Records(sources, decoder, columns)


def _check_arguments(metadata: Sequence[str], format: str, errors: str, delimiter: str | None, max_bytes: int) -> None:
    """Check arguments of `read_records`."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if isinstance(metadata, str):
        raise TypeError(f"metadata must be a sequence of column names, got the string {metadata!r}")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"delimiter must be one character, not a quote or a line end, got {delimiter!r}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes!r}")


def _source(path: str, columns: Columns, format: str, delimiter: str | None, sheet: str | None) -> _Source:
    """Return the reader of a file, folder or standard input."""
    if path != STDIN and not os.path.exists(path):
        raise system_error(FileNotFoundError(errno.ENOENT, ""), path)
    if path != STDIN and os.path.isdir(path):
        columns.refuse_names(path, "a folder of documents")
        files, others = _find_documents(path, format)
        read = documents.read_document if format == "auto" else _read_plain
        return _Source(path, "folder", lambda _, decoder: _read_documents(files, decoder, path, read), others=others)
    kind = format
    if format == "auto":
        kind = "txt" if path == STDIN else _SUFFIXES.get(split_suffix(path)[0], "")
    if not kind and split_suffix(path)[0] in documents.READERS:
        columns.refuse_names(path, "a document")
        files = [(os.path.basename(path), path)]
        return _Source(
            path, "document", lambda _, decoder: _read_documents(files, decoder, path, documents.read_document)
        )
    if kind == "txt":
        columns.refuse_names(path, "a text file (one text a line)")
        return _Source(path, kind, _read_text_lines)
    if kind == "parquet":
        return _Source(path, kind, columns.read_parquet)
    if kind == "jsonl":
        return _Source(path, kind, columns.read_jsonl)
    if kind:

        def rows(name: str, decoder: Decoder) -> Iterator[Row]:
            """Yield the rows of a table of cells."""
            if kind == "xlsx":
                return sheet_rows(name, decoder, sheet)
            return csv_table(name, decoder, "\t" if kind == "tsv" else ",", delimiter)

        return _Source(path, kind, lambda name, decoder: columns.read_cells(rows(name, decoder), name, decoder), rows)
    raise DataError(
        f"unknown file extension; known are {' '.join(_SUFFIXES)}.",
        remedy=_OLD_EXCEL
        if path.lower().endswith(".xls")
        else f"Name the format with --format (in Python format=): {', '.join(FORMATS[1:])}.",
        path=path,
    )


_OLD_EXCEL = "Open it in a spreadsheet program and save it as .xlsx, or as CSV."


def _read_text_lines(path: str, decoder: Decoder) -> Iterator[Record]:
    """Yield a record per line of a text file."""
    for line, content in decode_lines(path, decoder):
        yield Record(None, strip_line_end(content), {}, path, line)


def _read_plain(path: str, decoder: Decoder) -> documents.Parsed:
    """Return the text of a file of any ending as it is."""
    return documents.Parsed(decode_document(path, decoder), {})


def _read_documents(
    files: Sequence[tuple[str, str]],
    decoder: Decoder,
    source: str,
    read: Callable[[str, Decoder], documents.Parsed],
) -> Iterator[Record]:
    """Yield a record per file, given as id and path, of the folder or file `source`; one that is damaged is a fault."""
    encodings = set()
    for name, path in files:
        try:
            parsed = read(path, decoder)
        except DataError as error:
            decoder.faults.add(as_record_error("malformed", error, error.line or 1))
            continue
        encodings.add(decoder.file(path).encoding)
        if path != source:
            del decoder.files[path]
        decoder.file(source).encoding = ", ".join(sorted(filter(None, encodings))) or None
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
