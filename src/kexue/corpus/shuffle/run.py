"""Shuffle files larger than memory: exactly, in an order that depends on the seed and the inputs alone.

Source: kexue.fm/archives/8662. Differences: the article's scheme (`algorithm="rowwise"`) is not uniform; the default
sorts by random keys, bucket by bucket, which is.
"""

from __future__ import annotations

import resource
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kexue._files import is_disk_full
from kexue._optional import import_optional
from kexue._progress import Progress
from kexue.corpus.open import STDIN
from kexue.corpus.shuffle.buckets import Bucket
from kexue.corpus.shuffle.digest import Digest
from kexue.corpus.shuffle.gather import Gatherer
from kexue.corpus.shuffle.journal import Journal, State
from kexue.corpus.shuffle.keys import SPACE, KeyRange
from kexue.corpus.shuffle.options import FilePath, Paths, ShuffleOptions, check_options
from kexue.corpus.shuffle.output import OutputNames, OutputWriter, check_output
from kexue.corpus.shuffle.plan import (
    Budget,
    ShufflePlan,
    check_disk,
    combine_plans,
    disk_full_error,
    make_budget,
    make_plan,
)
from kexue.corpus.shuffle.reader import RecordFormat
from kexue.corpus.shuffle.scatter import Scatterer
from kexue.corpus.shuffle.verify import digest_of
from kexue.errors import DataError, DiskFullError, KexueError


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
    """Return what `shuffle_files` would take with the same arguments; nothing is written.

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
        memory: limit of memory, >= 1M, beside 60 MB for Python. Input that does not fit goes through files in `tmp`
            once, or more often where buckets turn out too large.
        tmp: folder for those files; None: that of the output. They need the size of the input and 12 bytes a line.
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
    counter = _ByteCounter(progress, 2 * sum(plan.bytes or 0 for plan in plans))
    runs: list[_Run] = []
    try:
        for part, plan in zip(parts, plans, strict=True):
            check_output(part)
            runs.append(_Run(part, budget, plan, counter, runs[0].seed if runs else None))
            runs[-1].scatter()
            _check_aligned(runs[0], runs[-1])
            runs[-1].gather()
            if options.verify and not part.to_stream:
                runs[-1].verify()
        outputs = [path for run in runs for path in run.publish()]
    except BaseException as error:
        for run in runs:
            run.abandon(error)
        raise
    digest = Digest()
    for run in runs:
        digest.merge(run.digest)
    return ShuffleReport(
        records=runs[0].records_written,
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


def check_digest(paths: list[str], form: RecordFormat, expected: str) -> None:
    """Raise a KexueError if the lines of files do not have the `expected` multiset checksum."""
    digest = digest_of(paths, form)
    if digest != expected:
        raise KexueError(
            f"the output does not hold the lines of the input: checksum {digest}, expected {expected}.",
            remedy="Disk or memory may be faulty; run again.",
        )


def peak_rss() -> int:
    """Return the largest memory of this process so far, in bytes."""
    try:  # getrusage would also count the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _ByteCounter:
    """Counter of bytes done, for a progress callback; a `total` of 0 is unknown."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total or None, 0

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done if self._total is None else min(self._done, self._total), self._total)


class _Run:
    """The shuffle of inputs to one output.

    Args:
        options: what is shuffled, not aligned any more.
        budget: shares of the memory.
        plan: number of buckets and passes.
        advance: called with the bytes of each step.
        seed: seed of the runs before this one, of aligned files; None: this is the first.

    Attributes:
        digest: digest of the lines of the output.
        bytes_written: size of the records of the output.
    """

    def __init__(
        self, options: ShuffleOptions, budget: Budget, plan: ShufflePlan, advance: _ByteCounter, seed: int | None
    ) -> None:
        self._options, self._budget, self._advance = options, budget, advance
        self._resumable = options.resumable and plan.passes > 1
        self._journal = Journal(options)
        self._names = None if options.to_stream else OutputNames(options, self._journal.folder)
        self._writer: OutputWriter | None = None
        self._released = False
        state = self._load_state(seed)
        self.resumed = state is not None
        self._journal.clear(state)
        if state is None:
            if self._names is not None:
                self._names.remove_partial()
            if plan.passes > 1:
                self._check_disk(plan)
            state = _first_state(options, plan, seed)
        self._state = state
        self.seed, self.buckets, self.passes = state.seed, len(state.buckets), plan.passes
        self.digest, self.bytes_written = state.digest, state.bytes

    @property
    def input(self) -> str:
        """The first input."""
        return self._options.inputs[0]

    @property
    def records(self) -> int:
        """Number of records in the inputs."""
        return self._state.records

    @property
    def records_written(self) -> int:
        """Number of records in the output."""
        sample = self._options.sample
        return self._state.records if sample is None else min(self._state.records, sample)

    def scatter(self) -> None:
        """Do the rest of the first pass."""
        state = self._state
        self._advance(state.bytes)
        if state.phase != "scatter":
            return
        with self._explain_disk_full():
            Scatterer(self._options, self._journal, state, self._budget, self._advance, resumable=self._resumable).run()
            for bucket in state.buckets:
                if not bucket.records and bucket.frames is None:
                    bucket.path(self._journal.folder).unlink(missing_ok=True)
            state.buckets = [bucket for bucket in state.buckets if bucket.records]
            import_optional("pyarrow", extra="corpus").default_memory_pool().release_unused()
            self._begin_phase("gather")

    def gather(self) -> None:
        """Do the rest of the second pass."""
        state = self._state
        self.digest, self.bytes_written = state.digest, state.bytes
        if state.phase != "gather":
            self._advance(state.bytes)
            return
        self._advance(state.bytes - sum(bucket.bytes for bucket in state.buckets))
        with self._explain_disk_full():
            header = state.header.encode("latin-1")
            self._writer = OutputWriter(self._options, self.records_written, header, state.output, self._journal.folder)
            gatherer = Gatherer(
                self._options,
                self._journal,
                state,
                self._budget,
                self._writer,
                self._advance,
                resumable=self._resumable,
            )
            gatherer.run()
            state.files = self._writer.close()
            self.passes += gatherer.extra_passes
            self._begin_phase("publish")
        if self._options.sample is not None:
            self.digest, self.bytes_written = gatherer.sample_digest, gatherer.sample_bytes

    def verify(self) -> None:
        """Read the output again, and compare its digest."""
        assert self._names is not None
        pairs = [(self._names.partial(i), self._names.final(i)) for i in range(self._state.files)]
        paths = [str(partial if partial.exists() else final) for partial, final in pairs]
        separator = self._options.form.separator
        header = self._state.header.encode("latin-1").count(separator)
        check_digest(paths, RecordFormat(separator, header=header), self.digest)

    def publish(self) -> list[str]:
        """Give the files their names, and remove everything else; return the names."""
        outputs = [self._options.output] if self._names is None else self._names.publish(self._state.files)
        self._remove()
        return outputs

    def abandon(self, error: BaseException) -> None:
        """Keep what can be resumed after an error, and remove everything else."""
        if self._writer is not None:
            self._writer.abandon()
        if self._released:
            return
        if self._resumable and (isinstance(error, OSError) or not isinstance(error, KexueError | ValueError)):
            self._journal.release()
            self._released = True
            return
        if self._names is not None and self._writer is not None:
            for number in range(self._writer.files):
                self._names.partial(number).unlink(missing_ok=True)
        self._remove()

    def _load_state(self, seed: int | None) -> State | None:
        """Return the state of an interrupted run that can be resumed; None: the shuffle starts from the beginning."""
        state = self._journal.load() if self._options.resume and self._resumable else None
        if state is None or (seed is not None and state.seed != seed):
            return None
        return state if self._names is None or _has_files(self._names, state) else None

    def _check_disk(self, plan: ShufflePlan) -> None:
        """Check the room on the disk before anything is written."""
        try:
            check_disk(self._options, plan, self._journal.folder)
        except DiskFullError:
            self._remove()
            raise

    def _remove(self) -> None:
        """Delete the folder of temporary files."""
        self._journal.remove()
        self._released = True

    def _begin_phase(self, phase: Literal["gather", "publish"]) -> None:
        """Note that a pass is done."""
        self._state.phase = phase
        if self._resumable:
            self._journal.commit(self._state, durable=self._journal.durable)

    @contextmanager
    def _explain_disk_full(self) -> Iterator[None]:
        """Turn the system's error about a full disk into a DiskFullError that names the disk and the missing bytes."""
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            rest = sum(bucket.bytes for bucket in self._state.buckets) or self._state.bytes
            if error.filename == STDIN:
                raise disk_full_error("standard output", rest, shutil.disk_usage(1).free, "output") from error
            folder = self._journal.folder
            place = Path(error.filename or folder).absolute().parent
            inside = error.filename is None or place == folder.absolute()
            what, place = ("temporary files", folder.parent) if inside else ("output", place)
            raise disk_full_error(place, rest, shutil.disk_usage(place).free, what) from error


def _first_state(options: ShuffleOptions, plan: ShufflePlan, seed: int | None) -> State:
    """Return the state before the first pass; `seed`: that of the runs before, of aligned files."""
    if options.seed is not None:
        seed = int(options.seed)
    state = State(secrets.randbits(64) if seed is None else seed, buckets_made=plan.buckets)
    state.buckets = [Bucket(i, lo, hi) for i, (lo, hi) in enumerate(KeyRange(0, SPACE, plan.buckets))]
    if plan.passes == 1:
        state.buckets[0].frames = []
    return state


def _has_files(names: OutputNames, state: State) -> bool:
    """Return whether the output files that a state names are there: unfinished, or at the end under their own names."""
    if state.phase == "publish":
        return all(names.partial(i).exists() or names.final(i).exists() for i in range(state.files))
    if state.output is None:
        return True
    paths = [names.partial(i) for i in range(state.output["number"] + 1)]
    return all(path.is_file() for path in paths) and paths[-1].stat().st_size >= state.output["size"]


def _check_aligned(first: _Run, other: _Run) -> None:
    """Raise a DataError for aligned files of different lengths."""
    if other.records != first.records:
        raise DataError(
            f"it has {other.records:,} records, but {first.input} has {first.records:,}.",
            remedy="Aligned files must have the same number of lines.",
            path=other.input,
        )
