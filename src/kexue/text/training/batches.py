"""Examples as rows, drawn anew each epoch, and the order of their batches.

`Trainer` tells data sets and samplers the epoch, from which all draws follow; so a run that is resumed sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from kexue.text.training.labels import interleave
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


class PairRows(Dataset[Any]):
    """Two rows for each group: two of its texts, drawn each epoch, each read while the other is to be written.

    Args:
        maker: makes the rows.
        groups: the texts, at least two in a group.
        seed: of the draws.
    """

    def __init__(self, maker: RowMaker, groups: Groups, seed: int) -> None:
        self.maker, self.groups, self.seed = maker, groups, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the two texts of each group in an epoch."""
        generator = np.random.default_rng((self.seed, epoch, 1))
        groups = np.arange(len(self))
        places = (generator.random(len(self)) * self.groups.sizes).astype(np.int64)
        first = self.groups.members[self.groups.starts + places]
        self.pairs = np.stack((first, self.groups.draw_partners(groups, places, generator)), axis=1)

    def __len__(self) -> int:
        return len(self.groups.sizes)

    @property
    def sizes(self) -> np.ndarray:
        """(n,) tokens of each row of a pair in this epoch."""
        return self.maker.sizes(*self.pairs.T)

    def __getitems__(self, groups: Sequence[int]) -> Batch:
        """Return rows 2i and 2i + 1 of the i-th of these groups."""
        pairs = self.pairs[groups]
        return self.maker.join(pairs.ravel(), pairs[:, ::-1].ravel())


class LabelledRows(Dataset[Any]):
    """Two rows for each labelled pair, each of one text.

    Args:
        maker: makes the rows.
        pairs: (n, 2) numbers of texts.
        labels: (n,) numbers.
        tasks: (n,) number of each pair's task.
    """

    def __init__(self, maker: RowMaker, pairs: np.ndarray, labels: np.ndarray, tasks: np.ndarray) -> None:
        self.maker, self.pairs, self.labels, self.tasks = maker, pairs, labels, tasks

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def sizes(self) -> np.ndarray:
        """(n,) tokens of each pair's longer text."""
        return np.asarray(self.maker.coded.tokens.lengths[self.pairs].max(axis=1))

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return rows 2i and 2i + 1 of the i-th of these pairs, with ``labels`` (B,) and ``tasks`` (B,)."""
        batch = self.maker.join(self.pairs[rows].ravel())
        labels = torch.from_numpy(self.labels[rows].astype(np.float32))
        return {**batch, "labels": labels, "tasks": torch.from_numpy(self.tasks[rows].astype(np.int64))}


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
        size: examples of a batch.
        seed: of the order.
        chosen: numbers of the examples that take part; None: all.
        drop_last: whether a last, smaller batch is left out, unless it is the only one.
    """

    def __init__(
        self, data: _Sized, size: int, seed: int, *, chosen: np.ndarray | None = None, drop_last: bool = True
    ) -> None:
        self.data, self.size, self.seed, self.epoch, self.drop_last = data, size, seed, 0, drop_last
        self.chosen = np.arange(len(data)) if chosen is None else chosen

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.chosen), self.size)
        return max(1, whole + (rest > 0 and not self.drop_last))

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = sort_in_blocks(generator.permutation(self.chosen), self.data.sizes, self.size)
        for number in generator.permutation(len(self)):
            yield order[number * self.size : (number + 1) * self.size].tolist()


class DistinctBatches:
    """Batches of groups of which no two are related, of similar lengths, in a new order each epoch: a batch sampler.

    Related groups share a text, or are related to a third one: their texts would be wrong negatives of each other. The
    groups of an epoch are put in layers, each with one group of every family of related groups; a layer's last groups
    that do not fill a batch are left out of the epoch, unless there would be no batch at all.

    Args:
        data: the groups.
        families: (n,) number of the family of each group.
        size: groups of a batch.
        seed: of the order.

    Attributes:
        used: groups in the batches of an epoch.
    """

    def __init__(self, data: _Sized, families: np.ndarray, size: int, seed: int) -> None:
        self.data, self.families, self.size, self.seed, self.epoch = data, families, size, seed, 0
        layers = np.bincount(_rank(families))
        self._layers = [int(n) for n in layers if n >= size] or [int(layers[0])]
        self.used = sum(min(n, max(1, n // size) * size) for n in self._layers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(max(1, n // self.size) for n in self._layers)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order, lengths = generator.permutation(len(self.data)), self.data.sizes
        order = order[np.argsort(_rank(self.families[order]), kind="stable")]  # layer by layer
        batches, start = [], 0
        for n in self._layers:
            layer = sort_in_blocks(order[start : start + n], lengths, self.size)
            batches += [layer[i * self.size : (i + 1) * self.size] for i in range(max(1, n // self.size))]
            start += n
        for number in generator.permutation(len(batches)):
            yield batches[number].tolist()


def _rank(families: np.ndarray) -> np.ndarray:
    """Return how many equal values stand before each."""
    order = np.argsort(families, kind="stable")
    ordered = families[order]
    ranks = np.empty(len(families), dtype=np.int64)
    ranks[order] = np.arange(len(families)) - np.searchsorted(ordered, ordered)
    return ranks


class AlternatingBatches:
    """Batches of several samplers in turn, one of each; those that end first start again: a batch sampler.

    Args:
        samplers: the samplers of batches.
    """

    def __init__(self, samplers: Sequence[LengthBatches]) -> None:
        self.samplers = samplers

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samplers) * max(map(len, self.samplers))

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = []
        for number, sampler in enumerate(self.samplers):
            batches = list(interleave(batches, list(sampler), max(1, number)))
        yield from batches


def sort_in_blocks(order: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """Return the numbers `order` sorted by their lengths within blocks of 32 batches of `size`."""
    block = 32 * size
    parts = (order[start : start + block] for start in range(0, len(order), block))
    return np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
