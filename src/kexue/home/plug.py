"""Switch a projector on with a smart plug, the article's method: off, a pause, on; it starts when power appears."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from kexue.retry import AsyncRetry

Switch = Callable[[], Awaitable[object] | object]


class PlugCycle:
    """A smart plug that is switched off, and on again after a pause.

    Power comes back in every case, also after an interruption or a failed switch-off, with up to three tries. Only a
    projector that is off may be cycled: the bridge probes first.

    Source: kexue.fm/archives/9365, "off for 10 seconds, then on".

    Args:
        on, off: functions that switch, plain or async, for example two `HttpHook`.
        seconds: duration without power, > 0.
    """

    def __init__(self, on: Switch, off: Switch, *, seconds: float = 10.0) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be > 0, got {seconds}")
        self._on, self._off = on, off
        self.seconds = seconds

    async def cycle(self) -> None:
        """Switch off, wait, switch on. OSError where the plug does not answer, and any error of `on` and `off`."""
        try:
            await _call(self._off)
            await asyncio.sleep(self.seconds)  # section "The article's way": 10 seconds without power
        finally:
            async for attempt in AsyncRetry(3, delay=1.0, reraise=True):
                async with attempt:
                    await _call(self._on)


async def _call(switch: Switch) -> None:
    """Call a plain or async function."""
    answer = switch()
    if inspect.isawaitable(answer):
        await answer
