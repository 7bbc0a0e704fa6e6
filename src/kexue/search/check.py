"""Check of an index file for damage."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import cast

from kexue._progress import Progress
from kexue.errors import IndexFormatError
from kexue.search.calibration import StoredCalibration
from kexue.search.info import describe_index
from kexue.search.opening import open_index
from kexue.search.store import EmbeddedStore, require_file
from kexue.search.store.base import IndexMissingError, IndexReplacedError
from kexue.search.store.sqlite import copying, files


@dataclass(frozen=True)
class CheckReport:
    """Problems of an index, one sentence each; `ok` when there are none."""

    index: str
    ok: bool
    documents: int
    problems: list[str]
    seconds: float


def check_index(path: str | os.PathLike[str], *, progress: Progress | None = None) -> CheckReport:
    """Check everything in an index: structure, checksum of every row, vectors, words, whitening, calibration.

    Args:
        path: the file; others may use it meanwhile.
        progress: called as progress(rows done, rows).

    Raises:
        IndexMissingError: nothing is there. NotSupported: an address of Milvus.

    >>> import tempfile, numpy as np
    >>> from kexue.search import Index
    >>> path = tempfile.mkdtemp() + "/colours.kx"
    >>> with Index.create(path, encoder=None) as index:
    ...     _ = index.add(["red", "green"], vectors=np.eye(2))
    >>> check_index(path).problems
    []
    """
    began = time.perf_counter()
    file = require_file(path)
    documents = 0
    problems: list[str] = []
    try:
        files.check_file(file)
        documents, problems = copying.check(file, progress=progress)
        if not problems:
            problems = _read_records(os.fspath(file))
    except (IndexMissingError, IndexReplacedError):
        raise
    except IndexFormatError as error:
        problems = [error.message]
    return CheckReport(os.fspath(path), not problems, documents, problems, time.perf_counter() - began)


def _read_records(path: str) -> list[str]:
    """Read what the index records about itself, and compare its words; IndexFormatError where it is damaged."""
    store, encoder = open_index(path, readonly=True)
    try:
        describe_index(path, store, encoder.space, StoredCalibration(store, path))
        return cast(EmbeddedStore, store).words.find_problems()
    finally:
        store.close()
