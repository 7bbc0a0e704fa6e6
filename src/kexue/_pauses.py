"""Pauses between tries, in seconds: numbers, sequences and iterators."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from threading import Lock
from typing import Any


class Pauses:
    """Pauses from an iterator, each drawn once when first needed; every loop reads them from the start."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source, self._drawn, self._lock = iter(source), list[float](), Lock()
        self.at(0)

    def at(self, index: int) -> float:
        """The pause after try `index`; the last repeats."""
        with self._lock:
            while len(self._drawn) <= index:
                try:
                    self._drawn.append(as_seconds(next(self._source)))
                except StopIteration:
                    break
            return float(_check_not_empty(self._drawn)[min(index, len(self._drawn) - 1)])


def as_delay(delay: Any) -> Any:
    """A delay as seconds, a tuple of seconds, `Pauses` or a callable."""
    if callable(delay) or isinstance(delay, Pauses):
        return delay
    if isinstance(delay, str | bytes) or not isinstance(delay, Iterable) or getattr(delay, "ndim", 1) == 0:
        return as_seconds(delay)
    return _check_not_empty(tuple(map(as_seconds, delay))) if isinstance(delay, Sized) else Pauses(delay)


def _check_not_empty(delays: Any) -> Any:
    """Return the sequence; raise ValueError if it is empty."""
    if not len(delays):
        raise ValueError("delay is an empty sequence: give at least one number of seconds")
    return delays


def as_seconds(delay: Any) -> float:
    """One pause; TypeError unless it is a number, ValueError unless it is >= 0."""
    if isinstance(delay, str | bytes) or not hasattr(type(delay), "__float__"):
        raise TypeError(f"delay must be a number of seconds, an iterable of them or a callable, got {delay!r}")
    seconds = float(delay)
    if not seconds >= 0:
        raise ValueError(f"delay must be >= 0 seconds, got {delay}")
    return seconds
