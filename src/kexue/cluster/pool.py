"""A Ray that is borrowed or started for the moment, and workers on it whose death costs one item, not the job."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from kexue._optional import import_optional
from kexue.errors import RetryError

TRIES = 3  # of an item whose workers die, before it is held to be the cause
_STORE_BYTES = 100_000_000  # shared memory of a local Ray; what does not fit goes to its temporary folder

Job = tuple[int, Any]


class Session:
    """Ray for the length of a ``with`` block, started when it is first needed.

    A Ray the caller has initialised is used and left running; otherwise `address` is connected to, and ``"local"``
    starts processes on this machine, gone at the end of the block. They listen on 127.0.0.1 alone, unless `ray` had
    been imported before: then as Ray decides. A process that has started one so is not to connect to a cluster after.

    Args:
        address: ``"local"``, or what ``ray.init(address)`` takes: ``"host:6379"``, ``"ray://host:10001"``, ``"auto"``.
    """

    def __init__(self, address: str) -> None:
        if not isinstance(address, str) or not address:
            raise ValueError(f"ray must be 'local' or the address of a cluster, got {address!r}.")
        self._address = address
        self._ray: Any = None
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray = None
        self._closing.close()

    def start(self, most: int) -> Any:
        """The module `ray`, initialised; a local one with room for `most` workers, as far as there are cores."""
        if self._ray is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            if self._address == "local":  # read when ray is imported; without it every interface is listened on
                os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            ray = import_optional("ray", extra="cluster")
            if not ray.is_initialized():
                self._init(ray, most)
            self._ray = ray
        return self._ray

    def _init(self, ray: Any, most: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address == "local":
            # A short path: the sockets below it have 107 characters at most.
            folder = tempfile.mkdtemp(prefix="kx-", dir="/tmp" if os.path.isdir("/tmp") else None)
            self._closing.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "num_cpus": max(1, min(most, _cores())),
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        self._closing.callback(ray.shutdown)
        ray.init(address=self._address, **options)


class Pool:
    """Workers that run one function, each with what it needs (an encoder) made once.

    Args:
        session: where.
        make: called once in each worker, at its first item; returns the function.
        gpu: give each worker a GPU, where the cluster has any.

    Attributes:
        retried: items given to another worker because theirs died.
    """

    def __init__(self, session: Session, make: Callable[[], Callable[[Any], Any]], *, gpu: bool = False) -> None:
        self._session = session
        self._make = make
        self._gpu = gpu
        self.retried = 0

    def map(self, jobs: Iterable[Job], *, most: int) -> Iterator[Job]:
        """Yield (number, function(item)) for each (number, item), in the order they finish.

        Every worker has one item at a time, so that as few are in memory. One worker a free core, or GPU, and `most`
        at most. Nothing is started where there are no jobs.

        Raises:
            RetryError: an item's workers died 3 times. What the function raises, comes out as it is.
        """
        waiting = iter(jobs)
        first = next(waiting, None)
        if first is None:
            return
        ray = self._session.start(most)
        resources, count = _share(ray, most, self._gpu)
        make = ray.put(self._make)
        create = ray.remote(_Worker).options(**resources).remote
        again, tries = [first], dict[int, list[BaseException]]()
        idle: list[Any] = []
        flying: dict[Any, tuple[Job, Any]] = {}
        try:
            while True:
                while len(flying) < count and (job := again.pop() if again else next(waiting, None)) is not None:
                    worker = idle.pop() if idle else create(make)
                    flying[worker.run.remote(job[1])] = job, worker
                if not flying:
                    return
                [done], _ = ray.wait(list(flying), num_returns=1)
                job, worker = flying.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # the worker, its machine, or the way to it
                    ray.kill(worker)
                    tries.setdefault(job[0], []).append(error)
                    if len(tries[job[0]]) == TRIES:
                        raise RetryError(
                            f"shard {job[0]}: the worker died {TRIES} times, the last time of: {error}",
                            exceptions=tries[job[0]],
                            tries=TRIES,
                        ) from error
                    self.retried += 1
                    again.append(job)
                else:
                    idle.append(worker)
                    yield job[0], result
        finally:
            for worker in [*idle, *(worker for _, worker in flying.values())]:
                ray.kill(worker)


class _Worker:
    """The process that runs the function; what it needs is made at the first item, where errors are told as such."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._make = make
        self._function: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> Any:
        if self._function is None:
            self._function = self._make()
        return self._function(item)


def _share(ray: Any, most: int, gpu: bool) -> tuple[dict[str, int], int]:
    """What a worker asks of the cluster, and how many to start."""
    kind = "GPU" if gpu and ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
    free = int(ray.available_resources().get(kind, 0))
    return {"num_cpus": 1, "num_gpus": int(kind == "GPU")}, max(1, min(most, free))


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
