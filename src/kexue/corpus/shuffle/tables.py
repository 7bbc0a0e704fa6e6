"""Shuffle of the rows of tables, to Parquet: row i has key i of `permutation_keys`, as line i of files has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kexue._files import replacing, temporary_folder
from kexue._optional import import_optional
from kexue.corpus.rows import open_parquet
from kexue.corpus.shuffle.keys import SPACE, KeyRange, check_seed, permutation_keys
from kexue.corpus.shuffle.options import parse_size
from kexue.corpus.shuffle.sorting import partition, sort_order
from kexue.errors import DataError

_KEY, _ROW = "__key__", "__row__"
_BATCH = 16_384  # rows read at a time
_GROUP = 65_536  # rows of a row group of Parquet
_SHARD = 16 * _GROUP  # rows of a file
_MOST_BUCKETS = 256


def shuffle_dataset(dataset: Any, out: str | os.PathLike[str], *, seed: int = 0, memory: int | str = "4G") -> Path:
    """Write the rows of a dataset in the order that `shuffle_files` gives to the same number of lines, as Parquet.

    The order depends on the seed and the number of rows alone. Unlike an index over the rows, the result is read at
    full speed from front to back.

    Args:
        dataset: a `datasets.Dataset`, a pyarrow Table, or Parquet files: one, several, or a folder of them, which are
            read in the order of their names.
        out: folder for part-00000.parquet and so on, of 1,048,576 rows each; it must hold no such files yet.
        seed: 0 <= seed < 2**64.
        memory: approximate memory of the process; temporary files below `out` need the size of the rows,
            uncompressed.

    Returns:
        The folder.

    Raises:
        DataError: files that cannot be read as Parquet, none at all, or a folder that has shards already.
        MissingDependencyError: pyarrow is not installed.
    """
    limit = parse_size(memory)
    folder = Path(out)
    schema, size, batches = _read_batches(dataset)
    if folder.is_dir() and any(folder.glob("part-*.parquet")):
        raise DataError("it holds shards already.", remedy="Remove them or choose another folder.", path=folder)
    check_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = min(_MOST_BUCKETS, max(1, math.ceil(4 * size / limit)))
    with temporary_folder(folder, "kexue-shuffle") as work:
        _scatter_rows(batches, schema, work, seed, KeyRange(0, SPACE, parts))
        _write_shards(folder, schema, (_read_sorted(work / f"{i}", seed) for i in range(parts)))
    return folder


def _read_batches(dataset: Any) -> tuple[Any, int, Iterable[Any]]:
    """Return the schema, the approximate size in memory, and the batches of a dataset."""
    pa = import_optional("pyarrow", extra="corpus")
    if isinstance(dataset, pa.Table):
        return dataset.schema, dataset.nbytes, dataset.to_batches(max_chunksize=_BATCH)
    if hasattr(dataset, "with_format") and hasattr(dataset, "iter"):  # datasets.Dataset
        table = dataset.with_format("arrow")
        return table[:0].schema, dataset.data.nbytes, table.iter(batch_size=_BATCH)
    if isinstance(dataset, str | os.PathLike):
        path = Path(dataset)
        paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    elif isinstance(dataset, Iterable):
        paths = [Path(one) for one in dataset]
    else:
        raise TypeError(f"dataset must be a datasets.Dataset, a pyarrow Table or Parquet files, got {type(dataset)}.")
    if not paths:
        raise DataError("no Parquet files.", path=dataset if isinstance(dataset, str | os.PathLike) else None)
    size = 0
    for path in paths:
        with open_parquet(str(path)) as file:
            size += sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))

    def batches() -> Iterator[Any]:
        """Yield the batches of all files."""
        for path in paths:
            with open_parquet(str(path)) as file:
                yield from file.iter_batches(batch_size=_BATCH)

    with open_parquet(str(paths[0])) as file:
        return file.schema_arrow, size, batches()


def _scatter_rows(batches: Iterable[Any], schema: Any, work: Path, seed: int, ranges: KeyRange) -> None:
    """Write rows, with key and index, to the files of their buckets."""
    pa = import_optional("pyarrow", extra="corpus")
    inner = schema.append(pa.field(_KEY, pa.uint64())).append(pa.field(_ROW, pa.int64()))
    options = pa.ipc.IpcWriteOptions(compression="zstd" if pa.Codec.is_available("zstd") else None)
    writers = [pa.ipc.new_stream(str(work / f"{i}"), inner, options=options) for i in range(ranges.parts)]
    row = 0
    try:
        for batch in batches:
            table = batch if isinstance(batch, pa.Table) else pa.table(batch)
            keys = permutation_keys(seed, row, row + len(table))
            table = table.cast(schema).append_column(_KEY, pa.array(keys))
            table = table.append_column(_ROW, pa.array(np.arange(row, row + len(keys))))
            parts = partition(keys, ranges)
            ordered = table.take(pa.array(parts.order))
            for number, begin, end in parts.buckets():
                writers[number].write_table(ordered.slice(begin, end - begin))
            row += len(keys)
    finally:
        for writer in writers:
            writer.close()


def _read_sorted(path: Path, seed: int) -> Any:
    """Read a bucket, in the order of its keys, and delete its file."""
    pa = import_optional("pyarrow", extra="corpus")
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    path.unlink()
    keys, index = (table.column(name).to_numpy() for name in (_KEY, _ROW))
    order = sort_order(keys, seed, lambda rows, _: index[rows])
    return table.drop_columns([_KEY, _ROW]).take(pa.array(order))


def _write_shards(folder: Path, schema: Any, tables: Iterator[Any]) -> None:
    """Write tables in row groups of one size, so that the files do not depend on the buckets."""
    pa = import_optional("pyarrow", extra="corpus")
    parquet = import_optional("pyarrow.parquet", extra="corpus")
    waiting = schema.empty_table()
    number, done = 0, False
    while not done:
        with replacing(folder / f"part-{number:05}.parquet") as path, parquet.ParquetWriter(path, schema) as writer:
            written = 0
            while written < _SHARD and not done:
                while len(waiting) < _GROUP and (table := next(tables, None)) is not None:
                    waiting = pa.concat_tables([waiting, table])
                group, waiting = waiting.slice(0, _GROUP), waiting.slice(_GROUP)
                if len(group) or not number + written:
                    writer.write_table(group, row_group_size=_GROUP)
                written += len(group)
                while not len(waiting) and (table := next(tables, None)) is not None:
                    waiting = table
                done = not len(waiting)
        number += 1
