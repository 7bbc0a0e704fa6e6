"""Stores of documents and vectors: one protocol, one folder for each backend."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from kexue.errors import NotSupported
from kexue.search.store.base import (
    CompactReport,
    IndexBusyError,
    IndexExistsError,
    IndexMissingError,
    IndexReadOnlyError,
    IndexReplacedError,
    Match,
    PassageCounts,
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
    "IndexBusyError",
    "IndexExistsError",
    "IndexMissingError",
    "IndexReadOnlyError",
    "IndexReplacedError",
    "Match",
    "MilvusStore",
    "PassageCounts",
    "Row",
    "Store",
    "Upserted",
    "create_store",
    "open_store",
]

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def open_store(uri: str | os.PathLike[str], *, readonly: bool = False) -> Store:
    """Open the store at a path or address.

    Args:
        uri: a path opens the SQLite store in that file; ``milvus://host:port/collection``, ``milvus+https://...`` and
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
    """Create an empty store at a path or address.

    Args:
        uri: see `open_store`.
        metadata: metadata of the store as a whole.
        overwrite: replace an existing index; anything else is never replaced.
        mode: permissions of a new file; None: those of the file that is replaced, else the default of the system.

    Raises:
        IndexExistsError: something is there. NotSupported, MissingDependencyError: see `open_store`.
    """
    if is_remote(uri):
        return MilvusStore.create(os.fspath(uri), metadata, overwrite=overwrite)
    return EmbeddedStore.create(local_path(uri), metadata, overwrite=overwrite, mode=mode)


def local_path(uri: str | os.PathLike[str]) -> str:
    """Return `uri` as a path; NotSupported where it is the address of a server."""
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


def require_file(uri: str | os.PathLike[str]) -> Path:
    """Return the path of an index to be checked or backed up; NotSupported where it is in Milvus."""
    if is_remote(uri):
        raise NotSupported(
            f"{os.fspath(uri)} is in Milvus, which has its own tools for this.",
            remedy="Copy it into a file first: kexue index copy.",
        )
    return Path(local_path(uri))


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Whether `uri` is an address of Milvus, not a path."""
    return os.fspath(uri).startswith(("milvus://", "milvus+https://"))
