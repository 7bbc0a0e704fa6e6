"""What the benchmarks share: turns that are fair to all ways, and a record that says how it was made."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import kexue


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each way in each round; the order turns from round to round, and `warmup` rounds do not count.

    With ``clock=time.process_time`` only the processor's time counts, which other programs change less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(-warmup, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = clock()
            ways[name]()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def write_record(path: Path | None, record: Mapping[str, Any], *packages: str) -> None:
    """Write the figures with command, versions (of kexue, numpy and `packages`), machine and threads; None: do not."""
    if path is None:
        return
    about = {
        "command": " ".join(sys.argv),
        "versions": {"kexue": kexue.__version__} | {name: metadata.version(name) for name in ("numpy", *packages)},
        "python": platform.python_version(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }
    path.write_text(json.dumps({**record, **about}, indent=1) + "\n", encoding="utf-8")
