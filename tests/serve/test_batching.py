"""The batcher with an encoder that records its passes, and with a real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from kexue.serve import batching
from kexue.serve.batching import (
    Batcher,
    EncodingResult,
    ForwardPassError,
    QueueFullError,
    ServerStoppingError,
    choose_pass,
)

T = TypeVar("T")
BAD = 666


class Recorder:
    """An encoder whose vector is (sum of the ids, number of ids); BAD as first id makes the pass fail."""

    dim = 2

    def __init__(self, *, pass_tokens: int = 2048) -> None:
        self.pass_tokens = pass_tokens
        self.passes: list[list[np.ndarray]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def check_ids(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        for ids in sequences:
            if len(ids) == 0:
                raise ValueError("empty")
        return list(sequences)

    def encode_ids(self, sequences: list[np.ndarray], *, normalize: bool | None = None) -> np.ndarray:
        assert normalize is False
        self.threads.add(threading.get_ident())
        self.passes.append(sequences)
        assert self.gate.wait(10)
        if any(ids[0] == BAD for ids in sequences):
            raise RuntimeError("no such id")
        return expected(sequences)

    def first_pass_with(self, first_id: int) -> int:
        return next(i for i, rows in enumerate(self.passes) if any(ids[0] == first_id for ids in rows))


class TimedRecorder(Recorder):
    """A recorder whose passes take 20 ms of the clock."""

    def __init__(self, clock: Any, *, pass_tokens: int = 2048) -> None:
        super().__init__(pass_tokens=pass_tokens)
        self.clock = clock

    def encode_ids(self, sequences: list[np.ndarray], *, normalize: bool | None = None) -> np.ndarray:
        vectors = super().encode_ids(sequences, normalize=normalize)
        self.clock.now += 0.02
        return vectors


@pytest.fixture
def clock(fake_clock: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The clock of the batcher."""
    monkeypatch.setattr(batching, "time", fake_clock)
    return fake_clock


def expected(sequences: list[np.ndarray]) -> np.ndarray:
    return np.array([[ids.sum(), len(ids)] for ids in sequences], dtype=np.float32).reshape(-1, 2)


def ids(first: int, length: int = 10) -> np.ndarray:
    return np.array([first, *range(1, length)], dtype=np.int32)


def of_lengths(*lengths: int, first: int = 7) -> list[np.ndarray]:
    return [ids(first, length) for length in lengths]


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, 30))


async def blocked(encoder: Recorder, batcher: Batcher) -> asyncio.Task[EncodingResult]:
    """Start, and keep the worker in a first pass until the encoder's gate opens."""
    encoder.gate.clear()
    await batcher.start()
    before = len(encoder.passes)
    first = asyncio.create_task(batcher.submit([ids(0)]))
    while len(encoder.passes) == before:
        await asyncio.sleep(0.001)
    return first


async def submitted(batcher: Batcher, *requests: list[np.ndarray]) -> list[asyncio.Task[EncodingResult]]:
    tasks = [asyncio.create_task(batcher.submit(sequences)) for sequences in requests]
    await asyncio.sleep(0)
    return tasks


# -- one pass ----------------------------------------------------------------------------------------------------------


def test_the_fullest_run_around_an_anchor_against_all_runs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths = np.sort(rng.integers(1, 60, size=rng.integers(1, 25)))[::-1]
        anchor, budget = int(rng.integers(len(lengths))), int(rng.integers(10, 300))
        runs = [
            (int(lengths[a:b].sum()), a, b)
            for a in range(anchor + 1)
            for b in range(anchor + 1, len(lengths) + 1)
            if b - a == 1 or ((b - a) * lengths[a] <= budget and lengths[b - 1] >= 0.6 * lengths[a])
        ]
        found = choose_pass(lengths, anchor, budget)
        assert found.start <= anchor < found.stop
        assert (int(lengths[found].sum()), found.start, found.stop) in runs
        assert int(lengths[found].sum()) == max(runs)[0]


def test_passes_keep_the_budget_and_waste_little() -> None:
    encoder = Recorder(pass_tokens=300)
    rng = np.random.default_rng(0)
    requests = [of_lengths(*rng.integers(3, 120, size=40)) for _ in range(8)] + [of_lengths(500)]

    async def main() -> None:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        tasks = await submitted(batcher, *requests)
        await batcher.start()
        await asyncio.gather(*tasks)
        await batcher.drain()

    run(main())
    sizes = [[len(row) for row in rows] for rows in encoder.passes]
    for lengths in sizes:
        assert len(lengths) * max(lengths) <= 300 or len(lengths) == 1
        assert min(lengths) >= 0.6 * max(lengths)
    assert sorted(length for lengths in sizes for length in lengths) == sorted(
        len(row) for request in requests for row in request
    )
    padding = sum(len(lengths) * max(lengths) for lengths in sizes) / sum(map(sum, sizes)) - 1
    assert padding < 0.15  # 0.7 in the order of arrival


@pytest.mark.parametrize(("own", "asked", "rows"), [(100, 16384, 10), (2048, 50, 5)])
def test_the_smaller_of_the_two_budgets_counts(own: int, asked: int, rows: int) -> None:
    encoder = Recorder(pass_tokens=own)

    async def main() -> None:
        batcher = Batcher(encoder, max_batch_tokens=asked)  # type: ignore[arg-type]
        await batcher.start()
        await batcher.submit(of_lengths(*[10] * 20))
        await batcher.drain()

    run(main())
    assert [len(group) for group in encoder.passes] == [rows] * (20 // rows)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_each_request_gets_its_own_vectors_in_order_from_shared_passes() -> None:
    encoder = Recorder()
    rng = np.random.default_rng(0)
    requests = [
        [ids(int(rng.integers(600)), int(rng.integers(1, 90))) for _ in range(rng.integers(0, 60))] for _ in range(30)
    ]
    requests.insert(3, [])

    async def main() -> list[EncodingResult]:
        batcher = Batcher(encoder, max_queue=10_000)  # type: ignore[arg-type]
        await batcher.start()
        results = await asyncio.gather(*map(batcher.submit, requests))
        assert batcher.queue_size == 0
        await batcher.drain()
        return results

    for request, result in zip(requests, run(main()), strict=True):
        assert result.vectors.dtype == np.float32
        np.testing.assert_array_equal(result.vectors, expected(request))
    assert len(encoder.passes) < sum(map(len, requests)) / 10
    assert len(encoder.threads) == 1
    assert threading.get_ident() not in encoder.threads


def test_times_and_what_observers_hear(clock: Any) -> None:
    encoder = TimedRecorder(clock)
    heard: list[tuple[int, int, float, float]] = []

    async def main() -> list[EncodingResult]:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        batcher.observe = lambda *values: heard.append(values)
        first = await blocked(encoder, batcher)
        second = (await submitted(batcher, of_lengths(8, 10, 9)))[0]
        clock.now += 0.2
        encoder.gate.set()
        results = [await first, await second]
        await batcher.drain()
        return results

    first, second = run(main())
    assert [values[:2] for values in heard] == [(1, 10), (3, 30)]  # 27 tokens and 3 of padding
    assert first.inference_seconds == pytest.approx(0.22)
    assert first.queue_seconds == pytest.approx(0, abs=1e-9)
    assert second.inference_seconds == pytest.approx(0.02)
    assert second.queue_seconds == pytest.approx(0.22)
    assert heard[1][2:] == pytest.approx((0.22, 0.02))


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_one_input_does_not_wait_for_two_thousand() -> None:
    encoder = Recorder(pass_tokens=200)

    async def main() -> None:
        batcher = Batcher(encoder, max_queue=5000)  # type: ignore[arg-type]
        first = await blocked(encoder, batcher)
        tasks = await submitted(batcher, of_lengths(*[20] * 2048), [ids(5, 3)], [ids(6, 190)])
        assert batcher.queue_size == 2050
        encoder.gate.set()
        await asyncio.gather(first, *tasks)
        await batcher.drain()

    run(main())
    assert encoder.first_pass_with(5) <= 2  # after the running pass and one of the long request
    assert encoder.first_pass_with(6) <= 3
    assert len(encoder.passes) > 200


@pytest.mark.parametrize("length", [2, 30, 199, 400])
def test_the_bound_on_waiting_while_others_keep_coming(length: int) -> None:
    encoder = Recorder(pass_tokens=200)
    ahead = 12
    rng = np.random.default_rng(length)

    async def main() -> None:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        first = await blocked(encoder, batcher)
        waiting = await submitted(batcher, *(of_lengths(*rng.integers(5, 90, size=9)) for _ in range(ahead)))
        mine = (await submitted(batcher, [ids(5, length)]))[0]

        async def flood() -> None:
            while not mine.done():
                await batcher.submit(of_lengths(*rng.integers(5, 90, size=9)))

        floods = [asyncio.create_task(flood()) for _ in range(20)]
        encoder.gate.set()
        await asyncio.gather(first, *waiting, mine, *floods)
        await batcher.drain()

    run(main())
    assert encoder.first_pass_with(5) <= 1 + ahead  # pass 0 was running; `ahead` before it at most


def test_two_requests_of_many_inputs_share_the_passes_evenly() -> None:
    encoder = Recorder(pass_tokens=100)

    async def main() -> None:
        batcher = Batcher(encoder, max_queue=5000)  # type: ignore[arg-type]
        tasks = await submitted(batcher, of_lengths(*[10] * 500, first=1), of_lengths(*[10] * 100, first=2))
        await batcher.start()
        await asyncio.gather(*tasks)
        await batcher.drain()

    run(main())
    done = 1 + max(i for i, rows in enumerate(encoder.passes) if any(row[0] == 2 for row in rows))
    assert done <= 2 * 10 + 1  # ten passes were enough for it alone


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_cancelled_request_costs_nothing_further() -> None:
    encoder = Recorder(pass_tokens=100)

    async def main() -> None:
        batcher = Batcher(encoder, max_queue=5000)  # type: ignore[arg-type]
        first = await blocked(encoder, batcher)
        gone, other = await submitted(batcher, of_lengths(*[10] * 1000, first=1), [ids(2)])
        encoder.gate.set()
        while len(encoder.passes) < 4:
            await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.queue_size == 0
        passes = len(encoder.passes)
        await asyncio.gather(first, other)
        await batcher.drain()
        assert len(encoder.passes) == passes

    run(main())
    assert sum(map(len, encoder.passes)) < 500


def test_a_request_cancelled_while_it_is_computed_disturbs_nobody() -> None:
    encoder = Recorder()

    async def main() -> None:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        first = await blocked(encoder, batcher)
        first.cancel()
        second = (await submitted(batcher, [ids(3)]))[0]
        encoder.gate.set()
        np.testing.assert_array_equal((await second).vectors, expected([ids(3)]))
        await batcher.drain()
        assert first.cancelled()

    run(main())


def test_a_full_queue_refuses_and_tells_when_to_come_back(clock: Any) -> None:
    encoder = TimedRecorder(clock, pass_tokens=100)

    async def main() -> None:
        batcher = Batcher(encoder, max_queue=50)  # type: ignore[arg-type]
        await batcher.start()
        await batcher.submit(of_lengths(*[10] * 100))  # more than the queue holds, and it was empty; 500 a second
        first = await blocked(encoder, batcher)
        tasks = await submitted(batcher, of_lengths(*[10] * 49))
        tasks += await submitted(batcher, of_lengths(*[10] * 151))  # 49 waited, fewer than 50
        assert batcher.queue_size == 200
        with pytest.raises(QueueFullError, match="Try again in") as caught:
            await batcher.submit([ids(1)])
        assert caught.value.retry_after == pytest.approx(0.4)  # 200 wait, ten in 20 ms
        encoder.gate.set()
        await asyncio.gather(first, *tasks)
        await batcher.submit([ids(1)])  # there is room again
        await batcher.drain()

    run(main())


def test_before_anything_was_measured_come_back_in_a_second() -> None:
    async def main() -> None:
        batcher = Batcher(Recorder(), max_queue=1)  # type: ignore[arg-type]
        tasks = await submitted(batcher, [ids(1)])
        with pytest.raises(QueueFullError) as caught:
            await batcher.submit([ids(2)])
        assert caught.value.retry_after == 1.0
        await batcher.drain()
        assert tasks[0].done()

    run(main())


def test_draining_finishes_what_waits_and_takes_no_more() -> None:
    encoder = Recorder(pass_tokens=100)

    async def main() -> None:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        first = await blocked(encoder, batcher)
        tasks = await submitted(batcher, of_lengths(*[10] * 60), [ids(3)])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batcher.drain(), 0.01)  # giving up on the end loses no work
        with pytest.raises(ServerStoppingError):
            await batcher.submit([ids(4)])
        encoder.gate.set()
        await batcher.drain()
        await batcher.drain()  # twice is as good as once
        assert all(task.done() for task in (first, *tasks))
        np.testing.assert_array_equal((await tasks[0]).vectors, expected(of_lengths(*[10] * 60)))

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kexue-encoder")]


def test_a_failing_pass_fails_its_requests_alone(caplog: pytest.LogCaptureFixture) -> None:
    encoder = Recorder(pass_tokens=100)

    async def main() -> None:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        first = await blocked(encoder, batcher)
        tasks = await submitted(batcher, [*of_lengths(*[40] * 7), ids(BAD, 50)], of_lengths(*[10] * 30), of_lengths(5))
        encoder.gate.set()
        bad, good, small = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, ForwardPassError)
        assert isinstance(bad.__cause__, RuntimeError)
        assert str(bad) == "the model failed on this input: RuntimeError."
        assert isinstance(good, EncodingResult)
        assert isinstance(small, EncodingResult)
        np.testing.assert_array_equal(good.vectors, expected(of_lengths(*[10] * 30)))
        assert batcher.queue_size == 0  # the rest of the failed request was dropped
        await first
        assert (await batcher.submit([ids(3)])).vectors.shape == (1, 2)  # and the worker goes on
        await batcher.drain()

    run(main())
    assert sum(len(row) == 40 for rows in encoder.passes for row in rows) < 7
    assert "a pass of 2 sequences failed" in caplog.text
    assert "no such id" in caplog.text


def test_what_the_encoder_cannot_read_is_refused_on_arrival() -> None:
    encoder = Recorder()

    async def main() -> None:
        batcher = Batcher(encoder)  # type: ignore[arg-type]
        await batcher.start()
        with pytest.raises(ValueError, match="empty"):
            await batcher.submit([ids(1), np.array([], dtype=np.int32)])
        assert batcher.queue_size == 0
        await batcher.drain()

    run(main())
    assert encoder.passes == []


@pytest.mark.parametrize("option", ["max_batch_tokens", "max_queue"])
def test_limits_are_positive(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        Batcher(Recorder(), **{option: 0})  # type: ignore[arg-type]


# -- the real encoder --------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_encoder_whatever_the_company(tiny_model: Path) -> None:
    from kexue.text import Encoder

    encoder = Encoder(tiny_model, dtype="float32", device="cpu", batch_tokens=256)
    rng = np.random.default_rng(0)
    words = ["the", "dog", "eats", "a", "small", "red", "ball", "by", "house", "and", "sleeps"]
    requests = [[" ".join(rng.choice(words, size=rng.integers(0, 50))) for _ in range(n)] for n in (1, 1, 20, 1, 7, 64)]

    async def main() -> list[EncodingResult]:
        batcher = Batcher(encoder)
        await batcher.start()
        with pytest.raises(ValueError, match=r"sequences\[0\] holds the token id -1"):
            await batcher.submit([np.array([-1])])
        results = await asyncio.gather(*(batcher.submit(encoder.tokenize(texts)) for texts in requests))
        await batcher.drain()
        return results

    for texts, result in zip(requests, run(main()), strict=True):
        alone = np.concatenate([encoder.encode(text, normalize=False) for text in texts])
        np.testing.assert_allclose(result.vectors, alone, rtol=0, atol=1e-6)
        together = encoder.encode_ids(encoder.tokenize(texts), normalize=False)
        np.testing.assert_allclose(result.vectors, together, rtol=0, atol=1e-6)
