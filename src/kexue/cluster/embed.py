"""Files of texts to files of vectors, one a shard, on as many machines as Ray has."""

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

from kexue._progress import Progress
from kexue._text import same_json
from kexue.cluster.pool import Job, Pool, Session
from kexue.cluster.shards import (
    Facts,
    cut,
    drop_others,
    encode_table,
    encoder_record,
    facts_of,
    layout,
    read_facts,
    shard_path,
    with_facts,
    write_shard,
)
from kexue.corpus import read_records
from kexue.corpus.decoding import MAX_BYTES
from kexue.errors import DataError
from kexue.search.build import Inputs
from kexue.search.space import SupportsEncode
from kexue.search.spool import Spool
from kexue.text.identity import ModelIdentity, identify


@dataclass(frozen=True)
class EmbedReport:
    """What `embed_files` did.

    `n` texts became vectors of `dims` numbers in `shards` files, `resumed` of which were there from an earlier run;
    `retried` counts shards given to another worker because theirs died. `skipped` counts texts that had come before,
    `replaced` malformed characters, `truncated` texts the encoder cut. `warnings` are sentences worth reading.
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
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> EmbedReport:
    """Encode files of texts into a folder of Parquet files, one a shard: id, text, metadata (JSON), vector.

    All inputs are read and checked first, here; shard i is decided by the position of its texts alone. Tables go to
    the workers and come back with vectors, so that no disk is shared. Killed at any moment, the same call encodes
    only the shards whose file is missing, or was made of other texts or by another encoder.

    Args:
        inputs: files, folders or ``"-"``; with `text`, `id`, `metadata`, `format`, `errors` and `max_bytes` as in
            `kexue.search.build_index`.
        out: the folder.
        encoder: a folder or hub id, ``"auto"``, or an object. A `kexue.text.Encoder` is opened again by each worker,
            which must find the model under the same name, in the arithmetic it has here and on the device Ray gives
            it; another object is sent there.
        ray: ``"local"`` starts Ray on this machine and stops it; else an address. A Ray the caller has initialised is
            used whatever `ray` says.
        shards: how many, at most; None: so many that one holds 512 to 8,192 texts. Another number starts anew.
        resume: False encodes everything.
        progress: called as progress(texts done, n).

    Raises:
        DataError: input that cannot be read, or an id twice; Ray was not started.
        RetryError: a shard's workers died 3 times. SpaceMismatchError: a worker found another model by that name.
        MissingDependencyError: Ray is not installed.
    """
    with Session(ray) as session:
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
            max_bytes=max_bytes,
        )


def embed(
    session: Session,
    inputs: Inputs,
    folder: Path,
    *,
    encoder: SupportsEncode | str | os.PathLike[str],
    shards: int | None,
    resume: bool,
    progress: Progress | None,
    **reading: Any,
) -> EmbedReport:
    """`embed_files` within a session."""
    began = time.perf_counter()
    if shards is not None and (isinstance(shards, bool) or not isinstance(shards, int) or shards < 1):
        raise ValueError(f"shards must be a whole number >= 1 or None, got {shards!r}.")
    if not isinstance(encoder, str | os.PathLike | SupportsEncode):
        raise TypeError(f"encoder must be a name or an object with encode(texts), got {encoder!r:.60}")
    if folder.exists() and not folder.is_dir():
        raise DataError("it is a file.", remedy="Name a folder for the shards.", path=folder)
    records = read_records(inputs, **reading)
    with closing(Spool()) as spool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spool.fill(records)
        if isinstance(encoder, str | os.PathLike):
            from kexue.text import Encoder

            encoder = Encoder(encoder)
        total, whose = len(spool), encoder_record(encoder)
        rows, batches = layout(total, shards)
        paths = [shard_path(folder, number, len(batches)) for number in range(len(batches))]
        found: dict[int, Facts] = {}
        digests: dict[int, str] = {}
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        def missing() -> Iterator[Job]:
            for number, (table, digest) in enumerate(cut(spool, rows, batches)):
                facts = read_facts(paths[number]) if resume else None
                if facts is not None and facts.sha256 == digest and same_json(facts.encoder, whose):
                    found[number] = facts
                    tell(table.num_rows)
                    continue
                if facts is not None:
                    warnings.warn(
                        f"{paths[number].name} is encoded anew: it holds other texts or another encoder's vectors.",
                        stacklevel=2,
                    )
                digests[number] = digest
                yield number, table

        pool = Pool(session, partial(_function, _opener(encoder)), gpu=True)
        for number, table in pool.map(missing(), most=len(batches)):
            found[number] = facts_of(table)._replace(encoder=whose, sha256=digests[number])
            write_shard(paths[number], with_facts(table, found[number]))
            tell(table.num_rows)
        drop_others(folder, len(batches))
    said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    facts = [found[number] for number in range(len(batches))]
    return EmbedReport(
        out=str(folder),
        n=total,
        dims=facts[0].dim,
        shards=len(batches),
        resumed=len(batches) - len(digests),
        retried=pool.retried,
        skipped=spool.doubles,
        replaced=records.replaced,
        truncated=sum(one.truncated for one in facts),
        model={name: whose[name] for name in ("id", "fingerprint")},
        seconds=time.perf_counter() - began,
        warnings=list(dict.fromkeys([*said, *(line for one in facts for line in one.warnings)])),
    )


def _function(make: Callable[[], SupportsEncode]) -> Callable[[Any], Any]:
    """What a worker runs."""
    return partial(encode_table, encoder=make())


def _opener(encoder: SupportsEncode) -> Callable[[], SupportsEncode]:
    """Return what makes the encoder in a worker: a name and settings where it can be opened, else the object."""
    identity = identify(encoder)
    if identity.reference is None:
        return partial(_same, encoder)
    settings = {name: getattr(encoder, name) for name in ("dtype", "batch_tokens") if hasattr(encoder, name)}
    return partial(_open, identity, settings)


def _same(encoder: SupportsEncode) -> SupportsEncode:
    return encoder


def _open(identity: ModelIdentity, settings: dict[str, Any]) -> SupportsEncode:
    """Open the encoder of this identity in a worker; SpaceMismatchError where another model has its name."""
    from kexue.text import Encoder

    encoder = Encoder(str(identity.reference), **identity.settings(), **settings)
    identity.check(encoder.identity)
    return encoder
