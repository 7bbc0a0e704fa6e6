"""Places that keep documents and vectors: one protocol, one backend a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from kexue.errors import NotSupported
from kexue.search.store.base import (
    CompactReport,
    Match,
    IndexBusyError,
    IndexExistsError,
    IndexMissingError,
    IndexReadOnlyError,
    IndexReplacedError,
    Row,
    Store,
    Upserted,
    Value,
)
from kexue.search.store.milvus.store import MilvusStore
from kexue.search.store.sqlite.store import EmbeddedStore

__all__ = [
    "CompactReport",
    "EmbeddedStore",
    "Match",
    "IndexBusyError",
    "IndexExistsError",
    "IndexMissingError",
    "IndexReadOnlyError",
    "IndexReplacedError",
    "MilvusStore",
    "Row",
    "Store",
    "Upserted",
    "create_store",
    "open_store",
]

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_store(uri: str | os.PathLike[str], *, readonly: bool = False) -> Store:
    """Open the store a path or address names.

    Args:
        uri: a path opens the embedded store in that file; ``milvus://host:port/collection``, ``milvus+https://...`` and
            ``milvus:///folder/file.db#collection`` are in Milvus, see `kexue.search.store.milvus`.
        readonly: refuse every write.

    Raises:
        NotSupported: an address of another kind.
        IndexFormatError: nothing there, or not an index; the message says which and what to do.
        MissingDependencyError: an address of Milvus, and pymilvus is not installed.
    """
    if is_remote(uri):
        return MilvusStore.open(os.fspath(uri), readonly=readonly)
    return EmbeddedStore.open(local_path(uri), readonly=readonly)


def create_store(
    uri: str | os.PathLike[str], metadata: Mapping[str, Value], *, overwrite: bool = False, mode: int | None = None
) -> Store:
    """Make an empty store where a path or address says; an index that is there stays unless `overwrite`.

    `mode` is the permissions of a new file; None: those of the file that is replaced, else what the umask leaves.

    Raises:
        IndexExistsError: something is there. NotSupported, MissingDependencyError: see `open_store`.
    """
    if is_remote(uri):
        return MilvusStore.create(os.fspath(uri), metadata, overwrite=overwrite)
    return EmbeddedStore.create(local_path(uri), metadata, overwrite=overwrite, mode=mode)


def local_path(uri: str | os.PathLike[str]) -> str:
    """The path `uri` is, or NotSupported when it is the address of a server."""
    path = os.fspath(uri)
    if is_remote(path):
        raise NotSupported(
            "an index is built in a file, not in Milvus.",
            remedy="Build it in a file, then copy it there (kexue index copy).",
        )
    if _REMOTE.match(path):
        raise NotSupported(
            f"{path!r} names a server of an unknown kind.", remedy="Give a path such as faq.kx, or milvus://host/name."
        )
    return path


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether this is an address of Milvus, not a path."""
    return os.fspath(uri).startswith(("milvus://", "milvus+https://"))
