"""What the bridge asks of a message service, and the only grammar in which it takes orders.

A session is one connection. Whatever goes wrong in it reaches the bridge as OSError, without the key in its text.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

MAX_BYTES = 64
_COMMAND = re.compile(r"[ \t\r\n]*([a-z]+)(?:#[0-9]+)*[ \t\r\n]*")


class Message(NamedTuple):
    """What a service delivered; `retained` marks a stored message of unknown age."""

    topic: str
    payload: bytes
    retained: bool = False


class Session(Protocol):
    """A live connection to a message service."""

    def messages(self) -> AsyncIterator[Message]:
        """Messages as they come; ends or raises OSError when the connection does."""
        ...

    async def report(self, state: str) -> None:
        """Tell the service ``"on"`` or ``"off"``; OSError when it does not take it."""
        ...


class Cloud(Protocol):
    """A message service that can be connected to again and again."""

    topic: str
    retry_cap: float  # seconds between two tries to connect, at most

    def session(self) -> AbstractAsyncContextManager[Session]:
        """Connect and subscribe."""
        ...


def parse_command(payload: bytes, allow: Collection[str] = ("on", "off")) -> str | None:
    """The command in a payload, or None when it is not exactly one of `allow`.

    white space, a name in lower case, any number of `#` and digits (ignored: brightness and the like), white space

    At most 64 bytes of UTF-8. The text is compared with the list and goes nowhere else: into no shell, no path, no
    format string.

    >>> parse_command(b"on#80"), parse_command(b" off "), parse_command(b"off; reboot")
    ('on', 'off', None)
    """
    if len(payload) > MAX_BYTES:
        return None
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        return None
    matched = _COMMAND.fullmatch(text)
    return matched[1] if matched is not None and matched[1] in allow else None
