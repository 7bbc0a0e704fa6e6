"""Sorting by key, the core of the shuffle of lines and of tables: into buckets by ranges of keys, then inside each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.corpus.shuffle.keys import KeyRange, tie_keys

SLICE = 8192  # records moved at a time, which fit in the processor's cache


@dataclass(frozen=True)
class Partition:
    """Records ordered by bucket, in their original order inside each.

    Attributes:
        order: (n,) indices of the records.
        bounds: (parts + 1,): bucket i has order[bounds[i] : bounds[i + 1]].
    """

    order: Array
    bounds: Array

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """Yield (bucket, begin, end) of each bucket that has records: order[begin:end]."""
        for number in np.flatnonzero(np.diff(self.bounds)):
            yield int(number), int(self.bounds[number]), int(self.bounds[number + 1])


def partition(keys: Array, ranges: KeyRange, keep: Array | None = None) -> Partition:
    """Order records by the bucket of their key.

    Args:
        keys: (n,) uint64.
        ranges: ranges of keys, one a bucket.
        keep: (n,) bool, records that are not left out; None: all.
    """
    part = ranges.part(keys)
    order = np.argsort(part, kind="stable")
    if keep is not None:
        order = order[keep[order]]
    return Partition(order, np.searchsorted(part[order], np.arange(ranges.parts + 1)))


def sort_order(keys: Array, seed: int, index_of: Callable[[Array, np.uint64], Array]) -> Array:
    """Return the order (n,) that sorts records by key; equal keys by the second key, then by the record's index.

    Args:
        keys: (n,) uint64.
        seed: seed of the second keys.
        index_of: called as index_of(rows, key) for the rows, ascending, of records with one and the same key; returns
            the index of each in the whole input.
    """
    order = np.argsort(keys)
    in_order = keys[order]
    tied = np.flatnonzero(in_order[1:] == in_order[:-1])
    for key in np.unique(in_order[tied]):
        begin, end = np.searchsorted(in_order, key, "left"), np.searchsorted(in_order, key, "right")
        rows = np.sort(order[begin:end])
        index = index_of(rows, key)
        second = np.array([tie_keys(seed, int(i), int(i) + 1)[0] for i in index], np.uint64)
        order[begin:end] = rows[np.lexsort((index, second))]
    return order


def memory_pool() -> Any:
    """Return Arrow's memory pool for rows: jemalloc where it is built in, which keeps the least memory per thread."""
    pa = import_optional("pyarrow", extra="corpus")
    return pa.jemalloc_memory_pool() if "jemalloc" in pa.supported_memory_backends() else pa.default_memory_pool()


def take_rows(data: Array, offsets: Array, order: Array) -> Iterator[tuple[Array, Array]]:
    """Yield rows data[offsets[i] : offsets[i + 1]] for i in `order`, `SLICE` at a time, as (bytes, offsets in them)."""
    pa = import_optional("pyarrow", extra="corpus")
    compute = import_optional("pyarrow.compute", extra="corpus")
    options = compute.TakeOptions(boundscheck=False)
    rows = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    for begin in range(0, len(order), SLICE):
        some = np.ascontiguousarray(order[begin : begin + SLICE], dtype=np.int64)
        indices = pa.Int64Array.from_buffers(pa.int64(), len(some), [None, pa.py_buffer(some)])
        _, positions, values = compute.call_function("take", [rows, indices], options, memory_pool()).buffers()
        bounds = np.frombuffer(positions, np.int64, len(some) + 1)
        yield np.frombuffer(values, np.uint8, int(bounds[-1])) if bounds[-1] else np.empty(0, np.uint8), bounds
