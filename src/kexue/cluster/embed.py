"""Encode files of texts on a Ray cluster into a folder of shards, Parquet files of texts and vectors."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kexue._progress import Progress, ProgressCounter
from kexue._text import same_json
from kexue.cluster.pool import Job, Pool
from kexue.cluster.session import RaySession
from kexue.cluster.shards import (
    ShardMetadata,
    encode_table,
    encoder_record,
    layout,
    metadata_of,
    read_metadata,
    remove_old_shards,
    shard_path,
    split_into_shards,
    with_metadata,
    write_shard,
)
from kexue.corpus import read_records
from kexue.corpus.decoding import MAX_BYTES
from kexue.errors import DataError
from kexue.search.encoding import choose_model
from kexue.search.inputs import Inputs
from kexue.search.space import SupportsEncode
from kexue.search.spool import Spool
from kexue.text.identity import ModelIdentity, identify


@dataclass(frozen=True)
class EmbedReport:
    """Result of `embed_files`.

    Attributes:
        out: folder of the shards.
        n: number of texts.
        dims: width of a vector.
        shards: number of files.
        resumed: shards kept from an earlier run.
        retried: shards given to another worker because theirs died.
        skipped: texts that occurred before.
        replaced: malformed characters that were replaced.
        truncated: texts that the encoder cut.
        model: ``id`` and ``fingerprint`` of the encoder.
        seconds: duration.
        warnings: sentences for the caller.
    """

    out: str
    n: int
    dims: int
    shards: int
    resumed: int
    retried: int
    skipped: int
    replaced: int
    truncated: int
    model: dict[str, Any]
    seconds: float
    warnings: list[str]


def embed_files(
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    encoder: SupportsEncode | str | os.PathLike[str] = "auto",
    ray: str = "local",
    shards: int | None = None,
    resume: bool = True,
    text: str | None = None,
    id: str | None = None,
    metadata: Sequence[str] = (),
    format: str = "auto",
    errors: str = "strict",
    encoding: str = "auto",
    delimiter: str | None = None,
    sheet: str | None = None,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> EmbedReport:
    """Encode files of texts into a folder of Parquet files, one per shard: id, text, metadata (JSON), vector.

    This process reads and checks all inputs first; the position of a text alone decides on its shard. Tables are sent
    to the workers and returned with vectors, so that no shared disk is needed. If the call is killed, the same call
    encodes only the shards whose file is missing or holds other texts or vectors of another encoder.

    Args:
        inputs: files, folders or ``"-"``; with `text`, `id`, `metadata`, `format`, `errors`, `encoding`, `delimiter`,
            `sheet` and `max_bytes` as in `kexue.search.build_index`.
        out: folder of the shards.
        encoder: a folder or hub id, ``"auto"``, or an object. Each worker opens a `kexue.text.Encoder` by its name, in
            the arithmetic it has here and on the device that Ray assigns; another object is sent to the workers.
        ray: ``"local"`` starts Ray on this machine and stops it at the end; otherwise the address of a cluster. If the
            caller has initialised Ray, `ray` is ignored.
        shards: limit of the number of shards, at least 1; None = 512 to 8,192 texts per shard. With another number
            than before everything is encoded again.
        resume: keep finished shards; False encodes everything.
        progress: called as progress(texts done, n).

    Raises:
        DataError: input that cannot be read, or a repeated id; raised before Ray starts.
        RetryError: the workers of a shard died 3 times.
        SpaceMismatchError: a worker found another model under the name of the encoder.
        MissingDependencyError: Ray is not installed.
    """
    with RaySession(ray) as session:
        return embed(
            session,
            inputs,
            Path(out),
            encoder=encoder,
            shards=shards,
            resume=resume,
            progress=progress,
            text=text,
            id=id,
            metadata=metadata,
            format=format,
            errors=errors,
            encoding=encoding,
            delimiter=delimiter,
            sheet=sheet,
            max_bytes=max_bytes,
        )


def embed(
    session: RaySession,
    inputs: Inputs,
    folder: Path,
    *,
    encoder: SupportsEncode | str | os.PathLike[str],
    shards: int | None,
    resume: bool,
    progress: Progress | None,
    **reading: Any,
) -> EmbedReport:
    """Encode files in a running session; see `embed_files`."""
    began = time.perf_counter()
    _check_arguments(encoder, shards, folder)
    records = read_records(inputs, **reading)
    with closing(Spool()) as spool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spool.fill(records)
        if isinstance(encoder, str | os.PathLike):
            from kexue.text import Encoder

            encoder = Encoder(encoder)
        choose_model(encoder, spool.sample())
        job = _ShardJob(spool, folder, encoder_record(encoder), shards, resume=resume, progress=progress)
        pool = Pool(session, partial(_make_function, _choose_opener(encoder)), gpu=True)
        for number, table in pool.map(job.missing(), most=len(job.paths)):
            job.store(number, table)
        remove_old_shards(folder, len(job.paths))
    caught_texts = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    stored = [job.shard_metadata[number] for number in range(len(job.paths))]
    return EmbedReport(
        out=str(folder),
        n=job.total,
        dims=stored[0].dim,
        shards=len(job.paths),
        resumed=len(job.paths) - job.encoded,
        retried=pool.retried,
        skipped=spool.duplicates,
        replaced=records.replaced,
        truncated=sum(one.truncated for one in stored),
        model={name: job.encoder[name] for name in ("id", "fingerprint")},
        seconds=time.perf_counter() - began,
        warnings=list(dict.fromkeys([*caught_texts, *(line for one in stored for line in one.warnings)])),
    )


def _check_arguments(encoder: object, shards: object, folder: Path) -> None:
    """Raise a TypeError, ValueError or DataError for an illegal argument of `embed`."""
    if shards is not None and (isinstance(shards, bool) or not isinstance(shards, int) or shards < 1):
        raise ValueError(f"shards must be a whole number >= 1 or None, got {shards!r}.")
    if not isinstance(encoder, str | os.PathLike | SupportsEncode):
        raise TypeError(f"encoder must be a name or an object with encode(texts), got {encoder!r:.60}")
    if folder.exists() and not folder.is_dir():
        raise DataError("expected a folder, got a file.", remedy="Name a folder for the shards.", path=folder)


class _ShardJob:
    """Shards of one run: which of them are done, and which have to be encoded.

    Args:
        spool: texts that were read.
        folder: folder of the shards.
        encoder: record of the encoder, as a shard holds it.
        shards: limit of the number of shards; None = see `layout`.
        resume: keep shards that hold the same texts and are of the same encoder.
        progress: called as progress(texts done, total).

    Attributes:
        total: number of texts.
        paths: files of the shards, in order.
        shard_metadata: metadata of finished shards, by number.
        encoded: number of shards that this run encodes.
    """

    def __init__(
        self,
        spool: Spool,
        folder: Path,
        encoder: dict[str, Any],
        shards: int | None,
        *,
        resume: bool,
        progress: Progress | None,
    ) -> None:
        self.encoder = encoder
        self.total = len(spool)
        rows, batches = layout(self.total, shards)
        self.paths = [shard_path(folder, number, len(batches)) for number in range(len(batches))]
        self.shard_metadata: dict[int, ShardMetadata] = {}
        self._tables = split_into_shards(spool, rows, batches)
        self._digests: dict[int, str] = {}
        self._resume = resume
        self._count = ProgressCounter(progress, self.total)

    @property
    def encoded(self) -> int:
        """Number of shards that this run encodes."""
        return len(self._digests)

    def missing(self) -> Iterator[Job]:
        """Yield number and table of each shard that has to be encoded; count the others as done."""
        for number, (table, digest) in enumerate(self._tables):
            stored = read_metadata(self.paths[number]) if self._resume else None
            if stored is not None and stored.sha256 == digest and same_json(stored.encoder, self.encoder):
                self.shard_metadata[number] = stored
                self._count(table.num_rows)
                continue
            if stored is not None:
                warnings.warn(
                    f"{self.paths[number].name} is encoded again: it holds other texts or another encoder's vectors.",
                    stacklevel=2,
                )
            self._digests[number] = digest
            yield number, table

    def store(self, number: int, table: Any) -> None:
        """Write the file of a shard that a worker encoded."""
        self.shard_metadata[number] = metadata_of(table)._replace(encoder=self.encoder, sha256=self._digests[number])
        write_shard(self.paths[number], with_metadata(table, self.shard_metadata[number]))
        self._count(table.num_rows)


def _make_function(make: Callable[[], SupportsEncode]) -> Callable[[Any], Any]:
    """Return the function of a worker, with its encoder."""
    return partial(encode_table, encoder=make())


def _choose_opener(encoder: SupportsEncode) -> Callable[[], SupportsEncode]:
    """Return a function that makes the encoder in a worker: by name where it can be opened, else as an object."""
    identity = identify(encoder)
    if identity.reference is None:
        return partial(_pass_on, encoder)
    settings = {name: getattr(encoder, name) for name in ("dtype", "batch_tokens") if hasattr(encoder, name)}
    return partial(_open_encoder, identity, settings)


def _pass_on(encoder: SupportsEncode) -> SupportsEncode:
    return encoder


def _open_encoder(identity: ModelIdentity, settings: dict[str, Any]) -> SupportsEncode:
    """Open the encoder of an identity in a worker; SpaceMismatchError where another model has its name."""
    from kexue.text import Encoder

    encoder = Encoder(str(identity.reference), **identity.settings(), **settings)
    identity.check(encoder.identity)
    return encoder
