"""A polite end: the first SIGTERM, SIGINT or SIGHUP is a request, the second acts as ever, here and in helpers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def ending_signals() -> Iterator[list[int]]:
    """A list that fills when an ending signal comes; the next one acts as it did before.

    A signal that is ignored, as SIGHUP is under nohup, stays so. Once the list is filled, the death of a helper process
    interrupts nothing: whoever asks it for data will be told.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in ENDING}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        put_back()

    _set_SIGCHLD_handler()  # torch's: it raises, wherever the program is, when a worker of a DataLoader has died
    deaths = signal.getsignal(signal.SIGCHLD)

    def bury(number: int, frame: FrameType | None) -> None:
        if not seen and callable(deaths):
            deaths(number, frame)

    for number in before:
        signal.signal(number, note)
    signal.signal(signal.SIGCHLD, bury)
    try:
        yield seen
    finally:
        put_back()
        signal.signal(signal.SIGCHLD, deaths or signal.SIG_DFL)


class Patient:
    """The start of a worker process that leaves the first ending signal to the main process, which will end it."""

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        for number in ENDING:
            signal.signal(number, _wait)
        if self.then is not None:
            self.then(worker)


def _wait(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
