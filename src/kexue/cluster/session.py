"""Session with Ray: the caller's, a cluster, or one started for a ``with`` block on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from kexue._cores import count_cores
from kexue._optional import import_optional

_STORE_BYTES = 100_000_000  # shared memory of a local Ray; larger objects go to its temporary folder


class RaySession:
    """Ray inside a ``with`` block, started when it is first needed.

    If the caller has initialised Ray, that one is used and left running. Otherwise the session connects to `address`;
    ``"local"`` starts Ray on this machine and stops it at the end of the block. Its processes listen on 127.0.0.1 only,
    unless the module `ray` was imported before: then its own setting counts. After a local session the same process
    should not connect to a cluster.

    Args:
        address: ``"local"``, or an argument of ``ray.init``: ``"host:6379"``, ``"ray://host:10001"``, ``"auto"``.
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
        """Return the initialised module `ray`; a local Ray gets up to `most` cores."""
        if self._ray is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            if self._address == "local":  # read when ray is imported; without it Ray listens on every interface
                os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            ray = import_optional("ray", extra="cluster")
            if not ray.is_initialized():
                self._init(ray, most)
            self._ray = ray
        return self._ray

    def _init(self, ray: Any, most: int) -> None:
        """Connect to a cluster, or start a local one."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address == "local":
            # A short path: the sockets below it have 107 characters at most.
            folder = tempfile.mkdtemp(prefix="kx-", dir="/tmp" if os.path.isdir("/tmp") else None)
            self._closing.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "num_cpus": max(1, min(most, count_cores())),
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": folder,
            }
        self._closing.callback(ray.shutdown)
        ray.init(address=self._address, **options)
