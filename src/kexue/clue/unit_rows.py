"""Units as a data set of batches, with cached states of a frozen encoder; and what a model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from kexue._progress import Progress, ProgressCounter
from kexue._tensors import evaluating
from kexue.clue.framings import Framing
from kexue.clue.framings.rows import RowTokenizer
from kexue.clue.framings.units import Batch, Unit
from kexue.clue.model import STATES, TaskModel
from kexue.errors import DataError
from kexue.nn.cached_states import CachedStates
from kexue.text.batches import split_by_tokens
from kexue.train.data import move

_TOKENS = 8192  # of a forward pass without gradients, padding included


class UnitRows(Dataset[Any]):
    """Units, a batch at a time.

    Args:
        framing: of the task.
        examples: of which the units are made, one at least.
        tokenizer: of the encoder.
        max_length: most tokens of a row.

    Attributes:
        units: of all examples, one after the other.
        owners: (n,) number of the example of each unit.
        sizes: (n,) tokens of all rows of each unit, padding included.

    Raises:
        DataError: no examples, or one that cannot be encoded.
    """

    def __init__(self, framing: Framing, examples: Sequence[Any], tokenizer: RowTokenizer, max_length: int) -> None:
        self.framing, self.examples, self._pad_id = framing, examples, tokenizer.pad_id
        of_examples = [framing.encode(example, tokenizer, max_length) for example in examples]
        self.units: list[Unit] = [unit for units in of_examples for unit in units]
        if not self.units:
            raise DataError("there are no examples; at least one is needed.")
        self.owners = np.repeat(np.arange(len(examples)), [len(units) for units in of_examples])
        self.sizes = np.array([unit.longest * len(unit.rows) for unit in self.units])
        self._cache: CachedStates | None = None

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """Return the batch of units of these numbers, with their cached states where there are any."""
        batch = self.framing.collate([self.units[number] for number in numbers], self._pad_id)
        if self._cache is not None:
            places = [place for number in numbers for place in self._places[number]]
            states = CachedStates.collate(self._cache.__getitems__(places))
            length = 1 if self.framing.pooled and states["mask"].shape[1] == 1 else batch["mask"].shape[1]
            batch[STATES] = {name: x[:, :length] for name, x in states.items()}
        return batch

    def count(self) -> dict[str, int]:
        """Return the numbers of examples, of those that were cut, and of gold answers that cannot be learned."""
        cut = {owner for unit, owner in zip(self.units, self.owners.tolist(), strict=True) if unit.cut}
        return {"examples": len(self.examples), "cut": len(cut), "lost": sum(unit.lost for unit in self.units)}

    def require_gold(self) -> None:
        """Raise a DataError, which names it, for an example without an answer."""
        for unit, owner in zip(self.units, self.owners.tolist(), strict=True):
            if unit.gold is None:
                raise DataError(
                    f"example {self.examples[owner].id!r} has no answer, so nothing can be learned or scored.",
                    remedy="Name files with answers as train and dev.",
                )

    def passes(self) -> list[np.ndarray]:
        """Return the numbers of the units of each forward pass, the longest first."""
        return list(split_by_tokens(self.sizes, _TOKENS))

    def cache(self, model: TaskModel, folder: Path, progress: Progress | None = None) -> None:
        """Compute the states of all rows by a frozen encoder once; batches then have them.

        Args:
            model: with the encoder.
            folder: of the states; they are taken as they are where an earlier call has written all of them.
            progress: called with the number of units done, and of all.
        """
        passes, count = self.passes(), ProgressCounter(progress, len(self))
        device = next(model.parameters()).device

        def read(numbers: np.ndarray) -> Batch:
            count(len(numbers))
            batch: Batch = move(self.__getitems__(numbers.tolist()), device)
            return batch

        with evaluating(model):
            cached = _open(folder) or model.cache_states(map(read, passes), folder)
        starts = iter(range(len(cached)))
        places = {number: [next(starts) for _ in self.units[number].rows] for one in passes for number in one.tolist()}
        self._cache, self._places = cached, places

    def read_outputs(self, model: TaskModel, progress: Progress | None = None) -> list[Any]:
        """Return the predictions of a model, one for each example, in their order.

        Args:
            model: on any device.
            progress: called with the number of units done, and of all.
        """
        outputs: list[list[Any]] = [[] for _ in self.examples]
        of_units: dict[int, Any] = {}
        count, device = ProgressCounter(progress, len(self)), next(model.parameters()).device
        with evaluating(model), torch.no_grad():
            for numbers in (one.tolist() for one in self.passes()):
                batch = move(self.__getitems__(numbers), device)
                of_units |= dict(
                    zip(numbers, self.framing.read_scores(model(batch), [self.units[n] for n in numbers]), strict=True)
                )
                count(len(numbers))
        for number, owner in enumerate(self.owners.tolist()):
            outputs[owner].append(of_units[number])
        return self.framing.decode(outputs, self.examples)


def _open(folder: Path) -> CachedStates | None:
    """Return the states that an earlier call has written; None where there are none, or not all."""
    return CachedStates(folder) if (folder / "index.json").is_file() else None
