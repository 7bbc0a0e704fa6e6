"""Tables shuffled as lines are: row i has key i of `permutation_keys`, and rows go to Parquet in the order of keys."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kexue._files import replacing, temporary_folder
from kexue._optional import import_optional
from kexue.corpus.shuffle.job import parse_size
from kexue.corpus.shuffle.keys import Range, permutation_keys, tie_keys
from kexue.errors import DataError

_KEY, _ROW = "__key__", "__row__"
_BATCH = 16_384  # rows read at a time
_GROUP = 65_536  # rows of a row group of Parquet
_SHARD = 16 * _GROUP  # rows of a file
_MOST = 256  # buckets


def shuffle_dataset(dataset: Any, out: str | os.PathLike[str], *, seed: int = 0, memory: int | str = "4G") -> Path:
    """Write the rows of a dataset in the order that `shuffle_files` gives to as many lines, as Parquet.

    The order depends on the seed and the number of rows alone. Unlike an index over the rows, the result is read at
    full speed from front to back.

    Args:
        dataset: a `datasets.Dataset`, a pyarrow Table, or Parquet files: one, several, or a folder of them, which are
            taken in the order of their names.
        out: folder for part-00000.parquet and so on, of 1,048,576 rows each; it must hold no such files yet.
        seed: 0 <= seed < 2**64.
        memory: about what it may take; rows wait in files below `out` meanwhile, which need their size uncompressed.

    Returns:
        The folder.

    Raises:
        DataError: no rows are there to be read, or the folder has shards already.
        MissingDependencyError: pyarrow is not installed.
    """
    limit = parse_size(memory)
    folder = Path(out)
    schema, size, batches = _open(dataset)
    if folder.is_dir() and any(folder.glob("part-*.parquet")):
        raise DataError("it holds shards already.", remedy="Remove them or choose another folder.", path=folder)
    folder.mkdir(parents=True, exist_ok=True)
    permutation_keys(seed, 0, 0)  # refuses what is no seed before work begins
    parts = min(_MOST, max(1, math.ceil(4 * size / limit)))
    with temporary_folder(folder, "kexue-shuffle") as work:
        _scatter(batches, schema, work, seed, Range(0, 1 << 64, parts))
        _write(folder, schema, (_sorted(path, seed) for path in (work / f"{i}" for i in range(parts))))
    return folder


def _open(dataset: Any) -> tuple[Any, int, Iterable[Any]]:
    """Schema, bytes in memory about, and batches."""
    pa = import_optional("pyarrow", extra="corpus")
    if isinstance(dataset, pa.Table):
        return dataset.schema, dataset.nbytes, dataset.to_batches(max_chunksize=_BATCH)
    if hasattr(dataset, "with_format") and hasattr(dataset, "iter"):  # datasets.Dataset
        table = dataset.with_format("arrow")
        return table[:0].schema, dataset.data.nbytes, table.iter(batch_size=_BATCH)
    parquet = import_optional("pyarrow.parquet", extra="corpus")
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
        try:
            about = parquet.read_metadata(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"cannot be read as Parquet: {error}", path=path) from error
        size += sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))

    def batches() -> Iterator[Any]:
        for path in paths:
            with parquet.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_BATCH)

    return parquet.read_schema(paths[0]), size, batches()


def _scatter(batches: Iterable[Any], schema: Any, work: Path, seed: int, cuts: Range) -> None:
    """Rows with their keys to the files of their buckets."""
    pa = import_optional("pyarrow", extra="corpus")
    inner = schema.append(pa.field(_KEY, pa.uint64())).append(pa.field(_ROW, pa.int64()))
    options = pa.ipc.IpcWriteOptions(compression="zstd" if pa.Codec.is_available("zstd") else None)
    writers = [pa.ipc.new_stream(str(work / f"{i}"), inner, options=options) for i in range(cuts.parts)]
    row = 0
    try:
        for batch in batches:
            table = batch if isinstance(batch, pa.Table) else pa.table(batch)
            keys = permutation_keys(seed, row, row + len(table))
            table = table.cast(schema).append_column(_KEY, pa.array(keys))
            table = table.append_column(_ROW, pa.array(np.arange(row, row + len(keys))))
            part = cuts.part(keys)
            order = np.argsort(part, kind="stable")
            bounds = np.searchsorted(part[order], np.arange(cuts.parts + 1))
            moved = table.take(pa.array(order))
            for number in np.flatnonzero(np.diff(bounds)):
                begin, end = int(bounds[number]), int(bounds[number + 1])
                writers[number].write_table(moved.slice(begin, end - begin))
            row += len(keys)
    finally:
        for writer in writers:
            writer.close()


def _sorted(path: Path, seed: int) -> Any:
    """A bucket in the order of its keys; its file is deleted."""
    pa = import_optional("pyarrow", extra="corpus")
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    path.unlink()
    keys, rows = (table.column(name).to_numpy() for name in (_KEY, _ROW))
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    if (in_order[1:] == in_order[:-1]).any():
        second = np.array([tie_keys(seed, int(i), int(i) + 1)[0] for i in rows], np.uint64)
        order = np.lexsort((rows, second, keys))
    return table.drop_columns([_KEY, _ROW]).take(pa.array(order))


def _write(folder: Path, schema: Any, tables: Iterator[Any]) -> None:
    """Row groups of one size, so that the files do not depend on the buckets."""
    pa = import_optional("pyarrow", extra="corpus")
    parquet = import_optional("pyarrow.parquet", extra="corpus")
    waiting = schema.empty_table()
    number, over = 0, False
    while not over:
        with replacing(folder / f"part-{number:05}.parquet") as path, parquet.ParquetWriter(path, schema) as writer:
            written = 0
            while written < _SHARD and not over:
                while len(waiting) < _GROUP and (table := next(tables, None)) is not None:
                    waiting = pa.concat_tables([waiting, table])
                group, waiting = waiting.slice(0, _GROUP), waiting.slice(_GROUP)
                if len(group) or not number + written:
                    writer.write_table(group, row_group_size=_GROUP)
                written += len(group)
                if not len(waiting) and (table := next(tables, None)) is not None:
                    waiting = table
                over = not len(waiting)
        number += 1
