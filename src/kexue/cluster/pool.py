"""Pool of workers on Ray; when a worker dies, only its item is repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kexue.cluster.session import RaySession
from kexue.errors import RetryError

TRIES = 3  # attempts at an item; if its worker dies every time, the item is taken as the cause

Job = tuple[int, Any]
"""Number and value of an item."""


class Pool:
    """Pool of workers that apply one function to many items.

    Args:
        session: session with Ray.
        make: returns the function; called once in each worker, at its first item.
        gpu: give each worker a GPU if the cluster has one.

    Attributes:
        retried: number of items repeated because their worker died.
    """

    def __init__(self, session: RaySession, make: Callable[[], Callable[[Any], Any]], *, gpu: bool = False) -> None:
        self._session = session
        self._make = make
        self._gpu = gpu
        self.retried = 0

    def map(self, jobs: Iterable[Job], *, most: int) -> Iterator[Job]:
        """Yield (number, function(item)) for each (number, item), in the order in which they finish.

        A worker has one item at a time, to save memory. There is one worker for each free core or GPU, at most `most`.
        Nothing is started where there are no jobs. Exceptions of the function are raised unchanged.

        Args:
            jobs: numbers and items.
            most: limit of the number of workers.

        Raises:
            RetryError: the workers of one item died 3 times.
        """
        waiting = iter(jobs)
        first = next(waiting, None)
        if first is None:
            return
        ray = self._session.start(most)
        resources, count = _plan_workers(ray, most, self._gpu)
        make = ray.put(self._make)
        create = ray.remote(_Worker).options(**resources).remote
        repeated, failures = [first], dict[int, list[BaseException]]()
        idle: list[Any] = []
        running: dict[Any, tuple[Job, Any]] = {}
        try:
            while True:
                while len(running) < count and (job := repeated.pop() if repeated else next(waiting, None)) is not None:
                    worker = idle.pop() if idle else create(make)
                    running[worker.run.remote(job[1])] = job, worker
                if not running:
                    return
                [done], _ = ray.wait(list(running), num_returns=1)
                job, worker = running.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # the worker, its machine, or the way to it
                    ray.kill(worker)
                    failures.setdefault(job[0], []).append(error)
                    if len(failures[job[0]]) == TRIES:
                        raise RetryError(
                            f"shard {job[0]}: the worker died {TRIES} times, the last time of: {error}",
                            exceptions=failures[job[0]],
                            tries=TRIES,
                        ) from error
                    self.retried += 1
                    repeated.append(job)
                else:
                    idle.append(worker)
                    yield job[0], result
        finally:
            for worker in [*idle, *(worker for _, worker in running.values())]:
                ray.kill(worker)


class _Worker:
    """Process that runs the function, which `make` returns at the first item: an error of `make` is reported there."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._function: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> Any:
        """Return function(item)."""
        if self._function is None:
            self._function = self._make()
        return self._function(item)


def _plan_workers(ray: Any, most: int, gpu: bool) -> tuple[dict[str, int], int]:
    """Return the resources of a worker and the number of workers."""
    kind = "GPU" if gpu and ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
    free = int(ray.available_resources().get(kind, 0))
    return {"num_cpus": 1, "num_gpus": int(kind == "GPU")}, max(1, min(most, free))
