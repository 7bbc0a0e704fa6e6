"""The article's way to switch on: mains off for a while, then on, with a projector set to start when power appears."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from kexue.retry import AsyncRetry

Switch = Callable[[], Awaitable[object] | object]


class PlugCycle:
    """A smart plug that is switched off, and on again after a pause.

    It switches on again in any case, also when it is interrupted or the first switching fails, and tries that three
    times. Only a projector that is off may be cycled: the bridge asks for it after a probe has said so.

    Source: kexue.fm/archives/9365, "off for 10 seconds, then on".

    Args:
        on, off: called to switch, for example two `HttpHook`; plain or async.
        seconds: without power in between.
    """

    def __init__(self, on: Switch, off: Switch, *, seconds: float = 10.0) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be > 0, got {seconds}")
        self._on, self._off = on, off
        self.seconds = seconds

    async def cycle(self) -> None:
        """Off, wait, on. OSError when the plug does not answer; what else `on` and `off` raise."""
        try:
            await _call(self._off)
            await asyncio.sleep(self.seconds)
        finally:
            async for attempt in AsyncRetry(3, delay=1.0, reraise=True):
                async with attempt:
                    await _call(self._on)


async def _call(switch: Switch) -> None:
    answer = switch()
    if inspect.isawaitable(answer):
        await answer
