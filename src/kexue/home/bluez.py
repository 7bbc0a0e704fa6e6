"""Send an advertisement through BlueZ over D-Bus: Linux with a Bluetooth adapter only."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from kexue._optional import import_optional
from kexue.home.wake import APPEARANCE, COMPANY, NAME, SERVICE

_PATH = "/fm/kexue/wake"
_BURSTS, _SECONDS = 10, 1.0
_PATIENCE = 10.0  # seconds to wait for BlueZ to answer a call


def properties(payload: bytes) -> dict[str, Any]:
    """Return the properties of the advertisement object, ``org.bluez.LEAdvertisement1``, as D-Bus variants."""
    variant = import_optional("dbus_fast").Variant
    return {
        "Type": variant("s", "peripheral"),  # connectable, with the flags set by BlueZ
        "ServiceUUIDs": variant("as", [f"0000{SERVICE:04x}-0000-1000-8000-00805f9b34fb"]),
        "Appearance": variant("q", APPEARANCE),
        "ManufacturerData": variant("a{qv}", {COMPANY: variant("ay", payload)}),
        "LocalName": variant("s", NAME),  # goes into the scan response
    }


async def advertise(
    payload: bytes, *, adapter: str = "hci0", bursts: int = _BURSTS, seconds: float = _SECONDS, bus: Any = None
) -> None:
    """Advertise `payload` in `bursts` of `seconds` each.

    Args:
        payload: the bytes after the company number.
        adapter: name of the Bluetooth adapter.
        bus: a connected message bus; None opens the system's.

    Raises:
        OSError: no system bus, no BlueZ, no adapter, or BlueZ refuses.
        MissingDependencyError: dbus-fast is not installed.
    """
    dbus = import_optional("dbus_fast")
    own = bus is None
    if own:
        bus = await _system_bus(dbus)
    manager = f"/org/bluez/{adapter}"

    def answer(message: Any) -> Any:
        if message.message_type != dbus.MessageType.METHOD_CALL or message.path != _PATH:
            return None
        if message.member == "GetAll":
            return dbus.Message.new_method_return(message, "a{sv}", [properties(payload)])
        if message.member == "Release":
            return dbus.Message.new_method_return(message)
        return None

    async def call(member: str, signature: str, body: list[Any]) -> None:
        message = dbus.Message(
            destination="org.bluez",
            path=manager,
            interface="org.bluez.LEAdvertisingManager1",
            member=member,
            signature=signature,
            body=body,
        )
        async with asyncio.timeout(_PATIENCE):
            reply = await bus.call(message)
        if reply is None or reply.message_type == dbus.MessageType.ERROR:
            raise ConnectionError(f"BlueZ refused {member} on {manager}: {getattr(reply, 'error_name', 'no answer')}")

    bus.add_message_handler(answer)
    try:
        for _ in range(bursts):
            await call("RegisterAdvertisement", "oa{sv}", [_PATH, {}])
            try:
                await asyncio.sleep(seconds)
            finally:
                with suppress(ConnectionError):  # BlueZ may have removed it already
                    await call("UnregisterAdvertisement", "o", [_PATH])
    finally:
        bus.remove_message_handler(answer)
        if own:
            bus.disconnect()


async def _system_bus(dbus: Any) -> Any:
    """Connect to the system's D-Bus."""
    bus = import_optional("dbus_fast.aio").MessageBus(bus_type=dbus.BusType.SYSTEM)
    try:
        return await bus.connect()
    except Exception as error:  # the library raises errors of its own and of the socket
        raise ConnectionError(f"no D-Bus system bus ({error}): Bluetooth needs BlueZ and its socket") from error
