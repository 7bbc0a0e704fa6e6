"""Addresses that may be spoken to, and the one kind of HTTP request a plug or a wake-up helper needs."""

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
    """Refuse an IP address outside the home: public, multicast, broadcast, unspecified, or the IPv4 of no network.

    IPv6 that carries IPv4 is public (Teredo, 6to4, NAT64), but for the mapped form, which is the IPv4 address itself.

    Raises:
        ValueError: `address` is none that a device at home can have.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or (any(ip in block for block in _NOWHERE) and not ip.is_loopback):
        raise ValueError(f"{address} is no address of one device; give the projector's own, such as 192.168.1.50")
    if not (allow_public or any(ip in block for block in _HOME)):
        raise ValueError(
            f"{address} is a public address, expected a private one; allow_public (in the file or in Python) permits it"
        )


def check_host(host: str, *, allow_public: bool = False) -> None:
    """`check_address` for a host written as an address; a name is checked for its form, and again when it is resolved.

    Raises:
        ValueError: neither an address nor a name, a number that only some programs read as an address (0x7f000001,
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
            raise ValueError(f"{host} is no plain address: write it with four numbers, such as 192.168.1.50") from None
        if not all(map(_LABEL.fullmatch, labels)) or len(host) > 253:
            raise ValueError(f"expected a host name or an IP address, got {host!r}") from None
        return
    check_address(host, allow_public=allow_public)


async def resolve(host: str, port: int, *, allow_public: bool = False) -> tuple[socket.AddressFamily, Any]:
    """The first address of `host` as ``(family, sockaddr)``; ConnectionError: there is none, or it is not at home."""
    loop = asyncio.get_running_loop()
    try:
        family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
    except (OSError, UnicodeError, IndexError) as error:
        raise unresolved(host, error) from None
    try:
        check_address(str(address[0]), allow_public=allow_public)
    except ValueError as error:
        raise ConnectionError(f"{host}: {error}") from None
    return family, address


def unresolved(host: str, error: Exception) -> ConnectionError:
    """What to raise for a name that leads to no address."""
    why = getattr(error, "strerror", None) or error
    return ConnectionError(f"the name {host} leads to no address ({why}); check it, or give the address itself")


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
        if any(ord(c) <= 32 for c in address) or not address.isascii():
            raise ValueError("an address of a hook has no spaces, control or foreign characters: write %20 for a space")
        if parts.username is not None:
            raise ValueError("a user and password before the host of an http address are not sent: leave them out")
        self.host, self.port = parts.hostname, 80 if parts.port is None else parts.port
        if not self.port:
            raise ValueError("the port of an http address must be between 1 and 65535, got 0")
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._allow_public = allow_public
        check_host(self.host, allow_public=allow_public)

    def __repr__(self) -> str:
        return f"HttpHook(http://{self.host}:{self.port}/...)"

    async def __call__(self) -> None:
        """Send the request; OSError when there is no answer of HTTP within 5 seconds, or it is not a 2xx."""
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
            raise ConnectionError(f"{self!r} answered {'what is no HTTP' if line else 'nothing'}")
        if not status[1].startswith(b"2"):
            raise ConnectionError(f"{self!r} answered {status[1].decode()}")

    wake = __call__


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
