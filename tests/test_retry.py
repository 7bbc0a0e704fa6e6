"""The loop, its awaitable twin and the decorator, on a clock of their own."""

import asyncio
import itertools
import logging
import pickle

import pytest

from kexue.errors import RetryError
from kexue.retry import AsyncRetry, Retry, retry


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds):
        self.sleep(seconds)

    @property
    def both(self):
        return {"sleep": self.sleep, "clock": self.clock}


def run(failures, max_tries=5, *, error=OSError, **options):
    """Loop over a body that fails `failures` times; the attempt and its pauses."""
    time = Time()
    attempt = Retry(max_tries, on_error=options.pop("on_error", None), **time.both, **options)
    for turn in attempt:
        with turn:
            if turn.index < failures:
                raise error(f"failure {turn.index}")
    return attempt, time.slept


@pytest.mark.parametrize(("max_tries", "failures"), [*itertools.product(range(1, 6), range(7))])
def test_it_sleeps_between_tries_and_never_after_the_last(max_tries, failures):
    attempt, slept = run(failures, max_tries)
    assert attempt.tries == min(failures + 1, max_tries)
    assert slept == [2.0] * (attempt.tries - 1)
    assert attempt.allright == (failures < max_tries)
    assert [str(e) for e in attempt.exceptions] == [f"failure {i}" for i in range(min(failures, max_tries))]
    assert attempt.last_exception is (attempt.exceptions[-1] if failures else None)
    assert attempt.elapsed == sum(slept)


@pytest.mark.parametrize(
    ("options", "pauses"),
    [
        ({"delay": 1}, [1, 1, 1, 1, 1]),
        ({"delay": 1.0, "backoff": 2}, [1, 2, 4, 8, 16]),
        ({"delay": 1.0, "backoff": 2, "max_delay": 5}, [1, 2, 4, 5, 5]),
        ({"delay": (0.5, 3)}, [0.5, 3, 3, 3, 3]),
        ({"delay": itertools.count(1)}, [1, 2, 3, 4, 5]),
        ({"delay": lambda index, error: 10 * index + len(str(error))}, [9, 19, 29, 39, 49]),
        ({"delay": 1.0, "timeout": 2.5}, [1, 1, 0.5]),
    ],
)
def test_pauses(options, pauses):
    assert run(9, 6, **options)[1] == pauses


def test_backoff_beyond_floating_point_stays_at_the_cap():
    _, slept = run(1100, None, delay=1.0, backoff=2.0, max_delay=60, exceptions=OSError)
    assert slept[-1] == 60
    assert len(slept) == 1100


def test_jitter_is_added_after_the_cap_and_stays_in_its_range():
    _, slept = run(400, 400, delay=5.0, max_delay=1.0, jitter=2.0)
    assert min(slept) >= 1
    assert max(slept) <= 3
    assert sum(slept) / len(slept) == pytest.approx(2, abs=0.2)  # standard error 0.03


def test_a_timeout_cuts_the_pause_and_starts_nothing_later():
    time = Time()
    attempt = Retry(None, delay=3.0, timeout=7.0, on_error=None, **time.both)
    starts = []
    for turn in attempt:
        with turn:
            starts.append(time.now - 100)
            raise OSError
    assert starts == [0, 3, 6, 7]
    assert not attempt.allright


def test_starting_a_loop_resets_the_attempt():
    attempt, _ = run(9, 2)
    for turn in attempt:
        with turn:
            assert (turn.tries, turn.exceptions, turn.allright) == (1, [], False)
    assert attempt.allright
    assert turn is attempt


def test_variables_of_the_body_stay():
    for attempt in Retry(3, delay=0.0, on_error=None):
        with attempt:
            seen = attempt.index
            assert seen == 1
    assert seen == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_interrupts_pass(error):
    with pytest.raises(error):
        run(1, error=error)


def test_only_the_named_exceptions_are_retried():
    assert run(1, exceptions=(OSError,))[0].allright
    with pytest.raises(KeyError):
        run(1, error=KeyError, exceptions=(OSError, ValueError))
    with pytest.raises(FileNotFoundError):
        run(1, error=FileNotFoundError, exceptions=OSError, give_up=(FileNotFoundError,))
    with pytest.raises(TypeError, match="never swallowed"):
        Retry(exceptions=(BaseException,))


def test_an_error_caught_outside_the_with_ends_the_loop():
    turns = 0
    for attempt in Retry(3, exceptions=(OSError,)):
        turns += 1
        try:
            with attempt:
                raise KeyError
        except KeyError:
            pass
    assert turns == 1
    assert not attempt.allright


def test_reraise_lets_the_last_error_out_unwrapped():
    with pytest.raises(OSError, match="failure 2") as caught:
        run(9, 3, reraise=True)
    assert caught.value.__cause__ is None
    assert caught.traceback[-1].name == "run"


def test_reraise_at_the_timeout():
    seen = []
    with pytest.raises(OSError, match="failure 2"):
        run(9, None, delay=4.0, timeout=5.0, reraise=True, on_error=lambda attempt, error: seen.append(attempt.elapsed))
    assert seen == [0, 4, 5]


def test_leaving_the_body_counts_as_success():
    def returns():
        for attempt in Retry(3):
            with attempt:
                return attempt
        return None

    assert returns().allright
    for attempt in Retry(3):
        with attempt:
            break
    assert attempt.allright
    for attempt in Retry(3):
        with attempt:
            continue
    assert (attempt.allright, attempt.tries) == (True, 1)


def test_fail_asks_for_another_try_of_its_own_loop_only():
    outer_turns, inner_turns = 0, 0
    for outer in Retry(2, delay=0, exceptions=OSError, on_error=None):
        with outer:
            outer_turns += 1
            for inner in Retry(5, delay=0, on_error=None):
                with inner:
                    inner_turns += 1
                    outer.fail("start over")
    assert (outer_turns, inner_turns) == (2, 2)
    assert isinstance(outer.last_exception, RetryError)
    assert "start over" in str(outer.last_exception)


def test_errors_are_logged_by_default(caplog):
    with caplog.at_level(logging.WARNING, logger="kexue.retry"):
        run(9, 2, on_error="log")
    assert [r.getMessage() for r in caplog.records] == [
        "try 1 of 2 failed: OSError('failure 0')",
        "try 2 of 2 failed, giving up: OSError('failure 1')",
    ]


def test_on_error_sees_attempt_and_error():
    seen = []
    run(2, on_error=lambda attempt, error: seen.append((attempt.tries, str(error))))
    assert seen == [(1, "failure 0"), (2, "failure 1")]


def test_misuse_of_the_loop():
    with pytest.raises(RuntimeError, match="put the body in it"):
        for _ in Retry(3):
            pass
    with pytest.raises(RuntimeError, match="for attempt in"), Retry(3):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tries": 0}, "max_tries must be >= 1 or None, got 0"),
        ({"max_tries": None}, "for ever"),
        ({"delay": -1}, "delay must be >= 0 seconds, got -1"),
        ({"delay": float("nan")}, "got nan"),
        ({"delay": ()}, "empty sequence"),
        ({"delay": (1, -2)}, "got -2"),
        ({"backoff": 0}, "backoff=0"),
        ({"jitter": -1}, "jitter=-1"),
        ({"max_delay": -1}, "max_delay=-1"),
        ({"timeout": 0}, "timeout must be > 0"),
        ({"on_error": "print"}, "on_error must be"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Retry(**options)
    with pytest.raises(ValueError, match=message):
        retry(**options)


def test_a_decorator_without_brackets_is_explained():
    with pytest.raises(TypeError, match=r"@retry\(\)"):

        @retry
        def function():
            pass


def test_an_unused_attempt_pickles():
    copy = pickle.loads(pickle.dumps(Retry(2, delay=0, exceptions=(OSError,), on_error=None)))
    for attempt in copy:
        with attempt:
            raise OSError
    assert attempt.tries == 2


def run_async(failures, max_tries=5, *, error=OSError, **options):
    time = Time()
    attempt = AsyncRetry(max_tries, on_error=None, sleep=time.sleep_async, clock=time.clock, **options)

    async def loop():
        async for turn in attempt:
            async with turn:
                if turn.index < failures:
                    raise error(f"failure {turn.index}")

    asyncio.run(loop())
    return attempt, time.slept


@pytest.mark.parametrize(("max_tries", "failures"), [*itertools.product(range(1, 4), range(5))])
def test_the_async_loop_does_what_the_loop_does(max_tries, failures):
    ours, slept = run_async(failures, max_tries, delay=1.0, backoff=3)
    same, slept_sync = run(failures, max_tries, delay=1.0, backoff=3)
    assert slept == slept_sync
    assert (ours.tries, ours.allright, len(ours.exceptions)) == (same.tries, same.allright, len(same.exceptions))


def test_cancelling_a_task_ends_its_loop():
    async def main():
        entered = asyncio.Event()

        async def work():
            async for attempt in AsyncRetry(5, delay=0):
                async with attempt:
                    entered.set()
                    await asyncio.sleep(60)

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_the_default_async_pause_lets_others_run():
    order = []

    async def flaky():
        async for attempt in AsyncRetry(2, delay=0.01, on_error=None):
            async with attempt:
                order.append("try")
                assert attempt.index

    async def other():
        order.append("other")

    async def main():
        await asyncio.gather(flaky(), other())

    asyncio.run(main())
    assert order == ["try", "other", "try"]


def test_decorator_returns_the_first_value():
    calls = []

    @retry(4, delay=0, on_error=None)
    def flaky(a, *, b):
        """Documentation."""
        calls.append((a, b))
        if len(calls) < 3:
            raise OSError
        return a + b

    assert flaky(1, b=2) == 3
    assert calls == [(1, 2)] * 3
    assert (flaky.__name__, flaky.__doc__) == ("flaky", "Documentation.")


def test_decorator_raises_what_it_gathered():
    numbers = itertools.count()

    @retry(3, delay=0, on_error=None)
    def broken():
        raise OSError(next(numbers))

    with pytest.raises(RetryError, match="all 3 tries failed") as caught:
        broken()
    assert caught.value.tries == 3
    assert [e.args for e in caught.value.exceptions] == [(0,), (1,), (2,)]
    assert caught.value.__cause__ is caught.value.exceptions[-1]
    with pytest.raises(OSError, match=r"^5$"):
        retry(3, delay=0, on_error=None, reraise=True)(broken.__wrapped__)()


def test_decorator_awaits_coroutine_functions():
    calls = []

    @retry(3, delay=0, on_error=None)
    async def flaky():
        calls.append(1)
        if len(calls) < 2:
            raise OSError
        return "value"

    assert asyncio.run(flaky()) == "value"
    assert len(calls) == 2
    with pytest.raises(RetryError):
        asyncio.run(retry(1, on_error=None)(_always)())


async def _always():
    raise OSError


def test_decorator_refuses_generators():
    with pytest.raises(TypeError, match="generator function"):

        @retry()
        def stream():
            yield 1
