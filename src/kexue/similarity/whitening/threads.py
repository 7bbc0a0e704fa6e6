"""Threads over blocks of rows, each with single-threaded BLAS.

OpenBLAS splits one small product over the cores and synchronises them after every step; with a d x d result and other
programs running, the synchronisation costs more than the work. Blocks of rows are independent, so threads run over
blocks and BLAS uses one thread in each. The result does not depend on the number of threads: the blocks are the same
and arrive in order.
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
    """Yield work(start) for each start, in order, with the number of threads that BLAS would use."""
    starts = list(starts)
    controller = _controller()
    threads = min(len(starts), _blas_threads(controller))
    with controller.limit(limits=1, user_api="blas"):
        if threads < 2:
            yield from map(work, starts)
            return
        with ThreadPoolExecutor(threads) as pool:
            pending: deque[Future[T]] = deque()
            for start in starts:
                pending.append(pool.submit(work, start))
                if len(pending) > 2 * threads:  # bounds the results in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


@cache
def _controller() -> Any:
    """Controller of the thread pools of BLAS."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _blas_threads(controller: Any) -> int:
    """Number of threads BLAS would use now; respects OMP_NUM_THREADS and an enclosing limit."""
    limits = [library["num_threads"] for library in controller.info() if library["user_api"] == "blas"]
    return int(min([os.cpu_count() or 1, *limits]))
