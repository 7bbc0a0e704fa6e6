"""Shuffle of inputs to one output: two passes, with a journal, verification, and errors about full disks."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from kexue._files import is_disk_full
from kexue.corpus.open import STDIN
from kexue.corpus.shuffle.buckets import Bucket
from kexue.corpus.shuffle.gather import Gatherer
from kexue.corpus.shuffle.journal import Journal, State
from kexue.corpus.shuffle.keys import SPACE, KeyRange
from kexue.corpus.shuffle.options import ShuffleOptions
from kexue.corpus.shuffle.output import OutputNames, OutputWriter
from kexue.corpus.shuffle.plan import Budget, ShufflePlan, check_disk, disk_full_error
from kexue.corpus.shuffle.reader import RecordFormat
from kexue.corpus.shuffle.scatter import Scatterer
from kexue.corpus.shuffle.sorting import memory_pool
from kexue.corpus.shuffle.verify import check_digest
from kexue.errors import DiskFullError, KexueError


class Job:
    """The shuffle of inputs to one output.

    Args:
        options: options of the shuffle; not aligned.
        budget: shares of the memory.
        plan: number of buckets and passes.
        advance: called with the bytes of each step.
        seed: seed of the jobs before this one, of aligned files; None: this is the first.

    Attributes:
        digest: digest of the lines of the output.
        bytes_written: size of the records of the output.
    """

    def __init__(
        self,
        options: ShuffleOptions,
        budget: Budget,
        plan: ShufflePlan,
        advance: Callable[[int], None],
        seed: int | None,
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
            memory_pool().release_unused()
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

    def stop_after_error(self, error: BaseException) -> None:
        """Keep what can be resumed after an error, and remove everything else."""
        if self._writer is not None:
            self._writer.close_unfinished()
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
    """Return the state before the first pass; `seed`: that of the jobs before, of aligned files."""
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
