"""Simulated projector, plug and Bemfa cloud on 127.0.0.1, for tests, simulations and pictures."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, Self

from kexue.home.projector import KEYS

HOST = "127.0.0.1"


class Press(NamedTuple):
    """A datagram that arrived: the code of its key, and the time by `time.perf_counter`."""

    code: int
    at: float


class FakeProjector:
    """A simulated projector: takes keys by UDP, accepts TCP connections while it is on, loses datagrams at random.

    Use it as ``async with FakeProjector() as fake:``; `port` and `probe_port` are free ports. It can be the `wake` of a
    `Bridge`: `wake` starts it after `boot` seconds.

    Args:
        loss: probability that a datagram gets lost, in [0, 1].
        on: initial state.
        boot, shutdown: durations in seconds.
        seed: seed of the random losses; None: a random one.
    """

    def __init__(
        self, loss: float = 0.0, *, on: bool = False, boot: float = 0.0, shutdown: float = 0.0, seed: int | None = None
    ) -> None:
        if not 0 <= loss <= 1:
            raise ValueError(f"loss must be between 0 and 1, got {loss}")
        self.host, self.port, self.probe_port = HOST, 0, 0
        self.loss, self.boot, self.shutdown = loss, boot, shutdown
        self.pressed: list[Press] = []
        self.lost = 0
        self._start_on = on
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None
        self._probe: socket.socket | None = None
        self._listening = False

    @property
    def on(self) -> bool:
        """Whether the projector is on."""
        return self._listening

    async def __aenter__(self) -> Self:
        self._bind()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Keys(self._receive), (HOST, 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        if self._start_on:
            self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._probe is not None:
            self._probe.close()
        await asyncio.sleep(0)  # the transport closes in the next turn of the loop

    def start(self) -> None:
        """Switch on at once."""
        if not self._listening and self._probe is not None:
            self._probe.listen(128)  # no accept: a probe only connects
            self._listening = True

    def cut(self) -> None:
        """Switch off at once, as a power cut does."""
        if self._listening and self._probe is not None:
            self._listening = False
            self._probe.close()
            self._bind()

    async def wake(self) -> None:
        """Start after `boot` seconds; returns at once, as a radio signal does."""
        self.later(self.boot, self.start)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Call a function after some seconds."""
        if not seconds:
            what()
            return

        async def wait() -> None:
            await asyncio.sleep(seconds)
            what()

        _start_task(self._tasks, wait())

    def _bind(self) -> None:
        """Bind the probe port without listening: connections are refused, and the port stays reserved."""
        self._probe = socket.socket()
        self._probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._probe.bind((HOST, self.probe_port))
        self.probe_port = self._probe.getsockname()[1]

    def _receive(self, data: bytes) -> None:
        """Receive one datagram; some are lost, as `loss` says."""
        if self._random.random() < self.loss:
            self.lost += 1
            return
        head, _, code = data.partition(b":")
        if head != b"KEYPRESSES" or not code.isdigit():
            return
        self.pressed.append(Press(int(code), time.perf_counter()))
        if int(code) == KEYS["poweroff"]:
            self.later(self.shutdown, self.cut)


class _Keys(asyncio.DatagramProtocol):
    """Passes each datagram to a function."""

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._receive(data)


class FakePlug:
    """A simulated smart plug with two URLs, `on` and `off`, that powers a `FakeProjector`."""

    def __init__(self, projector: FakeProjector) -> None:
        self.switched: list[str] = []
        self.on = self.off = ""
        self._projector = projector
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        port = self._server.sockets[0].getsockname()[1]
        self.on, self.off = f"http://{HOST}:{port}/on", f"http://{HOST}:{port}/off"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one HTTP request."""
        words = (await reader.readuntil(b"\r\n\r\n")).split()
        known = {b"/on": "on", b"/off": "off"}.get(words[1]) if len(words) > 1 else None
        if known is not None:
            self.switched.append(known)
        if known == "off":
            self._projector.cut()
        elif known == "on":
            self._projector.later(self._projector.boot, self._projector.start)
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"200 OK" if known else b"404 Not Found"))
        await writer.drain()
        writer.close()


class FakeBemfa:
    """The simulated TCP service of the cloud in both versions, recognised by the first line of a client.

    Use it as ``async with FakeBemfa() as cloud:``; `say` sends a command to the subscribers of a topic, `reports`
    holds what they published. `stop` and `start` restart it on the same port.
    """

    def __init__(self) -> None:
        self.host, self.port = HOST, 0
        self.reports: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.heartbeats = 0
        self._clients: dict[asyncio.StreamWriter, tuple[str, int]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._arrival = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop` on the same port."""
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._clients.clear()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def wait_for_subscriber(self) -> None:
        """Wait until a client has subscribed."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: bool(self._clients))

    async def say(self, topic: str, text: str) -> None:
        """Send a command to the subscribers of a topic, as the voice assistant does."""
        for writer, (wanted, version) in list(self._clients.items()):
            if wanted == topic:
                record = json.dumps({"cmd": 2, "topics": [topic], "msg": text})
                line = f"cmd=2&uid=hidden&topic={topic}&msg={text}\r\n" if version == 1 else f"{record}\n"
                await self.send(line.encode(), writer)

    async def send(self, data: bytes, writer: asyncio.StreamWriter | None = None) -> None:
        """Send raw bytes to one client or to all."""
        for target in [writer] if writer else list(self._clients):
            target.write(data)
            with suppress(ConnectionError):
                await target.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one client until it disconnects."""
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                await self._handle_line(line.decode().strip(), writer)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            self._clients.pop(writer, None)
            writer.close()

    async def _handle_line(self, line: str, writer: asyncio.StreamWriter) -> None:
        """Obey one line of a client: subscribe, publish or heartbeat."""
        version = 2 if line.startswith("{") else 1
        fields: dict[str, Any] = json.loads(line) if version == 2 else dict(p.split("=", 1) for p in _pairs(line))
        command, topic = int(fields.get("cmd", 0)), fields["topics"][0] if "topics" in fields else fields.get("topic")
        if command == 1:
            self._clients[writer] = (str(topic), version)
            async with self._arrival:
                self._arrival.notify_all()
        elif command == 2:
            self.reports.put_nowait((str(topic), fields["msg"]))
        else:
            self.heartbeats += 1
        if version == 1:
            writer.write(f"cmd={command}&res=1\r\n".encode())


def _pairs(line: str) -> list[str]:
    """Return the ``name=value`` parts of a line of version 1."""
    return [part for part in line.split("&") if "=" in part]


def _start_task(tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a task that `tasks` keeps alive."""
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
