"""A polite end: the first SIGTERM or SIGINT is a request, the second acts as ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ending_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT comes; the next one acts as it did before."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        put_back()

    for number in before:
        signal.signal(number, note)
    try:
        yield seen
    finally:
        put_back()
