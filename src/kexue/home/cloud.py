"""Interface of a message service, and the grammar of a command.

Every failure of a connection reaches the bridge as OSError, without the key in its text.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

MAX_BYTES = 64
_COMMAND = re.compile(r"[ \t\r\n]*([a-z]+)(?:#[0-9]+)*[ \t\r\n]*")


class Message(NamedTuple):
    """One message from a service; `retained` marks a stored message of unknown age."""

    topic: str
    payload: bytes
    retained: bool = False


class Connection(Protocol):
    """A live connection to a message service."""

    def messages(self) -> AsyncIterator[Message]:
        """Iterate over incoming messages; ends or raises OSError when the connection ends."""
        ...

    async def report(self, state: str) -> None:
        """Publish the state ``"on"`` or ``"off"``; OSError where the service does not accept it."""
        ...


class Cloud(Protocol):
    """A message service; connecting may be repeated."""

    topic: str
    retry_cap: float  # longest pause between two tries to connect, in seconds

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Connect and subscribe."""
        ...


def parse_command(payload: bytes, allow: Collection[str] = ("on", "off")) -> str | None:
    """Return the command in a payload, or None when it is not exactly one of `allow`.

    A payload is a name in lower case, at most 64 bytes of UTF-8. After the name any number of ``#`` with digits (as
    for brightness) is ignored, as is white space around the whole. The text is compared with the list and used for
    nothing else: no shell, no path, no format string.

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
