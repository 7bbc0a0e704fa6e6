"""What a server is told when it starts, checked before anything is loaded."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kexue.errors import DataError, KexueError

Scope = Literal["read", "write"]
MAX_BODY = 32 * 2**20


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        indexes: files (or store URIs) of indexes; each is served under the name of its file without ending.
        models: folders or hub ids of encoders and cross-encoders, or ``name=folder`` to serve one under a name that
            clients already send. The encoders of the indexes are served too.
        host, port: where to listen.
        api_keys: key -> ``"read"`` or ``"write"`` (which includes read); None takes `KEXUE_API_KEY`,
            `KEXUE_API_KEY_READ` and `KEXUE_API_KEY_FILE`. Empty: everyone may do everything.
        allow_public: listen to other machines without a key.
        cors: origins whose pages may call; none by default.
        max_batch_tokens: tokens of one forward pass, padding included.
        max_queue: texts that may wait; beyond, 429 with Retry-After.
        max_input_tokens: a text with more is refused with 413; None: texts are cut at what the model reads.
        max_body: bytes of a request.
        log_texts: write queries to the log. Otherwise texts are never logged.
        strict: refuse fields that a route does not know instead of ignoring them.

    Raises:
        ValueError: a value out of range, or two indexes of one name.
        KexueError: an open address without a key.
    """

    indexes: Sequence[str | os.PathLike[str]] = ()
    models: Sequence[str | os.PathLike[str]] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Mapping[str, Scope] | None = field(default=None, repr=False)
    allow_public: bool = False
    cors: Sequence[str] = ()
    max_batch_tokens: int = 16384
    max_queue: int = 1024
    max_input_tokens: int | None = None
    max_body: int = MAX_BODY
    log_texts: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_queue", "max_body"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.max_input_tokens is not None and self.max_input_tokens < 1:
            raise ValueError(f"max_input_tokens must be >= 1 or None, got {self.max_input_tokens}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, got {self.port}")
        if not self.indexes and not self.models:
            raise ValueError("nothing to serve: name an index or a model")
        if self.api_keys is None:
            object.__setattr__(self, "api_keys", keys_from_environment())
        for scope in self.keys.values():
            if scope not in ("read", "write"):
                raise ValueError(f"the scope of a key must be 'read' or 'write', got {scope!r}")
        if not (self.keys or self.allow_public or is_loopback(self.host)):
            raise KexueError(
                f"{self.host} can be reached from other machines and no API key is set.",
                remedy="Set KEXUE_API_KEY (or --api-key-file), or allow it with --allow-public.",
            )

    @property
    def keys(self) -> Mapping[str, Scope]:
        """Key -> scope."""
        return self.api_keys or {}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keys_from_environment(file: str | os.PathLike[str] | None = None) -> dict[str, Scope]:
    """Keys of the environment and of a file with lines ``scope:key`` that only its owner may read.

    Raises:
        DataError: a line that is no ``read:key`` or ``write:key``, or a file others can read; the key is not shown.
    """
    keys: dict[str, Scope] = {}
    if key := os.environ.get("KEXUE_API_KEY_READ"):
        keys[key] = "read"
    if key := os.environ.get("KEXUE_API_KEY"):
        keys[key] = "write"
    path = file or os.environ.get("KEXUE_API_KEY_FILE")
    if not path:
        return keys
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise DataError("others can read this file of keys.", path=path, remedy=f"Run: chmod 600 {path}")
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        scope, colon, key = line.partition(":")
        if not colon or scope not in ("read", "write") or not key.strip():
            raise DataError("not of the form scope:key.", path=path, line=number, remedy="Write read:KEY or write:KEY.")
        keys[key.strip()] = "write" if scope == "write" else "read"
    return keys
