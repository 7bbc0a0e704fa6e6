"""Checks of addresses in the home, and the HTTP request of a plug or a wake-up helper."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT = 5.0
_MAX_LINE = 4096
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?![0-9])")


_HOME = [
    ipaddress.ip_network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "::1/128", "fc00::/7", "fe80::/10")
]
_NOWHERE = [ipaddress.ip_network(block) for block in ("0.0.0.0/8", "169.254.0.0/16", "240.0.0.0/4", "::/96")]
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)
_LABEL = re.compile(r"[0-9a-z_]([0-9a-z_-]{0,61}[0-9a-z_])?", re.IGNORECASE)


def check_address(address: str, *, allow_public: bool = False) -> None:
    """Refuse an IP address outside the home: public, multicast, broadcast or unspecified.

    IPv6 that carries IPv4 (Teredo, 6to4, NAT64) is public; the mapped form counts as the IPv4 address itself.

    Raises:
        ValueError: a device at home cannot have this address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or (any(ip in block for block in _NOWHERE) and not ip.is_loopback):
        raise ValueError(f"{address} is not the address of one device; give the projector's, such as 192.168.1.50")
    if not (allow_public or any(ip in block for block in _HOME)):
        raise ValueError(f"{address} is a public address, expected a private one (allow_public = true permits it)")


def check_host(host: str, *, allow_public: bool = False) -> None:
    """Check a host: an address by `check_address`, a name by its form (`resolve` checks the name's address).

    Raises:
        ValueError: neither an address nor a name, a number that some programs read as an address (0x7f000001,
            2130706433, 127.1, 0177.0.0.1), or an address outside the home.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            labels = host.encode("idna").decode("ascii").removesuffix(".").split(".")
        except UnicodeError:
            labels = [""]
        if _NUMBER.fullmatch(labels[-1]):
            raise ValueError(f"{host} is not a plain address: write four numbers, such as 192.168.1.50") from None
        if not all(map(_LABEL.fullmatch, labels)) or len(host) > 253:
            raise ValueError(f"expected a host name or an IP address, got {host!r}") from None
        return
    check_address(host, allow_public=allow_public)


async def resolve(host: str, port: int, *, allow_public: bool = False) -> tuple[socket.AddressFamily, Any]:
    """Return the first address of `host`, ``(family, sockaddr)``; ConnectionError if there is none in the home."""
    loop = asyncio.get_running_loop()
    try:
        family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
    except (OSError, UnicodeError, IndexError) as error:
        raise resolution_error(host, error) from None
    try:
        check_address(str(address[0]), allow_public=allow_public)
    except ValueError as error:
        raise ConnectionError(f"{host}: {error}") from None
    return family, address


def resolution_error(host: str, error: Exception) -> ConnectionError:
    """Return the error for a name without an address."""
    why = getattr(error, "strerror", None) or error
    return ConnectionError(f"the name {host} has no address ({why}); check it, or give the address itself")


class HttpHook:
    """An HTTP request to a device at home, such as a smart plug or an ESP32; calling it sends and expects a 2xx answer.

    Args:
        url: ``"http://192.168.1.60/relay/0?turn=on"``, for another method ``"POST http://..."``. Plain HTTP only.
            Never printed, since it may hold a password.
        allow_public: permit an address outside the home.

    Raises:
        ValueError: not an http URL, or a public address.
    """

    def __init__(self, url: str, *, allow_public: bool = False) -> None:
        method, _, address = url.rpartition(" ")
        self._method = method or "GET"
        parts = urlsplit(address)
        if parts.scheme != "http" or not parts.hostname or self._method not in ("GET", "POST", "PUT"):
            raise ValueError("expected http://HOST/PATH, or POST http://HOST/PATH, with a plain http address")
        if any(ord(c) <= 32 for c in address) or not address.isascii():
            raise ValueError("an address must be ASCII without spaces and control characters: write %20 for a space")
        if parts.username is not None:
            raise ValueError("a user and password before the host of an http address are not supported: leave them out")
        self.host, self.port = parts.hostname, 80 if parts.port is None else parts.port
        if not self.port:
            raise ValueError("the port of an http address must be between 1 and 65535, got 0")
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._allow_public = allow_public
        check_host(self.host, allow_public=allow_public)

    def __repr__(self) -> str:
        return f"HttpHook(http://{self.host}:{self.port}/...)"

    async def __call__(self) -> None:
        """Send the request; OSError without an HTTP answer within 5 seconds, or for an answer other than 2xx."""
        async with asyncio.timeout(_TIMEOUT):
            family, address = await resolve(self.host, self.port, allow_public=self._allow_public)
            reader, writer = await asyncio.open_connection(address[0], address[1], family=family, limit=_MAX_LINE)
            try:
                host = f"[{self.host}]" if ":" in self.host else self.host
                head = f"{self._method} {self._target} HTTP/1.1\r\nHost: {host}:{self.port}\r\n"
                writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                line = await reader.readline()
            except ValueError:
                raise ConnectionError(f"{self!r} answered with a line of more than {_MAX_LINE} bytes") from None
            finally:
                writer.close()
        status = _STATUS.match(line)
        if status is None:
            raise ConnectionError(f"{self!r} answered {'something other than HTTP' if line else 'nothing'}")
        if not status[1].startswith(b"2"):
            raise ConnectionError(f"{self!r} answered {status[1].decode()}")

    wake = __call__


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
