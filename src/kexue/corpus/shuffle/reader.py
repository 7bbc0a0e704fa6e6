"""Reader of input files as chunks of whole records: bytes, never text, with the position after each chunk."""

from __future__ import annotations

import io
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from kexue._arrays import Array
from kexue.corpus.open import explain_errors, open_stream
from kexue.corpus.shuffle.digest import PAD
from kexue.corpus.shuffle.lines import LineDigest, find_byte
from kexue.errors import DataError


class Position(NamedTuple):
    """Start of a record: byte `offset` (decompressed) of file number `file`, and the record's index in all files."""

    file: int = 0
    offset: int = 0
    record: int = 0


_START = Position()


@dataclass(frozen=True)
class RecordFormat:
    """How files are cut into records.

    Attributes:
        separator: byte at the end of a line, 0 to 255.
        lines_per_record: lines of a record, >= 1.
        header: lines before the first record of each file, >= 0.
        strip_bom: whether a UTF-8 byte order mark at the start of a file is dropped.
    """

    separator: int = 10
    lines_per_record: int = 1
    header: int = 0
    strip_bom: bool = False


@dataclass
class Chunk:
    """Whole records: record i is data[ends[i - 1] + 1 : ends[i] + 1], its separator included.

    Attributes:
        data: uint8, the caller's buffer.
        ends: (n,) int64, positions of the last byte of each record.
        lines: (n * lines_per_record,) int64, positions of the last byte of each line.
        first: index of the first record in all files.
        position: start of the next chunk.
        oversized: size of a record larger than the buffer, in bytes. Such a record is the only one of its chunk: it has
            been written to the file of oversized records, `ends` and `lines` are empty. 0 for other chunks.
        digest: digest of the lines of an oversized record; empty for other chunks.
    """

    data: Array
    ends: Array
    lines: Array
    first: int
    position: Position
    oversized: int = 0
    digest: str = ""

    @property
    def records(self) -> int:
        """Number of records."""
        return 1 if self.oversized else len(self.ends)

    @property
    def bytes(self) -> int:
        """Size of the records."""
        return self.oversized or int(self.ends[-1]) + 1


class OversizedFile(Protocol):
    """File that oversized records are appended to."""

    def write(self, data: memoryview, /) -> Any:
        """Append bytes."""


class Reader:
    """Reader of inputs, one after another, into buffers of the caller.

    Args:
        paths: files, or ``"-"``.
        form: how files are cut into records.
        position: start of the first record to read.
        cap: maximum number of records in a chunk, which bounds the memory of their index.
        oversized: file that records larger than a buffer are appended to.
        stop: byte offset at which reading ends, with a single input; None: at its end.

    Attributes:
        header: header of the first file, empty until that file is opened.
    """

    def __init__(
        self,
        paths: Sequence[str],
        form: RecordFormat,
        position: Position = _START,
        *,
        cap: int,
        oversized: OversizedFile | None = None,
        stop: int | None = None,
    ) -> None:
        self._paths, self._form, self._cap, self._oversized = list(paths), form, cap, oversized
        self._next, self._skip, self._record = position
        self._opened = ExitStack()
        self._stream: BinaryIO | None = None
        self._remaining = None if stop is None else stop - position.offset
        self._lookahead = b""  # bytes after the header, read while looking for its end
        self._carry = b""  # bytes of the unfinished record at the end of a chunk
        self._pieces: list[tuple[int, int, int]] = []  # of carry and buffer: (index in it, file, offset in the file)
        self._ends: list[tuple[int, int]] = []  # ends of files in carry and buffer: (index in it, file)
        self.header = b""

    def read(self, buffer: Array) -> Chunk | None:
        """Read the next chunk into `buffer` (uint8; its last 65 bytes stay free); None at the end."""
        n = self._fill(buffer)
        if n == 0:
            return None
        k = self._form.lines_per_record
        lines = find_byte(buffer[:n], self._form.separator, self._cap * k)
        lines = lines[: len(lines) // k * k]
        end = int(lines[-1]) + 1 if len(lines) else 0
        for at, file in self._ends:
            if (end == 0 and at) or (at <= end and np.searchsorted(lines, at) % k):
                raise self._incomplete_record(file)
        if end == 0:
            return self._read_oversized(buffer, n)
        first, self._record = self._record, self._record + len(lines) // k
        self._carry_over(buffer, end, n)
        return Chunk(buffer, lines[k - 1 :: k], lines, first, self._position())

    def chunks(self, size: int, workers: int) -> Iterator[Chunk]:
        """Yield all chunks, in buffers of `size` bytes; one is used again when `run_ordered` has used its chunk."""
        buffers = cycle([np.empty(size, np.uint8) for _ in range(workers + 1)])
        return iter(lambda: self.read(next(buffers)), None)

    def close(self) -> None:
        """Close the file being read."""
        self._opened.close()
        self._stream = None

    def _fill(self, buffer: Array) -> int:
        """Fill the buffer with the carry and the files, each ended by a separator; return the number of bytes."""
        n, room = len(self._carry), len(buffer) - PAD - 1
        buffer[:n] = np.frombuffer(self._carry, np.uint8)
        self._carry = b""
        while n < room and self._open_next(n):
            got = self._readinto(buffer[n:room].data)
            n += got
            if got == 0:
                if n and buffer[n - 1] != self._form.separator:
                    buffer[n] = self._form.separator
                    n += 1
                self._ends.append((n, self._next))
                self.close()
                self._next += 1
        return n

    def _open_next(self, at: int) -> bool:
        """Open the next file if none is open, its bytes from buffer index `at` on; return False after the last one."""
        if self._stream is not None:
            return True
        if self._next >= len(self._paths):
            return False
        path, offset = self._paths[self._next], self._skip
        with explain_errors(path):
            self._stream, _ = self._opened.enter_context(open_stream(path))
            if offset:
                _advance(self._stream, offset)
            elif self._form.header or self._form.strip_bom:
                header, self._lookahead = _split_header(self._stream, self._form)
                offset = len(header)
                if self._next == 0:
                    self.header = header.removeprefix(BOM_UTF8) if self._form.strip_bom else header
        self._skip = 0
        self._pieces.append((at, self._next, offset))
        return True

    def _readinto(self, view: memoryview) -> int:
        """Read bytes of the open file; return their number, 0 at its end."""
        if self._lookahead:
            got = min(len(view), len(self._lookahead))
            view[:got], self._lookahead = self._lookahead[:got], self._lookahead[got:]
            return got
        with explain_errors(self._paths[self._next]):
            if self._remaining is None:
                return int(self._stream.readinto(view) or 0)  # type: ignore[union-attr]
            got = int(self._stream.readinto(view[: self._remaining]) or 0)  # type: ignore[union-attr]
            self._remaining -= got
            return got

    def _carry_over(self, buffer: Array, end: int, n: int) -> None:
        """Carry buffer[end:n] over to the next chunk."""
        self._carry = buffer[end:n].tobytes()
        later = [(at - end, file, offset) for at, file, offset in self._pieces if at > end]
        at, file, offset = [piece for piece in self._pieces if piece[0] <= end][-1]
        self._pieces = [(0, file, offset + end - at), *later]
        self._ends = [(at - end, file) for at, file in self._ends if at > end]

    def _position(self) -> Position:
        """Return the start of the next record."""
        return Position(*self._pieces[0][1:], self._record)

    def _read_oversized(self, buffer: Array, n: int) -> Chunk:
        """Append the record that begins the buffer, and does not end in it, to the file of oversized records."""
        missing, size, lines = self._form.lines_per_record, 0, LineDigest(self._form.separator)
        assert self._oversized is not None
        while missing:
            ends = find_byte(buffer[:n], self._form.separator, missing)
            end = int(ends[-1]) + 1 if len(ends) == missing else n - 1  # one byte stays, to see how the file ends
            missing -= int((ends < end).sum())
            for at, file in self._ends:
                if at and (missing or at < end):
                    raise self._incomplete_record(file)
            self._oversized.write(buffer[:end].data)
            lines.add(buffer[:end])
            size += end
            self._carry_over(buffer, end, n)
            if missing:
                n = self._fill(buffer)
        first, self._record = self._record, self._record + 1
        none = np.empty(0, np.int64)
        return Chunk(buffer, none, none, first, self._position(), oversized=size, digest=str(lines.digest))

    def _incomplete_record(self, file: int) -> DataError:
        """Return the error about a file that ends inside a record."""
        return DataError(
            f"its number of lines is no multiple of {self._form.lines_per_record}.",
            remedy="Check lines_per_record (--lines-per-record) and that the file is whole.",
            path=self._paths[file],
        )


def _split_header(stream: BinaryIO, form: RecordFormat) -> tuple[bytes, bytes]:
    """Read a byte order mark and a header; return them, and the bytes that were read beyond them."""
    head, end = b"", 0
    while True:
        block = stream.read(1 << 16)
        head += block
        start = len(BOM_UTF8) if form.strip_bom and head.startswith(BOM_UTF8) else 0
        ends = find_byte(np.frombuffer(head, np.uint8)[start:], form.separator, max(form.header, 1))
        if form.header == 0 and (len(head) >= len(BOM_UTF8) or not block):
            return head[:start], head[start:]
        if form.header and len(ends) == form.header:
            end = start + int(ends[-1]) + 1
            return head[:end], head[end:]
        if not block:  # the header is all there is
            missing = b"" if not head or head[-1] == form.separator else bytes([form.separator])
            return head + missing, b""


def _advance(stream: BinaryIO, offset: int) -> None:
    """Skip the first `offset` bytes of a stream."""
    if isinstance(stream, io.FileIO):
        stream.seek(offset)
        return
    while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
        offset -= len(block)
