"""Lines of bytes: where they end, and the digest of lines of any length."""

from __future__ import annotations

import numpy as np

from kexue._arrays import Array
from kexue.corpus.shuffle.digest import PAD, Digest, finish, hash_records, hash_words

_SEARCHED = 1 << 18  # bytes searched at a time, whose mask fits in the processor's cache
_HASHED = 1 << 18  # bytes of an unfinished line hashed at a time


def find_byte(data: Array, byte: int, most: int) -> Array:
    """Return the positions of the first `most` occurrences of `byte` in uint8 data, int64."""
    found, count = [], 0
    mask = np.empty(min(_SEARCHED, len(data)), bool)
    for begin in range(0, len(data), _SEARCHED):
        piece = data[begin : begin + _SEARCHED]
        positions = np.flatnonzero(np.equal(piece, byte, out=mask[: len(piece)]))
        positions += begin
        found.append(positions)
        count += len(positions)
        if count >= most:
            break
    return np.concatenate(found)[:most] if found else np.empty(0, np.int64)


def hash_lines(data: Array, ends: Array) -> Array:
    """Return the hashes (n, 2) of the lines at the start of `data` that end at `ends` (n,), separators left out."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    return hash_records(data, starts, ends - starts)


class LineDigest:
    """Digest of lines that come in pieces of any length.

    Attributes:
        digest: sum of the hashes of the lines that have ended so far.
    """

    def __init__(self, separator: int) -> None:
        self.digest = Digest()
        self._separator = separator
        self._start_line()

    def _start_line(self) -> None:
        """Forget the unfinished line."""
        self._sum, self._length, self._rest = np.zeros(1, np.uint64), 0, np.empty(0, np.uint8)

    def add(self, data: Array) -> None:
        """Add the next bytes."""
        ends = find_byte(data, self._separator, len(data))
        if not len(ends):
            self._extend_line(data, last=False)
            return
        self._extend_line(data[: ends[0]], last=True)
        self.digest.add(finish(self._sum, np.array([self._length])))
        self._start_line()
        starts = ends[:-1] + 1
        whole = np.concatenate([data[: ends[-1]], np.zeros(PAD, np.uint8)])
        self.digest.add(hash_records(whole, starts, ends[1:] - starts))
        self._extend_line(data[ends[-1] + 1 :], last=False)

    def _extend_line(self, data: Array, *, last: bool) -> None:
        """Add bytes to the unfinished line; `last`: they end it."""
        for begin in range(0, max(len(data), 1), _HASHED):
            piece = np.concatenate([self._rest, data[begin : begin + _HASHED]])
            whole = len(piece) if last and begin + _HASHED >= len(data) else len(piece) // PAD * PAD
            self._sum += hash_words(piece[:whole], self._length // PAD)
            self._length += whole
            self._rest = piece[whole:]
