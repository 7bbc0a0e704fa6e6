"""Work on items in parallel, begun and delivered in order: the result cannot depend on the number of workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ordered(
    workers: int,
    produce: Callable[[int], Item | None],
    process: Callable[[int, Item], Result],
    consume: Callable[[Result], Any],
    finish: Callable[[Result], Any] | None = None,
) -> None:
    """Call produce, process, consume, finish for one item after another, on `workers` threads.

    `produce(worker)` is called by one thread at a time and `consume(result)` too, both in the order of the items;
    `process` and `finish` run side by side. None from `produce` ends the work. The first exception ends it, too, once
    the other threads have left what they do.
    """
    lock, turn = threading.Lock(), threading.Condition()
    state: dict[str, Any] = {"begun": 0, "consumed": 0, "error": None, "over": False}

    def stop(error: BaseException) -> None:
        with turn:
            state["error"] = state["error"] or error
            state["over"] = True
            turn.notify_all()

    def work(worker: int) -> None:
        try:
            while True:
                with lock:
                    if state["over"]:
                        return
                    item = produce(worker)
                    if item is None:
                        state["over"] = True
                        return
                    number = state["begun"]
                    state["begun"] += 1
                result = process(worker, item)
                with turn:
                    turn.wait_for(lambda: state["consumed"] == number or state["error"])  # noqa: B023 - used at once
                    if state["error"]:
                        return
                consume(result)
                with turn:
                    state["consumed"] += 1
                    turn.notify_all()
                if finish is not None:
                    finish(result)
                del item, result  # or they would be kept in memory until the next ones are there
        except BaseException as error:
            stop(error)

    if workers == 1:
        work(0)
    else:
        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C arrives here
            stop(error)
            for thread in threads:
                thread.join()
    if state["error"] is not None:
        raise state["error"]
