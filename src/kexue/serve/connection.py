"""Connection of a client, with time limits for sending a request and for reading an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kexue.serve.limits import MAX_HEAD

HEAD_SECONDS = 20.0  # limit from the start of a connection, or the first byte of its next request, to the last header
BODY_SECONDS = 20.0  # limit between two pieces of a body
BODY_RATE = 8 * 1024  # bytes a second, least average rate of a body
UNREAD_SECONDS = 30.0  # limit of the time in which a client reads nothing of an answer
MAX_CONNECTIONS = 512  # so that connections and files of indexes stay below the usual limit of 1,024
CHECK_SECONDS = 5.0  # between two checks of a connection
_REFUSAL = "HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"


class Connection(HttpToolsProtocol):
    """Connection of uvicorn that is closed when a request is not sent, or an answer not read, in time.

    It bounds the bytes that the parser stores: the head, and the headers after a body in chunks, which are dropped.
    `kexue.serve.security.AccessControl` bounds bodies. A request is not late while the server itself delays reading
    it, because it still answers the one before.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a client, or refuse it when there are too many."""
        super().connection_made(transport)
        self._begin = self._last = self.loop.time()
        self._in_head, self._unfinished = True, True
        self._stored = self._body = self._unread = 0
        self._unread_since = self._begin
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check_time)
        if len(self.connections) > MAX_CONNECTIONS:
            self._close("503 Service Unavailable")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a closed connection."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read bytes; the first of a request starts its time limit."""
        if not self._unfinished:
            self._begin_request()
        self._last = self.loop.time()
        self._stored += len(data)
        super().data_received(data)
        if self._unfinished and self._stored > 2 * MAX_HEAD and not self.transport.is_closing():
            self._close("431 Request Header Fields Too Large")

    def _begin_request(self) -> None:
        self._begin, self._in_head, self._unfinished = self.loop.time(), True, True
        self._stored = self._body = 0

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Start a request, possibly in the same bytes as the end of the one before."""
        super().on_message_begin()
        if not self._unfinished:
            self._begin_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header of the head; drop a header after a body."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head. A host in the address replaces the header Host, by RFC 9112."""
        self._in_head, self._stored = False, 0
        url = httptools.parse_url(self.url)
        if url.host:
            port = b"" if url.port is None else b":%d" % url.port
            host = b"[%b]" % url.host if b":" in url.host else url.host
            self.headers[:] = [(b"host", host + port), *((n, v) for n, v in self.headers if n != b"host")]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Read a piece of the body."""
        self._body += len(body)
        self._stored = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._unfinished = False
        super().on_message_complete()

    # Time limits

    def _check_time(self) -> None:
        """Close the connection if a time limit is exceeded; called every `CHECK_SECONDS`."""
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check_time)
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not unread or unread < self._unread:
            self._unread_since = now
        self._unread = unread
        if now - self._unread_since > UNREAD_SECONDS:
            self.transport.abort()
        elif self._unfinished and (self.flow.read_paused or self.pipeline):
            self._begin += CHECK_SECONDS
            self._last = now
        elif self._is_late(now):
            self._close()

    def _is_late(self, now: float) -> bool:
        """Return whether a request is over its time limit."""
        if not self._unfinished or self._in_head:
            return self._unfinished and now - self._begin > HEAD_SECONDS
        allowed = HEAD_SECONDS + BODY_SECONDS + self._body / BODY_RATE
        return now - self._last > BODY_SECONDS or now - self._begin > allowed

    def _close(self, status: str | None = None) -> None:
        """Close the connection: after the answer in progress, if any; with a refusal if `status` is given."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete and (self._in_head or cycle.response_started):
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if status is not None and (self._in_head or not cycle.response_complete):
            self.transport.write(_REFUSAL.format(status).encode())
        self.transport.close()
