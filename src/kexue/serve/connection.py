"""One connection of the server: what a client may leave unsaid and unread, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kexue.serve.weight import MAX_HEAD

HEAD_SECONDS = 20.0  # from the first moment of a connection, or the first byte of its next request, to the last header
BODY_SECONDS = 20.0  # without anything of it
BODY_RATE = 8 * 1024  # bytes a second that a body comes with at least, over all
UNREAD_SECONDS = 30.0  # in which a client takes nothing of an answer
MAX_CONNECTIONS = 512  # with the files of the indexes within the usual 1,024
LOOK_SECONDS = 5.0  # between two looks at a connection
_REFUSAL = "HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed when a request is not sent, or an answer not taken, in time.

    What the parser keeps for itself is bounded while it comes: heads, and the headers that may follow a body in
    chunks, which nobody reads. Bodies are the `Door`'s business. A request whose reading the server itself holds
    back, as it has not answered the one before, is not late.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a client, or turn it away where there are too many."""
        super().connection_made(transport)
        self._begin = self._last = self.loop.time()
        self._in_head, self._unfinished = True, True
        self._kept = self._body = self._unread = 0
        self._unread_since = self._begin
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)
        if len(self.connections) > MAX_CONNECTIONS:
            self._turn_away("503 Service Unavailable")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what begins a request starts its time."""
        if not self._unfinished:
            self._begin_request()
        self._last = self.loop.time()
        self._kept += len(data)
        super().data_received(data)
        if self._unfinished and self._kept > 2 * MAX_HEAD and not self.transport.is_closing():
            self._turn_away("431 Request Header Fields Too Large")

    def _begin_request(self) -> None:
        self._begin, self._in_head, self._unfinished = self.loop.time(), True, True
        self._kept = self._body = 0

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins, perhaps in the bytes of the one before."""
        super().on_message_begin()
        if not self._unfinished:
            self._begin_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the head; what follows a body is dropped."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; an address that names its host speaks for it, as RFC 9112 has it."""
        self._in_head, self._kept = False, 0
        named = httptools.parse_url(self.url)
        if named.host:
            port = b"" if named.port is None else b":%d" % named.port
            host = b"[%b]" % named.host if b":" in named.host else named.host
            self.headers[:] = [(b"host", host + port), *((n, v) for n, v in self.headers if n != b"host")]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body is there."""
        self._body += len(body)
        self._kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole."""
        self._unfinished = False
        super().on_message_complete()

    # The clock

    def _look(self) -> None:
        self._timer = self.loop.call_later(LOOK_SECONDS, self._look)
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not unread or unread < self._unread:
            self._unread_since = now
        self._unread = unread
        if now - self._unread_since > UNREAD_SECONDS:
            self.transport.abort()
        elif self._unfinished and (self.flow.read_paused or self.pipeline):
            self._begin += LOOK_SECONDS
            self._last = now
        elif self._is_late(now):
            self._turn_away()

    def _is_late(self, now: float) -> bool:
        if not self._unfinished or self._in_head:
            return self._unfinished and now - self._begin > HEAD_SECONDS
        allowed = HEAD_SECONDS + BODY_SECONDS + self._body / BODY_RATE
        return now - self._last > BODY_SECONDS or now - self._begin > allowed

    def _turn_away(self, status: str | None = None) -> None:
        """Let the client go: after the answer that is being made for it, if any; without a word where it is late."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete and (self._in_head or cycle.response_started):
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if status is not None and (self._in_head or not cycle.response_complete):
            self.transport.write(_REFUSAL.format(status).encode())
        self.transport.close()
