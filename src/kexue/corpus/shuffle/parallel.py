"""Work in parallel with results in order, so that the result cannot depend on the number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ordered(
    process: Callable[[Item], Result], items: Iterator[Item], use: Callable[[Result], None], workers: int
) -> None:
    """Call use(process(item)) for every item: `process` in parallel, `use` for one at a time, in the order of items.

    Items are drawn by this thread, at most `workers + 1` ahead of the last one whose use has ended. The thread that
    processed an item also uses its result: memory is freed where it was allocated, and can be given out again. With one
    worker everything runs on this thread. After an error nothing further is drawn, running calls are waited for, and
    the first error is raised.
    """
    if workers == 1:
        for item in items:
            use(process(item))
        return

    def work(item: Item, previous: Future[None] | None) -> None:
        """Process an item; use its result once that of the previous item has been used."""
        result = process(item)
        if previous is not None:
            previous.result()
        use(result)

    running: deque[Future[None]] = deque()
    previous: Future[None] | None = None
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            previous = pool.submit(work, item, previous)
            running.append(previous)
            del item  # so that its memory is free once its result has been used
            if len(running) > workers:
                running.popleft().result()
        for future in running:
            future.result()
