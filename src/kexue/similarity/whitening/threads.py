"""Threads over blocks of rows, each with single-threaded BLAS.

OpenBLAS splits one small product over the cores and waits for all of them after every step; with a d x d result and
other programs about, the waiting costs more than the work. Blocks of rows are independent, so here the threads are
ours and BLAS keeps to one each. The result does not depend on their number: blocks are the same and come in order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def map_blocks(work: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
    """Yield work(start) for each start, in order, in as many threads as BLAS would use."""
    starts = list(starts)
    controller = _controller()
    threads = min(len(starts), _blas_threads(controller))
    with controller.limit(limits=1, user_api="blas"):
        if threads < 2:
            yield from map(work, starts)
            return
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[T]] = deque()
            for start in starts:
                waiting.append(pool.submit(work, start))
                if len(waiting) > 2 * threads:  # few results wait at a time
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


@cache
def _controller() -> Any:
    """The handle on BLAS's own threads."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _blas_threads(controller: Any) -> int:
    """Threads BLAS would use now, so that OMP_NUM_THREADS and an enclosing limit are obeyed."""
    own = [library["num_threads"] for library in controller.info() if library["user_api"] == "blas"]
    return int(min([os.cpu_count() or 1, *own]))
