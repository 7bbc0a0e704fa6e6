"""Spool: a temporary SQLite table of the input records, checked, each id once, on disk if they are large."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kexue.corpus import Record
from kexue.corpus.faults import Faults, RecordError, as_record_error
from kexue.errors import DataError
from kexue.search.documents import check_id, check_metadata, check_text, text_id
from kexue.search.store.base import Row
from kexue.search.store.sqlite.errors import explain_errors


class Spool:
    """Records in the order of the input, each id once, in a temporary database that ends with the process.

    Attributes:
        duplicates: repeated texts without an id, which were left out.
    """

    def __init__(self) -> None:
        self._connection = sqlite3.connect(
            "", isolation_level=None
        )  # in memory, or in an unnamed file where it is large
        self._connection.execute("CREATE TABLE input (n INTEGER PRIMARY KEY, id UNIQUE, text, metadata, path, line)")
        self.duplicates = 0

    def fill(self, records: Iterable[Record], faults: Faults | None = None) -> None:
        """Check and store all records; of several with one id the first.

        Args:
            records: records as they are read.
            faults: takes those that cannot be stored; None: the first raises its error.

        Raises:
            DataError: an id that occurs twice, with both positions; a record that cannot be stored.
        """
        faults = Faults(collect=False) if faults is None else faults
        with explain_errors(Path(tempfile.gettempdir())):
            self._connection.execute("BEGIN")
            for record in records:
                try:
                    self._insert(record)
                except RecordError as error:
                    faults.add(error)
            self._connection.execute("COMMIT")

    def _insert(self, record: Record) -> None:
        where = f"{record.path}, line {record.line}"
        check_text(record.text, where)
        name = text_id(record.text) if record.id is None else check_id(record.id, where)
        try:
            metadata = json.dumps(check_metadata(record.metadata, where), ensure_ascii=False)
        except DataError as error:  # its message names the place
            error.path, error.column = record.path, None
            raise as_record_error("malformed", error, record.line) from error
        inserted = self._connection.execute(
            "INSERT OR IGNORE INTO input (id, text, metadata, path, line) VALUES (?, ?, ?, ?, ?)",
            (name, record.text, metadata, record.path, record.line),
        )
        if inserted.rowcount:
            return
        if record.id is None:
            self.duplicates += 1
            return
        path, line = self.locate(name)
        first = f"line {line}" if path == record.path else f"{path}, line {line}"
        raise RecordError(
            "duplicate_id",
            f"the id {name!r} was given already, in {first}.",
            remedy="Give each document its own id, or leave the id column out to name documents by their text.",
            path=record.path,
            line=record.line,
        )

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM input").fetchone()[0])

    def batches(self, size: int) -> Iterator[list[Row]]:
        """Yield the records as rows without vectors, `size` at a time."""
        last = 0
        while found := self._connection.execute(
            "SELECT n, id, text, metadata FROM input WHERE n > ? ORDER BY n LIMIT ?", (last, size)
        ).fetchall():
            last = found[-1][0]
            yield [Row(name, text, json.loads(metadata)) for _, name, text, metadata in found]

    def sample(self, n: int = 1000) -> list[str]:
        """Return the texts of at most `n` records, evenly spread over the input."""
        (last,) = self._connection.execute("SELECT max(n) FROM input").fetchone()
        places = sorted({1 + i * (last or 0) // n for i in range(n)})
        found = self._connection.execute(
            "SELECT text FROM input WHERE n IN (SELECT value FROM json_each(?)) ORDER BY n", (json.dumps(places),)
        )
        return [text for (text,) in found]

    def locate(self, id: str) -> tuple[str, int]:
        """Return the file and the line of a record."""
        path, line = self._connection.execute("SELECT path, line FROM input WHERE id = ?", (id,)).fetchone()
        return path, line

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of `ids` that no record has."""
        found = self._connection.execute(
            "SELECT id FROM input WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
        )
        there = {name for (name,) in found}
        return [name for name in ids if name not in there]

    def close(self) -> None:
        """Delete all records."""
        self._connection.close()
