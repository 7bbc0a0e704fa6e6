"""Hidden states of a frozen backbone on disk: one safetensors file per batch, and an index that is written last."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from kexue._files import replacing
from kexue._text import parse_json
from kexue.errors import DataError

MASK = "mask"  # key of the mask in a sample, next to those of the taps
_FORMAT = 1


def write_states(
    batches: Iterable[Mapping[str, Tensor]], taps: Sequence[str], path: str | os.PathLike[str]
) -> CachedStates:
    """Write batches of states to the folder `path` and return them as a data set.

    An interrupted run leaves no index; a new run replaces what the folder holds.

    Args:
        batches: ``{tap: (B, T, d), ..., "mask": (B, T)}``, the mask optional.
        taps: names of the states, as every batch has them.
        path: the folder, created if missing.

    Raises:
        ValueError: no batches, or states that differ in their number of samples.
    """
    folder = Path(path)
    (folder / "index.json").unlink(missing_ok=True)
    rows: list[int] = []
    for batch in batches:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in batch.items()}
        counts = {len(tensor) for tensor in tensors.values()}
        if len(counts) > 1:
            raise ValueError(f"the first axis of every state must be the samples, got sizes {sorted(counts)}")
        with replacing(folder / _file_name(len(rows))) as temporary:
            save_file(tensors, temporary)
        rows.append(counts.pop())
    if not rows:
        raise ValueError("the loader returned no batch; expected at least one")
    with replacing(folder / "index.json") as temporary:
        record = {"format": _FORMAT, "taps": taps, "rows": rows}
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return CachedStates(folder)


class CachedStates(Dataset[dict[str, Tensor]]):
    """The states that `LadderSideNetwork.cache_states` wrote: a sample is ``{tap: (T, d), ..., "mask": (T,)}``.

    Samples are read from disk one by one, also by the workers of a DataLoader; the mask is there if the backbone had
    one. Labels are added by position: ``StackDataset(cached, labels)``. `collate` makes a batch of samples of any
    lengths.

    Args:
        path: the folder.

    Attributes:
        taps: names of the states.

    Raises:
        DataError: no cache there, an unfinished one, or a damaged file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index = self.path / "index.json"
        try:
            record = parse_json(index.read_bytes(), index, kind=dict)
            if record["format"] != _FORMAT:
                raise DataError(f"a cache of format {record['format']}, expected {_FORMAT}.", path=index)
            self.taps: tuple[str, ...] = tuple(record["taps"])
            rows = [int(count) for count in record["rows"]]
        except FileNotFoundError as error:
            raise DataError(
                "there is no complete cache of states here: none was written, or writing was interrupted.", path=index
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"not an index of cached states ({error!r}).", path=index) from error
        self._file_and_row = [(file, row) for file, count in enumerate(rows) for row in range(count)]

    def __len__(self) -> int:
        return len(self._file_and_row)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return the samples of a batch, as a DataLoader requests them; each file is opened once."""
        samples: dict[int, dict[str, Tensor]] = {}
        by_file = sorted(set(numbers), key=lambda n: self._file_and_row[n])
        for number, group in groupby(by_file, lambda n: self._file_and_row[n][0]):
            file = self.path / _file_name(number)
            try:
                with safe_open(file, framework="pt") as tensors:
                    slices = {name: tensors.get_slice(name) for name in (*self.taps, *({MASK} & set(tensors.keys())))}
                    for n in group:
                        samples[n] = {name: part[self._file_and_row[n][1]] for name, part in slices.items()}
            except (OSError, SafetensorError) as error:
                raise DataError(f"a file of the cache cannot be read ({error}).", path=file) from error
        return [samples[n] for n in numbers]

    @staticmethod
    def collate(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack samples (T, d) of any lengths, padded with zeros that the mask leaves out."""
        first = next(name for name in samples[0] if name != MASK)
        full = [{MASK: torch.ones(len(sample[first]), dtype=torch.bool), **sample} for sample in samples]
        pad = nn.utils.rnn.pad_sequence
        return {name: pad([sample[name] for sample in full], batch_first=True) for name in full[0]}


def _file_name(number: int) -> str:
    """Return the name of the file with batch `number`."""
    return f"states-{number:06d}.safetensors"
