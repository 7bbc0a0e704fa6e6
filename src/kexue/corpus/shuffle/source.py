"""Input files as chunks of whole records: bytes, never text, with a place to go on from after each chunk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from kexue.corpus.open import explain_errors, open_stream
from kexue.corpus.shuffle.digest import PAD, Digest, finish, hash_records, hash_words
from kexue.errors import DataError

Array = np.ndarray[Any, Any]

BOM = b"\xef\xbb\xbf"
_FIND = 1 << 18  # bytes searched at a time, whose mask the cache holds
_BLOCK = 1 << 18  # bytes of a giant record hashed at a time


class Place(NamedTuple):
    """Where the next record begins: byte `offset` (decompressed) of file number `file`, and record number `record`."""

    file: int = 0
    offset: int = 0
    record: int = 0


_START = Place()


@dataclass(frozen=True)
class Format:
    """How files are cut into records."""

    separator: int = 10
    lines_per_record: int = 1
    header: int = 0
    strip_bom: bool = False


@dataclass
class Chunk:
    """Whole records: record i is data[ends[i - 1] + 1 : ends[i] + 1], its separator included.

    `lines` are the ends of all lines, `first` the index of the first record, `place` where the next chunk begins. A
    giant record, larger than the buffer, is the only one of its chunk: `giant` is its size, and it has been written
    to the file of giants; its lines are in `digest` already.
    """

    data: Array
    ends: Array
    lines: Array
    first: int
    place: Place
    giant: int = 0
    digest: str = ""


class Giants(Protocol):
    """A file that is written only."""

    def write(self, data: memoryview, /) -> Any:
        """Append."""


class Reader:
    """Reads inputs one after another into buffers of the caller.

    Args:
        paths: files, or ``"-"``.
        form: how they are cut.
        place: where to go on.
        cap: records of a chunk at most, which bounds the memory of their index.
        giants: where records larger than a buffer are appended.
        stop: where the one input ends for this reader; None: at its end.

    Attributes:
        header: the first file's first lines, once it has been opened.
    """

    def __init__(
        self,
        paths: Sequence[str],
        form: Format,
        place: Place = _START,
        *,
        cap: int,
        giants: Giants | None = None,
        stop: int | None = None,
    ) -> None:
        self._paths, self._form, self._cap, self._giants = list(paths), form, cap, giants
        self._next, self._skip, self._record = place
        self._opened = ExitStack()
        self._stream: BinaryIO | None = None
        self._left = None if stop is None else stop - place.offset
        self._pushed = b""  # of the stream, read while looking for the header
        self._carry = b""  # read, but not handed out
        self._pieces: list[tuple[int, int, int]] = []  # of carry and buffer: (position, file, offset in it)
        self._ends: list[tuple[int, int]] = []  # of files, in carry and buffer: (position, file)
        self.header = b""

    def read(self, buffer: Array) -> Chunk | None:
        """The next chunk, in `buffer` (uint8; its last 65 bytes are kept free); None at the end."""
        n = self._fill(buffer)
        if n == 0:
            return None
        k = self._form.lines_per_record
        lines = find(buffer[:n], self._form.separator, self._cap * k)
        lines = lines[: len(lines) // k * k]
        end = int(lines[-1]) + 1 if len(lines) else 0
        for position, file in self._ends:
            if (end == 0 and position) or (position <= end and np.searchsorted(lines, position) % k):
                raise self._remainder(file)
        if end == 0:
            return self._giant(buffer, n)
        first, self._record = self._record, self._record + len(lines) // k
        self._keep(buffer, end, n)
        return Chunk(buffer, lines[k - 1 :: k], lines, first, self._place())

    def close(self) -> None:
        """Close the file being read."""
        self._opened.close()
        self._stream = None

    def _fill(self, buffer: Array) -> int:
        """Carry and what the files give, up to the buffer's length; every file ends with a separator."""
        n, room = len(self._carry), len(buffer) - PAD - 1
        buffer[:n] = np.frombuffer(self._carry, np.uint8)
        self._carry = b""
        while n < room and self._open(n):
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

    def _open(self, position: int) -> bool:
        """Open the next file where none is open; False when there is none left."""
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
                header, self._pushed = _split_header(self._stream, self._form)
                offset = len(header)
                if self._next == 0:
                    self.header = header.removeprefix(BOM) if self._form.strip_bom else header
        self._skip = 0
        self._pieces.append((position, self._next, offset))
        return True

    def _readinto(self, view: memoryview) -> int:
        if self._pushed:
            got = min(len(view), len(self._pushed))
            view[:got], self._pushed = self._pushed[:got], self._pushed[got:]
            return got
        with explain_errors(self._paths[self._next]):
            if self._left is None:
                return int(self._stream.readinto(view) or 0)  # type: ignore[union-attr]
            got = int(self._stream.readinto(view[: self._left]) or 0)  # type: ignore[union-attr]
            self._left -= got
            return got

    def _keep(self, buffer: Array, end: int, n: int) -> None:
        """Carry buffer[end:n] over to the next chunk."""
        self._carry = buffer[end:n].tobytes()
        later = [(position - end, file, offset) for position, file, offset in self._pieces if position > end]
        position, file, offset = [one for one in self._pieces if one[0] <= end][-1]
        self._pieces = [(0, file, offset + end - position), *later]
        self._ends = [(position - end, file) for position, file in self._ends if position > end]

    def _place(self) -> Place:
        return Place(*self._pieces[0][1:], self._record)

    def _giant(self, buffer: Array, n: int) -> Chunk:
        """A record that begins the buffer and does not end in it: to the file of giants, piece by piece."""
        missing, size, lines = self._form.lines_per_record, 0, Lines(self._form.separator)
        assert self._giants is not None
        while missing:
            ends = find(buffer[:n], self._form.separator, missing)
            end = int(ends[-1]) + 1 if len(ends) == missing else n - 1  # one stays, to tell what a file ends with
            missing -= int((ends < end).sum())
            for position, file in self._ends:
                if position and (missing or position < end):
                    raise self._remainder(file)
            self._giants.write(buffer[:end].data)
            lines.feed(buffer[:end])
            size += end
            self._keep(buffer, end, n)
            if missing:
                n = self._fill(buffer)
        first, self._record = self._record, self._record + 1
        none = np.empty(0, np.int64)
        return Chunk(buffer, none, none, first, self._place(), giant=size, digest=str(lines.digest))

    def _remainder(self, file: int) -> DataError:
        return DataError(
            f"its number of lines is no multiple of {self._form.lines_per_record}.",
            remedy="Check lines_per_record (--lines-per-record) and that the file is whole.",
            path=self._paths[file],
        )


class Lines:
    """Digest of lines that are fed piece by piece, however long they are."""

    def __init__(self, separator: int) -> None:
        self.digest = Digest()
        self._separator = separator
        self._start()

    def _start(self) -> None:
        self._sum, self._length, self._rest = np.zeros(1, np.uint64), 0, np.empty(0, np.uint8)

    def feed(self, data: Array) -> None:
        """Go on with these bytes."""
        ends = find(data, self._separator, len(data))
        if not len(ends):
            self._extend(data, last=False)
            return
        self._extend(data[: ends[0]], last=True)
        self.digest.add(finish(self._sum, np.array([self._length])))
        self._start()
        starts = ends[:-1] + 1
        whole = np.concatenate([data[: ends[-1]], np.zeros(PAD, np.uint8)])
        self.digest.add(hash_records(whole, starts, ends[1:] - starts))
        self._extend(data[ends[-1] + 1 :], last=False)

    def _extend(self, data: Array, *, last: bool) -> None:
        for begin in range(0, max(len(data), 1), _BLOCK):
            piece = np.concatenate([self._rest, data[begin : begin + _BLOCK]])
            whole = len(piece) if last and begin + _BLOCK >= len(data) else len(piece) // PAD * PAD
            self._sum += hash_words(piece[:whole], self._length // PAD)
            self._length += whole
            self._rest = piece[whole:]


def find(data: Array, byte: int, most: int) -> Array:
    """Positions of the first `most` times that `byte` occurs, int64."""
    found, count = [], 0
    mask = np.empty(min(_FIND, len(data)), bool)
    for begin in range(0, len(data), _FIND):
        piece = data[begin : begin + _FIND]
        positions = np.flatnonzero(np.equal(piece, byte, out=mask[: len(piece)]))
        positions += begin
        found.append(positions)
        count += len(positions)
        if count >= most:
            break
    return np.concatenate(found)[:most] if found else np.empty(0, np.int64)


def _split_header(stream: BinaryIO, form: Format) -> tuple[bytes, bytes]:
    """What is read before the first record (mark and header), and what was read beyond it."""
    head, end = b"", 0
    while True:
        block = stream.read(1 << 16)
        head += block
        start = len(BOM) if form.strip_bom and head.startswith(BOM) else 0
        ends = find(np.frombuffer(head, np.uint8)[start:], form.separator, max(form.header, 1))
        if form.header == 0 and (len(head) >= len(BOM) or not block):
            return head[:start], head[start:]
        if form.header and len(ends) == form.header:
            end = start + int(ends[-1]) + 1
            return head[:end], head[end:]
        if not block:  # the header is all there is
            missing = b"" if not head or head[-1] == form.separator else bytes([form.separator])
            return head + missing, b""


def _advance(stream: BinaryIO, offset: int) -> None:
    if isinstance(stream, io.FileIO):
        stream.seek(offset)
        return
    while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
        offset -= len(block)
