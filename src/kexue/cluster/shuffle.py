"""The shuffle of `kexue.corpus` on many machines: keys are computed from line numbers, so the bytes are the same.

Three rounds over pieces of the input that end with lines: count, so that every piece knows the number of its first
line; send each line to the bucket of its key; sort each bucket. The pieces of work lie in a folder all machines see.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._files import replacing
from kexue._progress import Progress
from kexue.cluster.pool import Pool, Session
from kexue.corpus import ShuffleReport
from kexue.corpus.open import read_codec
from kexue.corpus.shuffle.digest import PAD, Digest, hash_records
from kexue.corpus.shuffle.gather import sorted_order
from kexue.corpus.shuffle.job import Job, check_output, is_stream, make_job
from kexue.corpus.shuffle.keys import Range, check_seed, permutation_keys
from kexue.corpus.shuffle.run import peak_rss
from kexue.corpus.shuffle.scatter import split, take
from kexue.corpus.shuffle.sink import Names, Sink
from kexue.corpus.shuffle.source import Format, Place, Reader
from kexue.corpus.shuffle.state import own_folder
from kexue.errors import DataError

_PIECE = 32 << 20  # bytes of input that a worker has at a time; it takes some six times as much
_BUCKET = 96 << 20  # bytes that are sorted at a time
_LOOK = 1 << 16

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClusterShuffleReport(ShuffleReport):
    """What `shuffle_files` did: as on one machine, then the number of pieces, and how many were `retried`."""

    shards: int
    retried: int


class _Piece(NamedTuple):
    """Lines of one file: bytes `start` to `stop`; `first` is the index of the first."""

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
    progress: Progress | None = None,
) -> ClusterShuffleReport:
    """Put all lines of files in the order that `kexue.corpus.shuffle_files` puts them in with this seed.

    Inputs and output must be seen by all machines under the same names, as on a network file system. Pieces of work
    lie in a hidden folder beside the output and are not done again after an interruption; it needs as much room as
    the input, twice. A line must fit in a worker's memory six times.

    Args:
        inputs: plain files.
        output: a file or a folder, as on one machine.
        seed: 0 <= seed < 2**64.
        ray: see `embed_files`.
        shards: files of as many lines each; None: one file.
        separator: one byte that ends lines.
        resume: False begins anew.
        progress: called as progress(pieces of work done, all of them).

    Raises:
        DataError: an input that cannot be read, is compressed, or has changed meanwhile.
        ValueError: arguments out of range. RetryError: the workers of a piece died 3 times.
        MissingDependencyError: Ray is not installed.
    """
    began = time.perf_counter()
    check_seed(seed)
    form: dict[str, Any] = {"header": 0, "lines_per_record": 1, "strip_bom": False}
    job = make_job(inputs, output, separator=separator, **form, algorithm="keyed", seed=seed, shards=shards)
    if is_stream(job.output):
        raise ValueError(f"the output must be a file or a folder, got {job.output}.")
    check_output(job, [Names(job).final(0), *Names(job).stale(0)])
    pieces = [piece for path in map(os.path.abspath, job.inputs) for piece in _cut(path, job.form.separator)]
    place, name = _place(job, pieces)
    lock = own_folder(place)
    try:
        return _shuffled(job, pieces, place, name, ray, resume, progress, began)
    finally:
        os.close(lock)


def _shuffled(
    job: Job,
    pieces: list[_Piece],
    place: Path,
    name: str,
    ray: str,
    resume: bool,
    progress: Progress | None,
    began: float,
) -> ClusterShuffleReport:
    """The work, in the folder `name` of `place`; other folders there are of other shuffles to this output."""
    for other in place.iterdir():
        if other.is_dir() and (other.name != name or not resume):
            shutil.rmtree(other, ignore_errors=True)
    folder = place / name
    folder.mkdir(mode=0o700, exist_ok=True)
    assert job.seed is not None
    seed = job.seed
    buckets = max(1, math.ceil(sum(piece.stop - piece.start for piece in pieces) / _BUCKET))
    work = _Work(str(folder), seed, job.form.separator, buckets)
    steps = _Steps(progress, 2 * len(pieces) + buckets)
    with Session(ray) as session:
        counts = steps.run(session, folder, "count", partial(_counted, work), pieces)
        firsts = np.cumsum([0, *(one["records"] for one in counts)])
        pieces = [piece._replace(first=int(first)) for piece, first in zip(pieces, firsts, strict=False)]
        maps = steps.run(session, folder, "map", partial(_mapped, work), list(enumerate(pieces)))
        tasks = [(number, len(pieces)) for number in range(buckets)]
        steps.run(session, folder, "sort", partial(_reduced, work), tasks)
    digest = Digest()
    for one in maps:
        digest.merge(one["digest"])
    Names(job, folder).drop_partial()
    sink = Sink(job, int(firsts[-1]), b"", folder=folder)
    for number in range(buckets):
        for values, offsets in _sorted_rows(folder, number):
            sink.write(values, offsets)
    outputs = Names(job, folder).publish(sink.close())
    shutil.rmtree(place, ignore_errors=True)
    return ClusterShuffleReport(
        records=int(firsts[-1]),
        bytes=sum(one["bytes"] for one in maps),
        buckets=buckets,
        passes=3,
        seconds=time.perf_counter() - began,
        peak_rss=peak_rss(),
        digest=str(digest),
        seed=seed,
        outputs=outputs,
        resumed=steps.found > 0,
        shards=len(pieces),
        retried=steps.retried,
    )


class _Steps:
    """Runs the pieces of a round that have not been done, and counts."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self.found = self.retried = 0

    def run(
        self, session: Session, folder: Path, name: str, function: Callable[[Any], Any], tasks: list[Any]
    ) -> list[dict[str, Any]]:
        """What each task said, in the order of the tasks."""
        paths = [folder / f"{name}-{number}.json" for number in range(len(tasks))]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        self.found += len(tasks) - len(missing)
        self._tell(len(tasks) - len(missing))
        pool = Pool(session, partial(_same, function))
        for number, said in pool.map(((i, tasks[i]) for i in missing), most=max(1, len(missing))):
            with replacing(paths[number]) as temporary:
                temporary.write_text(json.dumps(said), encoding="utf-8")
            self._tell(1)
        self.retried += pool.retried
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def _tell(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


# ---- what the workers do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    folder: str
    seed: int
    separator: int
    buckets: int


def _same(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function


def _read(work: _Work, piece: _Piece) -> tuple[Array, Array]:
    """The bytes of a piece, with room behind them, and where its lines end."""
    size = piece.stop - piece.start
    buffer = np.empty(size + PAD + 2, np.uint8)
    reader = Reader([piece.path], Format(work.separator), Place(0, piece.start), cap=size + 1, stop=piece.stop)
    try:
        chunk = reader.read(buffer)
    finally:
        reader.close()
    return (buffer, np.empty(0, np.int64)) if chunk is None else (buffer, chunk.lines)


def _counted(work: _Work, piece: _Piece) -> dict[str, Any]:
    return {"records": len(_read(work, piece)[1])}


def _mapped(work: _Work, task: tuple[int, _Piece]) -> dict[str, Any]:
    """Lines of a piece by bucket, in one file: of each bucket keys, lengths, bytes; and where each bucket begins."""
    number, piece = task
    data, ends = _read(work, piece)
    digest = Digest()
    places = np.zeros((work.buckets, 3), np.int64)  # offset, records, bytes
    at = 0
    with replacing(Path(work.folder, f"lines-{number}")) as temporary, temporary.open("wb") as file:
        if len(ends):
            starts = np.concatenate([[0], ends[:-1] + 1])
            digest.add(hash_records(data, starts, ends - starts))
            keys = permutation_keys(work.seed, piece.first, piece.first + len(ends))
            for bucket, frame in split(data, ends, keys, piece.first, Range(0, 1 << 64, work.buckets), None):
                size = sum(map(len, frame.data))
                places[bucket] = at, len(frame.keys), size
                for part in (frame.keys, frame.lengths, *frame.data):
                    file.write(part.data)
                at += 12 * len(frame.keys) + size
    np.save(Path(work.folder, f"places-{number}.npy"), np.column_stack([places, np.full(work.buckets, piece.first)]))
    return {"digest": str(digest), "bytes": int(places[:, 2].sum()), "records": len(ends)}


def _reduced(work: _Work, task: tuple[int, int]) -> dict[str, Any]:
    """A bucket in the order of its keys: its lines, and how long each is."""
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
        frames.append((first, int(places[:, 1].sum()), count))
    folder = Path(work.folder)
    with (
        replacing(folder / f"sorted-{bucket}") as lines_path,
        replacing(folder / f"lengths-{bucket}") as lengths_path,
        lines_path.open("wb") as lines_file,
        lengths_path.open("wb") as lengths_file,
    ):
        if keys:
            joined = np.concatenate(lengths)
            order = sorted_order(np.concatenate(keys), frames, work.seed, permutation_keys)
            offsets = np.concatenate([[0], np.cumsum(joined, dtype=np.int64)])
            for values, _ in take(np.concatenate(data), offsets, order):
                lines_file.write(values.data)
            lengths_file.write(joined[order].data)
    return {"records": sum(map(len, keys))}


# ---- what this machine does ------------------------------------------------------------------------------------------


def _cut(path: str, separator: int) -> Iterator[_Piece]:
    """A file as pieces that end with lines."""
    if not os.path.isfile(path):
        raise DataError("it is no plain file.", remedy="Shuffle it on one machine: kexue shuffle.", path=path)
    if read_codec(path) is not None:
        raise DataError(
            "it is compressed.", remedy="Decompress it, or shuffle it on one machine: kexue shuffle.", path=path
        )
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = 0
        while start < size:
            stop = min(start + _PIECE, size)
            file.seek(stop - 1)
            while stop < size:
                block = file.read(_LOOK)
                found = block.find(separator)
                if found >= 0 or not block:
                    stop = file.tell() - len(block) + found + 1 if block else size
                    break
            else:
                stop = size
            yield _Piece(path, start, stop)
            start = stop


def _place(job: Job, pieces: list[_Piece]) -> tuple[Path, str]:
    """The folder of this output's temporary files, and the name of one in it: what the result and the pieces need."""
    what = json.dumps([job.identity(), job.fingerprints(), len(pieces), _BUCKET])
    output = Path(os.path.realpath(job.output))
    parent = output if output.is_dir() else output.parent
    return parent / job.folder(None).name, hashlib.sha256(what.encode()).hexdigest()[:16]


def _sorted_rows(folder: Path, bucket: int) -> Iterator[tuple[Array, Array]]:
    lengths = np.fromfile(folder / f"lengths-{bucket}", np.uint32).astype(np.int64)
    with (folder / f"sorted-{bucket}").open("rb") as file:
        for begin in range(0, len(lengths), 1 << 16):
            offsets = np.concatenate([[0], np.cumsum(lengths[begin : begin + (1 << 16)])])
            yield np.fromfile(file, np.uint8, int(offsets[-1])), offsets
