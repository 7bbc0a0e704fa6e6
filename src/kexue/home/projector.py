"""The projector on the network: keys as UDP datagrams, and a probe of its state.

Not from the article, which uses no network (see `kexue.home.irplan`): the protocol was found by users of models with
XGIMI's own system; models with Android TV do not answer it. Datagrams are not acknowledged, so only a probe shows the
effect of a command.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from kexue.home.network import check_host, resolve

KEYS: dict[str, int] = {
    "ok": 49, "play": 49, "pause": 49, "back": 48, "home": 35, "menu": 139,
    "up": 36, "down": 38, "left": 50, "right": 37,
    "volumeup": 115, "volumedown": 114, "mute": 113,
    "power": 116,  # as on the remote: a toggle, on some models a menu
    "poweroff": 30,
    "autofocus": 2099, "settings": 2094, "source": 2102, "hibernate": 2106,
}  # fmt: skip
"""Name of a key -> code in its datagram."""

_CONNECT_TIMEOUT = 2.0
_UNKNOWN = (
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
)  # failures of this machine, not an answer


class XgimiUdp:
    """An XGIMI projector: keys by UDP, and a probe by TCP.

    One key is one datagram ``KEYPRESSES:<code>``. The projector is on if a TCP connection to `probe_port` opens,
    and off if it is refused, times out or is unreachable.

    Args:
        host: address or name; resolved once, and private unless `allow_public`.
        port, probe_port: UDP port of the keys; TCP port that is open while the projector is on.
        allow_public: permit an address outside the home; not advisable, since the protocol has no password.
        gap: seconds between the datagrams of one `send`.

    Raises:
        ValueError: a public, multicast or malformed address.

    >>> XgimiUdp("192.168.1.50")
    XgimiUdp('192.168.1.50')
    >>> XgimiUdp("8.8.8.8")
    Traceback (most recent call last):
    ValueError: 8.8.8.8 is a public address, expected a private one (allow_public = true permits it)
    """

    def __init__(
        self, host: str, *, port: int = 16735, probe_port: int = 554, allow_public: bool = False, gap: float = 0.2
    ) -> None:
        for name, value in (("port", port), ("probe_port", probe_port)):
            if not 0 < value < 65536:
                raise ValueError(f"{name} must be between 1 and 65535, got {value}")
        check_host(host, allow_public=allow_public)
        self.host, self.port, self.probe_port = host, port, probe_port
        self._allow_public = allow_public
        self._gap = gap
        self._resolved: tuple[socket.AddressFamily, Any] | None = None

    def __repr__(self) -> str:
        return f"XgimiUdp({self.host!r})"

    async def send(self, key: str, *, repeat: int = 1) -> None:
        """Press a key by `repeat` equal datagrams, since each may get lost and none is acknowledged.

        Raises:
            ValueError: a key that is not in `KEYS`.
            OSError: the network is down.
        """
        if key not in KEYS:
            raise ValueError(f"unknown key {key!r}; the keys are {', '.join(KEYS)}")
        if repeat < 1:
            raise ValueError(f"repeat must be >= 1, got {repeat}")
        family, address = await self._address()
        loop = asyncio.get_running_loop()
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.setblocking(False)
            for number in range(repeat):
                if number:
                    await asyncio.sleep(self._gap)
                await loop.sock_sendto(udp, b"KEYPRESSES:%d" % KEYS[key], address)

    async def is_on(self) -> bool:
        """Return whether the projector accepts TCP connections.

        Raises:
            OSError: this machine has no network, so the state is unknown.
        """
        family, address = await self._address()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                _, writer = await asyncio.open_connection(address[0], self.probe_port, family=family)
        except OSError as error:  # TimeoutError included
            if error.errno in _UNKNOWN:
                raise
            return False
        writer.transport.abort()
        return True

    async def _address(self) -> tuple[socket.AddressFamily, Any]:
        """Return the address of the host, resolved once."""
        if self._resolved is None:
            self._resolved = await resolve(self.host, self.port, allow_public=self._allow_public)
        return self._resolved
