"""The Bemfa cloud (巴法云), through which Mi Home and XiaoAi switch devices: over MQTT and over plain TCP.

The last three characters of a topic are the kind of device: 001 an outlet, 006 a switch. Messages are ``on`` and
``off``, with optional parameters after ``#``. The key (UID) opens the whole account and is never shown.

Sources: the provider's description of TCP access (version 1) and its integration for Home Assistant (version 2).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from kexue.home.cloud import Message
from kexue.home.mqtt import MqttCloud
from kexue.home.network import check_host, resolution_error
from kexue.home.secret import Secret

_LOG = logging.getLogger(__name__)
_RETRY_CAP = 60.0
_MAX_LINE = 4096
_HEARTBEAT = 30.0  # seconds; the service closes the connection after 65 without one
_RESUBSCRIBE = 300.0  # seconds between two subscriptions of one connection
_CONNECT_TIMEOUT = 10.0


def _check_account(uid: str | Secret, topic: str) -> Secret:
    """Return the key; ValueError for a malformed key or topic."""
    secret = uid if isinstance(uid, Secret) else Secret(uid)
    if not re.fullmatch(r"[0-9A-Za-z_-]{8,128}", secret.reveal()):
        raise ValueError("the key (UID) must be 8 to 128 letters and digits, as the console of the cloud shows it")
    if not re.fullmatch(r"[0-9A-Za-z]{1,64}", topic):
        raise ValueError(f"expected a topic of letters and digits such as projector006, got {topic!r}")
    if not topic.endswith(("001", "006", "012")):
        _LOG.warning("%s ends in neither 001, 006 nor 012: voice assistants will see no device to switch", topic)
    return secret


class BemfaMqtt(MqttCloud):
    """The cloud over MQTT: the key is the client id, so a second client with the same key disconnects the first.

    Args:
        uid: the private key of the account, from the environment, never from the command line.
        topic: such as ``"projector006"``. Reports go to ``<topic>/set``, which the service does not echo to the sender.
        host: the provider's server.
        port: None takes 9501, with `tls` 9503.
        tls: encrypt. The provider's TLS port was not tested; without TLS everyone on the path can read the key.

    >>> BemfaMqtt("0123456789abcdef0123456789abcdef", "projector006")
    BemfaMqtt('bemfa.com', 'projector006')
    """

    def __init__(
        self, uid: str | Secret, topic: str, *, host: str = "bemfa.com", port: int | None = None, tls: bool = False
    ) -> None:
        super().__init__(
            host,
            topic,
            port=port or (9503 if tls else 9501),
            report_topic=f"{topic}/set",
            tls=tls,
            identifier=_check_account(uid, topic),
            retry_cap=_RETRY_CAP,
        )


class BemfaTcp:
    """The cloud over TCP, one line per message; needs no other package. Not encrypted.

    Args:
        uid, topic: as for `BemfaMqtt`.
        version: 2, JSON lines, or 1, ``cmd=2&uid=...&topic=...&msg=on``.
        host, port: None is tcp-cn-03.bemfa.com:8342 for version 2, bemfa.com:8344 for version 1.

    >>> BemfaTcp("0123456789abcdef0123456789abcdef", "projector006")
    BemfaTcp('tcp-cn-03.bemfa.com', 'projector006')
    """

    def __init__(
        self, uid: str | Secret, topic: str, *, version: int = 2, host: str | None = None, port: int | None = None
    ) -> None:
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {version}")
        self._uid = _check_account(uid, topic)
        self.topic, self.version = topic, version
        self.host = host or ("tcp-cn-03.bemfa.com" if version == 2 else "bemfa.com")
        self.port = port or (8342 if version == 2 else 8344)
        check_host(self.host, allow_public=True)
        self.retry_cap = _RETRY_CAP

    def __repr__(self) -> str:
        return f"BemfaTcp({self.host!r}, {self.topic!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[_TcpConnection]:
        """Connect and subscribe; OSError where the service cannot be reached."""
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=_MAX_LINE)
            except (socket.gaierror, UnicodeError) as error:
                raise resolution_error(self.host, error) from None
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # closes a dead link, whose heartbeats stay unacknowledged
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * _HEARTBEAT))
        connection = _TcpConnection(self, reader, writer)
        try:
            await connection.send(self.line("subscribe"))
            yield connection
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def line(self, what: str, message: str = "") -> bytes:
        """Return the line that asks to ``"subscribe"``, to ``"publish"`` a message, or is a ``"heartbeat"``."""
        uid = self._uid.reveal()
        if self.version == 1:
            lines = {
                "subscribe": f"cmd=1&uid={uid}&topic={self.topic}",
                "publish": f"cmd=2&uid={uid}&topic={self.topic}/set&msg={message}",
                "heartbeat": "ping",
            }
            return f"{lines[what]}\r\n".encode()
        records: dict[str, dict[str, object]] = {
            "subscribe": {"cmd": 1, "uid": uid, "topics": [self.topic], "mode": 0},
            "publish": {"cmd": 2, "uid": uid, "topics": [self.topic], "msg": message, "mode": 3},
            "heartbeat": {"cmd": 7, "uid": uid},
        }
        return json.dumps(records[what], separators=(",", ":")).encode() + b"\n"


class _TcpConnection:
    """One connection over TCP."""

    def __init__(self, cloud: BemfaTcp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._cloud, self._reader, self._writer = cloud, reader, writer

    async def send(self, line: bytes) -> None:
        """Send one line."""
        self._writer.write(line)
        await self._writer.drain()

    async def report(self, state: str) -> None:
        """Publish the state."""
        await self.send(self._cloud.line("publish", state))

    async def messages(self) -> AsyncIterator[Message]:
        """Iterate over incoming lines as messages; sends heartbeats in between."""
        clock = asyncio.get_running_loop().time
        beat, subscribe_at = clock() + _HEARTBEAT, clock() + _RESUBSCRIBE
        while True:
            try:
                async with asyncio.timeout_at(beat):
                    line = await self._reader.readline()
            except TimeoutError:
                beat = clock() + _HEARTBEAT
                await self.send(self._cloud.line("heartbeat"))
                if clock() >= subscribe_at:
                    subscribe_at = clock() + _RESUBSCRIBE
                    await self.send(self._cloud.line("subscribe"))
                continue
            except ValueError:
                raise ConnectionError(f"{self._cloud.host} sent a line of more than {_MAX_LINE} bytes") from None
            if not line.endswith(b"\n"):
                raise ConnectionError(f"{self._cloud.host} closed the connection")
            message = (_parse_v1 if self._cloud.version == 1 else _parse_v2)(line.rstrip(b"\r\n"))
            if message is not None:
                yield message


def _parse_v1(line: bytes) -> Message | None:
    """Parse ``cmd=2&uid=...&topic=T&msg=M``; None for an acknowledgement, an error for a refused subscription."""
    head, separator, payload = line.partition(b"&msg=")
    fields = dict(part.partition(b"=")[::2] for part in head.split(b"&"))
    if fields.get(b"cmd") == b"1" and fields.get(b"res") == b"0":
        raise ConnectionError("the cloud refuses the subscription: check the key and the topic")
    if not separator or fields.get(b"cmd") != b"2":
        return None
    return Message(fields.get(b"topic", b"").decode("utf-8", "replace"), payload)


def _parse_v2(line: bytes) -> Message | None:
    """Parse ``{"topics": [T], "msg": M}``; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("msg"), str):
        return None
    topics = record.get("topics")
    if not isinstance(topics, list) or len(topics) != 1 or not isinstance(topics[0], str):
        return None
    return Message(topics[0], record["msg"].encode("utf-8", "replace"))
