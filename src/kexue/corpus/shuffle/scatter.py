"""First pass: every record goes to the bucket of its key, in frames of what one chunk has for one bucket."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._optional import import_optional
from kexue.corpus.shuffle.digest import Digest, hash_records
from kexue.corpus.shuffle.job import Budget, Job
from kexue.corpus.shuffle.keys import ALGORITHMS, Range
from kexue.corpus.shuffle.pipeline import run_ordered
from kexue.corpus.shuffle.sink import write_all
from kexue.corpus.shuffle.source import Chunk, Place, Reader
from kexue.corpus.shuffle.state import Bucket, State, Workplace, fdatasync
from kexue.errors import DataError

Array = np.ndarray[Any, Any]

HEAD = struct.Struct("<4sIQQQ")  # magic, records, first index and size of their chunk, bytes
MAGIC = b"KXSB"
GIANT = 0xFFFFFFFF  # in place of a length: the record lies in the file of giants, and here is where
REFERENCE = struct.Struct("<QQ")  # its offset and size there
_SLICE = 8192  # records moved at a time, which the cache holds
_COMMIT_EVERY = 0.1  # seconds of work that a killed run may lose
_BINS = 16  # bits of a key that a sample is bounded by


class Frame(NamedTuple):
    """Records of one bucket from one chunk: their keys, lengths and bytes; the chunk's first index and size."""

    keys: Array
    lengths: Array
    data: list[Array]
    first: int
    total: int


def take(data: Array, offsets: Array, order: Array) -> Iterator[tuple[Array, Array]]:
    """Rows data[offsets[i] : offsets[i + 1]] for i in `order`, some at a time: (their bytes, their offsets)."""
    pa = import_optional("pyarrow", extra="corpus")
    compute = import_optional("pyarrow.compute", extra="corpus")
    options = compute.TakeOptions(boundscheck=False)
    rows = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    for begin in range(0, len(order), _SLICE):
        some = np.ascontiguousarray(order[begin : begin + _SLICE], dtype=np.int64)
        wanted = pa.Int64Array.from_buffers(pa.int64(), len(some), [None, pa.py_buffer(some)])
        _, places, values = compute.call_function("take", [rows, wanted], options).buffers()
        bounds = np.frombuffer(places, np.int64, len(some) + 1)
        yield np.frombuffer(values, np.uint8, int(bounds[-1])) if bounds[-1] else np.empty(0, np.uint8), bounds


def scatter(
    job: Job, work: Workplace, state: State, budget: Budget, tell: Callable[[int], None], *, resumable: bool
) -> None:
    """Read all records into the buckets of `state`, which is kept up to date.

    Args:
        tell: called with the bytes of each chunk.
        resumable: the state is written after each chunk.
    """
    key_of, seed = ALGORITHMS[job.algorithm], state.seed
    giants = open_giants(work.folder, state.giants)
    reader = Reader(job.inputs, job.form, Place(*state.place), cap=budget.cap, giants=giants)
    writer = Writer(work.folder, state.buckets)
    whole = Range(0, state.buckets[-1].hi, len(state.buckets))
    bound = _Bound(job.sample)
    buffers = [np.empty(budget.chunk, np.uint8) for _ in range(budget.workers)]
    digest = Digest(state.digest)
    next_commit = [0.0]

    def produce(worker: int) -> Chunk | None:
        return reader.read(buffers[worker])

    def process(_: int, chunk: Chunk) -> tuple[Chunk, list[tuple[int, Frame]], Any]:
        count = 1 if chunk.giant else len(chunk.ends)
        keys = key_of(seed, chunk.first, chunk.first + count)
        if chunk.giant:
            return chunk, [(int(whole.part(keys)[0]), Frame(keys, _GIANT, [], chunk.first, 1))], None
        starts = np.concatenate([[0], chunk.lines[:-1] + 1])
        hashes = hash_records(chunk.data, starts, chunk.lines - starts)
        return chunk, split(chunk.data, chunk.ends, keys, chunk.first, whole, bound.kept(keys)), hashes

    def consume(result: tuple[Chunk, list[tuple[int, Frame]], Any]) -> None:
        chunk, frames, hashes = result
        if chunk.giant:
            giants.flush()
            [(part, frame)] = frames
            reference = np.frombuffer(REFERENCE.pack(state.giants, chunk.giant), np.uint8)
            frames = [(part, frame._replace(data=[reference]))]
            state.giants += chunk.giant
            digest.merge(chunk.digest)
        else:
            digest.add(hashes)
        size = chunk.giant or int(chunk.ends[-1]) + 1
        for part, frame in frames:
            writer.write(part, frame)
        state.place, state.digest = chunk.place, str(digest)
        state.records += 1 if chunk.giant else len(chunk.ends)
        state.bytes += size
        if chunk.first == 0:
            state.header = reader.header.decode("latin-1")
        if resumable and time.monotonic() > next_commit[0]:
            durable = work.due
            if durable:
                os.fsync(giants.fileno())
                writer.sync()
            work.commit(state, durable=durable)
            next_commit[0] = time.monotonic() + _COMMIT_EVERY
        tell(size)

    try:
        run_ordered(budget.workers, produce, process, consume)
        state.header = state.header or reader.header.decode("latin-1")
        if resumable and work.durable:
            os.fsync(giants.fileno())
            writer.sync()
    finally:
        reader.close()
        giants.close()
        writer.close()


_GIANT = np.array([GIANT], np.uint32)


def split(
    data: Array, ends: Array, keys: Array, first: int, whole: Range, kept: Array | None
) -> list[tuple[int, Frame]]:
    """A chunk's frames, for the parts of `whole` that have any; `kept` leaves other records out."""
    offsets = np.empty(len(ends) + 1, np.int64)
    offsets[0] = 0
    np.add(ends, 1, out=offsets[1:])
    lengths = np.diff(offsets).astype(np.uint32)
    part = whole.part(keys)
    if whole.parts == 1 and kept is None:
        return [(0, Frame(keys, lengths, [data[: offsets[-1]]], first, len(ends)))]
    order = np.argsort(part, kind="stable")
    if kept is not None:
        order = order[kept[order]]
    bounds = np.searchsorted(part[order], np.arange(whole.parts + 1))
    pieces = list(take(data, offsets, order))
    keys, lengths = keys[order], lengths[order]
    frames = []
    for number in np.flatnonzero(np.diff(bounds)):
        begin, end = int(bounds[number]), int(bounds[number + 1])
        own = []
        for i in range(begin // _SLICE, (end - 1) // _SLICE + 1):
            values, places = pieces[i]
            low, high = max(begin - i * _SLICE, 0), min(end - i * _SLICE, _SLICE)
            own.append(values[places[low] : places[high]])
        frames.append((int(number), Frame(keys[begin:end], lengths[begin:end], own, first, len(ends))))
    return frames


class _Bound:
    """Which records may be among the `sample` of least keys, by what has been seen so far."""

    def __init__(self, sample: int | None) -> None:
        self._sample = sample
        self._counts = np.zeros(1 << _BINS, np.int64)

    def kept(self, keys: Array) -> Array | None:
        """(n,) bool; None: all."""
        if self._sample is None:
            return None
        bins = (keys >> np.uint64(64 - _BINS)).astype(np.int64)
        self._counts = self._counts + np.bincount(bins, minlength=1 << _BINS)
        enough = np.searchsorted(np.cumsum(self._counts), self._sample)
        return bins <= enough


class Writer:
    """Appends frames to the files of buckets, or to their lists."""

    def __init__(self, folder: Path, buckets: Sequence[Bucket]) -> None:
        _raise_limit(len(buckets) + 64)
        self._buckets = list(buckets)
        self._files = []
        for bucket in buckets:
            if bucket.frames is None:
                handle = os.open(bucket.path(folder), os.O_RDWR | os.O_CREAT, 0o600)
                self._files.append(handle)
                if os.fstat(handle).st_size < bucket.size:
                    raise DataError("it is shorter than it was.", path=bucket.path(folder))
                os.ftruncate(handle, bucket.size)
                os.lseek(handle, bucket.size, os.SEEK_SET)

    def write(self, number: int, frame: Frame) -> None:
        """Append to one bucket."""
        bucket = self._buckets[number]
        size = sum(len(piece) for piece in frame.data)
        if bucket.frames is not None:
            bucket.frames.append(frame._replace(data=[np.concatenate(frame.data)]))  # a copy, in one piece
            written = 0
        else:
            head = HEAD.pack(MAGIC, len(frame.keys), frame.first, frame.total, size)
            pieces = [head, frame.keys.data, frame.lengths.data, *(piece.data for piece in frame.data)]
            written = _write_pieces(self._files[number], pieces)
        bucket.records += len(frame.keys)
        bucket.bytes += size
        bucket.size += written

    def sync(self) -> None:
        """All to the disk."""
        for handle in self._files:
            fdatasync(handle)

    def close(self) -> None:
        """Close the files."""
        for handle in self._files:
            os.close(handle)
        self._files = []


def resplit(work: Workplace, state: State, bucket: Bucket, parts: int, frames: Iterator[Frame]) -> list[Bucket]:
    """Put smaller buckets in the place of one that is too large, in `state` and on the disk; those that hold any."""
    cuts = Range(bucket.lo, bucket.hi, parts)
    children = [Bucket(state.made + i, lo, hi) for i, (lo, hi) in enumerate(cuts)]
    for child in children:
        child.path(work.folder).unlink(missing_ok=True)
    writer = Writer(work.folder, children)
    try:
        for frame in frames:
            _split_frame(frame, cuts, writer)
        if work.durable:
            writer.sync()
    finally:
        writer.close()
    for child in children:
        if not child.records:
            child.path(work.folder).unlink()
    kept = [child for child in children if child.records]
    with work.lock:
        at = state.buckets.index(bucket)
        state.buckets[at : at + 1] = kept
        state.made += parts
        work.commit(state, durable=work.durable)
    bucket.path(work.folder).unlink()
    return kept


def _split_frame(frame: Frame, cuts: Range, writer: Writer) -> None:
    [data] = frame.data
    giant = frame.lengths == GIANT
    held = np.where(giant, REFERENCE.size, frame.lengths).astype(np.int64)
    order = np.argsort(cuts.part(frame.keys), kind="stable")
    part = cuts.part(frame.keys)[order]
    bounds = np.searchsorted(part, np.arange(cuts.parts + 1))
    offsets = np.concatenate([[0], np.cumsum(held)])
    for number in np.flatnonzero(np.diff(bounds)):
        some = order[bounds[number] : bounds[number + 1]]
        own = [values for values, _ in take(data, offsets, some)]
        writer.write(int(number), Frame(frame.keys[some], frame.lengths[some], own, frame.first, frame.total))


def open_giants(folder: Path, size: int) -> Any:
    """The file of giant records, cut to what counts."""
    handle = os.open(folder / "giants", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(handle, size)
    file = os.fdopen(handle, "r+b")
    file.seek(size)
    return file


def _write_pieces(handle: int, pieces: list[Any]) -> int:
    """All pieces in order, and their bytes; many in one call of the system."""
    total = sum(memoryview(piece).nbytes for piece in pieces)
    for begin in range(0, len(pieces), 512):
        some = pieces[begin : begin + 512]
        wanted = sum(memoryview(piece).nbytes for piece in some)
        written = os.writev(handle, some)
        if written < wanted:  # the rest piece by piece: an error of the disk comes out there
            for piece in some:
                view = memoryview(piece).cast("B") if memoryview(piece).nbytes else memoryview(b"")
                cut = min(written, len(view))
                written -= cut
                write_all(handle, view[cut:])
    return total


def _raise_limit(wanted: int) -> None:
    """More open files, as far as the system lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
