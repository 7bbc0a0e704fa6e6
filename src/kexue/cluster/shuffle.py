"""Shuffle of `kexue.corpus` on many machines: keys are computed from line numbers, so the bytes are the same.

Three rounds over the input, in pieces cut at line ends: count, so that every piece knows the number of its first line;
send each line to the bucket of its key; sort each bucket. Results of the rounds are files in a folder that all
machines see.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue._files import remove_folder, replacing
from kexue._progress import Progress, ProgressCounter
from kexue.cluster.pool import Pool
from kexue.cluster.session import RaySession
from kexue.corpus import ShuffleReport
from kexue.corpus.open import read_codec
from kexue.corpus.shuffle.buckets import FrameOrigin, split_chunk
from kexue.corpus.shuffle.digest import PAD, Digest
from kexue.corpus.shuffle.gather import RecordIndex
from kexue.corpus.shuffle.journal import lock_folder
from kexue.corpus.shuffle.keys import SPACE, KeyRange, check_seed, permutation_keys
from kexue.corpus.shuffle.lines import hash_lines
from kexue.corpus.shuffle.options import ShuffleOptions, check_options
from kexue.corpus.shuffle.output import OutputNames, OutputWriter, check_output
from kexue.corpus.shuffle.reader import Position, Reader, RecordFormat
from kexue.corpus.shuffle.run import peak_rss
from kexue.corpus.shuffle.sorting import sort_order, take_rows
from kexue.corpus.shuffle.verify import check_digest
from kexue.errors import DataError, KexueError

_PIECE = 32 << 20  # bytes of input that a worker has at a time; it takes about six times as much memory
_BUCKET = 96 << 20  # bytes that are sorted at a time
_BLOCK = 1 << 16  # bytes read at a time, looking for the end of a line


@dataclass(frozen=True)
class ClusterShuffleReport(ShuffleReport):
    """Result of `shuffle_files`: that of one machine, with two more fields.

    Attributes:
        shards: number of pieces of the input.
        retried: number of pieces that were done again after their worker died.
    """

    shards: int
    retried: int


class _Piece(NamedTuple):
    """Whole lines of one file: bytes `start` to `stop`; `first` is the index of the first line in all files."""

    path: str
    start: int
    stop: int
    first: int = 0


def shuffle_files(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    seed: int,
    ray: str = "local",
    shards: int | None = None,
    separator: bytes = b"\n",
    resume: bool = True,
    verify: bool = True,
    progress: Progress | None = None,
) -> ClusterShuffleReport:
    """Write all lines of files in the order of `kexue.corpus.shuffle_files` with this seed.

    All machines must see inputs and output under the same names, as on a network file system. Finished pieces of work
    are kept in a hidden folder beside the output until the output is whole; the folder needs twice the size of the
    input. A line takes about six times its size of a worker's memory.

    Args:
        inputs: plain files.
        output: a file or a folder, as on one machine.
        seed: 0 <= seed < 2**64.
        ray: see `embed_files`.
        shards: number of files, of equal numbers of lines; None: one file.
        separator: one byte that ends lines.
        resume: whether an interrupted run is continued; False discards it.
        verify: whether the output is read again and its multiset checksum compared with that of the input.
        progress: called as progress(pieces of work done, all of them).

    Raises:
        DataError: an input that cannot be read, is compressed, or has changed meanwhile.
        ValueError: arguments out of range. RetryError: the workers of a piece died 3 times.
        KexueError: the verification failed; no output is left.
        MissingDependencyError: Ray is not installed.
    """
    start = time.perf_counter()
    check_seed(seed)
    options = check_options(inputs, output, separator=separator, seed=seed, shards=shards, resume=resume, verify=verify)
    if options.to_stream:
        raise ValueError(f"the output must be a file or a folder, got {options.output}.")
    check_output(options)
    pieces = [piece for path in map(os.path.abspath, options.inputs) for piece in _cut(path, options.form.separator)]
    place, name = _work_folder(options, pieces)
    lock = lock_folder(place)
    try:
        rounds = _Rounds(options, pieces, _make_folder(place, name, resume), progress)
        digest, outputs = rounds.run(ray)
        remove_folder(place)
    finally:
        os.close(lock)
    return ClusterShuffleReport(
        records=rounds.records,
        bytes=rounds.bytes,
        buckets=rounds.buckets,
        passes=3,
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
        digest=digest,
        seed=seed,
        outputs=outputs,
        resumed=rounds.steps.resumed > 0,
        shards=len(pieces),
        retried=rounds.steps.retried,
    )


def _make_folder(place: Path, name: str, resume: bool) -> Path:
    """Make the folder `name` in `place`, and remove folders of other shuffles to this output."""
    for other in place.iterdir():
        if other.is_dir() and (other.name != name or not resume):
            remove_folder(other)
    folder = place / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class _Rounds:
    """The rounds of one shuffle.

    Args:
        options: options of the shuffle.
        pieces: pieces of the input.
        folder: folder of the results of the rounds.
        progress: called with the number of pieces of work done and of all.

    Attributes:
        records, bytes: number and size of the lines.
        buckets: number of buckets.
        steps: runner of the rounds.
    """

    def __init__(self, options: ShuffleOptions, pieces: list[_Piece], folder: Path, progress: Progress | None) -> None:
        self._options, self._pieces, self._folder = options, pieces, folder
        self.records = self.bytes = 0
        self.buckets = max(1, math.ceil(sum(piece.stop - piece.start for piece in pieces) / _BUCKET))
        self.steps = _Steps(progress, 2 * len(pieces) + self.buckets)

    def run(self, ray: str) -> tuple[str, list[str]]:
        """Run the rounds and write the output; return its digest and the names of its files."""
        assert self._options.seed is not None
        work = _Settings(str(self._folder), self._options.seed, self._options.form.separator, self.buckets)
        with RaySession(ray) as session:
            run = partial(self.steps.run, session, self._folder)
            counts = run("count", partial(_count_lines, work), self._pieces)
            firsts = np.cumsum([0, *(count["records"] for count in counts)])
            pieces = [piece._replace(first=int(first)) for piece, first in zip(self._pieces, firsts, strict=False)]
            maps = run("map", partial(_split_piece, work), list(enumerate(pieces)))
            run("sort", partial(_sort_bucket, work), [(number, len(pieces)) for number in range(self.buckets)])
        self.records, self.bytes = int(firsts[-1]), sum(result["bytes"] for result in maps)
        digest = Digest()
        for result in maps:
            digest.merge(result["digest"])
        return str(digest), self._write_output(str(digest))

    def _write_output(self, digest: str) -> list[str]:
        """Join the sorted buckets, verify the result, and give the files their names."""
        names = OutputNames(self._options, self._folder)
        names.remove_partial()
        writer = OutputWriter(self._options, self.records, b"", folder=self._folder)
        for number in range(self.buckets):
            for values, offsets in _sorted_rows(self._folder, number):
                writer.write(values, offsets)
        files = writer.close()
        if self._options.verify:
            try:
                check_digest([str(names.partial(i)) for i in range(files)], self._options.form, digest)
            except KexueError:
                names.remove_partial()
                raise
        return names.publish(files)


class _Steps:
    """Runner of the pieces of each round that have not been done.

    Attributes:
        resumed: number of pieces that an interrupted run had done.
        retried: number of pieces that were done again after their worker died.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._advance = ProgressCounter(progress, total)
        self.resumed = self.retried = 0

    def run(
        self, session: RaySession, folder: Path, name: str, function: Callable[[Any], Any], tasks: list[Any]
    ) -> list[dict[str, Any]]:
        """Run a round; return the result of each task, in order."""
        paths = [folder / f"{name}-{number}.json" for number in range(len(tasks))]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        self.resumed += len(tasks) - len(missing)
        self._advance(len(tasks) - len(missing))
        pool = Pool(session, partial(_identity, function))
        for number, result in pool.map(((i, tasks[i]) for i in missing), most=max(1, len(missing))):
            with replacing(paths[number]) as temporary:
                temporary.write_text(json.dumps(result), encoding="utf-8")
            self._advance(1)
        self.retried += pool.retried
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


# ---- on the workers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """Settings of the shuffle that are sent to the workers."""

    folder: str
    seed: int
    separator: int
    buckets: int


def _identity(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function: a pool calls it once on each worker."""
    return function


def _read_piece(work: _Settings, piece: _Piece) -> tuple[Array, Array]:
    """Return the bytes of a piece, with room after them, and the positions of the ends of its lines."""
    size = piece.stop - piece.start
    buffer = np.empty(size + PAD + 2, np.uint8)
    reader = Reader([piece.path], RecordFormat(work.separator), Position(0, piece.start), cap=size + 1, stop=piece.stop)
    try:
        chunk = reader.read(buffer)
    finally:
        reader.close()
    return (buffer, np.empty(0, np.int64)) if chunk is None else (buffer, chunk.lines)


def _count_lines(work: _Settings, piece: _Piece) -> dict[str, Any]:
    """Count the lines of a piece."""
    return {"records": len(_read_piece(work, piece)[1])}


def _split_piece(work: _Settings, task: tuple[int, _Piece]) -> dict[str, Any]:
    """Write the lines of a piece to one file, by bucket: keys, lengths, bytes; to another where each bucket starts."""
    number, piece = task
    data, ends = _read_piece(work, piece)
    digest = Digest()
    places = np.zeros((work.buckets, 3), np.int64)  # offset, records, bytes
    at = 0
    with replacing(Path(work.folder, f"lines-{number}")) as temporary, temporary.open("wb") as file:
        if len(ends):
            digest.add(hash_lines(data, ends))
            keys = permutation_keys(work.seed, piece.first, piece.first + len(ends))
            for bucket, frame in split_chunk(data, ends, keys, piece.first, KeyRange(0, SPACE, work.buckets)):
                places[bucket] = at, len(frame.keys), frame.size
                for part in (frame.keys, frame.lengths, *frame.data):
                    file.write(part.data)
                at += 12 * len(frame.keys) + frame.size
    np.save(Path(work.folder, f"places-{number}.npy"), np.column_stack([places, np.full(work.buckets, piece.first)]))
    return {"digest": str(digest), "bytes": int(places[:, 2].sum()), "records": len(ends)}


def _sort_bucket(work: _Settings, task: tuple[int, int]) -> dict[str, Any]:
    """Write the lines of a bucket in the order of their keys, and the length of each."""
    bucket, pieces = task
    keys, lengths, data, frames = [], [], [], []
    for number in range(pieces):
        places = np.load(Path(work.folder, f"places-{number}.npy"), allow_pickle=False)
        offset, count, size, first = map(int, places[bucket])
        if not count:
            continue
        with Path(work.folder, f"lines-{number}").open("rb") as file:
            file.seek(offset)
            keys.append(np.fromfile(file, np.uint64, count))
            lengths.append(np.fromfile(file, np.uint32, count))
            data.append(np.fromfile(file, np.uint8, size))
        frames.append(FrameOrigin(first, int(places[:, 1].sum()), count))
    folder = Path(work.folder)
    with (
        replacing(folder / f"sorted-{bucket}") as lines_path,
        replacing(folder / f"lengths-{bucket}") as lengths_path,
        lines_path.open("wb") as lines_file,
        lengths_path.open("wb") as lengths_file,
    ):
        if keys:
            joined = np.concatenate(lengths)
            index = RecordIndex(frames, work.seed, permutation_keys)
            order = sort_order(np.concatenate(keys), work.seed, index)
            offsets = np.concatenate([[0], np.cumsum(joined, dtype=np.int64)])
            for values, _ in take_rows(np.concatenate(data), offsets, order):
                lines_file.write(values.data)
            lengths_file.write(joined[order].data)
    return {"records": sum(map(len, keys))}


# ---- on this machine ------------------------------------------------------------------------------------------


def _cut(path: str, separator: int) -> Iterator[_Piece]:
    """Cut a file into pieces of whole lines."""
    if not os.path.isfile(path):
        raise DataError("expected a regular file.", remedy="Shuffle it on one machine: kexue shuffle.", path=path)
    if read_codec(path) is not None:
        raise DataError(
            "the file is compressed.", remedy="Decompress it, or shuffle it on one machine: kexue shuffle.", path=path
        )
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = 0
        while start < size:
            stop = min(start + _PIECE, size)
            file.seek(stop - 1)
            while stop < size:
                block = file.read(_BLOCK)
                found = block.find(separator)
                if found >= 0 or not block:
                    stop = file.tell() - len(block) + found + 1 if block else size
                    break
            else:
                stop = size
            yield _Piece(path, start, stop)
            start = stop


def _work_folder(options: ShuffleOptions, pieces: list[_Piece]) -> tuple[Path, str]:
    """Return the folder of this output's temporary files, and the name in it for this result and these pieces."""
    key = json.dumps([options.identity(), options.fingerprints(), len(pieces), _BUCKET])
    output = Path(os.path.realpath(options.output))
    parent = output if output.is_dir() else output.parent
    return parent / options.folder().name, hashlib.sha256(key.encode()).hexdigest()[:16]


def _sorted_rows(folder: Path, bucket: int) -> Iterator[tuple[Array, Array]]:
    """Yield the lines of a sorted bucket, some at a time: (bytes, offsets in them)."""
    lengths = np.fromfile(folder / f"lengths-{bucket}", np.uint32).astype(np.int64)
    with (folder / f"sorted-{bucket}").open("rb") as file:
        for begin in range(0, len(lengths), 1 << 16):
            offsets = np.concatenate([[0], np.cumsum(lengths[begin : begin + (1 << 16)])])
            yield np.fromfile(file, np.uint8, int(offsets[-1])), offsets
