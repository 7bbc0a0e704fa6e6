"""Examples as rows, drawn anew each epoch, and the order of their batches.

`Trainer` tells data sets and samplers the epoch, from which all draws follow; so a run that is resumed sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from kexue.text.training.rows import Batch, RowMaker


class Groups:
    """Groups of numbered texts.

    Args:
        members: numbers of the texts of each group, all groups one after the other.
        sizes: (n,) texts of each group, at least 1.
    """

    def __init__(self, members: np.ndarray, sizes: np.ndarray) -> None:
        self.members, self.sizes = members, sizes
        self.starts = np.cumsum(sizes) - sizes

    def draw_partners(self, groups: np.ndarray, places: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return, for the text at a place of each group, the number of another text of the group; -1 for none.

        Args:
            groups: (m,) numbers of groups.
            places: (m,) place of a text within its group, from 0.
            generator: for the draws.
        """
        sizes = self.sizes[groups]
        others = np.maximum(sizes - 1, 1)
        other = (places + 1 + (generator.random(len(groups)) * others).astype(np.int64)) % sizes
        return np.where(sizes > 1, self.members[self.starts[groups] + other], -1)


class TextRows(Dataset[Any]):
    """A row for each text, with a vector to learn, and another text of its group, drawn each epoch, to be written.

    Args:
        maker: makes the rows.
        groups: the texts.
        targets: (number of texts, d) vectors to learn.
        seed: of the draws.
    """

    def __init__(self, maker: RowMaker, groups: Groups, targets: np.ndarray, seed: int) -> None:
        self.maker, self.groups, self.targets, self.seed = maker, groups, targets, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the texts to be written in an epoch."""
        groups = self.groups
        self.second: np.ndarray | None = None
        if (groups.sizes > 1).any():
            of = np.repeat(np.arange(len(groups.sizes)), groups.sizes)
            places = np.arange(len(of)) - groups.starts[of]
            self.second = groups.draw_partners(of, places, np.random.default_rng((self.seed, epoch, 1)))

    def __len__(self) -> int:
        return len(self.groups.members)

    @property
    def sizes(self) -> np.ndarray:
        """(n,) tokens of each row in this epoch."""
        return self.maker.sizes(self.groups.members, self.second)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return the rows of these numbers, with their ``targets`` (B, d)."""
        first = self.groups.members[rows]
        batch = self.maker.join(first, None if self.second is None else self.second[rows])
        return {**batch, "targets": torch.from_numpy(np.asarray(self.targets[first], dtype=np.float32))}


class _Sized(Protocol):
    """Examples with a size each in the present epoch."""

    @property
    def sizes(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


class LengthBatches:
    """Batches of examples of similar lengths, in a new order each epoch: a batch sampler.

    Examples are shuffled, sorted by length within blocks of 32 batches, and the batches of the epoch shuffled again.

    Args:
        data: the examples.
        size: examples of a batch; a last, smaller batch is left out unless it is the only one.
        seed: of the order.
    """

    def __init__(self, data: _Sized, size: int, seed: int) -> None:
        self.data, self.size, self.seed, self.epoch = data, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.data) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = sort_in_blocks(generator.permutation(len(self.data)), self.data.sizes, self.size)
        for number in generator.permutation(len(self)):
            yield order[number * self.size : (number + 1) * self.size].tolist()


def sort_in_blocks(order: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Return the numbers `order` sorted by their lengths within blocks of 32 batches of `size`."""
    block = 32 * size
    parts = (order[start : start + block] for start in range(0, len(order), block))
    return np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
