"""Shuffle files larger than memory: exactly, in an order that depends on the seed and the inputs alone.

Source: kexue.fm/archives/8662. Differences: the article's scheme (`algorithm="rowwise"`) is not uniform; the default
sorts by random keys, bucket by bucket, which is.
"""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kexue._files import is_disk_full
from kexue._optional import import_optional
from kexue._progress import Progress
from kexue.corpus.open import STDIN
from kexue.corpus.shuffle.digest import Digest
from kexue.corpus.shuffle.gather import Gather
from kexue.corpus.shuffle.job import (
    Budget,
    Job,
    ShufflePlan,
    aligned_jobs,
    check_disk,
    check_output,
    disk_full,
    is_stream,
    make_budget,
    make_job,
    make_plan,
    parse_size,
)
from kexue.corpus.shuffle.keys import Range
from kexue.corpus.shuffle.scatter import scatter
from kexue.corpus.shuffle.sink import Names, Sink
from kexue.corpus.shuffle.source import Format
from kexue.corpus.shuffle.state import Bucket, State, Workplace
from kexue.corpus.shuffle.verify import digest_of
from kexue.errors import DataError, DiskFullError, KexueError

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class ShuffleReport:
    """What `shuffle_files` did: `records` and their `bytes` in the output, through so many `buckets` in `passes`.

    `peak_rss` is the largest memory of this process so far, in bytes. `digest` is the multiset checksum of the lines
    written. `resumed` tells that an interrupted run was gone on with.
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


def plan_shuffle(
    inputs: Paths,
    output: str | os.PathLike[str],
    *,
    memory: int | str = "4G",
    tmp: str | os.PathLike[str] | None = None,
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
) -> ShufflePlan:
    """What `shuffle_files` would take with the same arguments: nothing is written.

    Records are counted in the first 4 MiB; where the input is compressed or a pipe, what cannot be known is None.

    Raises:
        As `shuffle_files` before it begins, but for a full disk.
    """
    del tmp, resume, verify, progress
    job = make_job(
        inputs,
        output,
        separator=separator,
        header=header,
        lines_per_record=lines_per_record,
        strip_bom=strip_bom,
        algorithm=algorithm,
        seed=seed,
        shards=shards,
        shard_lines=shard_lines,
        shard_bytes=shard_bytes,
        sample=sample,
    )
    budget, limit = make_budget(memory, workers), parse_size(memory)
    plans = [make_plan(one, budget, limit) for one in (aligned_jobs(job) if aligned else [job])]
    if len(plans) == 1:
        return plans[0]

    def total(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return ShufflePlan(
        records=plans[0].records,
        bytes=total([plan.bytes for plan in plans]),
        buckets=max(plan.buckets for plan in plans),
        passes=max(plan.passes for plan in plans),
        memory=limit,
        disk_tmp=None if any(p.disk_tmp is None for p in plans) else max(p.disk_tmp or 0 for p in plans),
        disk_out=total([plan.disk_out for plan in plans]),
    )


def shuffle_files(
    inputs: Paths,
    output: str | os.PathLike[str],
    *,
    memory: int | str = "4G",
    tmp: str | os.PathLike[str] | None = None,
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
    """Put all lines of files in uniformly random order, in bounded memory.

    Line i of the inputs, one after another as given, has the key u_i of `permutation_keys`; the output is sorted by
    key. So the order depends on the seed and on which lines are where in the inputs, and not on memory, workers or
    machine; and two files of as many lines get the same order. Lines are bytes: nothing is decoded, CR and NUL pass
    through, an empty line is a line; a last line without separator gets one.

    Args:
        inputs: files, or ``"-"``; gzip, bz2, xz, zstd and lz4 are told by their first bytes.
        output: a file (compressed by its ending, .gz .bz2 .xz .zst .lz4), a folder, or ``"-"``. It appears under its
            name when it is whole. Shards are called part-00000 in a folder, name-00000.txt for name.txt.
        memory: what the process may take beside 60 MB for Python. Input that does not fit goes through files in `tmp`
            once, or more often where buckets turn out too large.
        tmp: folder for those files; None: that of the output. They need the size of the input and 12 bytes a line.
        seed: 0 <= seed < 2**64; None draws one, see the report.
        workers: threads; None: as many as cores, 4 at most.
        separator: one byte that ends lines.
        algorithm: ``"rowwise"`` is the article's scheme with blocks of 100,000 lines, which is not uniform.
        header: lines that stay on top: the first file's in every output, the other files' are dropped.
        lines_per_record: so many lines stay together.
        aligned: files that belong together line by line get the same order; `output` is a folder for files of the
            same names.
        shards, shard_lines, shard_bytes: cut the output, in order, into so many files, or files of at most so many
            lines or bytes. Give one of them. A header comes on top.
        sample: only so many lines: the first ones of the shuffled order.
        strip_bom: drop a UTF-8 byte order mark at the start of each input.
        resume: go on with an interrupted run of the same arguments (memory and workers may differ), which a run
            without it forgets. Without a seed, the interrupted run's is taken.
        verify: read the output again, and compare its multiset checksum with that of the input; what went into a pipe
            cannot be read again, and is not.
        progress: called as progress(bytes done, bytes to do), of both passes.

    Raises:
        ValueError, TypeError: arguments out of range, or an output that is one of the inputs.
        DataError: an input that cannot be read or is damaged, lines that do not make whole records, aligned files
            of different lengths, or another process doing the same.
        DiskFullError: no room, before beginning or on the way; what is done is kept, run again to go on.
        KexueError: the verification failed; no output is left.
        MissingDependencyError: pyarrow is not installed.
    """
    start = time.perf_counter()
    job = make_job(
        inputs,
        output,
        separator=separator,
        header=header,
        lines_per_record=lines_per_record,
        strip_bom=strip_bom,
        algorithm=algorithm,
        seed=seed,
        shards=shards,
        shard_lines=shard_lines,
        shard_bytes=shard_bytes,
        sample=sample,
    )
    budget, limit = make_budget(memory, workers), parse_size(memory)
    jobs = aligned_jobs(job) if aligned else [job]
    runs: list[_Run] = []
    digest, counted = Digest(), _Counter(progress, 2 * sum(filter(None, (make_plan(j, budget, 0).bytes for j in jobs))))
    try:
        for one in jobs:
            check_output(job, [] if is_stream(one.output) else [Names(one).final(0), *Names(one).stale(0)])
            runs.append(_Run(one, budget, make_plan(one, budget, limit), tmp, resume, runs[0].seed if runs else None))
            runs[-1].scatter(counted)
            if runs[-1].records != runs[0].records:
                raise DataError(
                    f"it has {runs[-1].records:,} records, but {job.inputs[0]} has {runs[0].records:,}.",
                    remedy="Aligned files must have as many lines each.",
                    path=one.inputs[0],
                )
            runs[-1].gather(counted)
            if verify and not is_stream(one.output):
                runs[-1].verify()
        outputs = [path for run in runs for path in run.publish()]
    except BaseException as error:
        for run in runs:
            run.leave(error)
        raise
    for run in runs:
        digest.merge(run.digest)
    return ShuffleReport(
        records=runs[0].written,
        bytes=sum(run.bytes_written for run in runs),
        buckets=max(run.buckets for run in runs),
        passes=max(run.passes for run in runs),
        seconds=time.perf_counter() - start,
        peak_rss=peak_rss(),
        digest=str(digest),
        seed=runs[0].seed,
        outputs=outputs,
        resumed=any(run.resumed for run in runs),
    )


def peak_rss() -> int:
    """The largest memory of this process so far, in bytes."""
    try:  # getrusage would also count what started this process
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Counter:
    """Bytes done of bytes to do."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total or None, 0

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done if self._total is None else min(self._done, self._total), self._total)


class _Run:
    """One job, from its inputs to its output."""

    def __init__(
        self,
        job: Job,
        budget: Budget,
        plan: ShufflePlan,
        tmp: str | os.PathLike[str] | None,
        resume: bool,
        seed: int | None,
    ) -> None:
        self._job, self._budget = job, budget
        self._resumable = job.resumable and plan.passes > 1
        self._work = Workplace(job.folder(tmp), job)
        self._names = None if is_stream(job.output) else Names(job, self._work.folder)
        self._sink: Sink | None = None
        self._gone = False
        state = self._work.load() if resume and self._resumable else None
        if state is not None and seed is not None and state.seed != seed:
            state = None
        if state is not None and self._names is not None and not self._names.intact(state):
            state = None
        self.resumed = state is not None
        if state is None:
            chosen = next((one for one in (job.seed, seed) if one is not None), None)
            state = State(secrets.randbits(64) if chosen is None else int(chosen), made=plan.buckets)
            state.buckets = [Bucket(i, lo, hi) for i, (lo, hi) in enumerate(Range(0, 1 << 64, plan.buckets))]
            if plan.passes == 1:
                state.buckets[0].frames = []
        self._work.tidy(state if self.resumed else None)
        if not self.resumed and self._names is not None:
            self._names.drop_partial()
        if not self.resumed and plan.passes > 1:
            try:
                check_disk(job, plan, self._work.folder)
            except DiskFullError:
                self._remove()
                raise
        self._state = state
        self.seed, self.buckets, self.passes = state.seed, len(state.buckets), plan.passes

    @property
    def records(self) -> int:
        """Records of the inputs."""
        return self._state.records

    @property
    def written(self) -> int:
        """Records of the output."""
        return min(self._state.records, self._state.records if self._job.sample is None else self._job.sample)

    def scatter(self, tell: _Counter) -> None:
        """First pass, as far as it has not been done."""
        tell(self._state.bytes)
        if self._state.phase != "scatter":
            return
        with self._full_disk_told():
            scatter(self._job, self._work, self._state, self._budget, tell, resumable=self._resumable)
            for bucket in self._state.buckets:
                if not bucket.records and bucket.frames is None:
                    bucket.path(self._work.folder).unlink(missing_ok=True)
            self._state.buckets = [bucket for bucket in self._state.buckets if bucket.records]
            import_optional("pyarrow", extra="corpus").default_memory_pool().release_unused()
            self._advance("gather")

    def gather(self, tell: _Counter) -> None:
        """Second pass, as far as it has not been done."""
        state = self._state
        self.digest, self.bytes_written = state.digest, state.bytes
        if state.phase != "gather":
            tell(state.bytes)
            return
        tell(state.bytes - sum(bucket.bytes for bucket in state.buckets))
        with self._full_disk_told():
            header = state.header.encode("latin-1")
            self._sink = Sink(self._job, self.written, header, state.sink, self._work.folder)
            gather = Gather(self._job, self._work, state, self._budget, self._sink, tell, resumable=self._resumable)
            gather.run()
            state.files = self._sink.close()
            self.passes += gather.deeper
            self._advance("publish")
        if self._job.sample is not None:
            self.digest, self.bytes_written = gather.sampled, gather.sampled_bytes

    def verify(self) -> None:
        """Read the output again."""
        assert self._names is not None
        pairs = [(self._names.partial(i), self._names.final(i)) for i in range(self._state.files)]
        paths = [str(partial if partial.exists() else final) for partial, final in pairs]
        header = self._state.header.encode("latin-1").count(self._job.form.separator)
        form = Format(self._job.form.separator, header=header)
        found = digest_of(paths, form)
        if found != self.digest:
            raise KexueError(
                f"the output does not hold the lines of the input: checksum {found}, expected {self.digest}.",
                remedy="Disk or memory may be faulty; run again.",
            )

    def publish(self) -> list[str]:
        """Give the files their names, and clear up."""
        if self._names is None:
            self._remove()
            return [self._job.output]
        outputs = self._names.publish(self._state.files)
        self._remove()
        return outputs

    def leave(self, error: BaseException) -> None:
        """After an error: keep what can be gone on with, and nothing else."""
        if self._sink is not None:
            self._sink.abandon()
        if self._gone:
            return
        if self._resumable and (isinstance(error, OSError) or not isinstance(error, KexueError | ValueError)):
            self._work.leave()
            self._gone = True
            return
        if self._names is not None and self._sink is not None:
            for number in range(self._sink.files):
                self._names.partial(number).unlink(missing_ok=True)
        self._remove()

    def _remove(self) -> None:
        self._work.remove()
        self._gone = True

    def _advance(self, phase: Literal["gather", "publish"]) -> None:
        self._state.phase = phase
        if self._resumable:
            self._work.commit(self._state, durable=self._work.durable)

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            left = sum(bucket.bytes for bucket in self._state.buckets) or self._state.bytes
            if error.filename == STDIN:
                raise disk_full("standard output", left, shutil.disk_usage(1).free, "output") from error
            folder = self._work.folder
            place = Path(error.filename or folder).absolute().parent
            inside = error.filename is None or place == folder.absolute()
            what, place = ("temporary files", folder.parent) if inside else ("output", place)
            raise disk_full(place, left, shutil.disk_usage(place).free, what) from error
