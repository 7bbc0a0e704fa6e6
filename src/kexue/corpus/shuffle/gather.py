"""Second pass: one bucket after another is read, sorted by key, and written to the output."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.corpus.shuffle.buckets import (
    OVERSIZED,
    REFERENCE,
    Bucket,
    BucketReader,
    FrameOrigin,
    fdatasync,
    row_offsets,
    split_bucket,
)
from kexue.corpus.shuffle.journal import Journal, State
from kexue.corpus.shuffle.keys import ALGORITHMS, KeyRange, Keys
from kexue.corpus.shuffle.lines import LineDigest
from kexue.corpus.shuffle.options import ShuffleOptions
from kexue.corpus.shuffle.output import OutputWriter
from kexue.corpus.shuffle.parallel import run_ordered
from kexue.corpus.shuffle.plan import Budget
from kexue.corpus.shuffle.sorting import sort_order, take_rows
from kexue.errors import DataError

_SYNC = 64 << 20  # bytes of output that may wait to reach the disk
_COPIED = 1 << 20  # bytes of an oversized record copied at a time
_MOST_PARTS = 256  # of a bucket that is too large


@dataclass
class _SortedBucket:
    """A bucket in memory and the order of its records; `data` lies in the buffer of `reader`."""

    bucket: Bucket
    reader: BucketReader
    data: Array
    offsets: Array
    order: Array
    oversized: Array


class _Snapshot(NamedTuple):
    """Where the output stands after a bucket, and a descriptor of its file to synchronise, if it has one."""

    output: dict[str, Any]
    gathered: int
    handle: int | None


class Gatherer:
    """The second pass of one shuffle. Buckets are deleted as their records reach the disk.

    Args:
        options: options of the shuffle.
        journal: holder of the folder of the buckets; the state is committed to it, if `resumable`.
        state: where the pass stands, kept up to date.
        budget: shares of the memory.
        output: writer of the output.
        advance: called with the bytes of each bucket.
        resumable: whether the state is committed after each bucket.

    Attributes:
        sample_digest: digest of the lines written, when the output is a sample.
        sample_bytes: size of the records written, when the output is a sample.
        extra_passes: 1 if buckets were too large and had to be split, else 0.
    """

    def __init__(
        self,
        options: ShuffleOptions,
        journal: Journal,
        state: State,
        budget: Budget,
        output: OutputWriter,
        advance: Callable[[int], None],
        *,
        resumable: bool,
    ) -> None:
        self._journal, self._state, self._budget = journal, state, budget
        self._output, self._advance, self._resumable = output, advance, resumable
        self._keys = ALGORITHMS[options.algorithm]
        self._sample = options.sample
        self._queue = deque(state.buckets)
        self._readers = deque(BucketReader() for _ in range(budget.workers))
        self._oversized = os.open(journal.folder / "giants", os.O_RDONLY) if state.giants else -1
        self._gathered, self._unsynced = state.gathered, 0
        self._lines = LineDigest(options.form.separator)
        self.sample_bytes = 0
        self.extra_passes = 0

    @property
    def sample_digest(self) -> str:
        """Digest of the lines of a sample."""
        return str(self._lines.digest)

    def run(self) -> None:
        """Write all buckets."""
        commit: Future[None] | None = None

        def write(loaded: _SortedBucket) -> None:
            """Write a bucket, and let it be committed while the next one is written."""
            nonlocal commit
            self._write(loaded)
            self._readers.append(loaded.reader)
            if commit is not None:
                commit.result()  # a snapshot reuses the file of the one before the last
            commit = committer.submit(self._commit, loaded.bucket, self._snapshot())
            self._advance(loaded.bucket.bytes)

        try:
            with ThreadPoolExecutor(1) as committer:
                run_ordered(self._sort, self._buckets(), write, self._budget.workers)
                if commit is not None:
                    commit.result()
        finally:
            if self._oversized >= 0:
                os.close(self._oversized)

    def _buckets(self) -> Iterator[Bucket]:
        """Yield the buckets in the order of their keys; one that is too large is split first."""
        while self._queue and self._still_wanted() != 0:
            bucket = self._queue.popleft()
            need = self._budget.sorting(bucket.bytes, bucket.records)
            if bucket.frames is None and need > self._budget.bucket and bucket.records > 1:
                parts = min(_MOST_PARTS, max(2, math.ceil(1.2 * need / self._budget.bucket)))
                if parts < bucket.hi - bucket.lo:
                    self.extra_passes = 1
                    self._queue.extendleft(reversed(self._split(bucket, parts)))
                    continue
            if bucket.records:
                yield bucket

    def _still_wanted(self) -> int | None:
        """Return how many records of a sample are still to be written; None: all records are wanted."""
        return None if self._sample is None else max(0, self._sample - self._gathered)

    def _split(self, bucket: Bucket, parts: int) -> list[Bucket]:
        """Replace a bucket by smaller ones, in the state and on the disk; return those that have records."""
        journal, state = self._journal, self._state
        ranges = KeyRange(bucket.lo, bucket.hi, parts)
        children = [Bucket(state.buckets_made + i, lo, hi) for i, (lo, hi) in enumerate(ranges)]
        split_bucket(bucket, children, ranges, journal.folder, durable=journal.durable)
        filled = [child for child in children if child.records]
        with journal.lock:
            at = state.buckets.index(bucket)
            state.buckets[at : at + 1] = filled
            state.buckets_made += parts
            journal.commit(state, durable=journal.durable)
        bucket.path(journal.folder).unlink()
        return filled

    def _sort(self, bucket: Bucket) -> _SortedBucket:
        """Read a bucket and sort its records."""
        reader = self._readers.popleft()
        data, keys, lengths, frames = reader.read(bucket, self._journal.folder)
        # section "Two passes": gather
        order = sort_order(keys, self._state.seed, RecordIndex(frames, self._state.seed, self._keys))
        return _SortedBucket(bucket, reader, data, row_offsets(lengths), order, lengths == OVERSIZED)

    def _write(self, loaded: _SortedBucket) -> None:
        """Write a bucket's records to the output; of a sample only the missing ones."""
        order = loaded.order[: self._still_wanted()]
        oversized = np.flatnonzero(loaded.oversized[order]) if loaded.oversized.any() else np.empty(0, np.int64)
        begin = 0
        for end in [*oversized, len(order)]:
            for values, offsets in take_rows(loaded.data, loaded.offsets, order[begin:end]):
                self._output.write(values, offsets)
                if self._sample is not None:
                    self._lines.add(values)
                    self.sample_bytes += len(values)
            if end < len(order):
                at = int(loaded.offsets[int(order[end])])
                self._copy_oversized(*REFERENCE.unpack(loaded.data[at : at + REFERENCE.size].tobytes()))
            begin = int(end) + 1
        self._gathered += len(order)

    def _copy_oversized(self, start: int, size: int) -> None:
        """Write an oversized record, from their file."""
        self._output.begin_record(size)
        for begin in range(start, start + size, _COPIED):
            expected = min(_COPIED, start + size - begin)
            block = np.frombuffer(os.pread(self._oversized, expected, begin), np.uint8)
            if len(block) < expected:
                raise DataError("the file of oversized records is shorter than it was.", path=self._journal.folder)
            self._output.extend_record(block)
            if self._sample is not None:
                self._lines.add(block)
        self.sample_bytes += size

    def _snapshot(self) -> _Snapshot | None:
        """Return where the output stands; None for a shuffle that cannot be resumed."""
        if not self._resumable:
            return None
        return _Snapshot(self._output.state(), self._gathered, self._output.duplicate())

    def _commit(self, bucket: Bucket, snapshot: _Snapshot | None) -> None:
        """Commit a bucket once the output that holds its records is on the disk, and delete its file."""
        if snapshot is None:
            if bucket.frames is None:
                bucket.path(self._journal.folder).unlink()
            return
        try:
            self._synchronise(bucket, snapshot.handle)
            journal, state = self._journal, self._state
            with journal.lock:
                state.buckets.remove(bucket)
                state.output, state.gathered = snapshot.output, snapshot.gathered
                journal.commit(state, durable=journal.durable)
            bucket.path(journal.folder).unlink(missing_ok=True)
        finally:
            if snapshot.handle is not None:
                os.close(snapshot.handle)

    def _synchronise(self, bucket: Bucket, handle: int | None) -> None:
        """Write the output through to the disk: every bucket if the state is durable, else every 64 MB."""
        if handle is None:
            return
        self._unsynced += bucket.bytes
        if self._journal.durable or self._unsynced > _SYNC:  # not everything at the very end
            self._unsynced = 0
            with self._output.name_errors():
                fdatasync(handle)


class RecordIndex:
    """Index, in the whole input, of records of a bucket with one and the same key.

    Args:
        frames: origins of the bucket's frames, in the order of their records.
        seed: seed of the keys.
        keys: function of the keys.
    """

    def __init__(self, frames: list[FrameOrigin], seed: int, keys: Keys) -> None:
        self._frames, self._seed, self._keys = frames, seed, keys
        self._starts = np.concatenate([[0], np.cumsum([frame.records for frame in frames])])

    def __call__(self, rows: Array, key: np.uint64) -> Array:
        """Return the index, in all files, of each of `rows`: all rows of the bucket with this key, ascending."""
        index = np.empty(len(rows), np.int64)
        frame_of = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(frame_of):
            first, total, _ = self._frames[number]
            index[frame_of == number] = np.flatnonzero(self._keys(self._seed, first, first + total) == key) + first
        return index  # a frame keeps the order of its chunk, and has all of its records with this key
