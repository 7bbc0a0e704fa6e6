"""A loop whose time jumps to the next timer, so that minutes of waiting take no time; and a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kexue.experiments._broker import Broker

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


@pytest.fixture
def broker(tmp_path):
    pytest.importorskip("aiomqtt")
    try:
        broker = Broker(tmp_path)
    except FileNotFoundError:
        pytest.skip("mosquitto is not installed: no broker to test against")
    broker.start()
    yield broker
    broker.stop()
