"""Copies of an index: a backup while it is in use, a backup restored, and a copy between a file and Milvus."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from kexue._progress import Progress
from kexue.errors import NotSupported
from kexue.search.opening import open_index
from kexue.search.store import create_store, is_remote, require_file
from kexue.search.store.base import IndexExistsError, Value
from kexue.search.store.sqlite import copying
from kexue.search.store.sqlite.errors import explain_errors
from kexue.search.store.sqlite.files import check_file, check_target

_STORE_ENTRIES = ("epoch", "created", "updated")  # metadata that every store keeps about itself
_BATCH = 1024


@dataclass(frozen=True)
class CopyReport:
    """What was copied: `index` to `out`."""

    index: str
    out: str
    documents: int
    bytes: int
    seconds: float


def backup_index(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy an index to one file atomically, while others read and write it, and check the copy.

    The copy is the state at one moment, with the permissions of the index. It is an index itself: it can be opened,
    moved, and put back with `restore_index`.

    Args:
        path: the index, a file. out: the file to make.
        overwrite: replace an index (an older backup) at `out`; anything else there is never replaced.
        progress: called as progress(pages done, pages).

    Raises:
        IndexExistsError: `out` exists, or is the index itself. IndexFormatError: the index is damaged.
        DiskFullError: the disk is full. NotSupported: an address of Milvus.
    """
    began = time.perf_counter()
    source, target = require_file(path), require_file(out)
    check_file(source)
    check_places_differ(source, target)
    check_target(target, overwrite=overwrite)
    with explain_errors(source):
        documents = copying.copy(source, target, overwrite=overwrite, progress=progress)
    size = target.stat().st_size
    return CopyReport(os.fspath(path), os.fspath(out), documents, size, time.perf_counter() - began)


def restore_index(
    backup: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Restore a backup as an index, atomically, after a check; log and snapshot of the old index are deleted.

    Args:
        backup: a file of `backup_index`; it stays.
        out: where the index was.
        overwrite: replace an existing index, which no process may have open; its last changes are lost.
        progress: called as progress(pages done, pages).

    Raises:
        IndexFormatError: the backup is damaged. IndexExistsError: an index is at `out`. IndexBusyError: it is in use.
    """
    return backup_index(backup, out, overwrite=overwrite, progress=progress)


def copy_index(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Copy documents, vectors, whitening, calibration and all else; returns the number of documents.

    Nothing is encoded again. Changes that others make to `source` meanwhile may or may not be in the copy.

    Args:
        source: a file, or an address as in `Index.open`. target: likewise.
        overwrite: replace an index at `target`.
        progress: called as progress(done, total).

    Raises:
        IndexExistsError: something is at `target`, or it is `source` itself.
        NotSupported: split documents, to Milvus.

    >>> import tempfile, numpy as np
    >>> from kexue.search import Index
    >>> folder = tempfile.mkdtemp()
    >>> with Index.create(f"{folder}/a.kx", encoder=None) as index:
    ...     _ = index.add(["red", "green"], vectors=np.eye(2))
    >>> copy_index(f"{folder}/a.kx", f"{folder}/b.kx")
    2
    """
    check_places_differ(source, target)
    old, _ = open_index(source, readonly=True)
    try:
        if is_remote(target) and (split := old.count_passages().split):
            raise NotSupported(
                f"{split} documents of {os.fspath(source)} were split into passages; Milvus keeps one vector for each.",
                remedy="Keep the index in a file, or build it with passages='none' (--passages none) first.",
            )
        metadata: dict[str, Value] = {key: value for key, value in old.metadata().items() if key not in _STORE_ENTRIES}
        mode = None if is_remote(source) else stat.S_IMODE(os.stat(source).st_mode)
        new = create_store(target, metadata, overwrite=overwrite, mode=mode)
        try:
            total, done = old.count(), 0
            for rows in old.iterate(batch_size=_BATCH):
                new.upsert(rows)
                done += len(rows)
                if progress is not None:
                    progress(done, total)
            return done
        finally:
            new.close()
    finally:
        old.close()


def check_places_differ(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Raise IndexExistsError where both are the same file or address."""
    same = os.fspath(source) == os.fspath(target)
    if same or (os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target)):
        raise IndexExistsError(f"{target} is the index itself.", remedy="Choose another name.")
