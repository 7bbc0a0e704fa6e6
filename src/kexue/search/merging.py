"""Several indexes of one vector space merged into one; vectors are copied, nothing is encoded again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import operator
import os
import secrets
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from kexue._progress import Progress
from kexue.errors import DataError, SpaceMismatchError
from kexue.search.copying import check_places_differ
from kexue.search.encoding import IndexEncoder
from kexue.search.fields import recorded_columns
from kexue.search.ingest import Ingest, drift_sum
from kexue.search.opening import open_index
from kexue.search.partial import check_place, discard, put_in_place
from kexue.search.space import Space
from kexue.search.splitting import Splitting
from kexue.search.store import EmbeddedStore, create_store, is_remote, local_path
from kexue.search.store.base import IndexBusyError, IndexReplacedError, Row, Store, Value

_LISTED = 5  # ids that an error names
# Metadata of an index that hold for it and its documents only.
_OWN = ("epoch", "created", "updated", "space", "hubness", "columns", "drift_n", "drift_sum", "written")
_CALIBRATION = "calibration"  # what begins with it


@dataclass(frozen=True)
class MergeReport:
    """What `merge_indexes` wrote to `out`.

    `sources` has the path and the number of documents of each index. `same` counts documents that a second index holds
    unchanged, `replaced` those that were left out because another index holds the id with another text or other
    metadata. `warnings` are sentences for the user.
    """

    out: str
    documents: int
    sources: list[dict[str, Any]]
    same: int
    replaced: int
    bytes: int
    seconds: float
    warnings: list[str]


class _Source(NamedTuple):
    """An index that is merged: its path, its store and the space of its vectors."""

    path: str
    store: Store
    space: Space


def merge_indexes(
    out: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    *,
    prefer: Literal["first", "last"] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge indexes of one vector space into a new one; `out` is complete or not there.

    Metadata of documents stay as they are. A calibration is not copied: it holds for the documents it was made with.
    With ``dehub="csls"`` the neighbourhoods of all documents are measured again.

    Args:
        out: the file to make.
        sources: two or more indexes, files or addresses; they are only read.
        prefer: which index counts where several hold one id with different contents; None: that is an error.
        overwrite: replace an index at `out`.
        progress: called as progress(done, total).

    Raises:
        SpaceMismatchError: the vectors of two indexes are of different encoders, whitenings or corrections for hubs.
        DataError: an id has different contents in two indexes, and `prefer` is None.
        IndexExistsError: `out` exists, or is one of the sources. NotSupported: `out` is in Milvus.

    Cost: the ids in memory; every vector is read and written once.

    >>> import tempfile, numpy as np
    >>> from kexue.search import Index
    >>> folder = tempfile.mkdtemp()
    >>> for name, text, vector in (("a", "red", [1, 0]), ("b", "green", [0, 1])):
    ...     with Index.create(f"{folder}/{name}.kx", encoder=None) as index:
    ...         _ = index.add([text], ids=[name], vectors=[vector])
    >>> merge_indexes(f"{folder}/all.kx", [f"{folder}/a.kx", f"{folder}/b.kx"]).documents
    2
    """
    began = time.perf_counter()
    if len(sources) < 2:
        raise ValueError(f"merging takes two indexes or more, got {len(sources)}.")
    if prefer not in (None, "first", "last"):
        raise ValueError(f"prefer must be 'first', 'last' or None, got {prefer!r}.")
    target = Path(os.path.realpath(local_path(out)))
    for source in sources:
        check_places_differ(source, target)
    check_place(target, overwrite=overwrite)
    partial = Path(f"{target}.partial-merged")
    with contextlib.ExitStack() as stack:
        opened = [_open(source, stack) for source in sources]
        warnings = _check_spaces(opened)
        chosen = _choose_documents(opened, prefer)
        metadata, told = _merge_metadata(opened)
        try:
            _write(partial, opened, chosen.owners, metadata, mode=_shared_mode(sources), progress=progress)
            size = partial.stat().st_size
            put_in_place(partial, target, overwrite=overwrite)
        except (IndexReplacedError, FileNotFoundError) as error:  # of two at once, the other took or replaced the file
            check_place(target, overwrite=overwrite)
            raise IndexBusyError(
                f"another process writes {target}, or has replaced an index that is merged.",
                remedy="Start again when it has ended, or choose another name.",
            ) from error
    return MergeReport(
        out=os.fspath(out),
        documents=len(chosen.owners),
        sources=[{"index": one.path, "documents": n} for one, n in zip(opened, chosen.counts, strict=True)],
        same=chosen.same,
        replaced=chosen.replaced,
        bytes=size,
        seconds=time.perf_counter() - began,
        warnings=warnings + told,
    )


def _open(path: str | os.PathLike[str], stack: contextlib.ExitStack) -> _Source:
    store, encoder = open_index(path, readonly=True)
    stack.callback(store.close)
    return _Source(os.fspath(path), store, encoder.space)


def _check_spaces(sources: Sequence[_Source]) -> list[str]:
    """Raise SpaceMismatchError where two indexes with documents differ in their space; return warnings."""
    filled = [source for source in sources if source.space.token is not None]
    for other in filled[1:]:
        _check_pair(filled[0], other)
    if any(source.space.model.fingerprint is None and source.space.model.model_id is None for source in filled):
        return ["an index does not record its encoder; that the vectors are of the same one was not checked."]
    return []


def _check_pair(a: _Source, b: _Source) -> None:
    """Raise SpaceMismatchError, with the names of both indexes, where their vectors cannot be compared."""
    reason: str | None = None
    expected, received = a.space.dehub, b.space.dehub
    try:
        a.space.model.check(b.space.model, whitened=a.space.whitening is not None)
    except SpaceMismatchError as error:
        reason, expected, received = error.message, error.expected, error.received  # type: ignore[assignment]
    if reason is None and a.space.digest() != b.space.digest():
        reason, expected, received = "their whitenings differ.", a.space.digest(), b.space.digest()  # type: ignore[assignment]
    if reason is None and expected != received:
        reason = f"their corrections for hubs differ: {expected or 'none'} and {received or 'none'}."
    if reason is not None:
        raise SpaceMismatchError(
            f"{a.path} and {b.path} have different vector spaces: {reason}",
            expected=expected,
            received=received,
            remedy="Build them with the same encoder, whitening and --dehub, or build one index from all files.",
        )


class _Chosen(NamedTuple):
    """Which index each id is taken from, by its number; how many each gives; and what was left out."""

    owners: dict[str, int]
    counts: list[int]
    same: int
    replaced: int


def _choose_documents(sources: Sequence[_Source], prefer: str | None) -> _Chosen:
    """Decide for every id which index it is taken from; DataError where contents differ and `prefer` is None."""
    owners: dict[str, int] = {}
    contents: dict[str, bytes] = {}
    same, conflicts = 0, []
    for number, source in enumerate(sources):
        for rows in source.store.iterate(vectors=False):
            for row in rows:
                content = _digest(row)
                if row.id not in owners:
                    owners[row.id], contents[row.id] = number, content
                elif contents[row.id] == content:
                    same += 1
                else:
                    conflicts.append((row.id, owners[row.id], number))
                    if prefer == "last":
                        owners[row.id], contents[row.id] = number, content
    if conflicts and prefer is None:
        raise _conflict_error(sources, conflicts)
    counts = np.bincount(list(owners.values()), minlength=len(sources)).tolist()
    return _Chosen(owners, counts, same, len(conflicts))


def _digest(row: Row) -> bytes:
    """Return a hash of the text and the metadata of a document."""
    content = json.dumps([row.text, row.metadata], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _conflict_error(sources: Sequence[_Source], conflicts: Sequence[tuple[str, int, int]]) -> DataError:
    listed = "; ".join(f"{name!r} in {sources[a].path} and {sources[b].path}" for name, a, b in conflicts[:_LISTED])
    more = f"; and {len(conflicts) - _LISTED:,} more" if len(conflicts) > _LISTED else ""
    ids = "id has" if len(conflicts) == 1 else "ids have"
    return DataError(
        f"{len(conflicts):,} {ids} different contents: {listed}{more}.",
        remedy="Choose the first or the last index that holds an id: prefer='first' or 'last' (--prefer).",
    )


def _merge_metadata(sources: Sequence[_Source]) -> tuple[dict[str, Value], list[str]]:
    """Return the metadata of the merged index as a whole, and warnings about what it does not take over."""
    base = next((source for source in sources if source.space.token is not None), sources[0])
    metadata = {
        key: value
        for key, value in base.store.metadata().items()
        if key not in _OWN and not key.startswith(_CALIBRATION)
    }
    if base.space.token is not None:
        metadata["space"] = secrets.token_hex(8)
    if len({source.store.metadata()["approx"] for source in sources}) > 1:
        metadata["approx"] = "auto"
    warnings = [
        f"the calibration of {source.path} is not taken over; run kexue index calibrate on the merged index."
        for source in sources
        if _CALIBRATION in source.store.metadata()
    ]
    if len({Splitting.load(source.store.metadata()) for source in sources}) > 1:
        warnings.append(f"the indexes split texts into other passages; what is added later is split as in {base.path}.")
    columns = [found for source in sources if (found := recorded_columns(source.store))]
    if len({(one.get("text"), one.get("id")) for one in columns}) == 1:
        fields = dict.fromkeys(field for one in columns for field in one.get("metadata", ()))
        metadata["columns"] = json.dumps({**columns[0], "metadata": list(fields)})
    elif columns:
        warnings.append("the indexes have columns of other names; kexue index add needs --text and --id.")
    if base.space.whitening is not None:
        sums = [drift_sum(source.store.metadata()) for source in sources]
        metadata["drift_n"] = str(sum(n for n, _ in sums))
        metadata["drift_sum"] = (np.zeros(base.space.whitening.mean_.shape) + sum(total for _, total in sums)).tobytes()
    return metadata, warnings


def _shared_mode(sources: Sequence[str | os.PathLike[str]]) -> int | None:
    """Return the permissions that all files among the sources grant; None where none is a file."""
    modes = [stat.S_IMODE(os.stat(source).st_mode) for source in sources if not is_remote(source)]
    return functools.reduce(operator.and_, modes) if modes else None


def _write(
    path: Path,
    sources: Sequence[_Source],
    owners: Mapping[str, int],
    metadata: Mapping[str, Value],
    *,
    mode: int | None,
    progress: Progress | None,
) -> None:
    """Write the chosen documents, in the order of the indexes, and the snapshot of the search engine."""
    discard(path)
    store = cast(EmbeddedStore, create_store(path, metadata, mode=mode))
    try:
        done = 0
        for number, source in enumerate(sources):
            for rows in source.store.iterate():
                store.upsert([row for row in rows if owners.get(row.id) == number])
                done += len(rows)
                if progress is not None:
                    progress(done, sum(source.store.count() for source in sources))
        encoder = IndexEncoder(store, str(path))
        if encoder.space.dehub == "csls" and len(owners):
            Ingest(store, encoder).remeasure_offsets()
            store.compact()
        store.save_snapshot()
    finally:
        store.close(snapshot=False)
