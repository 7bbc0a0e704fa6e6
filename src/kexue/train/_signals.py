"""Ending signals: the first SIGTERM, SIGINT or SIGHUP asks a run to end, the second acts as usual.

Worker processes of a DataLoader ignore the first one, so that the step under way still gets its data.
"""

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
    """A list that gets the number of the first ending signal; the next one acts as it did before.

    An ignored signal, as SIGHUP under nohup, stays ignored. After the first signal the death of a worker process
    does not interrupt the program; the error is raised when data is requested from that worker.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in ENDING}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        restore_handlers()

    _set_SIGCHLD_handler()  # torch's: it raises, wherever the program is, when a worker of a DataLoader has died
    deaths = signal.getsignal(signal.SIGCHLD)

    def on_child_death(number: int, frame: FrameType | None) -> None:
        if not seen and callable(deaths):
            deaths(number, frame)

    for number in before:
        signal.signal(number, on_signal)
    signal.signal(signal.SIGCHLD, on_child_death)
    try:
        yield seen
    finally:
        restore_handlers()
        signal.signal(signal.SIGCHLD, deaths or signal.SIG_DFL)


class IgnoreFirstSignal:
    """A `worker_init_fn` by which a worker ignores the first ending signal; the main process ends its workers.

    Args:
        then: the `worker_init_fn` of the user.
    """

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        for number in ENDING:
            signal.signal(number, _ignore_once)
        if self.then is not None:
            self.then(worker)


def _ignore_once(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
