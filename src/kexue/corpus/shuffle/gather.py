"""Second pass: one bucket after another is read, sorted by key, and written; ties are decided by a second key."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kexue.corpus.shuffle.job import Budget, Job
from kexue.corpus.shuffle.keys import ALGORITHMS, Keys, tie_keys
from kexue.corpus.shuffle.pipeline import run_ordered
from kexue.corpus.shuffle.scatter import GIANT, HEAD, MAGIC, REFERENCE, Frame, resplit, take
from kexue.corpus.shuffle.sink import Sink
from kexue.corpus.shuffle.source import Lines
from kexue.corpus.shuffle.state import Bucket, State, Workplace, fdatasync
from kexue.errors import DataError

Array = np.ndarray[Any, Any]

_SYNC = 64 << 20  # bytes of output that may wait to reach the disk
_COPY = 1 << 20  # bytes of a giant record at a time
_MOST_PARTS = 256  # of a bucket that is too large


@dataclass
class _Loaded:
    """A bucket in memory: its records, and the order they go out in."""

    bucket: Bucket
    data: Array
    offsets: Array
    order: Array
    giant: Array
    snapshot: dict[str, Any] | None = None
    handle: int | None = None


class Gather:
    """Writes the buckets of `state` to `sink`, and deletes them as they reach the disk.

    Attributes:
        sampled_bytes: size of what was written, when it is a sample.
        deeper: 1 when buckets had to be cut, which takes another pass over them.

    Args:
        tell: called with the bytes of each bucket.
        resumable: the state is written after each bucket.
    """

    def __init__(
        self,
        job: Job,
        work: Workplace,
        state: State,
        budget: Budget,
        sink: Sink,
        tell: Callable[[int], None],
        *,
        resumable: bool,
    ) -> None:
        self._job, self._work, self._state, self._budget = job, work, state, budget
        self._sink, self._tell, self._resumable = sink, tell, resumable
        self._waiting = deque(state.buckets)
        self._buffers = [_Buffer() for _ in range(budget.workers)]
        self._giants = os.open(work.folder / "giants", os.O_RDONLY) if state.giants else -1
        self._gathered, self._unsynced = state.gathered, 0
        self._sampled_lines, self.sampled_bytes = Lines(job.form.separator), 0
        self.deeper = 0

    @property
    def sampled(self) -> str:
        """Digest of the lines of a sample."""
        return str(self._sampled_lines.digest)

    def run(self) -> None:
        """All of it."""
        try:
            run_ordered(self._budget.workers, self._next, self._load, self._write, self._finish)
        finally:
            if self._giants >= 0:
                os.close(self._giants)

    def _next(self, _: int) -> Bucket | None:
        """The next bucket; one that is too large is cut first."""
        left = self._left()
        while self._waiting and left != 0:
            bucket = self._waiting.popleft()
            need = self._budget.need(bucket.bytes, bucket.records)
            if bucket.frames is None and need > self._budget.bucket and bucket.records > 1:
                parts = min(_MOST_PARTS, max(2, math.ceil(1.2 * need / self._budget.bucket)))
                if parts < bucket.hi - bucket.lo:
                    self.deeper = 1
                    frames = read_frames(bucket, self._work.folder)
                    self._waiting.extendleft(reversed(resplit(self._work, self._state, bucket, parts, frames)))
                    continue
            if bucket.records:
                return bucket
        return None

    def _left(self) -> int | None:
        """Records that are still wanted; None: all."""
        return None if self._job.sample is None else max(0, self._job.sample - self._gathered)

    def _load(self, worker: int, bucket: Bucket) -> _Loaded:
        data, keys, lengths, frames = self._buffers[worker].fill(bucket, self._work.folder)
        giant = lengths == GIANT
        offsets = np.empty(len(lengths) + 1, np.int64)
        offsets[0] = 0
        np.cumsum(np.where(giant, REFERENCE.size, lengths) if giant.any() else lengths, out=offsets[1:])
        order = sorted_order(keys, frames, self._state.seed, ALGORITHMS[self._job.algorithm])
        return _Loaded(bucket, data, offsets, order, giant)

    def _write(self, loaded: _Loaded) -> None:
        left = self._left()
        order = loaded.order if left is None else loaded.order[:left]
        cuts = np.flatnonzero(loaded.giant[order]) if loaded.giant.any() else np.empty(0, np.int64)
        begin = 0
        for cut in [*cuts, len(order)]:
            for values, offsets in take(loaded.data, loaded.offsets, order[begin:cut]):
                self._sink.write(values, offsets)
                if self._job.sample is not None:
                    self._sampled_lines.feed(values)
                    self.sampled_bytes += len(values)
            if cut < len(order):
                row = int(order[cut])
                at = int(loaded.offsets[row])
                place, size = REFERENCE.unpack(loaded.data[at : at + REFERENCE.size].tobytes())
                self._copy(place, size)
            begin = int(cut) + 1
        self._gathered += len(order)
        if self._resumable:
            loaded.snapshot = {"sink": self._sink.state(), "gathered": self._gathered}
            loaded.handle = self._sink.duplicate()

    def _copy(self, place: int, size: int) -> None:
        """A giant record from the file of giants."""
        self._sink.begin_record(size)
        for begin in range(place, place + size, _COPY):
            block = os.pread(self._giants, min(_COPY, place + size - begin), begin)
            if len(block) < min(_COPY, place + size - begin):
                raise DataError("the file of giant records is shorter than it was.", path=self._work.folder)
            self._sink.extend_record(np.frombuffer(block, np.uint8))
            if self._job.sample is not None:
                self._sampled_lines.feed(np.frombuffer(block, np.uint8))
        self.sampled_bytes += size

    def _finish(self, loaded: _Loaded) -> None:
        """Once the output is on the disk, say so, and delete the bucket."""
        self._tell(loaded.bucket.bytes)
        if not self._resumable:
            if loaded.bucket.frames is None:
                loaded.bucket.path(self._work.folder).unlink()
            return
        if loaded.handle is not None:
            try:
                self._unsynced += loaded.bucket.bytes
                if self._work.durable or self._unsynced > _SYNC:  # not all of it at the very end
                    self._unsynced = 0
                    with self._sink.name_errors():
                        fdatasync(loaded.handle)
            finally:
                os.close(loaded.handle)
        with self._work.lock:
            if loaded.bucket not in self._state.buckets:
                return  # a later one has been quicker, and spoke for this one
            at = self._state.buckets.index(loaded.bucket)
            gone, self._state.buckets = self._state.buckets[: at + 1], self._state.buckets[at + 1 :]
            assert loaded.snapshot is not None
            self._state.sink = loaded.snapshot["sink"]
            self._state.gathered = loaded.snapshot["gathered"]
            self._work.commit(self._state, durable=self._work.durable)
        for bucket in gone:
            bucket.path(self._work.folder).unlink(missing_ok=True)


class _Buffer:
    """Memory that one bucket after another is read into: fresh memory costs more than the reading."""

    def __init__(self) -> None:
        self._data = np.empty(0, np.uint8)

    def fill(self, bucket: Bucket, folder: Path) -> tuple[Array, Array, Array, list[tuple[int, int, int]]]:
        """Bytes, keys and lengths of its records, and (first index, chunk's records, records) of its frames."""
        keys, lengths = np.empty(bucket.records, np.uint64), np.empty(bucket.records, np.uint32)
        if bucket.frames is not None and len(bucket.frames) == 1:
            [frame] = bucket.frames
            return frame.data[0], frame.keys, frame.lengths, [(frame.first, frame.total, len(frame.keys))]
        if len(self._data) < bucket.bytes:
            self._data = np.empty(0, np.uint8)
            self._data = np.empty(bucket.bytes, np.uint8)
        frames, row, at = [], 0, 0
        for keys_of, lengths_of, data_of, first, total, count, size in _pieces(bucket, folder):
            keys_of(keys[row : row + count])
            lengths_of(lengths[row : row + count])
            data_of(self._data[at : at + size])
            frames.append((first, total, count))
            row, at = row + count, at + size
        return self._data[:at], keys, lengths, frames


def _pieces(bucket: Bucket, folder: Path) -> Iterator[tuple[Any, ...]]:
    """Each frame: three functions that put its keys, lengths and bytes where they are told, then its numbers."""
    if bucket.frames is not None:
        for frame in bucket.frames:
            [data] = frame.data

            def copy(source: Array) -> Callable[[Array], None]:
                return lambda out: np.copyto(out, source)

            yield (
                copy(frame.keys),
                copy(frame.lengths),
                copy(data),
                frame.first,
                frame.total,
                len(frame.keys),
                len(data),
            )
        return
    path = bucket.path(folder)
    with open(path, "rb", buffering=0) as file:

        def read(out: Array) -> None:
            view = out.data.cast("B") if out.nbytes else memoryview(b"")
            while len(view):
                got = file.readinto(view)
                if not got:
                    raise DataError("it is shorter than it was.", path=path)
                view = view[got:]

        left = bucket.size
        while left:
            magic, count, first, total, size = HEAD.unpack(file.read(HEAD.size))
            if magic != MAGIC:
                raise DataError("it is damaged.", remedy="Run again with resume=False (--no-resume).", path=path)
            left -= HEAD.size + 12 * count + size
            yield read, read, read, first, total, count, size


def read_frames(bucket: Bucket, folder: Path) -> Iterator[Frame]:
    """The frames of a bucket's file, one at a time."""
    for keys_of, lengths_of, data_of, first, total, count, size in _pieces(bucket, folder):
        keys, lengths, data = np.empty(count, np.uint64), np.empty(count, np.uint32), np.empty(size, np.uint8)
        keys_of(keys)
        lengths_of(lengths)
        data_of(data)
        yield Frame(keys, lengths, [data], first, total)


def sorted_order(keys: Array, frames: list[tuple[int, int, int]], seed: int, key_of: Keys) -> Array:
    """What sorts the keys; equal ones go by the second key, then by the index of their record.

    Args:
        keys: (n,) of the records of all `frames`, one after another.
        frames: of each its chunk's first index and number of records, and how many records of them are here.
    """
    order = np.argsort(keys)
    in_order = keys[order]
    tied = np.flatnonzero(in_order[1:] == in_order[:-1])
    if not len(tied):
        return order
    starts = np.concatenate([[0], np.cumsum([count for _, _, count in frames])])
    for value in np.unique(in_order[tied]):
        begin, end = np.searchsorted(in_order, value, "left"), np.searchsorted(in_order, value, "right")
        rows = np.sort(order[begin:end])
        index = np.empty(len(rows), np.int64)
        frame_of = np.searchsorted(starts, rows, "right") - 1
        for number in np.unique(frame_of):
            first, total, _ = frames[number]
            found = np.flatnonzero(key_of(seed, first, first + total) == value) + first
            index[frame_of == number] = found  # a frame keeps the order of its chunk, and all of these
        second = np.array([tie_keys(seed, int(i), int(i) + 1)[0] for i in index], np.uint64)
        order[begin:end] = rows[np.lexsort((index, second))]
    return order
