"""Buckets: the records of one range of keys, in a file or in memory; a frame holds those that one chunk adds."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue._files import write_all
from kexue.corpus.shuffle.keys import SPACE, KeyRange
from kexue.corpus.shuffle.sorting import SLICE, partition, take_rows
from kexue.errors import DataError

OVERSIZED = 0xFFFFFFFF  # length of an oversized record: its bytes in the frame are a reference into their file
REFERENCE = struct.Struct("<QQ")  # offset and size of an oversized record in their file
_HEAD = struct.Struct("<4sIQQQ")  # of a frame: magic, records, first index and size of their chunk, bytes
_MAGIC = b"KXSB"

fdatasync = getattr(os, "fdatasync", os.fsync)  # the bytes of a file to the disk


@dataclass
class Bucket:
    """Records whose keys are lo <= key < hi.

    Attributes:
        number: number of its file.
        lo, hi: range of the keys.
        records: number of records.
        bytes: size of the records.
        size: size of the file, in bytes.
        frames: frames in memory; None: they are in the file.
    """

    number: int
    lo: int = 0
    hi: int = SPACE
    records: int = 0
    bytes: int = 0
    size: int = 0
    frames: list[Frame] | None = None

    def path(self, folder: Path) -> Path:
        """Return the file in the folder of temporary files."""
        return folder / f"bucket-{self.number:06}"


class FrameOrigin(NamedTuple):
    """Origin of a frame's records.

    Attributes:
        first: index of the first record of their chunk.
        total: number of records of their chunk.
        records: number of records in the frame.
    """

    first: int
    total: int
    records: int


class Frame(NamedTuple):
    """Records of one bucket from one chunk, in the order of the chunk.

    Attributes:
        keys: (n,) uint64.
        lengths: (n,) uint32, in bytes; `OVERSIZED` for an oversized record.
        data: bytes of the records, in pieces.
        first: index of the first record of their chunk.
        total: number of records of their chunk.
    """

    keys: Array
    lengths: Array
    data: list[Array]
    first: int
    total: int

    @property
    def size(self) -> int:
        """Size of `data` in bytes."""
        return sum(map(len, self.data))


def split_chunk(
    data: Array, ends: Array, keys: Array, first: int, ranges: KeyRange, keep: Array | None = None
) -> list[tuple[int, Frame]]:
    """Split the records of a chunk into (bucket, frame).

    Args:
        data: bytes of the chunk.
        ends: (n,) positions of the last byte of each record.
        keys: (n,) uint64.
        first: index of the first record.
        ranges: ranges of keys, one a bucket.
        keep: (n,) bool, records that are not left out; None: all.
    """
    offsets = np.empty(len(ends) + 1, np.int64)
    offsets[0] = 0
    np.add(ends, 1, out=offsets[1:])
    lengths = np.diff(offsets).astype(np.uint32)
    if ranges.parts == 1 and keep is None:
        return [(0, Frame(keys, lengths, [data[: offsets[-1]]], first, len(ends)))]
    parts = partition(keys, ranges, keep)
    slices = list(take_rows(data, offsets, parts.order))
    keys, lengths = keys[parts.order], lengths[parts.order]
    frames = []
    for number, begin, end in parts.buckets():
        pieces = []
        for i in range(begin // SLICE, (end - 1) // SLICE + 1):
            values, bounds = slices[i]
            low, high = max(begin - i * SLICE, 0), min(end - i * SLICE, SLICE)
            pieces.append(values[bounds[low] : bounds[high]])
        frames.append((number, Frame(keys[begin:end], lengths[begin:end], pieces, first, len(ends))))
    return frames


class BucketWriter:
    """Writer of frames to the files of buckets, or to their lists in memory.

    Args:
        folder: folder of the files. A file is cut to the size that its bucket records, and written from there on.
        buckets: the buckets; their counts grow with every frame.

    Raises:
        DataError: a file is shorter than its bucket records.
    """

    def __init__(self, folder: Path, buckets: Sequence[Bucket]) -> None:
        _raise_file_limit(len(buckets) + 64)
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
        """Append a frame to a bucket."""
        bucket = self._buckets[number]
        if bucket.frames is not None:
            bucket.frames.append(frame._replace(data=[np.concatenate(frame.data)]))  # a copy, in one piece
        else:
            head = _HEAD.pack(_MAGIC, len(frame.keys), frame.first, frame.total, frame.size)
            pieces = [head, frame.keys.data, frame.lengths.data, *(piece.data for piece in frame.data)]
            bucket.size += _write_pieces(self._files[number], pieces)
        bucket.records += len(frame.keys)
        bucket.bytes += frame.size

    def synchronise(self) -> None:
        """Write everything through to the disk."""
        for handle in self._files:
            fdatasync(handle)

    def close(self) -> None:
        """Close the files."""
        for handle in self._files:
            os.close(handle)
        self._files = []


class BucketReader:
    """Reader of whole buckets into one buffer, which is kept: fresh memory costs more than the reading."""

    def __init__(self) -> None:
        self._data = np.empty(0, np.uint8)

    def read(self, bucket: Bucket, folder: Path) -> tuple[Array, Array, Array, list[FrameOrigin]]:
        """Return the bytes, keys and lengths of a bucket's records, and the origins of its frames."""
        if bucket.frames is not None and len(bucket.frames) == 1:
            [frame] = bucket.frames
            return frame.data[0], frame.keys, frame.lengths, [FrameOrigin(frame.first, frame.total, len(frame.keys))]
        keys, lengths = np.empty(bucket.records, np.uint64), np.empty(bucket.records, np.uint32)
        if len(self._data) < bucket.bytes:
            self._data = np.empty(0, np.uint8)
            self._data = np.empty(bucket.bytes, np.uint8)
        if bucket.frames is not None:
            return self._join(bucket.frames, keys, lengths)
        origins, row, at = [], 0, 0
        with _FrameFile(bucket.path(folder), bucket.size) as file:
            for origin, size in file.heads():
                file.read_into(keys[row : row + origin.records])
                file.read_into(lengths[row : row + origin.records])
                file.read_into(self._data[at : at + size])
                origins.append(origin)
                row, at = row + origin.records, at + size
        return self._data[:at], keys, lengths, origins

    def _join(self, frames: list[Frame], keys: Array, lengths: Array) -> tuple[Array, Array, Array, list[FrameOrigin]]:
        """Copy frames in memory into the buffer, `keys` and `lengths`."""
        row = at = 0
        for frame in frames:
            count, size = len(frame.keys), frame.size
            keys[row : row + count], lengths[row : row + count] = frame.keys, frame.lengths
            self._data[at : at + size] = frame.data[0]
            row, at = row + count, at + size
        origins = [FrameOrigin(frame.first, frame.total, len(frame.keys)) for frame in frames]
        return self._data[:at], keys, lengths, origins


class _FrameFile:
    """A bucket's file, read from its start.

    Args:
        path: the file.
        size: bytes of it that belong to the bucket.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._remaining = path, size
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> _FrameFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def heads(self) -> Iterator[tuple[FrameOrigin, int]]:
        """Yield each frame's origin and the size of its data; the caller reads keys, lengths and data in between."""
        while self._remaining:
            magic, count, first, total, size = _HEAD.unpack(self._file.read(_HEAD.size))
            if magic != _MAGIC:
                raise DataError(
                    "the file is damaged.", remedy="Run again with resume=False (--no-resume).", path=self._path
                )
            self._remaining -= _HEAD.size + 12 * count + size
            yield FrameOrigin(first, total, count), size

    def read_into(self, out: Array) -> None:
        """Fill an array with the next bytes of the file."""
        view = out.data.cast("B") if out.nbytes else memoryview(b"")
        while len(view):
            got = self._file.readinto(view)
            if not got:
                raise DataError("it is shorter than it was.", path=self._path)
            view = view[got:]


def split_bucket(bucket: Bucket, children: Sequence[Bucket], ranges: KeyRange, folder: Path, *, durable: bool) -> None:
    """Write the records of a bucket's file to smaller buckets.

    Args:
        bucket: the bucket; its file stays.
        children: one bucket for each of the `ranges`; files of those without records are deleted.
        ranges: the bucket's range of keys, in parts.
        folder: folder of the files.
        durable: whether the new files are written through to the disk.
    """
    for child in children:
        child.path(folder).unlink(missing_ok=True)
    writer = BucketWriter(folder, children)
    try:
        with _FrameFile(bucket.path(folder), bucket.size) as file:
            for origin, size in file.heads():
                keys, lengths = np.empty(origin.records, np.uint64), np.empty(origin.records, np.uint32)
                data = np.empty(size, np.uint8)
                for array in (keys, lengths, data):
                    file.read_into(array)
                _split_frame(Frame(keys, lengths, [data], origin.first, origin.total), ranges, writer)
        if durable:
            writer.synchronise()
    finally:
        writer.close()
    for child in children:
        if not child.records:
            child.path(folder).unlink()


def _split_frame(frame: Frame, ranges: KeyRange, writer: BucketWriter) -> None:
    """Write the records of a frame to the buckets of `writer`."""
    [data] = frame.data
    offsets = row_offsets(frame.lengths)
    parts = partition(frame.keys, ranges)
    for number, begin, end in parts.buckets():
        rows = parts.order[begin:end]
        pieces = [values for values, _ in take_rows(data, offsets, rows)]
        writer.write(number, Frame(frame.keys[rows], frame.lengths[rows], pieces, frame.first, frame.total))


def row_offsets(lengths: Array) -> Array:
    """Return the offsets (n + 1,) of records in the data of their frames, int64; an oversized record is a reference."""
    oversized = lengths == OVERSIZED
    offsets = np.empty(len(lengths) + 1, np.int64)
    offsets[0] = 0
    np.cumsum(np.where(oversized, REFERENCE.size, lengths) if oversized.any() else lengths, out=offsets[1:])
    return offsets


def open_oversized(folder: Path, size: int) -> Any:
    """Open the file of oversized records for appending, cut to `size` bytes."""
    handle = os.open(folder / "giants", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(handle, size)
    file = os.fdopen(handle, "r+b")
    file.seek(size)
    return file


def _write_pieces(handle: int, pieces: list[Any]) -> int:
    """Write pieces in order, many in one call of the system; return their bytes."""
    total = sum(memoryview(piece).nbytes for piece in pieces)
    for begin in range(0, len(pieces), 512):
        some = pieces[begin : begin + 512]
        size = sum(memoryview(piece).nbytes for piece in some)
        written = os.writev(handle, some)
        if written < size:  # the rest piece by piece: an error of the disk is raised there
            for piece in some:
                view = memoryview(piece).cast("B") if memoryview(piece).nbytes else memoryview(b"")
                cut = min(written, len(view))
                written -= cut
                write_all(handle, view[cut:])
    return total


def _raise_file_limit(files: int) -> None:
    """Raise the process's limit of open files to `files`, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
