"""The unfinished index that a build writes, in its own file, so that an interrupted build can be resumed."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from kexue._progress import Progress
from kexue.errors import IndexFormatError, SpaceMismatchError
from kexue.search.encoding import IndexEncoder
from kexue.search.hubs import Dehub, append_offsets, local_means, neighbour_scores
from kexue.search.ingest import AddReport, Ingest
from kexue.search.opening import create_index_store
from kexue.search.products import Vectors
from kexue.search.sample import share_vectors, stack_vectors
from kexue.search.space import Space, SupportsEncode, is_fitted
from kexue.search.splitting import Splitting
from kexue.search.spool import Spool
from kexue.search.store import EmbeddedStore, IndexBusyError
from kexue.search.store.base import Row, Store, Value
from kexue.search.store.sqlite.files import check_target, remove_old_store_files
from kexue.search.store.sqlite.wal import SNAPSHOTS, remove_leftover_files, remove_log_and_snapshot
from kexue.similarity import Whitening
from kexue.text.identity import identify


class PartialIndex:
    """The file ``<out>.partial`` that a build writes, and resumes.

    Args:
        store: the opened file.
        path: path of the file.
        encoder: makes the vectors.
    """

    def __init__(self, store: EmbeddedStore, path: Path, encoder: SupportsEncode) -> None:
        self.store = store
        self.encoder = IndexEncoder(store, str(path), encoder)
        self.ingest = Ingest(store, self.encoder)

    @classmethod
    def start(
        cls,
        path: Path,
        encoder: SupportsEncode,
        space: Space,
        *,
        metadata: Mapping[str, Value],
        resume: bool,
        mode: int | None,
    ) -> PartialIndex:
        """Return what an earlier run has left if it can be resumed, else a new partial index.

        Args:
            path: path of the file.
            encoder, space: encoder and space of the vectors that are written.
            metadata: metadata of the finished index.
            resume: False discards what an earlier run has left.
            mode: permissions of a new file.
        """
        partial, reason = None, None
        if path.exists():
            try:
                partial = cls(EmbeddedStore.open(path), path, encoder)
                reason = partial._compare(encoder, space, metadata) if resume else "resume=False"
            except IndexFormatError as error:
                reason = error.message
        if reason is not None:
            if partial is not None:
                partial.close()
                partial = None
            if resume:
                warnings.warn(f"started again: the unfinished index cannot be used; {reason}", stacklevel=4)
        if partial is None:
            discard(path)
            store = create_index_store(path, space, approx=str(metadata["approx"]), mode=mode)
            partial = cls(cast(EmbeddedStore, store), path, encoder)
        partial.store.upsert([], metadata=metadata)
        return partial

    def _compare(self, encoder: SupportsEncode, space: Space, metadata: Mapping[str, Value]) -> str | None:
        """Return why the stored vectors cannot be used for a space and the metadata of an index, or None."""
        stored = self.encoder.space
        try:
            if stored.model.model_id is not None:
                stored.model.check(identify(encoder))
        except SpaceMismatchError as error:
            return error.message
        if Splitting.load(self.store.metadata()) != Splitting.load(metadata):
            return "its texts were split into other passages."
        same = (stored.raw, stored.dehub, stored.digest()) == (space.raw, space.dehub, space.digest())
        return None if same else "it was built with another whitening or dehub."

    def fill(self, spool: Spool, progress: Progress | None) -> AddReport:
        """Write the records of a spool, then remove what it no longer holds; see `Ingest.add_batches`."""
        written = add_spool(self.ingest, spool, progress)
        removed = 0
        if self.store.count() != len(spool):
            batches = self.store.iterate(vectors=False)
            removed = self.store.delete([name for rows in batches for name in spool.missing([row.id for row in rows])])
        if (removed or written.updated) and not self.encoder.space.raw:
            self.store.compact()
        return written

    def write_finished(
        self,
        path: Path,
        whitening: Whitening | None,
        dehub: Dehub | None,
        *,
        metadata: Mapping[str, Value],
        mode: int | None,
    ) -> None:
        """Write a second index with the raw vectors of this one whitened, and with their neighbourhoods.

        Args:
            path: path of the second index.
            whitening: fitted on all vectors unless it is fitted already; None: none.
            dehub, metadata, mode: those of the second index.
        """
        approx = str(metadata["approx"])
        if whitening is not None and not is_fitted(whitening):
            whitening = Whitening(**whitening.get_params())
            for rows in self.store.iterate():
                whitening.partial_fit(stack_vectors(rows).vectors)
        space = replace(self.encoder.space, whitening=whitening, raw=False, dehub=dehub, token=secrets.token_hex(8))
        local: Vectors | None = None
        if dehub == "csls" and self.store.count():
            stacked = [stack_vectors(rows) for rows in self.store.iterate()]
            unit = np.concatenate([space.project(some.vectors) for some in stacked])
            sizes = np.concatenate([some.sizes for some in stacked])
            local = local_means(neighbour_scores(unit, sizes=sizes, approx=approx))
        discard(path)
        new = cast(EmbeddedStore, create_index_store(path, space, approx=approx, mode=mode, metadata=metadata))
        try:
            done = 0
            for rows in self.store.iterate():
                vectors = space.project(stack_vectors(rows).vectors)
                if local is not None:
                    vectors = append_offsets(vectors, local[done : done + len(vectors)])
                new.upsert(share_vectors(rows, vectors))
                done += len(vectors)
        finally:
            new.close(snapshot=False)

    def close(self) -> None:
        """Close the file without writing a snapshot."""
        self.store.close(snapshot=False)


def add_spool(ingest: Ingest, spool: Spool, progress: Progress | None, *, keep: Store | None = None) -> AddReport:
    """Write the records of a spool; see `Ingest.add_batches`. Metadata that are null are left out.

    Args:
        ingest: writes.
        spool: the records.
        progress: called as progress(done, total).
        keep: documents of this store keep the metadata fields that their new record does not have.
    """
    total = len(spool)
    batches = ((_merge_metadata(rows, keep), None) for rows in spool.batches(ingest.batch_size(total)))
    return ingest.add_batches(batches, total, progress)


def _merge_metadata(rows: list[Row], keep: Store | None) -> list[Row]:
    """Return rows with the metadata that the store has of them and they have not; null removes a field."""
    stored = {} if keep is None else {row.id: row.metadata for row in keep.get([row.id for row in rows])}
    merged = [{**stored.get(row.id, {}), **row.metadata} for row in rows]
    return [
        row._replace(metadata={name: value for name, value in metadata.items() if value is not None})
        for row, metadata in zip(rows, merged, strict=True)
    ]


def check_place(target: Path, *, overwrite: bool) -> None:
    """Raise IndexExistsError or IndexFormatError where no index may be put at `target`; remove old log and snapshot."""
    check_target(target, overwrite=overwrite)
    if not os.path.lexists(target):
        remove_leftover_files(target, overwrite=overwrite)


def put_in_place(finished: Path, target: Path, *, overwrite: bool) -> None:
    """Move a finished index, and its snapshots, to `target`."""
    check_place(target, overwrite=overwrite)
    if Path(f"{finished}-wal").exists():
        raise IndexBusyError(f"{finished} is open elsewhere.", remedy="Check that the same build is not running twice.")
    remove_old_store_files(target, overwrite=overwrite)
    finished.replace(target)
    for ending in SNAPSHOTS:
        with suppress(FileNotFoundError):
            Path(f"{finished}{ending}").replace(f"{target}{ending}")


def discard(path: Path) -> None:
    """Delete an index with its log and snapshot."""
    path.unlink(missing_ok=True)
    remove_log_and_snapshot(path)
