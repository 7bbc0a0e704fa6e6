"""Retries of a block of code in place: ``for attempt in Retry(3): with attempt: ...``; also async, and as a decorator.

The loop runs the body until it ends without an error or the tries are used up; between tries (never after the last) it
sleeps. The body stays in its place, so its variables stay in the surrounding scope. Standard library only.

In distributed training, do not retry a collective call in one process alone: the others would be left waiting.

Source: kexue.fm/archives/9938. Difference: there every exception is swallowed; here only those of `exceptions`.
KeyboardInterrupt, SystemExit, GeneratorExit and CancelledError always pass; so do programming errors unless named.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from functools import wraps
from operator import index as whole_number
from types import AsyncGeneratorType, GeneratorType, TracebackType
from typing import Any, Literal, NoReturn, ParamSpec, Self, TypeVar, cast

from kexue._pauses import Pauses, as_delay, as_seconds
from kexue.errors import RetryError

__all__ = ["AsyncRetry", "Retry", "retry"]

P = ParamSpec("P")
R = TypeVar("R")
Delay = float | Iterable[float] | Callable[[int, BaseException], float]
Kinds = type[Exception] | Iterable[type[Exception]]
OnError = Callable[[Any, BaseException], object] | Literal["log"] | None

_ANY: tuple[type[Exception], ...] = (Exception,)
_LOG = logging.getLogger(__name__)
_RANDOM = random.SystemRandom()  # without state, so that forked workers draw different pauses
_IDLE, _START, _READY, _INSIDE, _FAILED, _WAITING, _OVER = range(7)
_PROGRAMMING_ERRORS = (NameError, TypeError, AttributeError, ImportError, SyntaxError, NotImplementedError)


class _RetryRequest(RetryError):  # noqa: N818 - a request, not a failure
    """Raised by `fail`; `owner` is the loop to try again."""

    def __init__(self, reason: str, owner: _Tries) -> None:
        super().__init__(reason, tries=owner.tries)
        self.owner = owner


class _Tries:
    """Counts tries, computes pauses and classifies errors; the subclasses add the protocols of `for` and `with`."""

    _sleep: Callable[[float], Any]

    def __init__(
        self,
        max_tries: int | None = 5,
        *,
        delay: Delay = 2.0,
        backoff: float = 1.0,
        max_delay: float | None = None,
        jitter: float = 0.0,
        exceptions: Kinds = _ANY,
        give_up: Kinds = (),
        reraise: bool = False,
        on_error: OnError = "log",
        timeout: float | None = None,
        sleep: Callable[[float], Any] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        kinds = _ANY if exceptions is _ANY else _kinds(exceptions, "exceptions")
        if max_tries is None:
            if timeout is None and kinds == _ANY:
                raise ValueError("max_tries=None would try for ever: give a timeout, or name the exceptions to retry")
        elif type(max_tries) is not int:
            max_tries = _as_whole_number(max_tries)
        if max_tries is not None and max_tries < 1:
            raise ValueError(f"max_tries must be >= 1 or None, got {max_tries}")
        if not (type(delay) is float and delay >= 0):
            delay = as_delay(delay)
        if not (backoff > 0 and jitter >= 0 and (max_delay is None or max_delay >= 0)):
            got = f"{backoff=}, {jitter=}, {max_delay=}"
            raise ValueError(f"expected backoff > 0, jitter >= 0, max_delay >= 0; got {got}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds or None, got {timeout}")
        if on_error is not None and on_error != "log" and not callable(on_error):
            raise ValueError(f'on_error must be "log", None or callable(attempt, exception), got {on_error!r}')
        self.max_tries = max_tries
        self._delay: Any = delay
        self._backoff = backoff
        self._max_delay = max_delay
        self._jitter = jitter
        self._exceptions = kinds
        self._give_up = () if give_up == () else _kinds(give_up, "give_up")
        self._reraise = reraise
        self._on_error = on_error
        self._timeout = timeout
        self._sleep = sleep
        self._clock = clock
        self._state = _IDLE
        self._begin()
        self._state = _IDLE

    def _begin(self) -> Self:
        """Reset all counts for a new loop."""
        if self._state in (_INSIDE, _WAITING):
            raise RuntimeError("this object is in the middle of a loop: make one per thread, task and nesting level")
        self.allright = False
        self.tries = 0
        self.exceptions: list[BaseException] = []
        self.last_exception: BaseException | None = None
        self._end: float | None = None
        self._state = _START
        self._began = self._clock()
        return self

    @property
    def index(self) -> int:
        """Number of the current try, from 0; -1 before the first."""
        return self.tries - 1

    @property
    def elapsed(self) -> float:
        """Seconds from the start of the loop to its end; to now while it runs."""
        return (self._clock() if self._end is None else self._end) - self._began

    def fail(self, reason: str = "asked to try again") -> NoReturn:
        """Leave the body and count this try as failed, independently of `exceptions`."""
        raise _RetryRequest(reason, self)

    def _advance(self) -> float | None:
        """Start the next try; the pause before it, None for the first. StopIteration when the loop is over."""
        state, pause = self._state, None
        if state != _START:
            if state == _OVER:
                raise StopIteration
            if state != _FAILED:
                raise RuntimeError("an iteration of the loop did not enter `with attempt:`; put the body in it")
            pause = self._pause()  # section "One object, two protocols": between tries, never after the last
        self._state = _READY
        self.tries += 1
        return pause

    def _enter(self) -> Self:
        """Mark the body as running."""
        if self._state != _READY:
            raise RuntimeError("enter an attempt once in each turn of its loop: for attempt in Retry(): with attempt:")
        self._state = _INSIDE
        return self

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Record whether the body raised; return True to swallow the error."""
        if error is None:
            self.allright = True
            self._state = _OVER
            self._end = self._clock()
            return False
        retried = self._retries(error)
        last = not retried or self.tries == self.max_tries or self._late()
        self._state = _OVER if last else _FAILED
        if last:
            self._end = self._clock()
        if not retried:
            return False
        self.exceptions.append(error)
        self.last_exception = error
        if self._on_error == "log":
            of = f" of {self.max_tries}" if self.max_tries else ""
            _LOG.warning("try %d%s failed%s: %r", self.tries, of, ", giving up" if last else "", error)
        elif self._on_error is not None:
            _refuse_awaitable(self._on_error(self, error), f"on_error={self._on_error!r}")
        return not (last and self._reraise)  # section "One object, two protocols": True swallows the error

    def _late(self) -> bool:
        """Return whether the timeout has passed."""
        return self._timeout is not None and self.elapsed >= self._timeout

    def _retries(self, error: BaseException) -> bool:
        """Return whether the body is to run again after this error."""
        if isinstance(error, _RetryRequest):
            return error.owner is self  # `fail` of an outer loop passes through the inner one
        if not isinstance(error, self._exceptions) or isinstance(error, self._give_up):
            return False
        if not isinstance(error, _PROGRAMMING_ERRORS):
            return True
        return any(kind is not Exception and isinstance(error, kind) for kind in self._exceptions)

    def _pause(self) -> float:
        """Seconds after the failed try `index`: delay * backoff ** index, at most max_delay, plus U(0, jitter)."""
        base = self._delay
        if isinstance(base, Pauses):
            base = base.at(self.index)
        elif isinstance(base, tuple):
            base = base[min(self.index, len(base) - 1)]
        elif callable(base):
            base = as_seconds(base(self.index, cast("BaseException", self.last_exception)))
        try:
            pause = cast("float", base) * self._backoff**self.index  # section "One object, two protocols"
        except OverflowError:
            pause = math.inf if base else 0.0
        if self._max_delay is not None:
            pause = min(pause, self._max_delay)
        if self._jitter:
            pause += _RANDOM.uniform(0, self._jitter)
        if self._timeout is not None:
            pause = max(0.0, min(pause, self._timeout - self.elapsed))
        return pause

    def _error(self) -> RetryError:
        """The error after the last try."""
        what = f"all {self.tries} tries failed, the last with {self.last_exception!r}"
        return RetryError(what, exceptions=self.exceptions, tries=self.tries)


class Retry(_Tries):
    """Retries of a block: ``for attempt in Retry(3):`` around ``with attempt:`` around the body.

    The loop ends after the first body that raises nothing (`break`, `continue` and `return` count as success) or after
    `max_tries`; `attempt.allright` tells which. Statements after the `with` but inside the `for` run on failed tries
    too. One object serves one loop at a time; starting a loop resets it. Make one per thread and per nesting level: a
    second loop inside the first is refused.

    Args:
        max_tries: >= 1; None for no limit, which needs a `timeout` or named `exceptions`.
        delay: seconds between tries; an iterable holds one number per pause, read from the start in every loop (the
            last repeats; an iterator is read only as far as needed); a callable gets ``(index, exception)`` of the
            failed try.
        backoff: factor on the delay at every further pause. max_delay: cap on the product.
        jitter: seconds; a uniform draw from [0, jitter] is added after the cap, so that workers do not retry together.
        exceptions: classes to retry, subclasses of Exception. Programming errors (NameError, TypeError, AttributeError,
            ImportError, SyntaxError, NotImplementedError) pass unless a class more specific than Exception is named.
        give_up: classes exempt from `exceptions`, raised at once.
        reraise: raise the last error from the `with` block, unwrapped; otherwise the loop ends silently.
        on_error: ``"log"`` (a warning on the logger `kexue.retry`), a plain ``callable(attempt, exception)``, or None.
        timeout: seconds for all tries; a pause ends there, and no try starts later.
        sleep, clock: functions to replace in tests.

    Attributes:
        allright: whether a body has finished.
        tries: bodies started; index: tries - 1.
        exceptions: errors of the failed tries, in order; last_exception: the last of them, or None.
        elapsed: seconds since the loop began.

    Raises:
        ValueError, TypeError: an argument out of range.
        RuntimeError: an iteration of the loop that did not enter the `with`, or a loop within a loop of one object.

    >>> for attempt in Retry(3, delay=0, on_error=None):
    ...     with attempt:
    ...         quotient = 6 / attempt.index
    >>> quotient, attempt.tries, attempt.exceptions
    (6.0, 2, [ZeroDivisionError('division by zero')])
    """

    __iter__ = _Tries._begin
    __enter__ = _Tries._enter
    __exit__ = _Tries._leave

    def __next__(self) -> Self:
        pause = self._advance()
        if pause is not None:
            self._state = _WAITING
            try:
                _refuse_awaitable(self._sleep(pause), f"sleep={self._sleep!r}")
            except BaseException:
                self._state = _OVER
                raise
            self._state = _READY
        return self


class AsyncRetry(_Tries):
    """`Retry` for coroutines: ``async for attempt in AsyncRetry(3):`` around ``async with attempt:``.

    Arguments, attributes and errors are those of `Retry`; `sleep` may be async, and is `asyncio.sleep` by default.
    """

    __aiter__ = _Tries._begin

    async def __anext__(self) -> Self:
        try:
            pause = self._advance()
        except StopIteration:
            raise StopAsyncIteration from None
        if pause is not None:
            self._state = _WAITING
            try:
                waiting = (_async_sleep if self._sleep is time.sleep else self._sleep)(pause)
                if hasattr(waiting, "__await__"):
                    await waiting
            except BaseException:
                self._state = _OVER
                raise
            self._state = _READY
        return self

    async def __aenter__(self) -> Self:
        return self._enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return self._leave(kind, error, traceback)


class _RestOfLoop(AsyncRetry):
    """The rest of a plain loop, from the try whose body returned an awaitable."""

    def __aiter__(self) -> Self:
        return self

    def take_over(self, loop: Retry) -> Self:
        """Continue `loop` at the start of its current try, which it counts as a success."""
        self.__dict__.update(loop.__dict__, tries=loop.tries - 1, allright=False, _end=None, _state=_START)
        return self


def retry(max_tries: int | None = 5, **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that calls a function again while it fails, plain or async.

    The value of a call decides: an awaitable (of a coroutine function, of an object with an async ``__call__``, of a
    wrapper or lambda around one, or a future) is awaited within the try, and the call returns a coroutine.

    Args:
        max_tries, options: those of `Retry`.

    Returns:
        a decorator; the decorated function returns the value of the first call that succeeds.

    Raises:
        RetryError: every try failed; `exceptions` has their errors. With ``reraise=True`` the last error instead.
        TypeError: not a function; or a generator, plain or async, whose body runs after the call has returned.
    """
    first = Retry(max_tries, **options)  # invalid arguments fail here, not at the first call
    options.update(delay=first._delay, exceptions=first._exceptions, give_up=first._give_up)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        import inspect

        if isinstance(function, classmethod | staticmethod):
            return type(function)(decorate(function.__func__))
        if not callable(function):
            raise TypeError(f"expected a function or another callable, got {function!r}")
        kinds = (function, type(function).__call__)
        if any(inspect.isgeneratorfunction(kind) or inspect.isasyncgenfunction(kind) for kind in kinds):
            raise TypeError(_GENERATOR.format(function, "is a generator function"))
        if any(inspect.iscoroutinefunction(kind) for kind in kinds):
            return _wrap_async(function, max_tries, options)
        return _wrap_plain(function, max_tries, options)

    return decorate


def _wrap_plain(function: Callable[P, R], max_tries: int | None, options: dict[str, Any]) -> Callable[P, R]:
    """The retried function; its call returns a coroutine from the first awaitable value on."""
    from inspect import isawaitable

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        attempt = Retry(max_tries, **options)
        for _ in attempt:
            with attempt:
                value = function(*args, **kwargs)
            if not attempt.allright:
                continue
            if not (isinstance(value, _GENERATORS) or hasattr(value, "__await__")):
                return value
            if isawaitable(value):
                rest = _RestOfLoop(max_tries, **options).take_over(attempt)
                return cast("R", _await_tries(rest, value, function, args, kwargs))
            raise TypeError(_GENERATOR.format(function, "returned a generator"))
        raise attempt._error() from attempt.last_exception

    return call


def _wrap_async(function: Callable[P, R], max_tries: int | None, options: dict[str, Any]) -> Callable[P, R]:
    """The retried coroutine function."""

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        return await _await_tries(AsyncRetry(max_tries, **options), None, function, args, kwargs)

    return cast("Callable[P, R]", call)


async def _await_tries(attempt: AsyncRetry, value: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Await `value`, or a call of the function where it is None, and further calls while they fail."""
    async for _ in attempt:
        async with attempt:
            if value is None:
                value = function(*args, **kwargs)
            awaitable, value = value, None
            return await awaitable
    raise attempt._error() from attempt.last_exception


_GENERATORS = (GeneratorType, AsyncGeneratorType)
_GENERATOR = "{!r} {}: a call returns before its body runs; use Retry in it"


def _refuse_awaitable(answer: Any, what: str) -> None:
    """TypeError for an awaitable from a function that should be plain."""
    if hasattr(answer, "__await__"):
        if hasattr(answer, "close"):
            answer.close()
        raise TypeError(f"{what} is async and would never be awaited: give a plain function")


def _kinds(kinds: Any, name: str) -> tuple[type[Exception], ...]:
    """Exception classes as a tuple; TypeError for anything else."""
    given = tuple(kinds) if isinstance(kinds, Iterable) and not isinstance(kinds, type) else (kinds,)
    for kind in given:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"{name} must hold subclasses of Exception, got {kind!r}; interrupts are never swallowed")
    return given


def _as_whole_number(max_tries: Any) -> int:
    """`max_tries` as an int; TypeError unless it is a whole number."""
    try:
        return whole_number(max_tries)
    except TypeError:
        raise TypeError(
            f"max_tries must be an int or None, got {max_tries!r} (a decorator is written @retry())"
        ) from None


async def _async_sleep(seconds: float) -> None:
    """`asyncio.sleep`, imported when first needed."""
    import asyncio

    await asyncio.sleep(seconds)
