"""Wake the projector over Bluetooth LE, as its own remote does. Not from the article."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from kexue._optional import import_optional
from kexue.home import bluez
from kexue.home.wake import wake_payload

Advertise = Callable[[bytes], Awaitable[None]]


class BleWake:
    """Wake a projector by advertising as its remote does, for about ten seconds.

    Args:
        mac: the projector's Bluetooth address (not the Wi-Fi one).
        payload: 1 to 16 bytes captured from the remote of this projector, sent unchanged; None builds them from `mac`
            with a counter that starts at random and increases at every wake-up.
        advertise: async function that sends a payload; None takes BlueZ.

    The printed form shows neither address nor payload: they are enough to start the projector.
    """

    def __init__(self, mac: str, *, payload: bytes | None = None, advertise: Advertise | None = None) -> None:
        if advertise is None:
            import_optional("dbus_fast")  # a missing package is reported now, as is a malformed address
        if payload is None:
            wake_payload(mac, 0)
        elif not 1 <= len(payload) <= 16:
            raise ValueError(f"payload must have 1 to 16 bytes, got {len(payload)}")
        self._mac, self._payload, self._advertise = mac, payload, advertise
        self._counter = secrets.randbelow(256)

    def __repr__(self) -> str:
        return "BleWake(****)"

    async def wake(self) -> None:
        """Send the Bluetooth wake-up signal; OSError without a usable Bluetooth adapter."""
        payload = self._payload
        if payload is None:
            self._counter = (self._counter + 1) % 256
            payload = wake_payload(self._mac, self._counter)
        await (self._advertise or bluez.advertise)(payload)
