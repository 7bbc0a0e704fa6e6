"""What is asked for, checked; and what it will take: memory, buckets, passes, disk."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import resource
import shutil
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kexue._files import explain
from kexue.corpus.open import HEAD, STDIN, codec_of, split_suffix
from kexue.corpus.shuffle.digest import PAD
from kexue.corpus.shuffle.keys import ALGORITHMS, check_seed
from kexue.corpus.shuffle.source import Format, find
from kexue.errors import DataError, DiskFullError

PER_RECORD = 36  # bytes of memory beside a record's own: key, length, offset, order, and scratch for sorting
ON_DISK = 12  # bytes beside a record's own in a bucket file: key and length
MOST_BUCKETS = 1024
UNKNOWN_BUCKETS = 256  # where the size of the input cannot be known
_OVERHEAD = 48 << 20  # beyond the 60 MB that Python may take: numpy, Arrow, and slices on their way out
_SAMPLE = 4 << 20
_CACHED = 12 << 20  # bytes of a bucket that is sorted in the cache of a processor, about
_FRAME = 64 << 10  # bytes that are worth a write
_CHUNK = 16 << 20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class ShufflePlan:
    """What a shuffle will take: estimates of `records` and `bytes` (None where the input tells neither), in how many
    `buckets` and `passes` over the data; `memory` in bytes at most, beside 60 MB for Python; disk while it runs.
    """

    records: int | None
    bytes: int | None
    buckets: int
    passes: int
    memory: int
    disk_tmp: int | None
    disk_out: int | None


@dataclass(frozen=True)
class Job:
    """One input list to one output: what decides the result, and nothing else."""

    inputs: tuple[str, ...]
    output: str
    form: Format
    algorithm: str
    seed: int | None
    shards: int | None = None
    shard_lines: int | None = None
    shard_bytes: int | None = None
    sample: int | None = None

    @property
    def resumable(self) -> bool:
        """Whether inputs can be read, and the output be written, from the middle on; a sample is simply taken anew."""
        return (
            self.sample is None
            and STDIN not in self.inputs
            and not is_stream(self.output)
            and all(map(os.path.isfile, self.inputs))
        )

    @property
    def sharded(self) -> bool:
        """Whether the output is several files."""
        return any(limit is not None for limit in (self.shards, self.shard_lines, self.shard_bytes))

    def identity(self) -> dict[str, Any]:
        """As JSON holds it; paths are absolute."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("form",)}
        paths = {"inputs": [_absolute(path) for path in self.inputs], "output": _absolute(self.output)}
        return {**own, **paths, "form": list(self.form.__dict__.values())}

    def fingerprints(self) -> list[list[int]]:
        """Size, time and inode of each input, by which a change is noticed."""
        found = (os.stat(path) for path in self.inputs)
        return [[one.st_size, one.st_mtime_ns, one.st_ino] for one in found]

    def folder(self, tmp: str | os.PathLike[str] | None) -> Path:
        """Where temporary files go: beside the output unless told otherwise. One output has one folder, so that two
        shuffles cannot write it at once, and what an interrupted one has left is in sight of the next.
        """
        output = self.output if self.output == STDIN else os.path.realpath(self.output)
        if tmp is None:
            tmp = tempfile.gettempdir() if is_stream(self.output) else _existing(Path(output).parent)
        return Path(tmp) / f".kexue-shuffle-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Budget:
    """How memory is shared out. `limit`: bytes beside those of Python, numpy and Arrow."""

    limit: int
    workers: int

    @property
    def chunk(self) -> int:
        """Bytes of a worker's reading buffer; a chunk takes some six times as much on its way to the buckets."""
        return int(min(max(self.limit / (7 * self.workers), 1 << 12), _CHUNK)) + PAD + 1

    @property
    def cap(self) -> int:
        """Records of a chunk at most."""
        return max(self.chunk // 32, 16)

    @property
    def bucket(self) -> int:
        """Memory for one bucket while it is sorted."""
        return self.limit // self.workers

    def need(self, size: int, records: int) -> int:
        """Memory that sorting so many bytes takes."""
        return size + PER_RECORD * records


def make_job(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    separator: bytes,
    header: int,
    lines_per_record: int,
    strip_bom: bool,
    **options: Any,
) -> Job:
    """Check what is asked for; files that cannot be read are told."""
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    names = tuple(os.fspath(path) for path in paths)
    if not names:
        raise ValueError("inputs must name at least one file, got none.")
    if not isinstance(separator, bytes) or len(separator) != 1:
        raise ValueError(f"separator must be one byte, such as b'\\n' or b'\\0', got {separator!r}.")
    _check_counts(header=(header, 0), lines_per_record=(lines_per_record, 1))
    limits = {name: options.get(name) for name in ("shards", "shard_lines", "shard_bytes", "sample")}
    _check_counts(**{name: (value, int(name != "sample")) for name, value in limits.items() if value is not None})
    given = [name for name in ("shards", "shard_lines", "shard_bytes") if limits[name] is not None]
    if len(given) > 1:
        raise ValueError(f"of shards, shard_lines and shard_bytes give one, got {' and '.join(given)}.")
    if options["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {options['algorithm']!r}.")
    if options["seed"] is not None:
        check_seed(options["seed"])
    if names.count(STDIN) > 1:
        raise ValueError("standard input can be given only once.")
    for name in names:
        if name != STDIN and not os.path.exists(name):
            message, remedy = explain(FileNotFoundError(errno.ENOENT, ""))
            raise DataError(message, path=name, remedy=remedy)
        if name != STDIN and os.path.isdir(name):
            raise DataError("it is a folder.", remedy="Name its files, for example with *.txt.", path=name)
    form = Format(separator[0], lines_per_record, header, strip_bom)
    return Job(names, os.fspath(output), form, **options)


def check_output(job: Job, targets: Sequence[Path]) -> None:
    """Refuse to write over an input."""
    for target in targets:
        for name in job.inputs:
            if name != STDIN and target.exists() and os.path.samefile(target, name):
                raise ValueError(f"the output {target} is one of the inputs; choose another name.")


def is_stream(output: str) -> bool:
    """Whether the output is standard output or another thing that cannot be replaced, as a pipe or a device."""
    if output == STDIN:
        return True
    return os.path.exists(output) and not (os.path.isdir(output) or stat.S_ISREG(os.stat(output).st_mode))


def parse_size(size: int | str, name: str = "memory") -> int:
    """Bytes of ``"8G"``, ``"256M"``, or a number.

    >>> parse_size("1.5K"), parse_size("256M"), parse_size(10)
    (1536, 268435456, 10)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'{name} must be a positive number of bytes or such as "8G" or "256M", got {size!r}.')
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def make_budget(memory: int | str, workers: int | None) -> Budget:
    """Share out the memory."""
    total = parse_size(memory)
    if total < 1 << 20:
        raise ValueError(f"memory must be 1M at least, got {memory!r}.")
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, min(4, cores))
    _check_counts(workers=(workers, 1))
    return Budget(max(total - _OVERHEAD, total // 3), workers)


def make_plan(job: Job, budget: Budget, memory: int) -> ShufflePlan:
    """Look at the inputs, and decide on the number of buckets."""
    size, records = _measure(job)
    out = size
    if job.sample is not None and size is not None and records:
        out = min(size, job.sample * size // records)
    if split_suffix(job.output)[1]:
        out = None
    if size is None or records is None:
        return ShufflePlan(None, None, UNKNOWN_BUCKETS, 2, memory, None, None)
    need = budget.need(size, records)
    if 2 * need + 5 * budget.chunk <= budget.limit:
        return ShufflePlan(records, size, 1, 1, memory, 0, out)
    wanted = math.ceil(1.1 * need / budget.bucket)
    most = min(MOST_BUCKETS, max(2, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 64))
    passes = 2 if wanted <= most else 3
    wanted = max(wanted, min(math.ceil(need / _CACHED), budget.chunk // _FRAME))
    return ShufflePlan(records, size, max(2, min(wanted, most)), passes, memory, size + ON_DISK * records, out)


def check_disk(job: Job, plan: ShufflePlan, folder: Path) -> None:
    """Stop before anything is written when it cannot fit: buckets are deleted one by one as the output grows."""
    if plan.bytes is None or plan.disk_tmp is None:
        return
    needs: dict[int, int] = {}
    places: dict[int, tuple[Path, str]] = {}
    tmp, out = _existing(folder), None if is_stream(job.output) else _existing(Path(job.output).absolute())
    grown = plan.disk_out or 0
    if out is not None and grown:
        same = plan.disk_tmp and tmp.stat().st_dev == out.stat().st_dev
        device = out.stat().st_dev
        needs[device] = grown if not same else max(0, grown - plan.disk_tmp) + plan.disk_tmp // plan.buckets
        places[device] = out, "output"
    if plan.disk_tmp:
        device = tmp.stat().st_dev
        needs[device] = needs.get(device, 0) + plan.disk_tmp
        places[device] = tmp, "temporary files"
    for device, needed in needs.items():
        place, what = places[device]
        free = shutil.disk_usage(place).free
        if free < needed:
            raise disk_full(place, needed, free, what)


def disk_full(place: Path | str, needed: int, free: int, what: str) -> DiskFullError:
    """The error that says how much is missing for `what`, the output or temporary files, and where."""
    other = "choose another output" if what == "output" else "choose another folder for them with tmp (--tmp)"
    return DiskFullError(
        f"{place}: no room for {what}: about {needed:,} bytes are needed, {free:,} are free, "
        f"{max(0, needed - free):,} missing.",
        needed=needed,
        free=free,
        remedy=f"Make room, then run the same again; or {other}.",
    )


def aligned_jobs(job: Job) -> list[Job]:
    """One job an input, into the folder `output`, each under its own name."""
    names = [Path(path).name for path in job.inputs]
    if STDIN in job.inputs or len(set(names)) < len(names):
        raise ValueError(f"aligned files need names of their own, got {', '.join(job.inputs)}.")
    if job.sharded:
        raise ValueError("aligned files cannot be cut into shards; shuffle them aligned, then cut them.")
    if is_stream(job.output) or os.path.isfile(job.output):
        raise ValueError(f"aligned needs a folder as output, got {job.output}.")
    return [
        replace(job, inputs=(path,), output=os.path.join(job.output, name))
        for path, name in zip(job.inputs, names, strict=True)
    ]


def in_memory(path: Path) -> bool:
    """Whether a folder, or the nearest one above that exists, is a file system in memory, where Linux tells."""
    place = _existing(path.absolute()).resolve()
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    mounts = ((Path(mount.replace("\\040", " ")), kind) for _, mount, kind, *_ in map(str.split, lines))
    found = [(len(mount.parts), kind) for mount, kind in mounts if place.is_relative_to(mount)]
    return bool(found) and max(found, key=lambda one: one[0])[1] in ("tmpfs", "ramfs")


def _check_counts(**counts: tuple[Any, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.")


def _absolute(path: str) -> str:
    return path if path == STDIN else os.path.abspath(path)


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _measure(job: Job) -> tuple[int | None, int | None]:
    """Bytes of all inputs and how many records they hold about; None where that cannot be known."""
    size, seen, records = 0, 0, 0
    for path in job.inputs:
        if path == STDIN or not os.path.isfile(path):
            return None, None
        with open(path, "rb") as stream:
            head = stream.read(_SAMPLE if seen < _SAMPLE else HEAD)
            if codec_of(head, split_suffix(path)[1]) is not None:
                return None, None
            size += os.fstat(stream.fileno()).st_size
            if len(head) > HEAD or seen < _SAMPLE:
                seen += len(head)
                data = np.frombuffer(head, np.uint8)
                records += len(find(data, job.form.separator, len(head)))
                records += bool(head) and head[-1] != job.form.separator
    records = math.ceil(records / job.form.lines_per_record * size / seen) if seen else 0
    return size, max(records, int(size > 0))
