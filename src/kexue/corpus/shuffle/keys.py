"""Random keys of records, computed from their index alone; the shuffled order is that of the keys.

Source: kexue.fm/archives/8662 (the task, and the scheme that is called rowwise here). Counter-based random numbers:
Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

Differences from the article: its scheme reaches (n!)^m (m!)^n of the (mn)! orders; independent keys reach them all
with equal probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kexue._arrays import Array

Keys = Callable[[int, int, int], Array]

ROWS = 100_000  # lines of a block of the article's scheme
SPACE = 1 << 64  # number of keys


def permutation_keys(seed: int, start: int, stop: int) -> Array:
    """Return the keys of records `start` to `stop`: sorting all records by key shuffles them uniformly.

    u_i = word i mod 4 of Philox4x64(key=seed, counter=i div 4), so that any range can be computed anywhere.

    Args:
        seed: 0 <= seed < 2**64.
        start, stop: range of record indices, 0 <= start <= stop.

    Returns:
        (stop - start,) uint64, independent and uniform.

    >>> np.array_equal(permutation_keys(7, 0, 10)[3:8], permutation_keys(7, 3, 8))
    True
    """
    check_seed(seed)
    if not 0 <= start <= stop:
        raise ValueError(f"expected 0 <= start <= stop, got start {start} and stop {stop}.")
    return _words(seed, start, stop)  # section "Sorting by random keys"


def tie_keys(seed: int, start: int, stop: int) -> Array:
    """Return second keys, which order records with equal first keys: Philox with the key seed + 2**64."""
    return _words(seed + SPACE, start, stop)  # section "Sorting by random keys": ties


def rowwise_keys(seed: int, start: int, stop: int, *, rows: int = ROWS) -> Array:
    """Return keys of the order of the article's scheme: shuffled blocks of `rows` lines, read one line of each in turn.

    The line that is the r-th of its shuffled block gets the key (r + U) / rows * 2**64, U uniform on [0, 1). So round
    r holds one line of every block, in random order. Not uniform: two lines of one block never share a round. A short
    last block is spread over all rounds, the article's remedy.

    Args:
        seed, start, stop: as in `permutation_keys`.
        rows: lines of a block, n in the article.
    """
    first, last = start // rows, -(-stop // rows)
    inner = _words(seed, first * rows, last * rows).reshape(-1, rows)
    # section "The article's scheme": shuffle each block, then take one line of each block per round
    rank = inner.argsort(axis=1, kind="stable").argsort(axis=1).ravel().astype(np.uint64)
    spread = tie_keys(seed, first * rows, last * rows) // np.uint64(rows)
    keys: Array = rank * np.uint64(SPACE // rows) + np.minimum(spread, np.uint64(SPACE // rows - 1))
    return keys[start - first * rows : stop - first * rows]


ALGORITHMS: dict[str, Keys] = {"keyed": permutation_keys, "rowwise": rowwise_keys}


def check_seed(seed: int) -> None:
    """Raise a TypeError or ValueError for what is not a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be a whole number, got {seed!r}.")
    if not 0 <= seed < SPACE:
        raise ValueError(f"seed must be 0 <= seed < 2**64, got {seed}.")


def _words(key: int, start: int, stop: int) -> Array:
    """Return words `start` to `stop` of the stream of Philox4x64 with this key, uint64."""
    first = start // 4
    words: Array = np.random.Philox(key=int(key), counter=first).random_raw(stop - 4 * first)
    return words[start - 4 * first :]


class KeyRange:
    """Keys lo <= u < hi, cut into `parts` ranges of nearly equal width, in the order of the keys.

    Args:
        lo, hi: 0 <= lo < hi <= 2**64.
        parts: number of ranges, 1 to 65,535.
    """

    def __init__(self, lo: int, hi: int, parts: int) -> None:
        self.lo, self.parts = lo, parts
        self._shift = max(0, (hi - lo - 1).bit_length() - 32)
        self._width = ((hi - lo - 1) >> self._shift) + 1  # at most 2**32, so that a product with `parts` fits
        self._hi = hi

    def part(self, keys: Array) -> Array:
        """Return the range that each key is in, (n,) uint16: floor((u - lo) parts / width)."""
        # section "Two passes": the bucket grows with the key
        scaled = keys - np.uint64(self.lo)
        scaled >>= np.uint64(self._shift)
        scaled *= np.uint64(self.parts)
        scaled //= np.uint64(self._width)
        return scaled.astype(np.uint16)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges as (lo, hi)."""
        cuts = [self.lo + (-(-i * self._width // self.parts) << self._shift) for i in range(self.parts)]
        return zip(cuts, [*cuts[1:], self._hi], strict=True)
