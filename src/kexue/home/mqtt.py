"""MQTT: the user's own broker, and the common part of the Bemfa cloud."""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kexue._optional import import_optional
from kexue.home.cloud import Message
from kexue.home.network import check_host, is_loopback
from kexue.home.secret import Secret

_LOG = logging.getLogger(__name__)


class MqttCloud:
    """A message service over MQTT 3.1.1: one topic for commands, one for reports.

    Sessions start clean, so commands sent while the bridge was offline are not delivered late. Reports use QoS 1 and
    must be acknowledged: sent every minute, they reveal a dead link that the keep-alive misses.

    Args:
        host, port: the broker.
        topic: of commands. report_topic: of the state.
        tls: encrypt and check the broker's certificate against the system's authorities.
        identifier: client id, None lets the broker choose. username, password: where the broker requires them.
        retain: whether the broker stores the last report. retry_cap: longest pause between tries, in seconds.
    """

    def __init__(
        self,
        host: str,
        topic: str,
        *,
        port: int,
        report_topic: str,
        tls: bool,
        identifier: Secret | None = None,
        username: str | None = None,
        password: Secret | None = None,
        retain: bool = False,
        retry_cap: float,
    ) -> None:
        if not re.fullmatch(r"[^#+\s\0]{1,128}", topic):
            raise ValueError(f"expected a topic without wildcards and spaces, got {topic!r}")
        check_host(host, allow_public=True)
        if not 0 < port < 65536:
            raise ValueError(f"port must be between 1 and 65535, got {port}")
        self.host, self.port, self.topic, self.tls = host, port, topic, tls
        self.retry_cap = retry_cap
        self._report_topic, self._retain = report_topic, retain
        self._identifier, self._username, self._password = identifier, username, password
        self._aiomqtt = import_optional("aiomqtt")
        self._warned = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.host!r}, {self.topic!r})"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[_MqttConnection]:
        """Connect and subscribe; ConnectionError where the broker cannot be reached or refuses."""
        aiomqtt = self._aiomqtt
        if not (self.tls or is_loopback(self.host) or self._warned):
            _LOG.warning(
                "%s:%d is not encrypted: everyone on the network path can read the messages and send commands",
                self.host,
                self.port,
            )
            self._warned = True
        try:
            async with aiomqtt.Client(
                self.host,
                self.port,
                identifier=self._identifier.reveal() if self._identifier else None,
                username=self._username,
                password=self._password.reveal() if self._password else None,
                tls_context=ssl.create_default_context() if self.tls else None,
                clean_session=True if self._identifier else None,
                keepalive=60,
                max_queued_incoming_messages=1000,
                socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # acknowledgements are sent at once
            ) as client:
                granted = await client.subscribe(self.topic, qos=1)
                if any(getattr(code, "value", code) >= 128 for code in granted):  # a number or a ReasonCode
                    raise ConnectionError(f"{self.host} refuses the topic {self.topic}")
                yield _MqttConnection(self, client)
        except aiomqtt.MqttError as error:
            raise self.failure(error) from None

    def failure(self, error: Exception) -> ConnectionError:
        """Return an error of the library as a ConnectionError without secrets."""
        text = str(error) or type(error).__name__
        for secret in (self._identifier, self._password):
            text = secret.redact(text) if secret else text
        return ConnectionError(f"{self.host}:{self.port}: {text}")

    async def messages(self, client: Any) -> AsyncIterator[Message]:
        """Iterate over the messages of a connected client."""
        try:
            async for message in client.messages:
                payload = message.payload if isinstance(message.payload, bytes) else b""
                yield Message(str(message.topic), payload, bool(message.retain))
        except self._aiomqtt.MqttError as error:
            raise self.failure(error) from None

    async def report(self, client: Any, state: str) -> None:
        """Send a report and wait until it is acknowledged."""
        try:
            await client.publish(self._report_topic, state, qos=1, retain=self._retain)
        except self._aiomqtt.MqttError as error:
            raise self.failure(error) from None


class _MqttConnection:
    """One connection over MQTT."""

    def __init__(self, cloud: MqttCloud, client: Any) -> None:
        self._cloud, self._client = cloud, client

    def messages(self) -> AsyncIterator[Message]:
        """Iterate over incoming messages."""
        return self._cloud.messages(self._client)

    async def report(self, state: str) -> None:
        """Publish the state."""
        await self._cloud.report(self._client, state)


class LocalMqtt(MqttCloud):
    """The user's own MQTT broker: commands on `topic`, the measured state, retained, on ``<topic>/state``.

    Args:
        host: the broker. topic: for example ``"home/projector"``.
        port: None is 8883 with `tls`, otherwise 1883.
        tls: encrypt and check the certificate.
        username, password: where the broker requires them.

    >>> LocalMqtt("192.168.1.2", "home/projector")
    LocalMqtt('192.168.1.2', 'home/projector')
    """

    def __init__(
        self,
        host: str,
        topic: str,
        *,
        port: int | None = None,
        tls: bool = False,
        username: str | None = None,
        password: str | Secret | None = None,
    ) -> None:
        super().__init__(
            host,
            topic,
            port=port or (8883 if tls else 1883),
            report_topic=f"{topic}/state",
            tls=tls,
            username=username,
            password=Secret(password) if isinstance(password, str) else password,
            retain=True,
            retry_cap=4.0,  # the user's own broker may be contacted often
        )
