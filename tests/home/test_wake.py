"""What goes on air, byte by byte, and how BlueZ is asked to send it."""

import asyncio
import itertools
import shutil
import subprocess

import pytest
from hypothesis import given, strategies as st

from kexue.home import BleWake, wake_payload
from kexue.home.wake import advertisement

dbus_fast = pytest.importorskip("dbus_fast")
from dbus_fast import Message, MessageType  # noqa: E402
from dbus_fast.aio import MessageBus  # noqa: E402

from kexue.home import bluez  # noqa: E402

MAC = "AA:BB:CC:DD:EE:FF"


def test_the_sixteen_bytes():
    assert wake_payload(MAC, 7) == bytes.fromhex("07 ffeeddccbbaa ffffff 3043524b544d")
    assert wake_payload("aa-bb-cc-dd-ee-ff", 255) == wake_payload("AABBCCDDEEFF", 255)


@given(st.binary(min_size=6, max_size=6), st.integers(0, 255))
def test_counter_and_address_can_be_read_back(address, counter):
    payload = wake_payload(address.hex(":"), counter)
    assert (payload[0], payload[6:0:-1], len(payload)) == (counter, address, 16)


@pytest.mark.parametrize("mac", ["AA:BB:CC:DD:EE", "AA:BB:CC:DD:EE:GG", "AA:BB-CC:DD:EE:FF", "", MAC + ":00"])
def test_malformed_addresses(mac):
    with pytest.raises(ValueError, match="Bluetooth address"):
        wake_payload(mac, 0)
    with pytest.raises(ValueError, match="Bluetooth address"):
        BleWake(mac)


@pytest.mark.parametrize("counter", [-1, 256])
def test_counters_out_of_range(counter):
    with pytest.raises(ValueError, match="between 0 and 255"):
        wake_payload(MAC, counter)


def test_the_advertisement_fills_a_legacy_frame_exactly():
    frame = advertisement(wake_payload(MAC, 1))
    assert len(frame) == 31
    fields = {}
    while frame:  # length, kind, data: as a scanner reads it
        length, kind = frame[0], frame[1]
        fields[kind], frame = frame[2 : length + 1], frame[length + 1 :]
    assert fields == {0x01: b"\x06", 0x03: b"\x12\x18", 0x19: b"\xc1\x03", 0xFF: b"\x46\x00" + wake_payload(MAC, 1)}


def test_every_press_has_another_counter_and_captured_bytes_stay_as_they_are():
    sent = []

    async def keep(payload):
        sent.append(payload)

    async def press(wake, times):
        for _ in range(times):
            await wake.wake()

    asyncio.run(press(BleWake(MAC, advertise=keep), 300))
    assert all((b[0] - a[0]) % 256 == 1 for a, b in itertools.pairwise(sent))
    assert {payload[1:] for payload in sent} == {wake_payload(MAC, 0)[1:]}
    sent.clear()
    asyncio.run(press(BleWake("", payload=b"captured", advertise=keep), 2))
    assert sent == [b"captured"] * 2
    with pytest.raises(ValueError, match="1 to 16 bytes"):
        BleWake("", payload=bytes(17), advertise=keep)
    assert MAC not in repr(BleWake(MAC, advertise=keep))


class FakeBus:
    """A message bus with a BlueZ behind it that reads the advertisement's properties, as the real one does."""

    def __init__(self, error=None):
        self.error, self.handlers, self.calls, self.read = error, [], [], []

    def add_message_handler(self, handler):
        self.handlers.append(handler)

    def remove_message_handler(self, handler):
        self.handlers.remove(handler)

    async def call(self, message):
        message.serial = message.serial or 1
        self.calls.append((message.path, message.interface, message.member))
        if self.error:
            return Message(message_type=MessageType.ERROR, error_name=self.error, reply_serial=1)
        if message.member == "RegisterAdvertisement":
            path = message.body[0]
            question = Message(path=path, interface="org.freedesktop.DBus.Properties", member="GetAll", serial=2,
                               sender=":1.1", signature="s", body=["org.bluez.LEAdvertisement1"])  # fmt: skip
            self.read += [reply.body[0] for handler in self.handlers if (reply := handler(question))]
        return Message(message_type=MessageType.METHOD_RETURN, reply_serial=1)


def test_bluez_is_asked_in_bursts_and_told_to_stop():
    bus = FakeBus()
    asyncio.run(bluez.advertise(wake_payload(MAC, 9), bursts=3, seconds=0.001, bus=bus))
    manager = ("/org/bluez/hci0", "org.bluez.LEAdvertisingManager1")
    assert bus.calls == [(*manager, "RegisterAdvertisement"), (*manager, "UnregisterAdvertisement")] * 3
    assert bus.handlers == []
    assert len(bus.read) == 3
    properties = {name: variant.value for name, variant in bus.read[0].items()}
    assert properties["Type"] == "peripheral"
    assert properties["ServiceUUIDs"] == ["00001812-0000-1000-8000-00805f9b34fb"]
    assert properties["Appearance"] == 0x03C1
    assert {key: variant.value for key, variant in properties["ManufacturerData"].items()} == {
        0x0046: wake_payload(MAC, 9)
    }


def test_a_refusal_of_bluez_is_an_error_of_the_network():
    bus = FakeBus("org.bluez.Error.NotPermitted")
    with pytest.raises(OSError, match="NotPermitted"):
        asyncio.run(bluez.advertise(b"x", seconds=0, bus=bus))
    assert bus.handlers == []


def test_without_a_bus_the_wake_up_fails_politely(monkeypatch):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/at/all")
    with pytest.raises(OSError, match="system bus"):
        asyncio.run(BleWake(MAC).wake())


def test_over_a_real_bus(tmp_path, monkeypatch):
    """A daemon of our own carries the messages; only BlueZ itself is made up."""
    daemon = shutil.which("dbus-daemon")
    if daemon is None:
        pytest.skip("dbus-daemon is not installed")
    address = f"unix:path={tmp_path}/bus"
    config = tmp_path / "bus.conf"
    config.write_text(
        f"<busconfig><type>session</type><listen>{address}</listen><policy context='default'>"
        "<allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>"
    )
    process = subprocess.Popen([daemon, f"--config-file={config}", "--nofork"], stderr=subprocess.DEVNULL)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    read = []

    async def scene():
        while True:
            try:
                bus = await MessageBus(bus_address=address).connect()
                break
            except OSError:
                await asyncio.sleep(0.02)
        await bus.request_name("org.bluez")

        async def register(message):
            question = Message(
                destination=message.sender,
                path=message.body[0],
                interface="org.freedesktop.DBus.Properties",
                member="GetAll",
                signature="s",
                body=["org.bluez.LEAdvertisement1"],
            )
            read.append(await bus.call(question))
            await bus.send(Message.new_method_return(message))

        tasks = set()

        def serve(message):
            if message.member == "RegisterAdvertisement":
                tasks.add(asyncio.create_task(register(message)))
                return True
            if message.member == "UnregisterAdvertisement":
                return Message.new_method_return(message)
            return None

        bus.add_message_handler(serve)
        await bluez.advertise(wake_payload(MAC, 3), bursts=1, seconds=0.01)
        bus.disconnect()

    try:
        asyncio.run(asyncio.wait_for(scene(), 30))
    finally:
        process.terminate()
        process.wait()
    assert read[0].signature == "a{sv}"
    assert bytes(read[0].body[0]["ManufacturerData"].value[0x0046].value) == wake_payload(MAC, 3)
