"""The Bluetooth LE advertisement by which the projector's own remote wakes it, byte by byte.

Not from the article. `kexue.home.ble` sends it, over BlueZ (`kexue.home.bluez`).
"""

from __future__ import annotations

import re

APPEARANCE = 961  # HID keyboard, as in the remote's own advertisement
COMPANY = 0x0046
SERVICE = 0x1812  # HID over GATT
NAME = "Bluetooth 4.0 RC"
_TAIL = bytes.fromhex("ffffff") + b"0CRKTM"
_MAC = re.compile(r"([0-9A-Fa-f]{2})([:-]?)" + r"([0-9A-Fa-f]{2})\2" * 4 + r"([0-9A-Fa-f]{2})")


def wake_payload(mac: str, counter: int) -> bytes:
    """Return the 16 bytes after the company number in the remote's advertisement.

    byte 0 = counter of presses; 1-6 = the projector's Bluetooth address, last byte first; 7-9 = ff; 10-15 = "0CRKTM"

    Most captures have this form. Some projectors need another tail; then capture the advertisement of their own remote
    and pass it to `BleWake(payload=...)`.

    Args:
        mac: ``"AA:BB:CC:DD:EE:FF"``, also with ``-`` or without separators.
        counter: 0 ... 255; must differ from press to press.

    >>> wake_payload("AA:BB:CC:DD:EE:FF", 7).hex(" ")
    '07 ff ee dd cc bb aa ff ff ff 30 43 52 4b 54 4d'
    """
    if _MAC.fullmatch(mac) is None:
        raise ValueError(f"expected a Bluetooth address such as AA:BB:CC:DD:EE:FF, got {mac!r}")
    if not 0 <= counter <= 255:
        raise ValueError(f"counter must be between 0 and 255, got {counter}")
    address = bytes.fromhex(re.sub("[:-]", "", mac))
    return bytes([counter]) + address[::-1] + _TAIL


def advertisement(payload: bytes) -> bytes:
    """Return the complete legacy advertisement as it is sent: flags, HID service, appearance, manufacturer data.

    3 + 4 + 4 + (4 + 16) = 31 bytes, the maximum; the name is in the scan response.
    """
    fields = [
        (0x01, b"\x06"),  # flags: discoverable, no classic Bluetooth
        (0x03, SERVICE.to_bytes(2, "little")),
        (0x19, APPEARANCE.to_bytes(2, "little")),
        (0xFF, COMPANY.to_bytes(2, "little") + payload),
    ]
    return b"".join(bytes([len(data) + 1, kind]) + data for kind, data in fields)  # eq. 2 of the page: 31 bytes
