"""First pass: write every record to the bucket of its key."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.corpus.shuffle.buckets import OVERSIZED, REFERENCE, BucketWriter, Frame, open_oversized, split_chunk
from kexue.corpus.shuffle.digest import Digest
from kexue.corpus.shuffle.journal import Journal, State
from kexue.corpus.shuffle.keys import ALGORITHMS, KeyRange
from kexue.corpus.shuffle.lines import hash_lines
from kexue.corpus.shuffle.options import ShuffleOptions
from kexue.corpus.shuffle.parallel import run_ordered
from kexue.corpus.shuffle.plan import Budget
from kexue.corpus.shuffle.reader import Chunk, Position, Reader

_COMMIT_EVERY = 0.1  # seconds of work that a killed run may lose
_BINS = 16  # leading bits of a key by which a sample is bounded
_OVERSIZED_LENGTH = np.array([OVERSIZED], np.uint32)


class _Split(NamedTuple):
    """A chunk with its frames by bucket and the hashes of its lines; an oversized record's hashes are None."""

    chunk: Chunk
    frames: list[tuple[int, Frame]]
    hashes: Array | None


class Scatterer:
    """The first pass of one shuffle.

    Args:
        options: options of the shuffle.
        journal: holder of the folder of the buckets; the state is committed to it, if `resumable`.
        state: where the pass stands, kept up to date.
        budget: shares of the memory.
        advance: called with the bytes of each chunk once it is in the buckets.
        resumable: whether the state is committed after each chunk.
    """

    def __init__(
        self,
        options: ShuffleOptions,
        journal: Journal,
        state: State,
        budget: Budget,
        advance: Callable[[int], None],
        *,
        resumable: bool,
    ) -> None:
        self._journal, self._state, self._budget = journal, state, budget
        self._advance, self._resumable = advance, resumable
        self._keys = ALGORITHMS[options.algorithm]
        self._ranges = KeyRange(0, state.buckets[-1].hi, len(state.buckets))
        self._bound = _SampleBound(options.sample)
        self._digest = Digest(state.digest)
        self._next_commit = 0.0
        self._oversized = open_oversized(journal.folder, state.giants)
        self._reader = Reader(
            options.inputs,
            options.form,
            Position(*state.position),
            cap=budget.chunk_records,
            oversized=self._oversized,
        )
        self._writer = BucketWriter(journal.folder, state.buckets)

    def run(self) -> None:
        """Read all records into the buckets."""
        chunks = self._reader.chunks(self._budget.chunk, self._budget.workers)
        try:
            run_ordered(self._split, chunks, self._write, self._budget.workers)
            self._state.header = self._state.header or self._reader.header.decode("latin-1")
            if self._resumable and self._journal.durable:
                self._synchronise()
        finally:
            self._reader.close()
            self._oversized.close()
            self._writer.close()

    def _split(self, chunk: Chunk) -> _Split:
        """Compute the keys of a chunk's records, split them by bucket and hash their lines."""
        # section "Two passes": scatter
        keys = self._keys(self._state.seed, chunk.first, chunk.first + chunk.records)
        if chunk.oversized:
            [bucket] = self._ranges.part(keys)
            return _Split(chunk, [(int(bucket), Frame(keys, _OVERSIZED_LENGTH, [], chunk.first, 1))], None)
        hashes = hash_lines(chunk.data, chunk.lines)
        keep = self._bound.keep(keys)
        return _Split(chunk, split_chunk(chunk.data, chunk.ends, keys, chunk.first, self._ranges, keep), hashes)

    def _write(self, split: _Split) -> None:
        """Append the frames of a chunk to their buckets, and bring the state up to date."""
        chunk, frames, hashes = split
        state = self._state
        if hashes is None:
            self._oversized.flush()
            [(bucket, frame)] = frames
            reference = np.frombuffer(REFERENCE.pack(state.giants, chunk.oversized), np.uint8)
            frames = [(bucket, frame._replace(data=[reference]))]
            state.giants += chunk.oversized
            self._digest.merge(chunk.digest)
        else:
            self._digest.add(hashes)
        for bucket, frame in frames:
            self._writer.write(bucket, frame)
        state.position, state.digest = chunk.position, str(self._digest)
        state.records += chunk.records
        state.bytes += chunk.bytes
        if chunk.first == 0:
            state.header = self._reader.header.decode("latin-1")
        if self._resumable and time.monotonic() > self._next_commit:
            durable = self._journal.sync_due
            if durable:
                self._synchronise()
            self._journal.commit(state, durable=durable)
            self._next_commit = time.monotonic() + _COMMIT_EVERY
        self._advance(chunk.bytes)

    def _synchronise(self) -> None:
        """Write buckets and oversized records through to the disk."""
        os.fsync(self._oversized.fileno())
        self._writer.synchronise()


class _SampleBound:
    """Upper bound on the keys that can be in a sample, from the keys seen so far.

    Args:
        sample: number of records with the least keys that are wanted; None: all.
    """

    def __init__(self, sample: int | None) -> None:
        self._sample = sample
        self._counts = np.zeros(1 << _BINS, np.int64)

    def keep(self, keys: Array) -> Array | None:
        """Return which records may be in the sample, (n,) bool; None: all."""
        if self._sample is None:
            return None
        bins = (keys >> np.uint64(64 - _BINS)).astype(np.int64)
        self._counts = self._counts + np.bincount(bins, minlength=1 << _BINS)
        enough = np.searchsorted(np.cumsum(self._counts), self._sample)
        return bins <= enough
