"""A loop whose time jumps to the next timer, so that minutes of waiting take no time; and a broker."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

UID = "0123456789abcdef0123456789abcdef"


class VirtualLoop(asyncio.SelectorEventLoop):
    """When nothing is ready, it is the time of the next timer. For code without sockets."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


@pytest.fixture
def virtually() -> Callable[[Callable[[Callable[[], float]], Coroutine[Any, Any, Any]]], Any]:
    """Run ``scene(clock)`` in virtual time."""

    def run(scene):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(_with_clock(scene))

    return run


async def _with_clock(scene):
    return await scene(asyncio.get_running_loop().time)


class Broker:
    """mosquitto on a free port of loopback."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._program, "-c", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError("mosquitto did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@pytest.fixture
def broker(tmp_path):
    pytest.importorskip("aiomqtt")
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed: no broker to test against")
    broker = Broker(program, tmp_path)
    broker.start()
    yield broker
    broker.stop()
