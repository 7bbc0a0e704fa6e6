"""Continuous batching: texts of all waiting requests share the next forward pass of the encoder."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kexue.errors import KexueError

if TYPE_CHECKING:
    from kexue.text import Encoder

_LOG = logging.getLogger("kexue.serve")
_LOOKAHEAD = 4  # a pass is chosen among sequences of this many budgets of tokens
# Least length in a pass, as a share of its longest sequence; where one text in ten is long, throughput grows by half.
_LEAST_SHARE = 0.6
_DECAY = 0.9  # weight of a pass in the measured rate after each later pass


class QueueFullError(KexueError):
    """The queue of waiting sequences is full.

    Attributes:
        retry_after: estimated seconds until they are done.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue of texts is full.", remedy=f"Try again in {retry_after:.1f} seconds.")
        self.retry_after = retry_after


class ServerStoppingError(KexueError):
    """The server is stopping and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is stopping and takes no new work.")


class ForwardPassError(KexueError):
    """The forward pass of a request raised the exception ``__cause__``."""


class EncodingResult(NamedTuple):
    """Encoded sequences of a request.

    Attributes:
        vectors: (n, dim) float32, not normalised.
        queue_seconds: time the request waited.
        inference_seconds: time of its forward passes.
    """

    vectors: np.ndarray
    queue_seconds: float
    inference_seconds: float


class _Request:
    """Sequences of one call of `submit`.

    Attributes:
        sequences: n arrays of token ids.
        waiting: places of the sequences that are not yet in a pass, longest last.
        vectors: (n, dim), filled pass by pass.
        missing: number of sequences that are not yet computed.
        arrival: time of the call.
        end: end of the last forward pass so far.
        inference_seconds: time of the forward passes so far.
        done: set once all vectors are there.
    """

    def __init__(self, sequences: Sequence[np.ndarray], dim: int) -> None:
        self.sequences = sequences
        self.waiting = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        self.vectors = np.empty((len(sequences), dim), dtype=np.float32)
        self.missing = len(sequences)
        self.arrival = self.end = time.perf_counter()
        self.inference_seconds = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def choose_pass(lengths: np.ndarray, anchor: int, budget: int) -> slice:
    """Choose the sequences of the next forward pass: the neighbours of one of them that fill it best.

    Of all slices of `lengths` that contain `anchor`, keep to ``rows * longest <= budget`` (or are one row) and have no
    sequence shorter than 0.6 of the longest, it is the one with most tokens, padding not counted.

    Args:
        lengths: (n,) tokens of each sequence, longest first.
        anchor: place in `lengths` that the slice must contain.
        budget: limit of tokens of the pass, padding included.

    Cost: O(n log n).
    """
    starts = np.arange(anchor + 1)
    longest = lengths[: anchor + 1]
    similar = np.searchsorted(-lengths, -_LEAST_SHARE * longest, side="right")
    stops = np.minimum(starts + np.maximum(1, budget // longest), similar)
    total = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.where(stops > anchor, total[stops] - total[starts], -1)
    best = int(tokens.argmax())
    return slice(best, int(stops[best]))


class Batcher:
    """Encodes the sequences of many concurrent requests in shared forward passes.

    A pass is formed as soon as the encoder is free, from the sequences that wait then; nothing waits for a pass to
    fill up. Requests are in a ring. A pass looks at their sequences in rounds, one sequence of each request per round,
    until it has seen four budgets of tokens. It takes those of similar length to the longest waiting sequence of the
    first request in the ring, which then moves to the end.

    Bound on waiting: if r requests are ahead of a request, at least one of its sequences is in one of the next r + 1
    passes, whatever the number and length of the others. So a request of one sequence waits for the running pass and
    at most r more; a request of n sequences among R others is done within n (R + 1) passes.

    One thread runs the encoder; everything else runs in the event loop that called `start`.

    Args:
        encoder: the encoder; other code may use it at the same time.
        max_batch_tokens: limit of tokens of a pass, padding included, at least 1; never more than
            `Encoder.pass_tokens`. A longer sequence is a pass by itself.
        max_queue: number of waiting sequences at which new requests are refused, at least 1.

    Attributes:
        observe: called after each pass as ``observe(sequences, tokens, queue_seconds, inference_seconds)``: tokens
            with padding, and the longest time that one of its requests has waited. None = no call.
        queue_size: number of waiting sequences, without those in the running pass.
    """

    def __init__(self, encoder: Encoder, *, max_batch_tokens: int = 16384, max_queue: int = 1024) -> None:
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_queue", max_queue)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.observe: Callable[[int, int, float, float], None] | None = None
        self.queue_size = 0
        self._encoder = encoder
        self._budget = min(max_batch_tokens, encoder.pass_tokens)
        self._max_queue = max_queue
        self._ring: deque[_Request] = deque()
        self._wake = asyncio.Event()
        self._draining = False
        self._worker: asyncio.Task[None] | None = None
        self._rate = (0.0, 0.0)  # sequences and seconds of past passes, with weights that decay

    async def start(self) -> None:
        """Start the worker; requests that were submitted before are served now."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._run_passes())

    async def drain(self) -> None:
        """Refuse new requests, finish those that wait, and stop the thread."""
        self._draining = True
        self._wake.set()
        await self.start()
        if self._worker is not None:
            await asyncio.shield(self._worker)  # cancelling `drain` must not cancel the worker

    async def submit(self, sequences: Sequence[np.ndarray]) -> EncodingResult:
        """Encode token ids, special tokens included, in their order; see `Encoder.tokenize`.

        When the awaiting task is cancelled, sequences that are not yet computed are dropped.

        Args:
            sequences: n arrays (t,) of whole numbers; n may exceed `max_queue` while fewer than that wait.

        Raises:
            QueueFullError: `max_queue` sequences wait already.
            ServerStoppingError: `drain` was called.
            ValueError: the encoder cannot read the sequences (`Encoder.check_ids`); no other request is affected.
            ForwardPassError: the encoder raised on a pass with sequences of this request.
        """
        if self._draining:
            raise ServerStoppingError
        if self.queue_size >= self._max_queue:
            raise QueueFullError(self._retry_after())
        request = _Request(self._encoder.check_ids(sequences), self._encoder.dim)
        if request.missing:
            self._ring.append(request)
            self.queue_size += request.missing
            self._wake.set()
            try:
                await request.done
            finally:
                self._forget(request)
        waited = request.end - request.arrival - request.inference_seconds
        return EncodingResult(request.vectors, max(0.0, waited), request.inference_seconds)

    def _forget(self, request: _Request) -> None:
        """Drop the waiting sequences of a request."""
        self.queue_size -= len(request.waiting)
        request.waiting.clear()

    def _retry_after(self) -> float:
        """Return the seconds that the waiting sequences will take at the measured rate; 1 before the first pass."""
        sequences, seconds = self._rate
        return self.queue_size * seconds / sequences if sequences else 1.0

    # The worker

    async def _run_passes(self) -> None:
        """Run passes until `drain` was called and nothing waits."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="kexue-encoder") as thread:
            while True:
                chosen = self._choose()
                if chosen:
                    await self._compute(chosen, loop, thread)
                elif self._draining:
                    return
                else:
                    self._wake.clear()
                    await self._wake.wait()

    def _choose(self) -> list[tuple[_Request, int]]:
        """Take the sequences of the next pass from the ring, each as request and place."""
        self._ring = deque(request for request in self._ring if request.waiting)
        window = list(self._rounds())
        if not window:
            return []
        order = sorted(range(len(window)), key=lambda j: -window[j][0])
        lengths = np.array([window[j][0] for j in order])
        chosen = [window[j][1:] for j in order[choose_pass(lengths, order.index(0), self._budget)]]
        taken: dict[_Request, set[int]] = {}
        for request, place in chosen:
            taken.setdefault(request, set()).add(place)
        for request, places in taken.items():  # the window holds only the last of `waiting`
            seen = slice(-len(window), None)
            request.waiting[seen] = [place for place in request.waiting[seen] if place not in places]
        self.queue_size -= len(chosen)
        self._ring.rotate(-1)
        return chosen

    def _rounds(self) -> Iterator[tuple[int, _Request, int]]:
        """Yield length, request and place of waiting sequences: the longest of each request, then the second, ..."""
        active, depth, tokens = list(self._ring), 0, 0
        while active:
            depth += 1
            for request in active:
                if tokens >= _LOOKAHEAD * self._budget:
                    return
                place = request.waiting[-depth]
                length = len(request.sequences[place])
                tokens += length
                yield length, request, place
            active = [request for request in active if len(request.waiting) > depth]

    async def _compute(
        self, chosen: list[tuple[_Request, int]], loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor
    ) -> None:
        """Run one pass in the thread, and hand vectors or the failure to its requests."""
        sequences = [request.sequences[place] for request, place in chosen]
        requests = dict.fromkeys(request for request, _ in chosen)
        start = time.perf_counter()
        try:
            vectors = await loop.run_in_executor(thread, self._encode, sequences)
        except Exception as error:
            _LOG.exception("a pass of %d sequences failed.", len(chosen))
            for request in requests:
                if not request.done.done():
                    failure = ForwardPassError(f"the model failed on this input: {type(error).__name__}.")
                    failure.__cause__ = error
                    request.done.set_exception(failure)
                self._forget(request)
            return
        end = time.perf_counter()
        seconds = end - start
        for (request, place), vector in zip(chosen, vectors, strict=True):
            request.vectors[place] = vector
            request.missing -= 1
        for request in requests:
            request.inference_seconds += seconds
            request.end = end
            if not request.missing and not request.done.done():
                request.done.set_result(None)
        rows = len(chosen)
        self._rate = (_DECAY * self._rate[0] + rows, _DECAY * self._rate[1] + seconds)
        if self.observe is not None:
            waited = start - min(request.arrival for request in requests)
            loop.call_soon(self.observe, rows, rows * max(map(len, sequences)), waited, seconds)

    def _encode(self, sequences: list[np.ndarray]) -> np.ndarray:
        return self._encoder.encode_ids(sequences, normalize=False)
