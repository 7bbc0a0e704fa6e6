"""Server settings, checked before anything is loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kexue.corpus.decoding import read_lines
from kexue.errors import DataError, KexueError
from kexue.serve.target import is_loopback, is_origin, parse_host

Scope = Literal["read", "write"]
MAX_BODY = 32 * 2**20
_PRIVATE = "Run chmod 600 on it (0400, 0440 and 0444 are accepted, too)."


@dataclass(frozen=True)
class Settings:
    """Server settings.

    Attributes:
        indexes: files or store addresses of indexes; the name of an index is that of its file without the ending.
        models: folders or hub ids of encoders and cross-encoders, or ``name=folder`` to use a name that clients
            already send. The encoders of the indexes are served, too.
        host: address to listen on.
        port: port to listen on, 0 to 65535; 0 = a free one.
        api_keys: key -> ``"read"`` or ``"write"`` (which includes read); None = read `KEXUE_API_KEY`,
            `KEXUE_API_KEY_READ` and `KEXUE_API_KEY_FILE`; empty = no key is needed.
        allow_public: allow an address that other machines reach without a key.
        allow_hosts: further host names that requests to a server without keys may carry.
        cors: origins whose pages may send requests; none by default.
        readonly: refuse every change of an index. An index whose file is read-only is served for reading anyway.
        device: device of the models, as in `kexue.text.Encoder`.
        dtype: arithmetic of the encoders, as in `kexue.text.Encoder`; a cross-encoder stays in float32.
        max_batch_tokens: limit of tokens in one forward pass, padding included, at least 1.
        max_queue: limit of waiting texts, at least 1; above it requests get status 429 with Retry-After.
        max_input_tokens: texts with more tokens are refused with 413; None = they are cut to what the model reads.
        max_body: limit of the bytes of a request, at least 1.
        log_texts: write queries to the log; texts are never logged otherwise.
        strict: refuse unknown fields instead of ignoring them.
        runs: folders of runs of ``kexue model train``, from which images are drawn, and of ``kexue extract train``,
            which find triples; models of ``kexue sample lm-train``, which write, or ``"ngram-zh"``, the packaged one;
            or ``name=folder``.

    Raises:
        ValueError: a value out of range, or a key that no client could send.
        KexueError: an address that other machines reach, without a key.
    """

    indexes: Sequence[str | os.PathLike[str]] = ()
    models: Sequence[str | os.PathLike[str]] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Mapping[str, Scope] | None = field(default=None, repr=False)
    allow_public: bool = False
    allow_hosts: Sequence[str] = ()
    cors: Sequence[str] = ()
    readonly: bool = False
    device: str = "auto"
    dtype: str = "auto"
    max_batch_tokens: int = 16384
    max_queue: int = 1024
    max_input_tokens: int | None = None
    max_body: int = MAX_BODY
    log_texts: bool = False
    strict: bool = False
    runs: Sequence[str | os.PathLike[str]] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_queue", "max_body"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.max_input_tokens is not None and self.max_input_tokens < 1:
            raise ValueError(f"max_input_tokens must be >= 1 or None, got {self.max_input_tokens}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be between 0 and 65535, got {self.port}")
        if not self.indexes and not self.models and not self.runs:
            raise ValueError("nothing to serve: name an index, a model or a run")
        if self.api_keys is None:
            object.__setattr__(self, "api_keys", keys_from_environment())
        for key, scope in self.keys.items():
            if (wrong := _find_fault(key)) is not None:
                raise ValueError(f"an API key {wrong}")
            if scope not in ("read", "write"):
                raise ValueError(f"the scope of a key must be 'read' or 'write', got {scope!r}")
        for origin in self.cors:
            if origin != "*" and not is_origin(origin):
                raise ValueError(f'cors must hold origins such as "https://example.com:8443", or "*"; got {origin!r}')
        for host in self.allow_hosts:
            if parse_host(f"[{host}]" if ":" in host else host) is None:
                raise ValueError(f"allow_hosts must hold names without scheme and port, got {host!r}")
        if not (self.keys or self.allow_public or is_loopback(self.host)):
            raise KexueError(
                f"{self.host} can be reached from other machines and no API key is set.",
                remedy="Set KEXUE_API_KEY (or --api-key-file), or allow it with --allow-public.",
            )

    @property
    def keys(self) -> Mapping[str, Scope]:
        """API keys and their scopes; empty where no key is needed."""
        return self.api_keys or {}


def keys_from_environment(file: str | os.PathLike[str] | None = None) -> dict[str, Scope]:
    """Read the API keys of the environment, and of a file of lines ``scope:key``.

    Spaces around a key are dropped. A variable or file without a key is an error, so that a missing secret does not
    leave a server open.

    Args:
        file: file of keys that only its owner, or nobody, may change; None = `KEXUE_API_KEY_FILE`, if set.

    Raises:
        DataError: a variable or file without a key, a key that no client could send, a line that is neither
            ``read:key`` nor ``write:key``, or a file that others can read or change. The message does not show keys.
    """
    keys: dict[str, Scope] = {}
    for name, scope in (("KEXUE_API_KEY_READ", "read"), ("KEXUE_API_KEY", "write")):
        if (value := os.environ.get(name)) is not None:
            _add_key(keys, value, scope, name, None)
    path = os.environ.get("KEXUE_API_KEY_FILE") if file is None else os.fspath(file)
    if path is None:
        return keys
    if not path:
        raise DataError("KEXUE_API_KEY_FILE is set and empty.", remedy="Name a file of keys, or unset it.")
    _check_rights(path)
    count = 0
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        scope, colon, key = line.strip().partition(":")
        if not colon or scope not in ("read", "write"):
            raise DataError("not of the form scope:key.", path=path, line=number, remedy="Write read:KEY or write:KEY.")
        _add_key(keys, key, scope, path, number)
        count += 1
    if not count:
        raise DataError("there is no key in this file of keys.", path=path, remedy="Write read:KEY or write:KEY.")
    return keys


def _check_rights(path: str) -> None:
    """Refuse a file of keys that others may change, or may read while its owner may change it.

    A file that nobody may write, with mode 0440 or 0444, comes from a manager of secrets: systemd shows the access
    list of a credential as rights of the group, and containers mount secrets readable for every user in them.
    """
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o022:
        raise DataError(f"others can change this file of keys (mode {mode:04o}).", path=path, remedy=_PRIVATE)
    if mode & 0o055 and mode & 0o200:
        raise DataError(f"others can read this file of keys (mode {mode:04o}).", path=path, remedy=_PRIVATE)


def _add_key(keys: dict[str, Scope], value: str, scope: str, source: str, line: int | None) -> None:
    """Add a key; refuse one that cannot be sent, or that has two scopes."""
    key = value.strip()
    wrong = _find_fault(key)
    if wrong is None and keys.get(key, scope) != scope:
        wrong = "is given twice, to read and to write."
    if wrong is not None:
        raise DataError(f"the key {wrong}", path=source, line=line, remedy="Write another key, or leave it out.")
    keys[key] = "write" if scope == "write" else "read"


def _find_fault(key: str) -> str | None:
    """Return why no client could send this key in a header; None where it can be sent."""
    if not key:
        return "is empty."
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        return "holds what a header cannot: only printable ASCII, no blanks at the ends."
    return None
