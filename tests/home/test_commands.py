"""Whatever the cloud says, only the allow-list acts."""

import asyncio

import pytest
from hypothesis import given, settings, strategies as st

from kexue.home import KEYS, Bridge, Message, parse_command

ALLOW = ("on", "off", "volumeup")


def oracle(payload: bytes) -> str | None:
    """The grammar once more, without a regular expression."""
    try:
        text = payload.decode("utf-8").strip(" \t\r\n")
    except UnicodeDecodeError:
        return None
    name, *parameters = text.split("#")
    digits = all(part and set(part) <= set("0123456789") for part in parameters)
    return name if len(payload) <= 64 and name in ALLOW and digits else None


# Valid commands, bent: pieces that nearly make one, glued at random.
nearly = ["on", "off", "volumeup", "ON", "power", "#", "80", " ", "\r\n", "\0", ";", "$(reboot)", "`", "|", "../", "%s"]
foreign = ["{0}", "\u0660", "\uff11", "\u3000", "\u200b", "\xa0", "__class__", "'", '"']
pieces = st.sampled_from(nearly + foreign)
payloads = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(pieces, max_size=8).map(lambda parts: "".join(parts).encode()),
)


@settings(max_examples=1000, deadline=None)
@given(payloads)
def test_a_payload_is_a_command_of_the_list_or_nothing(payload):
    assert parse_command(payload, ALLOW) == oracle(payload)


@pytest.mark.parametrize(
    ("payload", "command"),
    [(b"on", "on"), (b" off\r\n", "off"), (b"on#80", "on"), (b"on#2#26#1", "on"), (b"on#" + b"1" * 61, "on"),
     (b"on#" + b"1" * 62, None), (b"on#", None), (b"#on", None), (b"on off", None), (b"onoff", None), (b"On", None),
     (b"poweroff", None), ("on#\u0661".encode(), None), (b"\xffon", None), (b"", None)],
)  # fmt: skip
def test_the_grammar(payload, command):
    assert parse_command(payload, ALLOW) == command


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["projector006", "projector00", "other", "projector006/set"]), payloads)))
def test_a_bridge_acts_on_nothing_else(messages):
    class Device:
        topic, retry_cap = "projector006", 1.0

        def __init__(self):
            self.sent = []

        async def send(self, key, *, repeat=1):
            self.sent.append(key)

        async def is_on(self):
            return bool(len(self.sent) % 2)

        async def wake(self):
            self.sent.append("wake")

    async def scene():
        device = Device()
        bridge = Bridge(device, device, wake=device, allow=ALLOW, debounce=0, opposite_delay=0, rate_limit=10**9,
                        probe_interval=1e-6, off_timeout=1e-3, on_timeout=1e-3)  # fmt: skip
        allowed = 0
        for topic, payload in messages:
            command = bridge.accept(Message(topic, payload))
            assert command == (oracle(payload) if topic == device.topic else None)
            if command is not None:
                allowed += 1
                await bridge.handle(command)
        assert set(device.sent) <= {"wake", "poweroff", "volumeup"}
        assert allowed or not device.sent

    asyncio.run(scene())


def test_keys_that_others_may_not_press_unless_listed():
    assert KEYS["poweroff"] == 30
    assert KEYS["volumeup"] == 115
    assert parse_command(b"volumeup") is None  # not in the default list
    assert all(key.isascii() and key.islower() and key.isalpha() for key in KEYS)  # all can be written in the grammar
