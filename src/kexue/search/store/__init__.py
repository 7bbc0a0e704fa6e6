"""Places that keep documents and vectors: one protocol, one backend a file."""

from __future__ import annotations

import os
import re

from kexue.errors import NotSupported
from kexue.search.store.base import (
    CompactReport,
    Found,
    IndexBusyError,
    IndexExistsError,
    IndexMissingError,
    Row,
    Store,
    Upserted,
)
from kexue.search.store.embedded import EmbeddedStore

__all__ = [
    "CompactReport",
    "EmbeddedStore",
    "Found",
    "IndexBusyError",
    "IndexExistsError",
    "IndexMissingError",
    "Row",
    "Store",
    "Upserted",
    "open_store",
]

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_store(uri: str | os.PathLike[str], *, readonly: bool = False) -> Store:
    """Open the store a path or address names.

    Args:
        uri: a path opens the embedded store in that file.
        readonly: refuse every write.

    Raises:
        NotSupported: an address of the form ``scheme://host``; only files are supported.
        IndexFormatError: nothing there, or not an index; the message says which and what to do.
    """
    return EmbeddedStore.open(local_path(uri), readonly=readonly)


def local_path(uri: str | os.PathLike[str]) -> str:
    """The path `uri` is, or NotSupported when it is the address of a server."""
    path = os.fspath(uri)
    if _REMOTE.match(path):
        raise NotSupported(f"{path!r} names a server; an index lives in a file.", remedy="Give a path such as faq.kx.")
    return path
