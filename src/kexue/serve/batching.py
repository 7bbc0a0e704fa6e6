"""Continuous batching: whatever waits when the encoder is free shares its next forward pass."""

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
_LOOKAHEAD = 4  # budgets' worth of waiting sequences that a pass is chosen from
_LEAST_SHARE = 0.6  # of the longest; where one text in ten is long, half more gets done than without
_MEMORY = 0.9  # what a pass counts in the measured rate once another has followed


class Overloaded(KexueError):  # noqa: N818 - a state, not a mistake  # noqa: N818 - the contract's name
    """Too many sequences wait already; in `retry_after` seconds those will be done."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many texts wait already.", remedy=f"Try again in {retry_after:.1f} seconds.")
        self.retry_after = retry_after


class Draining(KexueError):  # noqa: N818  # noqa: N818 - the contract's name
    """The server stops and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is stopping and takes no new work.")


class PassFailed(KexueError):  # noqa: N818  # noqa: N818 - as the two above
    """The forward pass of a request raised; ``__cause__`` is what."""


class Encoded(NamedTuple):
    """Vectors (n, dim) float32, not normalised, and how long the request waited and was computed, in seconds."""

    vectors: np.ndarray
    queue_seconds: float
    inference_seconds: float


class _Request:
    """Sequences of one `submit`; `waiting` holds the places of those not yet computed, longest last."""

    def __init__(self, sequences: Sequence[np.ndarray], dim: int) -> None:
        self.sequences = sequences
        self.waiting = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        self.vectors = np.empty((len(sequences), dim), dtype=np.float32)
        self.missing = len(sequences)
        self.arrival = time.perf_counter()
        self.inference_seconds = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def choose_pass(lengths: np.ndarray, anchor: int, budget: int) -> slice:
    """Choose the run of sequences that makes the fullest pass around one of them.

    Of all runs that hold `anchor`, stay within ``rows * longest <= budget`` (or are one row) and have no sequence
    shorter than 0.6 of the longest: the one with most tokens, padding not counted.

    Args:
        lengths: (n,) tokens of each sequence, longest first.
        anchor: place in `lengths` that the run must hold.
        budget: most tokens of the pass, padding included.

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
    """Front of an encoder for many requests at a time: their sequences share forward passes.

    A pass is formed whenever the encoder is free, from whatever waits; nothing waits for company. Requests stand in a
    ring. A pass looks at their sequences in rounds, one of each request a round, until it has seen a few passes'
    worth; then takes those that are similar in length to the longest waiting sequence of the request at the head of
    the ring, which goes to the end.

    Bound on waiting: of a request with r others ahead of it, at least one sequence is in one of the next r + 1 passes
    to be formed, however many and however long the others are. So a request of one sequence, short or long, waits
    for the running pass and r more at most; one of n sequences is done within n (R + 1) passes, R others around.

    One thread runs the encoder; all else happens in the event loop that called `start`.

    Args:
        encoder: may be used elsewhere at the same time.
        max_batch_tokens: most tokens of a pass, padding included; never more than `Encoder.pass_tokens`. A longer
            sequence is a pass of its own.
        max_queue: sequences waiting from which on requests are refused.

    Attributes:
        observe: called after each pass as ``observe(sequences, tokens, queue_seconds, inference_seconds)``: tokens
            with padding, and the longest that one of its requests had then been waiting. None = nobody is told.
    """

    def __init__(self, encoder: Encoder, *, max_batch_tokens: int = 16384, max_queue: int = 1024) -> None:
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_queue", max_queue)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.observe: Callable[[int, int, float, float], None] | None = None
        self.queue_size = 0  # sequences waiting, those in the running pass not counted
        self._encoder = encoder
        self._budget = min(max_batch_tokens, encoder.pass_tokens)
        self._max_queue = max_queue
        self._ring: deque[_Request] = deque()
        self._news = asyncio.Event()
        self._draining = False
        self._worker: asyncio.Task[None] | None = None
        self._rate = (0.0, 0.0)  # sequences and seconds of the last passes, the older the less

    async def start(self) -> None:
        """Begin to work; requests submitted before are kept for this moment."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def drain(self) -> None:
        """Refuse new work, finish what waits, stop the thread."""
        self._draining = True
        self._news.set()
        await self.start()
        if self._worker is not None:
            await asyncio.shield(self._worker)  # who gives up waiting for the end does not bring it about

    async def submit(self, sequences: Sequence[np.ndarray]) -> Encoded:
        """Encode token ids, special tokens included, in their order; see `Encoder.tokenize`.

        When the awaiting task is cancelled, what is not yet computed is dropped.

        Args:
            sequences: n arrays (t,) of whole numbers; more than `max_queue` are taken, if fewer than that wait.

        Raises:
            Overloaded: `max_queue` sequences wait already. Draining: `drain` has begun.
            ValueError: sequences the encoder cannot read (`Encoder.check_ids`); they never meet those of others.
            PassFailed: the encoder raised on a pass with sequences of this request.
        """
        if self._draining:
            raise Draining
        if self.queue_size >= self._max_queue:
            raise Overloaded(self._retry_after())
        request = _Request(self._encoder.check_ids(sequences), self._encoder.dim)
        if request.missing:
            self._ring.append(request)
            self.queue_size += request.missing
            self._news.set()
            try:
                await request.done
            finally:
                self._forget(request)
        waited = time.perf_counter() - request.arrival - request.inference_seconds
        return Encoded(request.vectors, max(0.0, waited), request.inference_seconds)

    def _forget(self, request: _Request) -> None:
        self.queue_size -= len(request.waiting)
        request.waiting.clear()

    def _retry_after(self) -> float:
        """Seconds in which what waits will be done at the measured rate; 1 where nothing has been measured."""
        sequences, seconds = self._rate
        return self.queue_size * seconds / sequences if sequences else 1.0

    # -- from here on: the worker ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="kexue-encoder") as thread:
            while True:
                chosen = self._choose()
                if chosen:
                    await self._compute(chosen, loop, thread)
                elif self._draining:
                    return
                else:
                    self._news.clear()
                    await self._news.wait()

    def _choose(self) -> list[tuple[_Request, int]]:
        """Take the sequences of the next pass from the ring: request and place in it."""
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
        for request, places in taken.items():  # all of them among the last that the window has seen
            seen = slice(-len(window), None)
            request.waiting[seen] = [place for place in request.waiting[seen] if place not in places]
        self.queue_size -= len(chosen)
        self._ring.rotate(-1)
        return chosen

    def _rounds(self) -> Iterator[tuple[int, _Request, int]]:
        """Yield length, request and place of what waits, the longest of each request, then the second of each, ..."""
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
        sequences = [request.sequences[place] for request, place in chosen]
        requests = dict.fromkeys(request for request, _ in chosen)
        start = time.perf_counter()
        try:
            vectors = await loop.run_in_executor(thread, self._encode, sequences)
        except Exception as error:
            _LOG.exception("a pass of %d sequences failed.", len(chosen))
            for request in requests:
                if not request.done.done():
                    failure = PassFailed(f"the model failed on this input: {type(error).__name__}.")
                    failure.__cause__ = error
                    request.done.set_exception(failure)
                self._forget(request)
            return
        seconds = time.perf_counter() - start
        for (request, place), vector in zip(chosen, vectors, strict=True):
            request.vectors[place] = vector
            request.missing -= 1
        for request in requests:
            request.inference_seconds += seconds
            if not request.missing and not request.done.done():
                request.done.set_result(None)
        rows = len(chosen)
        self._rate = (_MEMORY * self._rate[0] + rows, _MEMORY * self._rate[1] + seconds)
        if self.observe is not None:
            waited = start - min(request.arrival for request in requests)
            loop.call_soon(self.observe, rows, rows * max(map(len, sequences)), waited, seconds)

    def _encode(self, sequences: list[np.ndarray]) -> np.ndarray:
        return self._encoder.encode_ids(sequences, normalize=False)
