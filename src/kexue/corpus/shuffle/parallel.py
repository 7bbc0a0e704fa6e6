"""Work in parallel with results in order, so that the result cannot depend on the number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(function: Callable[[Item], Result], items: Iterator[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) for each item, in order; the items are drawn by this thread, `function` runs on others.

    At most `workers` items are in progress, from being drawn to the use of their result: the next item is drawn once
    the caller asks for another result. With one worker everything runs on this thread. After an error, or when the
    generator is closed, running calls are waited for.
    """
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            del item  # so that its memory is free once its result has been used
            if len(waiting) == workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
