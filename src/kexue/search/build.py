"""Files to an index: everything is read and checked first, then encoded in batches that survive an interruption."""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from kexue._progress import Progress
from kexue.corpus import read_records
from kexue.corpus.decoding import MAX_BYTES
from kexue.corpus.open import STDIN
from kexue.errors import DataError, IndexFormatError, SpaceMismatchError
from kexue.search.hubs import Dehub, centring, check_dehub, local_means, neighbour_scores, with_offsets
from kexue.search.index import APPROX, BATCH, AddReport, Index
from kexue.search.meaning import stack
from kexue.search.products import Vectors
from kexue.search.space import Space, SupportsEncode, is_fitted
from kexue.search.spool import Spool
from kexue.search.store import EmbeddedStore, IndexBusyError, IndexExistsError, local_path
from kexue.search.store.base import Value
from kexue.search.store.sqlite.database import check_file, make_way
from kexue.search.store.sqlite.identity import clear_orphans, remove_companions
from kexue.similarity import Whitening
from kexue.text.identity import ModelIdentity, identify

_TABLES = ("csv", "tsv", "jsonl", "parquet")
_TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq")
Inputs = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class BuildReport:
    """What `build_index` did.

    `added`, `updated` and `skipped` count records: new, replaced after an interrupted run, and left alone because they
    were there (from that run, or the same text twice). `replaced` counts malformed characters, `truncated` texts the
    encoder cut. `warnings` are sentences worth reading.
    """

    index: str
    documents: int
    added: int
    updated: int
    skipped: int
    replaced: int
    truncated: int
    dims: int
    model: dict[str, Any]
    whitening: dict[str, Any] | None
    bytes: int
    seconds: float
    warnings: list[str]


def build_index(
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    encoder: SupportsEncode | str | os.PathLike[str] = "auto",
    whitening: Whitening | None = None,
    dehub: Dehub | None = None,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] = (),
    format: str = "auto",
    approx: str = "auto",
    errors: str = "strict",
    max_bytes: int = MAX_BYTES,
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an index from files of texts; interrupted, the same call goes on where it stopped.

    All inputs are read and checked first, onto disk where they are large; then texts are encoded and made durable in
    batches, in ``<out>.partial``, which takes its place as `out` when everything is in. What was at `out` stays until
    then. Texts already in a partial index of the same encoder are not encoded again, whatever else has changed.

    Args:
        inputs: files, folders or ``"-"``, see `kexue.corpus.read_records`; so are `text`, `id`, `metadata`, `format`,
            `errors` and `max_bytes`. Without `id` a document is named by a hash of its text, and a text that comes
            twice counts once.
        out: the index file to make.
        encoder: a folder or hub id, ``"auto"``, or an object with ``encode(texts) -> (n, dim)``.
        whitening: None, a fitted one, or one that is not fitted and will be, on all the vectors.
        dehub, approx: see `Index.create`.
        resume: False discards what an interrupted build has left.
        overwrite: replace an index at `out`; anything else there is never replaced.
        progress: called as progress(done, total).

    Raises:
        DataError: input that cannot be read, or an id twice (both places are named); nothing was encoded yet.
        IndexExistsError: `out` exists. DiskFullError: no room; what is done is kept for the next run.

    Cost: one pass of the encoder; memory for one batch, and for the search engine that writes the snapshot.

    >>> import pathlib, tempfile, numpy as np
    >>> class Length:
    ...     def encode(self, texts): return np.array([[len(text), 1.0] for text in texts])
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "words.txt").write_text("one\\nthree\\n")
    >>> build_index(folder / "words.txt", folder / "words.kx", encoder=Length()).documents
    2
    """
    start = time.perf_counter()
    target = Path(os.path.realpath(local_path(out)))  # a link stays, what it leads to is replaced
    _check_target(target, overwrite)
    if approx not in APPROX:
        raise ValueError(f"approx must be one of {', '.join(APPROX)}, got {approx!r}")
    if not isinstance(encoder, str | os.PathLike | SupportsEncode):
        raise TypeError(f"encoder must be a name or an object with encode(texts), got {encoder!r:.60}")
    check_dehub(dehub)
    whitening = centring(dehub, whitening)
    reading: dict[str, Any] = {"text": text, "id": id, "metadata": metadata, "format": format, "errors": errors}
    records = read_records(inputs, **reading, max_bytes=max_bytes)
    with closing(Spool()) as spool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spool.fill(records)
        if isinstance(encoder, str | os.PathLike):
            from kexue.text import Encoder

            encoder = Encoder(encoder)
        ready = dehub != "csls" and (whitening is None or is_fitted(whitening))  # to store vectors as they come
        space = Space(ModelIdentity(), whitening if ready else None, raw=not ready, dehub=dehub if ready else None)
        partial = Path(f"{target}.partial")
        finished = partial if ready else Path(f"{target}.partial-finished")
        columns = json.dumps({"text": text, "id": id, "metadata": list(metadata)})
        more: dict[str, Value] = {"approx": approx, "columns": columns}
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None  # a private index stays private
        with _partial(partial, encoder, space, more=more, resume=resume, mode=mode) as index:
            done, truncated = _add_all(index, spool, progress)
            if _drop_others(index, spool) + done.updated and ready:
                index.compact()
            if not ready:
                _finish(finished, index, whitening, dehub, more=more, mode=mode)
        with Index.open(finished) as index:
            _embedded(index).save_snapshot()
            info = index.info()
        _put_in_place(finished, target, overwrite=overwrite)
        for left in (partial, Path(f"{target}.partial-finished")):  # of this run, or of one that was killed
            if left != finished:
                _discard(left)
    return BuildReport(
        index=str(Path(out)),
        documents=info.documents,
        added=done.added,
        updated=done.updated,
        skipped=done.skipped + spool.doubles,
        replaced=records.replaced,
        truncated=truncated,
        dims=info.dims or 0,
        model={name: info.model[name] for name in ("id", "fingerprint")},
        whitening=info.whitening,
        bytes=info.bytes,
        seconds=time.perf_counter() - start,
        warnings=list(dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))),
    )


def add_files(
    index: Index,
    inputs: Inputs,
    *,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] | None = None,
    format: str = "auto",
    errors: str = "strict",
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> AddReport:
    """Add the texts of files to an index; all of them are read and checked before the first is added.

    A document whose id is there is replaced; an unchanged one is skipped.

    Args:
        index, inputs, format, errors, max_bytes, progress: as in `build_index`.
        text, id, metadata: columns, as in `build_index`. None: those the index was built with, if any; so documents
            that are replaced keep their id; a warning says which metadata they lose, where the input lacks some. ``""``
            and ``()`` say that there are none. Files of plain text have none; their documents are named by their text.

    Raises:
        DataError: input that cannot be read or has other columns, or an id twice in it; the index is as it was.
    """
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    built = {}
    if format in _TABLES or (format == "auto" and any(map(_is_table, inputs))):
        built = json.loads(str(index._store.metadata().get("columns", "{}")))
    there = list(built.get("metadata", []))
    columns: dict[str, Any] = {
        "text": (built.get("text") if text is None else text) or None,
        "id": (built.get("id") if id is None else id) or None,
        "metadata": list(there if metadata is None else metadata),
    }
    with ExitStack() as stack:
        while True:
            spool = stack.enter_context(closing(Spool()))
            try:
                spool.fill(read_records(inputs, **columns, format=format, errors=errors, max_bytes=max_bytes))
                break
            except DataError as error:
                if metadata is None and error.column in columns["metadata"] and STDIN not in inputs:
                    columns["metadata"].remove(error.column)  # nobody asked for it here
                    continue
                if columns != {"text": text, "id": id, "metadata": metadata} and any(columns.values()):
                    said = "; ".join(f"{name}: {value}" for name, value in columns.items() if value)
                    error.remedy = (
                        f"{error.remedy or ''} Columns that are not named are those the index was built with ({said}); "
                        "id='' (--id '') says that there is none."
                    ).strip()
                raise
        if lost := [name for name in there if name not in columns["metadata"]]:
            warnings.warn(
                f"the index was built with the metadata {', '.join(there)}; documents replaced now lose "
                f"{', '.join(lost)}.",
                stacklevel=2,
            )
        done, _ = _add_all(index, spool, progress)
        return replace(done, skipped=done.skipped + spool.doubles)


def _is_table(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a file with columns."""
    return not set(_TABLE_SUFFIXES).isdisjoint(Path(path).suffixes) and not os.path.isdir(path)


def _add_all(index: Index, spool: Spool, progress: Progress | None) -> tuple[AddReport, int]:
    added = updated = skipped = truncated = 0
    size = BATCH if index.space.unfitted is None else len(spool)
    for rows in spool.batches(size):
        report, cut = index._add(rows, None)
        truncated += cut
        added, updated, skipped = added + report.added, updated + report.updated, skipped + report.skipped
        if progress is not None:
            progress(added + updated + skipped, len(spool))
    return AddReport(added, updated, skipped), truncated


def _check_target(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target):
        if not overwrite:
            raise IndexExistsError(
                f"{target} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
            )
        check_file(target, to_replace=True)
    else:
        clear_orphans(target, overwrite=overwrite)


@contextmanager
def _partial(
    path: Path, encoder: SupportsEncode, space: Space, *, more: Mapping[str, Value], resume: bool, mode: int | None
) -> Iterator[Index]:
    """The index under construction: what an earlier run has left when it fits, else a new one."""
    index, reason = None, None
    if path.exists():
        try:
            index = Index(EmbeddedStore.open(path), str(path), encoder)
            reason = _why_not(index, encoder, space) if resume else "resume=False"
        except IndexFormatError as error:
            reason = error.message
    if reason is not None:
        if index is not None:
            _embedded(index).close(snapshot=False)
            index = None
        if resume:
            warnings.warn(f"started anew: what an earlier run left cannot be gone on with; {reason}", stacklevel=4)
        _discard(path)
    if index is None:
        _discard(path)
        index = Index._create(path, space, encoder, approx=str(more["approx"]), mode=mode)
    index._store.upsert([], metadata=more)
    try:
        yield index
    finally:
        _embedded(index).close(snapshot=False)


def _why_not(index: Index, encoder: SupportsEncode, space: Space) -> str | None:
    """Why the vectors of a partial index cannot be gone on with, or None."""
    there = index.space
    try:
        if there.model.model_id is not None:
            there.model.check(identify(encoder))
    except SpaceMismatchError as error:
        return error.message
    same = (there.raw, there.dehub, there.digest()) == (space.raw, space.dehub, space.digest())
    return None if same else "it was built with another whitening or dehub."


def _drop_others(index: Index, spool: Spool) -> int:
    """Delete what an earlier run took in and the input no longer holds."""
    if len(index) == len(spool):
        return 0
    gone = [name for rows in index._store.iterate(vectors=False) for name in spool.missing([row.id for row in rows])]
    return index._store.delete(gone)


def _finish(
    path: Path,
    index: Index,
    whitening: Whitening | None,
    dehub: Dehub | None,
    *,
    more: Mapping[str, Value],
    mode: int | None,
) -> None:
    """Write a second index with the raw vectors of `index` as they are to be: whitened, with their neighbourhoods."""
    store = index._store
    approx = str(more["approx"])
    if whitening is not None and not is_fitted(whitening):
        whitening = Whitening(**whitening.get_params())
        for rows in store.iterate():
            whitening.partial_fit(stack(rows))
    space = replace(index.space, whitening=whitening, raw=False, dehub=dehub, token=secrets.token_hex(8))
    local: Vectors | None = None
    if dehub == "csls" and len(index):
        unit = np.concatenate([space.project(stack(rows)) for rows in store.iterate()])
        local = local_means(neighbour_scores(unit, approx=approx))
    _discard(path)
    new = Index._create(path, space, None, approx=approx, mode=mode, more=more)
    try:
        done = 0
        for rows in store.iterate():
            vectors = space.project(stack(rows))
            if local is not None:
                vectors = with_offsets(vectors, local[done : done + len(rows)])
            new._store.upsert([row._replace(vector=vector) for row, vector in zip(rows, vectors, strict=True)])
            done += len(rows)
    finally:
        _embedded(new).close(snapshot=False)


def _put_in_place(finished: Path, target: Path, *, overwrite: bool) -> None:
    _check_target(target, overwrite)
    if Path(f"{finished}-wal").exists():
        raise IndexBusyError(f"{finished} is open elsewhere.", remedy="Is the same build running twice?")
    make_way(target, overwrite=overwrite)
    finished.replace(target)
    with suppress(FileNotFoundError):
        Path(f"{finished}-snapshot").replace(f"{target}-snapshot")


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)
    remove_companions(path)


def _embedded(index: Index) -> EmbeddedStore:
    """The store of an index in a file; builds make no others."""
    return cast(EmbeddedStore, index._store)
