"""Waking the projector as its own remote does: by a Bluetooth LE advertisement.

Not from the article. What is advertised is pure and tested; the back end that hands it to BlueZ over D-Bus
(`kexue.home.bluez`) is tested against a stand-in for BlueZ, since it needs a Bluetooth adapter and a projector.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable

from kexue._optional import import_optional

APPEARANCE = 961  # HID keyboard, as the remote says of itself
COMPANY = 0x0046
SERVICE = 0x1812  # HID over GATT
NAME = "Bluetooth 4.0 RC"
_TAIL = bytes.fromhex("ffffff") + b"0CRKTM"
_MAC = re.compile(r"([0-9A-Fa-f]{2})([:-]?)" + r"([0-9A-Fa-f]{2})\2" * 4 + r"([0-9A-Fa-f]{2})")

Advertise = Callable[[bytes], Awaitable[None]]


def wake_payload(mac: str, counter: int) -> bytes:
    """The 16 bytes after the company number in the remote's advertisement.

    byte 0 = counter of presses; 1-6 = the projector's Bluetooth address, last byte first; 7-9 = ff; 10-15 = "0CRKTM"

    That is the form most captures show. Some projectors want another tail, and then only a capture of their own remote
    helps: hand it to `BleWake(payload=...)`.

    Args:
        mac: ``"AA:BB:CC:DD:EE:FF"``, also with ``-`` or without separators.
        counter: 0 ... 255; must differ from press to press.

    >>> wake_payload("AA:BB:CC:DD:EE:FF", 7).hex(" ")
    '07 ff ee dd cc bb aa ff ff ff 30 43 52 4b 54 4d'
    """
    matched = _MAC.fullmatch(mac)
    if matched is None:
        raise ValueError(f"expected a Bluetooth address such as AA:BB:CC:DD:EE:FF, got {mac!r}")
    if not 0 <= counter <= 255:
        raise ValueError(f"counter must be between 0 and 255, got {counter}")
    address = bytes.fromhex(re.sub("[:-]", "", mac))
    return bytes([counter]) + address[::-1] + _TAIL


def advertisement(payload: bytes) -> bytes:
    """The whole legacy advertisement as it goes on air: flags, HID service, appearance, manufacturer data.

    3 + 4 + 4 + (4 + 16) = 31 bytes, the most there can be; the name has room in the scan response only.
    """
    fields = [
        (0x01, b"\x06"),  # flags: discoverable, no classic Bluetooth
        (0x03, SERVICE.to_bytes(2, "little")),
        (0x19, APPEARANCE.to_bytes(2, "little")),
        (0xFF, COMPANY.to_bytes(2, "little") + payload),
    ]
    return b"".join(bytes([len(data) + 1, kind]) + data for kind, data in fields)


class BleWake:
    """Advertise like the remote, for about ten seconds.

    Args:
        mac: the projector's Bluetooth address (not the Wi-Fi one).
        payload: bytes captured from the remote of this very projector, 16 at most, sent as they are; None builds them
            from `mac` with a counter that starts anywhere and rises at every wake-up.
        advertise: what puts a payload on air; None takes BlueZ.

    Neither is shown in its printed form: who knows the bytes can start the projector.
    """

    def __init__(self, mac: str, *, payload: bytes | None = None, advertise: Advertise | None = None) -> None:
        if advertise is None:
            import_optional("dbus_fast")  # a missing package is told now, as is a malformed address
        if payload is None:
            wake_payload(mac, 0)
        elif not 1 <= len(payload) <= 16:
            raise ValueError(f"payload must have 1 to 16 bytes, got {len(payload)}")
        self._mac, self._payload, self._advertise = mac, payload, advertise
        self._counter = secrets.randbelow(256)

    def __repr__(self) -> str:
        return "BleWake(****)"

    async def wake(self) -> None:
        """Put the next press on air. OSError when there is no usable Bluetooth adapter."""
        if self._advertise is None:
            from kexue.home.bluez import advertise

            self._advertise = advertise
        payload = self._payload
        if payload is None:
            self._counter = (self._counter + 1) % 256
            payload = wake_payload(self._mac, self._counter)
        await self._advertise(payload)
