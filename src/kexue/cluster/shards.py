"""Shards: tables of texts and their vectors, and the Parquet files that hold them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._files import replacing
from kexue._optional import import_optional
from kexue.errors import DataError
from kexue.search.encoding import encode_texts
from kexue.search.ingest import BATCH
from kexue.search.products import Vectors
from kexue.search.space import SupportsEncode
from kexue.search.spool import Spool
from kexue.text.identity import ModelIdentity, identify

_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")
_KEY = b"kexue"  # key in the metadata of the schema; its value is a JSON object
_FEW = 16  # by default: one batch per shard up to this number of shards, then up to this number of batches in each


class ShardMetadata(NamedTuple):
    """Metadata in the file of a shard.

    Attributes:
        encoder: record of the encoder, see `encoder_record`.
        dim: width of a vector.
        truncated: number of texts that the encoder truncated.
        warnings: warnings of the encoder.
        sha256: hash of ids, texts and metadata; None before it is known.
    """

    encoder: dict[str, Any]
    dim: int
    truncated: int
    warnings: list[str]
    sha256: str | None = None

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the encoder that made the vectors."""
        return ModelIdentity.from_record({name: value for name, value in self.encoder.items() if name != "dtype"})


def encode_table(table: Any, encoder: SupportsEncode) -> Any:
    """Encode the texts of a table: the function that every worker runs.

    Texts are encoded 512 at a time, as `kexue.search.build_index` does, so the vectors are the same to the bit. Where
    the encoder has a prompt called ``"document"`` or ``"passage"``, it is put before each text.

    Args:
        table: pyarrow Table with a column ``text`` of strings; other columns are kept.
        encoder: an object with ``encode(texts) -> (n, dim)``.

    Returns:
        The table with a column ``vector`` (list of float32, not whitened). The metadata of its schema hold the
        encoder's record, the number of truncated texts, and the encoder's warnings.

    Raises:
        ValueError: the encoder did not return finite vectors (n, dim), one for each text.

    >>> import numpy as np, pyarrow as pa
    >>> class Length:
    ...     def encode(self, texts): return np.array([[len(text), 1.0] for text in texts])
    >>> encode_table(pa.table({"text": ["one", "three"]}), Length()).column("vector").to_pylist()
    [[3.0, 1.0], [5.0, 1.0]]
    """
    pa = import_optional("pyarrow", extra="cluster")
    texts = table.column("text").to_pylist()
    chunks, truncated, dim = [], 0, getattr(encoder, "dim", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            vectors = encode_texts(encoder, part, "document", dim=dim)
            dim = vectors.shape[1]
            offsets = np.arange(len(part) + 1, dtype=np.int32) * np.int32(dim)
            chunks.append(pa.ListArray.from_arrays(offsets, np.ascontiguousarray(vectors).ravel()))
            truncated += getattr(encoder, "truncated_", 0)
    said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    metadata = ShardMetadata(encoder_record(encoder), dim or 0, truncated, list(dict.fromkeys(said)))
    vectors = pa.chunked_array(chunks, type=pa.list_(pa.float32()))
    return with_metadata(table.append_column("vector", vectors), metadata)


def encoder_record(encoder: SupportsEncode) -> dict[str, Any]:
    """Return the encoder's identity and arithmetic as the JSON object that a shard's file holds."""
    record = {**identify(encoder).to_record(), "dtype": str(getattr(encoder, "dtype", None))}
    restored: dict[str, Any] = json.loads(json.dumps(record))
    return restored


def with_metadata(table: Any, metadata: ShardMetadata) -> Any:
    """Return the table with a shard's metadata in its schema."""
    return table.replace_schema_metadata({_KEY: json.dumps(metadata._asdict(), ensure_ascii=False)})


def metadata_of(table: Any) -> ShardMetadata:
    """Return the shard's metadata in a table's schema."""
    return ShardMetadata(**json.loads(table.schema.metadata[_KEY]))


# Texts of a shard


def layout(n: int, shards: int | None) -> tuple[int, list[int]]:
    """Return the rows of a batch and the number of batches in each shard; they depend only on the arguments.

    Shards hold whole batches of 512 texts, the batches of a single machine; a batch is smaller only where there would
    be fewer shards than wanted. With None there is one batch per shard up to 16 shards, then up to 16 in each.

    >>> layout(2000, 3), layout(100, 4), layout(100, None)
    ((512, [1, 1, 2]), (25, [1, 1, 1, 1]), (512, [1]))
    """
    rows = BATCH if shards is None else min(BATCH, -(-n // shards))
    batches = -(-n // rows)
    shards = min(batches, shards or max(_FEW, -(-batches // _FEW)))
    cuts = [i * batches // shards for i in range(shards + 1)]
    return rows, [stop - start for start, stop in pairwise(cuts)]


def split_into_shards(spool: Spool, rows: int, batches: list[int]) -> Iterator[tuple[Any, str]]:
    """Yield the shards in order: a table (id, text, metadata as JSON) and its hash."""
    pa = import_optional("pyarrow", extra="cluster")
    stream = spool.batches(rows)
    for count in batches:
        texts = [row for batch in islice(stream, count) for row in batch]
        columns = {
            "id": [row.id for row in texts],
            "text": [row.text for row in texts],
            "metadata": [json.dumps(row.metadata, ensure_ascii=False) for row in texts],
        }
        digest = hashlib.sha256(json.dumps(columns, ensure_ascii=False).encode()).hexdigest()
        yield pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])), digest


# Files


def shard_path(folder: Path, number: int, count: int) -> Path:
    """Return the path of a shard."""
    return folder / f"part-{number:05}-of-{count:05}.parquet"


def write_shard(path: Path, table: Any) -> None:
    """Write the file of a shard atomically."""
    parquet = import_optional("pyarrow.parquet", extra="cluster")
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True)


def read_metadata(path: Path) -> ShardMetadata | None:
    """Read the metadata of a shard's file; None where it is missing or not a shard."""
    pa = import_optional("pyarrow", extra="cluster")
    parquet = import_optional("pyarrow.parquet", extra="cluster")
    try:
        return metadata_of(parquet.read_schema(path).empty_table())
    except (OSError, pa.ArrowInvalid, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_shard(path: Path) -> tuple[list[str], Vectors]:
    """Read texts and vectors (n, dim) of a shard and check its checksums."""
    pa = import_optional("pyarrow", extra="cluster")
    parquet = import_optional("pyarrow.parquet", extra="cluster")
    try:
        table = parquet.read_table(path, columns=["text", "vector"], page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"the shard is damaged: {error}.", remedy="Delete it and run the same command again.", path=path
        ) from error
    flat = table.column("vector").combine_chunks().flatten().to_numpy()
    return table.column("text").to_pylist(), flat.reshape(table.num_rows, -1)


def list_shards(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files of the shards that `embed_files` wrote, in order.

    Raises:
        DataError: `folder` holds no shards, not all of them, or those of two runs.
    """
    names = [match for path in sorted(Path(folder).glob("part-*.parquet")) if (match := _NAME.fullmatch(path.name))]
    counts = {int(match[2]) for match in names}
    if [int(match[1]) for match in names] != list(range(max(counts, default=0))) or len(counts) != 1:
        raise DataError(
            f"the folder has {len(names)} of {' or '.join(map(str, sorted(counts)))} shards."
            if names
            else "the folder has no shards.",
            remedy="Make or complete them with embed_files (kexue cluster embed); existing shards are kept.",
            path=folder,
        )
    return [Path(folder, match[0]) for match in names]


def remove_old_shards(folder: Path, count: int) -> None:
    """Delete shards of runs with another number of shards, and temporary files of killed runs."""
    for path in folder.glob("part-*.parquet"):
        match = _NAME.fullmatch(path.name)
        if match and int(match[2]) != count and read_metadata(path) is not None:
            path.unlink()
    for path in folder.glob(".part-*.parquet.*.tmp"):
        path.unlink()
