"""Plan of a shuffle: memory, buckets, passes, disk."""

from __future__ import annotations

import math
import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kexue.corpus.open import HEAD, STDIN, codec_of, split_suffix
from kexue.corpus.shuffle.digest import PAD
from kexue.corpus.shuffle.lines import find_byte
from kexue.corpus.shuffle.options import ShuffleOptions, existing_parent
from kexue.errors import DiskFullError

PER_RECORD = 36  # extra bytes of memory per record: key, length, offset, order, and scratch for sorting
ON_DISK = 12  # extra bytes per record in a bucket file: key and length
MOST_BUCKETS = 1024
UNKNOWN_BUCKETS = 256  # where the size of the input cannot be known
_OVERHEAD = 24 << 20  # memory of numpy, Arrow and the output's buffers, besides the 60 MB of Python
_PER_WORKER = 6 << 20  # memory that the allocators keep for a thread
_SAMPLE = 4 << 20  # bytes of the inputs in which records are counted
_CACHED = 12 << 20  # bytes of a bucket that can be sorted within a processor's cache, about
_FRAME = 64 << 10  # smallest efficient write, in bytes
_CHUNK = 16 << 20  # largest reading buffer, in bytes


@dataclass(frozen=True)
class ShufflePlan:
    """Estimated cost of a shuffle.

    Attributes:
        records: number of records; None where it cannot be known beforehand.
        bytes: size of the input; None where it cannot be known beforehand.
        buckets: number of buckets.
        passes: number of passes over the data.
        memory: limit of memory in bytes, plus 60 MB for Python.
        disk_tmp: size of temporary files, in bytes; None where it cannot be known beforehand.
        disk_out: size of the output, in bytes; None where it cannot be known beforehand.
    """

    records: int | None
    bytes: int | None
    buckets: int
    passes: int
    memory: int
    disk_tmp: int | None
    disk_out: int | None


@dataclass(frozen=True)
class Budget:
    """Shares of the memory.

    Attributes:
        limit: bytes besides those of Python, numpy and Arrow.
        workers: number of threads that share it.
    """

    limit: int
    workers: int

    @property
    def chunk(self) -> int:
        """Size of a reading buffer, in bytes; a chunk takes about six times as much on its way to the buckets."""
        return int(min(max(self.limit / (7 * self.workers + 1), 1 << 12), _CHUNK)) + PAD + 1

    @property
    def chunk_records(self) -> int:
        """Maximum number of records in a chunk."""
        return max(self.chunk // 32, 16)

    @property
    def bucket(self) -> int:
        """Memory for one bucket while it is sorted, in bytes."""
        return self.limit // self.workers

    def sorting(self, size: int, records: int) -> int:
        """Return the memory that sorting `records` of `size` bytes together takes."""
        return size + PER_RECORD * records


def make_budget(options: ShuffleOptions) -> Budget:
    """Divide the memory among the workers."""
    overhead = _OVERHEAD + _PER_WORKER * options.workers
    return Budget(max(options.memory - overhead, options.memory // 3), options.workers)


def make_plan(options: ShuffleOptions, budget: Budget) -> ShufflePlan:
    """Measure the inputs and choose the number of buckets."""
    size, records = _measure_inputs(options)
    out = size
    if options.sample is not None and size is not None and records:
        out = min(size, options.sample * size // records)
    if split_suffix(options.output)[1]:
        out = None
    if size is None or records is None:
        return ShufflePlan(None, None, UNKNOWN_BUCKETS, 2, options.memory, None, None)
    need = budget.sorting(size, records)
    if 2 * need + 5 * budget.chunk <= budget.limit:
        return ShufflePlan(records, size, 1, 1, options.memory, 0, out)
    buckets = math.ceil(1.1 * need / budget.bucket)
    most = min(MOST_BUCKETS, max(2, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 64))
    passes = 2 if buckets <= most else 3
    buckets = max(buckets, min(math.ceil(need / _CACHED), budget.chunk // _FRAME))
    return ShufflePlan(records, size, max(2, min(buckets, most)), passes, options.memory, size + ON_DISK * records, out)


def combine_plans(plans: Sequence[ShufflePlan]) -> ShufflePlan:
    """Return the plan of several shuffles, one after another, of files with the same number of records."""
    if len(plans) == 1:
        return plans[0]

    def total(values: list[int | None]) -> int | None:
        """Return the sum; None if a value is unknown."""
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return ShufflePlan(
        records=plans[0].records,
        bytes=total([plan.bytes for plan in plans]),
        buckets=max(plan.buckets for plan in plans),
        passes=max(plan.passes for plan in plans),
        memory=plans[0].memory,
        disk_tmp=None if any(p.disk_tmp is None for p in plans) else max(p.disk_tmp or 0 for p in plans),
        disk_out=total([plan.disk_out for plan in plans]),
    )


def check_disk(options: ShuffleOptions, plan: ShufflePlan, folder: Path) -> None:
    """Raise a DiskFullError, before anything is written, if the disk has too little room.

    Buckets are deleted one by one while the output grows, so that both share the room where they share a disk.
    """
    if plan.bytes is None or plan.disk_tmp is None:
        return
    needs: dict[int, int] = {}  # by device
    places: dict[int, tuple[Path, str]] = {}
    tmp = existing_parent(folder)
    out = None if options.to_stream else existing_parent(Path(options.output).absolute())
    written = plan.disk_out or 0
    if out is not None and written:
        same = plan.disk_tmp and tmp.stat().st_dev == out.stat().st_dev
        device = out.stat().st_dev
        needs[device] = written if not same else max(0, written - plan.disk_tmp) + plan.disk_tmp // plan.buckets
        places[device] = out, "output"
    if plan.disk_tmp:
        device = tmp.stat().st_dev
        needs[device] = needs.get(device, 0) + plan.disk_tmp
        places[device] = tmp, "temporary files"
    for device, needed in needs.items():
        place, what = places[device]
        free = shutil.disk_usage(place).free
        if free < needed:
            raise disk_full_error(place, needed, free, what)


def disk_full_error(place: Path | str, needed: int, free: int, what: str) -> DiskFullError:
    """Return the error about missing room for `what`, which is "output" or "temporary files"."""
    other = "choose another output" if what == "output" else "choose another folder for them with tmp (--tmp)"
    return DiskFullError(
        f"{place}: no room for {what}: about {needed:,} bytes are needed, {free:,} are free, "
        f"{max(0, needed - free):,} missing.",
        needed=needed,
        free=free,
        remedy=f"Make room, then run the same again; or {other}.",
    )


def in_memory(path: Path) -> bool:
    """Return whether a folder, or the nearest existing one above, is in a file system in memory (on Linux)."""
    place = existing_parent(path.absolute()).resolve()
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    mounts = ((Path(mount.replace("\\040", " ")), kind) for _, mount, kind, *_ in map(str.split, lines))
    above = [(len(mount.parts), kind) for mount, kind in mounts if place.is_relative_to(mount)]
    return bool(above) and max(above, key=lambda one: one[0])[1] in ("tmpfs", "ramfs")


def _measure_inputs(options: ShuffleOptions) -> tuple[int | None, int | None]:
    """Return the bytes of all inputs and their estimated number of records; None where that cannot be known."""
    size, sampled, records = 0, 0, 0
    for path in options.inputs:
        if path == STDIN or not os.path.isfile(path):
            return None, None
        with open(path, "rb") as stream:
            head = stream.read(_SAMPLE if sampled < _SAMPLE else HEAD)
            if codec_of(head[:HEAD], split_suffix(path)[1]) is not None:
                return None, None
            size += os.fstat(stream.fileno()).st_size
            if len(head) > HEAD or sampled < _SAMPLE:
                sampled += len(head)
                data = np.frombuffer(head, np.uint8)
                records += len(find_byte(data, options.form.separator, len(head)))
                records += bool(head) and head[-1] != options.form.separator
    records = math.ceil(records / options.form.lines_per_record * size / sampled) if sampled else 0
    return size, max(records, int(size > 0))
