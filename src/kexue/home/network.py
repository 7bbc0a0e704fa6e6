"""Addresses that may be spoken to, and the one kind of HTTP request a plug or a wake-up helper needs."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT = 5.0


def check_address(address: str, *, allow_public: bool = False) -> None:
    """Refuse an IP address outside the home: public, multicast, broadcast or unspecified.

    Raises:
        ValueError: `address` is none that a device at home can have.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or ip.is_unspecified or (ip.version == 4 and ip.is_reserved):
        raise ValueError(f"{address} is no address of one device; give the projector's own, such as 192.168.1.50")
    if not (ip.is_private or allow_public):
        raise ValueError(
            f"{address} is a public address, expected a private one; allow_public (in the file or in Python) permits it"
        )


def check_host(host: str, *, allow_public: bool = False) -> None:
    """`check_address` for a host written as an address; a name is checked when it is resolved."""
    if not host or any(c.isspace() for c in host):
        raise ValueError(f"expected a host name or an IP address, got {host!r}")
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return
    check_address(host, allow_public=allow_public)


async def resolve(host: str, port: int, *, allow_public: bool = False) -> tuple[socket.AddressFamily, Any]:
    """The first address of `host` as ``(family, sockaddr)``; OSError when there is none or it is not at home."""
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
    try:
        check_address(str(address[0]), allow_public=allow_public)
    except ValueError as error:
        raise ConnectionError(f"{host}: {error}") from None
    return family, address


class HttpHook:
    """One HTTP request to a device at home, as a smart plug or an ESP32 takes it: awaited, it sends and checks for 2xx.

    Args:
        url: ``"http://192.168.1.60/relay/0?turn=on"``, for another method ``"POST http://..."``. Plain HTTP only. It
            may hold a password, so it is never shown.
        allow_public: permit an address outside the home.

    Raises:
        ValueError: no http URL, or a public address.
    """

    def __init__(self, url: str, *, allow_public: bool = False) -> None:
        method, _, address = url.rpartition(" ")
        self._method = method or "GET"
        parts = urlsplit(address)
        if parts.scheme != "http" or not parts.hostname or self._method not in ("GET", "POST", "PUT"):
            raise ValueError("expected http://HOST/PATH, or POST http://HOST/PATH, with a plain http address")
        if any(ord(c) <= 32 for c in address):
            raise ValueError("an address of a hook has no spaces or control characters: write %20 for a space")
        self.host, self.port = parts.hostname, parts.port or 80
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._allow_public = allow_public
        check_host(self.host, allow_public=allow_public)

    def __repr__(self) -> str:
        return f"HttpHook(http://{self.host}:{self.port}/...)"

    async def __call__(self) -> None:
        """Send the request; OSError when there is no answer within 5 seconds or it is not a 2xx."""
        async with asyncio.timeout(_TIMEOUT):
            family, address = await resolve(self.host, self.port, allow_public=self._allow_public)
            reader, writer = await asyncio.open_connection(address[0], address[1], family=family)
            try:
                host = f"[{self.host}]" if ":" in self.host else self.host
                head = f"{self._method} {self._target} HTTP/1.1\r\nHost: {host}:{self.port}\r\n"
                writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                status = (await reader.readline()).split()
            finally:
                writer.close()
        if len(status) < 2 or not status[1].startswith(b"2"):
            raise ConnectionError(f"{self!r} answered {b' '.join(status[1:2]).decode('ascii', 'replace') or 'nothing'}")

    wake = __call__


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
