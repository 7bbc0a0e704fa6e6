"""An index from one place to another: file to Milvus, Milvus to file, or a copy while others read."""

from __future__ import annotations

import os
import stat

from kexue._progress import Progress
from kexue.search.index import Index
from kexue.search.store import create_store, is_remote, open_store
from kexue.search.store.base import IndexExistsError, Value

_OWN = ("epoch", "created", "updated")  # what every store keeps for itself
_BATCH = 1024


def copy_index(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Copy documents, vectors, whitening, calibration and the rest; returns how many documents.

    Nothing is encoded again. What others write to `source` meanwhile may or may not be in the copy.

    Args:
        source: a file, or an address as in `Index.open`. target: likewise, and nothing may be there yet.
        overwrite: replace an index at `target`.
        progress: called as progress(done, total).

    Raises:
        IndexExistsError: something is at `target`, or it is `source` itself.

    >>> import tempfile, numpy as np
    >>> folder = tempfile.mkdtemp()
    >>> with Index.create(f"{folder}/a.kx", encoder=None) as index:
    ...     _ = index.add(["red", "green"], vectors=np.eye(2))
    >>> copy_index(f"{folder}/a.kx", f"{folder}/b.kx")
    2
    """
    if os.fspath(source) == os.fspath(target) or (os.path.exists(target) and os.path.samefile(source, target)):
        raise IndexExistsError(f"{target} is the index itself.", remedy="Choose another name.")
    Index.open(source, readonly=True).close()  # says what is wrong with it, if anything
    old = open_store(source, readonly=True)
    try:
        metadata: dict[str, Value] = {name: value for name, value in old.metadata().items() if name not in _OWN}
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
