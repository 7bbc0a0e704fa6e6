"""The loop, its awaitable twin and the decorator, on a clock of their own."""

import asyncio
import datetime
import functools
import itertools
import logging
import pickle
import threading
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest

from kexue.errors import NotSupported, RetryError
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


class Flaky:
    """Fails twice, then hands out the number of calls; in every way a callable can be async, or plain."""

    def __init__(self):
        self.calls = 0

    def plain(self):
        self.calls += 1
        if self.calls < 3:
            raise OSError(self.calls)
        return self.calls

    async def coroutine(self):
        await asyncio.sleep(0)
        return self.plain()

    async def __call__(self):
        return self.plain()

    def future(self):
        return asyncio.ensure_future(self.coroutine())

    @types.coroutine
    def old(self):
        yield
        return self.plain()

    def awaitable(self):
        return type("Later", (), {"__await__": lambda _: self.coroutine().__await__()})()

    def sometimes(self):
        """The first call fails before it has anything to await."""
        if not self.calls:
            self.plain()
        return self.coroutine()


def _wrapper(function):
    @functools.wraps(function)
    def wrapper():
        return function()

    return wrapper


def _method(name, kind):
    def make(flaky):
        async def body(*_):
            return flaky.plain()

        owner = type("Owner", (), {name: retry(5, delay=0, on_error=None)(kind(body))})
        return getattr(owner(), name)

    return make


ASYNC_CALLABLES = {
    "coroutine function": lambda flaky: functools.partial(flaky.coroutine).func,
    "object": lambda flaky: flaky,
    "partial of an object": functools.partial,
    "partial of a partial": lambda flaky: functools.partial(functools.partial(flaky.coroutine)),
    "lambda": lambda flaky: lambda: flaky.coroutine() or None,
    "plain wrapper": lambda flaky: _wrapper(flaky.coroutine),
    "singledispatch": lambda flaky: functools.partial(functools.singledispatch(lambda _: flaky.coroutine()), 1),
    "future": lambda flaky: flaky.future,
    "awaitable": lambda flaky: flaky.awaitable,
    "plain failure first": lambda flaky: flaky.sometimes,
    "wrapped generator coroutine": lambda flaky: _wrapper(flaky.old),
    "mock": lambda flaky: mock.AsyncMock(side_effect=flaky.plain),
}


@pytest.mark.parametrize("kind", ASYNC_CALLABLES)
def test_decorator_retries_async_callables_of_every_make(kind):
    seen, flaky = [], Flaky()
    decorated = retry(5, delay=0, on_error=lambda attempt, error: seen.append(attempt.tries))(
        ASYNC_CALLABLES[kind](flaky)
    )

    async def main():
        return await decorated()

    assert asyncio.run(main()) == 3
    assert (flaky.calls, seen) == (3, [1, 2])


@pytest.mark.parametrize("kind", ASYNC_CALLABLES)
def test_tries_of_an_async_callable_run_out(kind):
    flaky = Flaky()

    async def main():
        await retry(2, delay=0, on_error=None)(ASYNC_CALLABLES[kind](flaky))()

    with pytest.raises(RetryError) as caught:
        asyncio.run(main())
    assert (flaky.calls, caught.value.tries) == (2, 2)
    assert [e.args for e in caught.value.exceptions] == [(1,), (2,)]


@pytest.mark.parametrize("kind", [classmethod, staticmethod, lambda function: function])
def test_decorator_on_what_is_no_plain_method(kind):
    flaky = Flaky()
    assert asyncio.run(_method("work", kind)(flaky)()) == 3
    plain = Flaky()
    owner = type("Owner", (), {"work": retry(5, delay=0, on_error=None)(kind(lambda *_: plain.plain()))})
    assert owner().work() == 3


async def _agen():
    yield 1


def _gen():
    yield 1


class _Generates:
    def __call__(self):
        yield 1


@pytest.mark.parametrize(
    "function",
    [_gen, _agen, functools.partial(_gen), _Generates(), _wrapper(_gen), _wrapper(_agen), lambda: (x for x in ())],
)
def test_generators_of_every_make_are_refused(function):
    with pytest.raises(TypeError, match=r"returns before its body runs; use Retry in it"):
        retry(3, delay=0, exceptions=(Exception, TypeError))(function)()


@pytest.mark.parametrize("thing", [3, "text", property(lambda self: 1), functools.partialmethod(_gen)])
def test_what_is_no_callable_is_refused_at_once(thing):
    with pytest.raises(TypeError, match=r"expected a function|max_tries"):
        retry(3)(thing)


@pytest.mark.parametrize(
    "delay",
    [
        itertools.count(1),
        iter([1, 2, 3]),
        (x for x in (1, 2, 3)),
        map(float, ("1", "2", "3")),
        np.array([1, 2, 3], np.float32),
        range(1, 4),
        [1, 2, Fraction(3)],
    ],
    ids=lambda delay: type(delay).__name__,
)
def test_every_loop_reads_an_iterable_delay_from_its_beginning(delay):
    slept = []

    @retry(4, delay=delay, sleep=slept.append, on_error=None)
    def broken():
        raise OSError

    assert retry(4, delay=[5])(lambda: "fine")() == "fine"
    for _ in range(3):
        with pytest.raises(RetryError):
            broken()
    assert slept == [1, 2, 3] * 3
    attempt = Retry(4, delay=iter([1, 2]), sleep=slept.append, on_error=None)
    for _ in range(2):
        slept.clear()
        for turn in attempt:
            with turn:
                raise OSError
        assert slept == [1, 2, 2]


def test_an_iterator_of_delays_is_read_no_further_than_needed():
    drawn = []
    delays = (drawn.append(k) or k for k in itertools.count())
    run(2, 5, delay=delays)
    assert drawn == [0, 1]
    _, slept = run(1500, None, delay=itertools.count(), exceptions=OSError)
    assert slept == list(range(1500))
    with pytest.raises(ValueError, match="delay must be >= 0 seconds, got -1"):
        run(9, 5, delay=iter([1, -1]))
    with pytest.raises(ValueError, match="empty"):
        Retry(delay=iter(()))


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), Fraction(2), Decimal(2)])
def test_a_delay_may_be_any_number(number):
    assert run(9, 2, delay=number)[1] == [2.0]
    assert run(9, 2, delay=lambda index, error: number)[1] == [2.0]


@pytest.mark.parametrize("delay", ["5", None, datetime.timedelta(seconds=1), ["a"], 1j])
def test_a_delay_that_is_no_number_is_named(delay):
    with pytest.raises(TypeError, match="number of seconds, an iterable of them or a callable, got"):
        Retry(delay=delay)


def test_max_tries_may_be_a_whole_number_of_numpy():
    assert run(9, np.int64(3))[0].tries == 3
    with pytest.raises(TypeError, match=r"max_tries must be an int or None, got 2\.5"):
        Retry(2.5)


@pytest.mark.parametrize("make", [tuple, list, iter, set, lambda kinds: (k for k in kinds)])
def test_exceptions_may_come_in_any_iterable_even_one_shot(make):
    decorated = retry(3, delay=0, on_error=None, exceptions=make([OSError]), give_up=make([FileNotFoundError]))
    for _ in range(2):
        assert decorated(Flaky().plain)() == 3
        with pytest.raises(FileNotFoundError):
            decorated(_raiser(FileNotFoundError))()
    with pytest.raises(ValueError, match="for ever"):
        Retry(None, exceptions=make([Exception]))


def _raiser(error):
    def function():
        raise error

    return function


MISTAKES = [NameError, UnboundLocalError, TypeError, AttributeError, ModuleNotFoundError, SyntaxError, NotSupported]


@pytest.mark.parametrize("error", MISTAKES)
@pytest.mark.parametrize("form", ["for", "async for", "decorator"])
def test_a_mistake_in_the_code_passes_unless_it_is_named(error, form):
    def tries(**options):
        calls = []

        def body():
            calls.append(1)
            raise error("mistake")

        async def loop():
            async for attempt in AsyncRetry(3, delay=0, on_error=None, **options):
                async with attempt:
                    body()

        try:
            if form == "for":
                for attempt in Retry(3, delay=0, on_error=None, **options):
                    with attempt:
                        body()
            elif form == "async for":
                asyncio.run(loop())
            else:
                retry(3, delay=0, on_error=None, **options)(body)()
        except (error, RetryError) as left:
            return len(calls), type(left)
        return len(calls), None

    assert tries() == (1, error)
    assert tries(exceptions=Exception) == (1, error)
    assert tries(exceptions=(OSError, ValueError)) == (1, error)
    assert tries(exceptions=(Exception, error)) == (3, RetryError if form == "decorator" else None)
    assert tries(exceptions=error.__mro__[1] if error.__mro__[1] is not Exception else error)[0] == 3


def misspelt():
    for attempt in Retry(3, delay=0):
        with attempt:
            undefined_name()  # noqa: F821


def wrong_call():
    for attempt in Retry(3, delay=0):
        with attempt:
            len(5)


@pytest.mark.parametrize(("loop", "error"), [(misspelt, NameError), (wrong_call, TypeError)])
def test_a_mistake_of_the_body_itself_is_not_swallowed(loop, error):
    with pytest.raises(error):
        loop()


def test_a_loop_in_the_middle_of_another_of_the_same_object_is_refused():
    attempt, errors = Retry(3, delay=0, exceptions=OSError), []
    for turn in attempt:
        with turn:
            errors.append(_error(lambda: iter(attempt)))
    assert "one per thread, task and nesting level" in str(errors[0])
    assert (attempt.allright, attempt.tries) == (True, 1)

    async def task(shared, inside, go):
        async for turn in shared:
            async with turn:
                inside.set()
                await go.wait()

    async def main():
        shared, inside, go = AsyncRetry(3), asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(task(shared, inside, go))
        await inside.wait()
        with pytest.raises(RuntimeError, match="one per thread"):
            await task(shared, inside, go)
        go.set()
        await first

    asyncio.run(main())


def test_a_loop_may_not_start_while_another_thread_waits_in_it():
    errors = []

    def sleep(_):
        thread = threading.Thread(target=lambda: errors.append(_error(lambda: iter(attempt))))
        thread.start()
        thread.join()

    attempt = Retry(2, sleep=sleep, on_error=None)
    for turn in attempt:
        with turn:
            raise OSError
    assert [type(e) for e in errors] == [RuntimeError]


def _error(function):
    try:
        function()
    except Exception as error:
        return error
    return None


def test_an_interrupted_pause_leaves_the_object_usable():
    attempt = Retry(2, sleep=mock.Mock(side_effect=[KeyboardInterrupt, None]), on_error=None)

    def loop():
        for turn in attempt:
            with turn:
                raise OSError

    with pytest.raises(KeyboardInterrupt):
        loop()
    loop()
    assert attempt.tries == 2


def test_threads_share_a_decorated_function_and_its_iterator_of_delays():
    slept = []

    @retry(4, delay=iter([1, 2, 3]), on_error=None, sleep=slept.append)
    def broken(depth):
        if depth:
            assert _error(lambda: broken(depth - 1)).tries == 4  # it may call itself
        raise OSError

    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda _: _error(lambda: broken(1)), range(20)))
    assert {error.tries for error in errors} == {4}
    assert Counter(slept) == dict.fromkeys([1, 2, 3], 20 * (1 + 4))


async def _async_callback(*_):
    pass


@pytest.mark.parametrize("option", ["sleep", "on_error"])
def test_an_async_callback_where_a_plain_one_is_due_is_refused(option):
    options = {"on_error": None, "sleep": lambda _: None} | {option: _async_callback}
    with pytest.raises(TypeError, match=f"{option}=.* is async and would never be awaited"):
        retry(2, delay=0, **options)(_raiser(OSError))()


@pytest.mark.parametrize("sleep", [lambda _: None, _async_callback])
def test_an_async_loop_takes_plain_and_async_pauses(sleep):
    async def main():
        async for attempt in AsyncRetry(2, sleep=sleep, on_error=None):
            async with attempt:
                assert attempt.index

    asyncio.run(main())
