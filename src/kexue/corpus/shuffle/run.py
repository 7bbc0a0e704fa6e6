"""Shuffle files larger than memory: exactly, in an order that depends on the seed and the inputs alone.

Source: kexue.fm/archives/8662. Differences: the article's scheme (`algorithm="rowwise"`) is not uniform; the default
sorts by random keys, bucket by bucket, which is.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kexue._progress import Progress, ProgressCounter
from kexue.corpus.shuffle.digest import Digest
from kexue.corpus.shuffle.job import Job
from kexue.corpus.shuffle.options import FilePath, Paths, ShuffleOptions, check_options
from kexue.corpus.shuffle.output import check_output
from kexue.corpus.shuffle.plan import (
    ShufflePlan,
    combine_plans,
    make_budget,
    make_plan,
)
from kexue.errors import DataError


@dataclass(frozen=True)
class ShuffleReport:
    """Result of `shuffle_files`.

    Attributes:
        records: number of records in an output.
        bytes: size of the records in all outputs.
        buckets: number of buckets.
        passes: number of passes over the data.
        seconds: duration.
        peak_rss: largest memory of this process so far, in bytes.
        digest: multiset checksum of the lines in all outputs.
        seed: seed of the order.
        outputs: paths of the files.
        resumed: whether an interrupted run was continued.
    """

    records: int
    bytes: int
    buckets: int
    passes: int
    seconds: float
    peak_rss: int
    digest: str
    seed: int
    outputs: list[str]
    resumed: bool


def plan_shuffle(inputs: Paths, output: FilePath, *, progress: Progress | None = None, **options: Any) -> ShufflePlan:
    """Return the estimated memory, disk and passes of `shuffle_files` with the same arguments; nothing is written.

    Records are counted in the first 4 MiB; what cannot be known of compressed input or a pipe is None.

    Args:
        inputs, output, options: those of `shuffle_files`.
        progress: not used.

    Raises:
        As `shuffle_files` before it begins, but for a full disk.
    """
    del progress
    checked = check_options(inputs, output, **options)
    budget = make_budget(checked)
    return combine_plans([make_plan(part, budget) for part in checked.split_aligned()])


def shuffle_files(
    inputs: Paths,
    output: FilePath,
    *,
    memory: int | str = "4G",
    tmp: FilePath | None = None,
    seed: int | None = None,
    workers: int | None = None,
    separator: bytes = b"\n",
    algorithm: Literal["keyed", "rowwise"] = "keyed",
    header: int = 0,
    lines_per_record: int = 1,
    aligned: bool = False,
    shards: int | None = None,
    shard_lines: int | None = None,
    shard_bytes: int | None = None,
    sample: int | None = None,
    strip_bom: bool = False,
    resume: bool = True,
    verify: bool = True,
    progress: Progress | None = None,
) -> ShuffleReport:
    """Write all lines of files in uniformly random order, in bounded memory.

    Line i of the inputs, one after another as given, has the key u_i of `permutation_keys`; the output is sorted by
    key. So the order depends on the seed and on the positions of the lines in the inputs, and not on memory, workers
    or machine; two inputs with the same number of lines get the same order. Lines are bytes: nothing is decoded, CR
    and NUL pass through, an empty line is a line; a last line without separator gets one.

    Args:
        inputs: files, or ``"-"``; gzip, bz2, xz, zstd and lz4 are recognised by their first bytes.
        output: a file (compressed by its ending, .gz .bz2 .xz .zst .lz4), a folder, or ``"-"``. It appears under its
            name when it is whole. Shards are called part-00000 in a folder, name-00000.txt for name.txt.
        memory: limit of memory, >= 1M, plus 60 MB for Python. Input that does not fit goes through files in `tmp`
            once, or more often where buckets turn out too large.
        tmp: folder for those files; None: that of the output. They need the size of the input and 12 bytes per line.
        seed: 0 <= seed < 2**64; None draws one, see the report.
        workers: number of threads, >= 1; None: one per core, 4 at most.
        separator: one byte that ends lines.
        algorithm: ``"rowwise"`` is the article's scheme with blocks of 100,000 lines, which is not uniform.
        header: number of lines that stay on top, >= 0: the first file's in every output; the other files' are dropped.
        lines_per_record: number of lines that stay together, >= 1.
        aligned: files that belong together line by line get the same order; `output` is a folder for files of the
            same names.
        shards, shard_lines, shard_bytes: cut the output, in order, into this number of files, or into files of at
            most this many lines or bytes. Give at most one of them. A header comes on top of each.
        sample: number of lines to write: the first ones of the shuffled order; None: all.
        strip_bom: whether a UTF-8 byte order mark at the start of each input is dropped.
        resume: whether an interrupted run with the same arguments (memory and workers may differ) is continued;
            False discards it. Without a seed, the interrupted run's is taken.
        verify: whether the output is read again and its multiset checksum compared with that of the input; a pipe
            cannot be read again, and is not verified.
        progress: called as progress(bytes done, bytes to do), of both passes.

    Raises:
        ValueError, TypeError: arguments out of range, or an output that is one of the inputs.
        DataError: an input that cannot be read or is damaged, lines that do not make whole records, aligned files
            of different lengths, or another process that is writing the same output.
        DiskFullError: no room, before or during the work; finished work is kept, run again to continue.
        KexueError: the verification failed; no output is left.
        MissingDependencyError: pyarrow is not installed.
    """
    options = check_options(
        inputs,
        output,
        memory=memory,
        tmp=tmp,
        seed=seed,
        workers=workers,
        separator=separator,
        algorithm=algorithm,
        header=header,
        lines_per_record=lines_per_record,
        aligned=aligned,
        shards=shards,
        shard_lines=shard_lines,
        shard_bytes=shard_bytes,
        sample=sample,
        strip_bom=strip_bom,
        resume=resume,
        verify=verify,
    )
    return run_shuffle(options, progress)


def run_shuffle(options: ShuffleOptions, progress: Progress | None = None) -> ShuffleReport:
    """Shuffle files; see `shuffle_files`."""
    start = time.perf_counter()
    budget = make_budget(options)
    parts = options.split_aligned()
    plans = [make_plan(part, budget) for part in parts]
    counter = ProgressCounter(progress, 2 * sum(plan.bytes or 0 for plan in plans) or None)
    check_output(options)
    jobs: list[Job] = []
    try:
        for part, plan in zip(parts, plans, strict=True):
            jobs.append(Job(part, budget, plan, counter, jobs[0].seed if jobs else None))
            jobs[-1].scatter()  # section "Two passes": scatter
            _check_aligned(jobs[0], jobs[-1])
            jobs[-1].gather()  # section "Two passes": gather
            if options.verify and not part.to_stream:
                jobs[-1].verify()
        outputs = [path for job in jobs for path in job.publish()]
    except BaseException as error:
        for job in jobs:
            job.stop_after_error(error)
        raise
    digest = Digest()
    for job in jobs:
        digest.merge(job.digest)
    return ShuffleReport(
        records=jobs[0].records_written,
        bytes=sum(job.bytes_written for job in jobs),
        buckets=max(job.buckets for job in jobs),
        passes=max(job.passes for job in jobs),
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
        digest=str(digest),
        seed=jobs[0].seed,
        outputs=outputs,
        resumed=any(job.resumed for job in jobs),
    )


def peak_rss() -> int:
    """Return the largest memory of this process so far, in bytes."""
    try:  # getrusage would also count the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _check_aligned(first: Job, other: Job) -> None:
    """Raise a DataError for aligned files of different lengths."""
    if other.records != first.records:
        raise DataError(
            f"it has {other.records:,} records, but {first.input} has {first.records:,}.",
            remedy="Aligned files must have the same number of lines.",
            path=other.input,
        )
