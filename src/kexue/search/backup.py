"""An index file checked, backed up while others use it, and put back."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from kexue._progress import Progress
from kexue.errors import IndexFormatError, NotSupported
from kexue.search.index import Index
from kexue.search.store import is_remote, local_path
from kexue.search.store.base import IndexExistsError, IndexMissingError, IndexReplacedError
from kexue.search.store.sqlite import database


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with an index, one sentence a problem; `ok` when nothing is."""

    index: str
    ok: bool
    documents: int
    problems: list[str]
    seconds: float


@dataclass(frozen=True)
class CopyReport:
    """What was copied: `index` to `out`."""

    index: str
    out: str
    documents: int
    bytes: int
    seconds: float


def check_index(path: str | os.PathLike[str], *, progress: Progress | None = None) -> CheckReport:
    """Look at everything in an index: structure, checksum of every row, vectors, whitening, calibration.

    Args:
        path: the file; others may use it meanwhile.
        progress: called as progress(rows done, rows).

    Raises:
        IndexMissingError: nothing is there. NotSupported: an address of Milvus.

    >>> import tempfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/colours.kx"
    >>> with Index.create(path, encoder=None) as index:
    ...     _ = index.add(["red", "green"], vectors=np.eye(2))
    >>> check_index(path).problems
    []
    """
    began = time.perf_counter()
    file = _file(path)
    documents = 0
    problems: list[str] = []
    try:
        database.check_file(file)
        documents, problems = database.check(file, progress=progress)
        if not problems:
            with Index.open(file, readonly=True) as index:
                index.info()
    except (IndexMissingError, IndexReplacedError):
        raise
    except IndexFormatError as error:
        problems = [error.message]
    return CheckReport(os.fspath(path), not problems, documents, problems, time.perf_counter() - began)


def backup_index(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy an index to one file while others read and write it; whole and checked, or not at all.

    The copy is the state at one moment, with the permissions of the index. It is an index itself: it can be opened,
    moved, and put back with `restore_index`.

    Args:
        path: the index, a file. out: the file to make.
        overwrite: replace an index (an older backup) at `out`; anything else there is never replaced.
        progress: called as progress(pages done, pages).

    Raises:
        IndexExistsError: `out` exists, or is the index itself. IndexFormatError: the index is damaged.
        DiskFullError: no room. NotSupported: an address of Milvus.
    """
    began = time.perf_counter()
    source, target = _file(path), _file(out)
    database.check_file(source)
    _check_target(source, target, overwrite)
    with database.sqlite_errors(source):
        documents = database.copy(source, target, overwrite=overwrite, progress=progress)
    size = target.stat().st_size
    return CopyReport(os.fspath(path), os.fspath(out), documents, size, time.perf_counter() - began)


def restore_index(
    backup: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Put a backup back as an index: checked first, whole or not at all; log and snapshot of what was there go.

    Args:
        backup: what `backup_index` made; it stays.
        out: where the index was.
        overwrite: replace an index that is there, which nobody may have open; its last changes are lost.
        progress: called as progress(pages done, pages).

    Raises:
        IndexFormatError: the backup is damaged. IndexExistsError: an index is at `out`. IndexBusyError: it is in use.
    """
    return backup_index(backup, out, overwrite=overwrite, progress=progress)


def _file(path: str | os.PathLike[str]) -> Path:
    if is_remote(path):
        raise NotSupported(
            f"{os.fspath(path)} is in Milvus, which has tools of its own for this.",
            remedy="Copy it into a file first: kexue index copy.",
        )
    return Path(local_path(path))


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if target.exists() and os.path.samefile(source, target):
        raise IndexExistsError(f"{target} is the index itself.", remedy="Choose another name.")
    if not overwrite:
        raise IndexExistsError(
            f"{target} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
        )
    database.check_file(target, to_replace=True)
