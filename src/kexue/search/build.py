"""An index built from files: all input is read and checked first, then encoded in batches that can be resumed."""

from __future__ import annotations

import json
import os
import stat
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from kexue._progress import Progress
from kexue.corpus.decoding import MAX_BYTES
from kexue.search.calibration import StoredCalibration
from kexue.search.encoding import choose_model
from kexue.search.hubs import Dehub, centre_whitening, check_dehub
from kexue.search.info import IndexInfo, describe_index
from kexue.search.ingest import AddReport
from kexue.search.inputs import Inputs, Notice, Reading
from kexue.search.opening import check_approx, open_index
from kexue.search.partial import PartialIndex, check_place, discard, put_in_place
from kexue.search.space import Space, SupportsEncode, is_fitted
from kexue.search.splitting import Splitting, Truncate, refuse_cut
from kexue.search.spool import Spool
from kexue.search.store import EmbeddedStore, local_path
from kexue.search.store.base import Value
from kexue.similarity import Whitening
from kexue.text.identity import ModelIdentity


@dataclass(frozen=True)
class BuildReport:
    """Result of `build_index`.

    `added`, `updated` and `skipped` count records: new, replaced after an interrupted run, and already stored (by that
    run, or the same text twice). `left_out` counts records that could not be used, `faults` and `files` say which and
    how files were read, as in `InputReport`. `replaced` counts malformed characters, `truncated` texts of which the
    encoder did not read the end. `warnings` are sentences for the user.
    """

    index: str
    documents: int
    added: int
    updated: int
    skipped: int
    left_out: int
    replaced: int
    truncated: int
    dims: int
    model: dict[str, Any]
    whitening: dict[str, Any] | None
    bytes: int
    seconds: float
    faults: list[dict[str, Any]]
    files: list[dict[str, Any]]
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
    passages: str | int | None = "auto",
    truncate: Truncate = "allow",
    errors: str = "strict",
    encoding: str = "auto",
    delimiter: str | None = None,
    sheet: str | None = None,
    max_bytes: int = MAX_BYTES,
    on_error: Literal["stop", "skip"] = "stop",
    resume: bool = True,
    overwrite: bool = False,
    notice: Notice | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an index from files of texts; after an interruption, the same call resumes where it stopped.

    All inputs are first read and checked, and kept on disk if they are large; then texts are encoded and made durable
    in batches, in ``<out>.partial``, which is moved to `out` when it is complete. An existing index at `out` stays
    until then. Texts already in a partial index of the same encoder are not encoded again, whatever else has changed.

    Args:
        inputs: files, folders or ``"-"``, see `kexue.corpus.read_records`; so are `text`, `id`, `metadata`, `format`,
            `errors`, `encoding`, `delimiter`, `sheet` and `max_bytes`. Without `id` a document is named by a hash of
            its text, and the same text is taken once.
        out: the index file to make.
        encoder: a folder, a model's name or hub id, ``"auto"`` (chosen by the texts, see `kexue.text.find_model_for`),
            or an object with ``encode(texts) -> (n, dim)``.
        whitening: None, a fitted one, or one that is then fitted on all vectors.
        dehub, approx, passages: see `Index.create`.
        truncate: ``"error"`` refuses texts of which the encoder would not read the end; ``"allow"`` counts them.
        on_error: records that cannot be used (no text, no id, an id twice, malformed): ``"stop"`` raises one error that
            counts all of them, ``"skip"`` leaves them out, and the report counts them.
        resume: False discards what an interrupted build has left.
        overwrite: replace an index at `out`; anything else there is never replaced.
        notice: called with the `InputReport` of what was read, before the first text is encoded.
        progress: called as progress(done, total).

    Raises:
        DataError: input that cannot be read, records that cannot be used, or a text that would be cut and must not be;
            nothing is encoded.
        IndexExistsError: `out` exists. DiskFullError: no room; finished batches are kept for the next run.

    Cost: one pass of the encoder; memory for one batch, and for the search engine of the snapshot.

    >>> import pathlib, tempfile, numpy as np
    >>> class Length:
    ...     def encode(self, texts): return np.array([[len(text), 1.0] for text in texts])
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "words.txt").write_text("one\\nthree\\n")
    >>> build_index(folder / "words.txt", folder / "words.kx", encoder=Length()).documents
    2
    """
    start = time.perf_counter()
    target = Path(os.path.realpath(local_path(out)))  # a link stays, its target is replaced
    check_place(target, overwrite=overwrite)
    check_approx(approx)
    if not isinstance(encoder, str | os.PathLike | SupportsEncode):
        raise TypeError(f"encoder must be a name or an object with encode(texts), got {encoder!r:.60}")
    check_dehub(dehub)
    splitting = Splitting.parse(passages)
    whitening = centre_whitening(dehub, whitening)
    cells: dict[str, Any] = {"encoding": encoding, "delimiter": delimiter, "sheet": sheet}
    reading = Reading(text, id, metadata, format, errors, **cells, max_bytes=max_bytes, on_error=on_error)
    with closing(Spool()) as spool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = reading.fill(spool, inputs)
        if notice is not None:
            notice(read)
        if isinstance(encoder, str | os.PathLike):
            from kexue.text import Encoder

            encoder = Encoder(encoder)
        choose_model(encoder, spool.sample())
        splitting.check(encoder)
        if truncate == "error":
            refuse_cut(spool, encoder, splitting)
        settings = {"approx": approx, "columns": json.dumps(read.columns), **splitting.dump()}
        job = _Job(target, encoder, whitening, dehub, settings)
        done = job.write(spool, resume=resume, progress=progress)
        info = job.finish(overwrite=overwrite)
    return BuildReport(
        index=str(Path(out)),
        documents=info.documents,
        added=done.added,
        updated=done.updated,
        skipped=done.skipped + spool.duplicates,
        left_out=read.left_out,
        replaced=read.replaced,
        truncated=done.truncated,
        dims=info.dims or 0,
        model={name: info.model[name] for name in ("id", "fingerprint")},
        whitening=info.whitening,
        bytes=info.bytes,
        seconds=time.perf_counter() - start,
        faults=read.faults,
        files=read.files,
        warnings=list(dict.fromkeys([*read.warnings, *_messages(caught)])),
    )


def _messages(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """Return the sentences of warnings that are meant for users."""
    return [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


class _Job:
    """A build: its files, and what is written to them.

    Args:
        target: path of the finished index.
        encoder: makes the vectors.
        whitening, dehub: those of the finished index; `whitening` may be unfitted.
        metadata: metadata of the finished index.
    """

    def __init__(
        self,
        target: Path,
        encoder: SupportsEncode,
        whitening: Whitening | None,
        dehub: Dehub | None,
        metadata: Mapping[str, Value],
    ) -> None:
        self._target = target
        self._encoder = encoder
        self._whitening = whitening
        self._dehub = dehub
        self._metadata = metadata
        # whether vectors can be stored in their final form as they come, without having seen all of them
        self._direct = dehub != "csls" and (whitening is None or is_fitted(whitening))
        self._partial = Path(f"{target}.partial")
        self._second = Path(f"{target}.partial-finished")
        self._finished = self._partial if self._direct else self._second
        self._mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None  # a private index stays private

    def write(self, spool: Spool, *, resume: bool, progress: Progress | None) -> AddReport:
        """Encode and write all records of a spool."""
        whitening, dehub = (self._whitening, self._dehub) if self._direct else (None, None)
        space = Space(ModelIdentity(), whitening, raw=not self._direct, dehub=dehub)
        partial = PartialIndex.start(
            self._partial, self._encoder, space, metadata=self._metadata, resume=resume, mode=self._mode
        )
        try:
            written = partial.fill(spool, progress)
            if not self._direct:
                partial.write_finished(
                    self._second, self._whitening, self._dehub, metadata=self._metadata, mode=self._mode
                )
        finally:
            partial.close()
        return written

    def finish(self, *, overwrite: bool) -> IndexInfo:
        """Write the snapshot, put the index in place, and describe it."""
        store, encoder = open_index(self._finished)
        try:
            cast(EmbeddedStore, store).save_snapshot()
            path = str(self._finished)
            info = describe_index(path, store, encoder.space, StoredCalibration(store, path))
        finally:
            store.close()
        put_in_place(self._finished, self._target, overwrite=overwrite)
        for left in (self._partial, self._second):  # the partial files of this run, or of one that was killed
            if left != self._finished:
                discard(left)
        return info
