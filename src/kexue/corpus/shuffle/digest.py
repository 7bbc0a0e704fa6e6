"""Checksum of records that does not depend on their order: the sum of their hashes.

h(record) = two mixes of sum_t m_t (w_t xor w_t >> 32) + length, over the 64-bit words w_t of the record, padded with
zeros; m_t are random odd numbers, the same everywhere. Sums are modulo 2**64 in each of two halves. It
detects lost, added and damaged records, but is no defence against an adversary.
"""

from __future__ import annotations

import numpy as np

from kexue._arrays import Array

PAD = 64  # bytes after the last record that must be readable
_BLOCK = 1 << 12  # records hashed at a time, which fit in the processor's cache
_ROW = PAD  # bytes hashed at a time
_WORDS = _ROW // 8
_KEY = 0x6B65787565  # of the multipliers
_MIXES = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB), (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)

_masks = np.zeros((_ROW + 1, _ROW), np.uint8)
for _i in range(_ROW + 1):
    _masks[_i, :_i] = 255
_HALF = np.uint64(32)
_MASKS = _masks.view("<u8")


class Digest:
    """Sum of the hashes of records.

    Args:
        value: digest to start from, 32 hexadecimal digits.
    """

    def __init__(self, value: str = "0" * 32) -> None:
        self._sums = [int(value[:16], 16), int(value[16:], 16)]

    def add(self, hashes: Array) -> None:
        """Add records by their hashes, (n, 2)."""
        for i in (0, 1):
            self._sums[i] = (self._sums[i] + int(hashes[:, i].sum(dtype=np.uint64))) % (1 << 64)

    def merge(self, other: str) -> None:
        """Add the records of another digest."""
        self._sums = [(a + b) % (1 << 64) for a, b in zip(self._sums, Digest(other)._sums, strict=True)]

    def __str__(self) -> str:
        return "".join(f"{one:016x}" for one in self._sums)


def hash_records(data: Array, starts: Array, lengths: Array) -> Array:
    """Return the hashes (n, 2), uint64, of the records data[start : start + length].

    Args:
        data: uint8, with 64 bytes to spare behind the last record.
        starts, lengths: (n,) int64.
    """
    sums = np.zeros(len(starts), np.uint64)
    rows = np.ndarray(len(data) - _ROW + 1, f"V{_ROW}", data, strides=(1,))  # rows[i] = data[i : i + 64]
    limit = _loop_limit(lengths)
    for begin in range(0, len(starts), _BLOCK):
        some = slice(begin, begin + _BLOCK)
        sums[some] = _hash_block(rows, starts[some], np.minimum(lengths[some], limit * _ROW))
    for i in np.flatnonzero(lengths > limit * _ROW):
        start, stop = starts[i] + limit * _ROW, starts[i] + lengths[i]
        sums[i : i + 1] += hash_words(data[start:stop], limit)
    return finish(sums, lengths)


def hash_words(data: Array, row: int) -> np.uint64:
    """Return the sum over a piece of a record that starts `row` rows of 64 bytes after the record."""
    words = np.zeros(-(-len(data) // _ROW) * _WORDS, "<u8")
    words.view(np.uint8)[: len(data)] = data
    words ^= words >> _HALF
    words *= _multipliers(row, row + len(words) // _WORDS).ravel()
    total: np.uint64 = words.sum(dtype=np.uint64)
    return total


def finish(sums: Array, lengths: Array) -> Array:
    """Return hashes (n, 2): sums and lengths, mixed so that adding hashes is not the same as adding the words."""
    out = np.empty((len(sums), 2), np.uint64)
    for i, (first, second) in enumerate(_MIXES):
        x = sums + lengths.astype(np.uint64) * np.uint64(first) + np.uint64(second)
        for factor, shift in ((first, 30), (second, 27)):
            x ^= x >> np.uint64(shift)
            x *= np.uint64(factor)
        out[:, i] = x ^ (x >> np.uint64(31))
    return out


def _hash_block(rows: Array, starts: Array, lengths: Array) -> Array:
    """Return the sums of records: row by row of all at once, sorted by length, so the unfinished ones come first."""
    counts = (-(-lengths // _ROW)).astype(np.uint16)
    order = np.argsort(~counts, kind="stable")
    at, left = starts[order], lengths[order]
    going = len(at) - np.cumsum(np.bincount(counts, minlength=1))
    sums, mixed = np.zeros(len(at), np.uint64), np.empty((len(at), _WORDS), np.uint64)
    factors = _multipliers(0, len(going))
    for row in range(len(going) - 1):
        now, after = int(going[row]), int(going[row + 1])
        words = rows[at[:now]].view("<u8").reshape(now, _WORDS)
        words[after:] &= _MASKS[left[after:now]]
        words ^= np.right_shift(words, _HALF, out=mixed[:now])
        sums[:now] += np.einsum("ij,j->i", words, factors[row])
        at[:after] += _ROW
        left[:after] -= _ROW
    out = np.empty_like(sums)
    out[order] = sums
    return out


def _loop_limit(lengths: Array) -> int:
    """Return how many rows are hashed for all records at once; the rest of longer records is hashed one by one."""
    limit = 16
    while limit < 1 << 14 and (lengths > limit * _ROW).sum() > limit:
        limit *= 2
    return limit


def _multipliers(start: int, stop: int) -> Array:
    """Return the multipliers of rows `start` to `stop`, (stop - start, 8) odd uint64."""
    if stop <= len(_FIRST):
        return _FIRST[start:stop]
    return _draw(start, stop)


def _draw(start: int, stop: int) -> Array:
    """Draw the multipliers of rows `start` to `stop`."""
    words: Array = np.random.Philox(key=_KEY, counter=2 * start).random_raw(_WORDS * (stop - start)).reshape(-1, _WORDS)
    return words | np.uint64(1)


_FIRST = _draw(0, 1024)
