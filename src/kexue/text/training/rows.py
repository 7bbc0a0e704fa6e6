"""Rows of tokens for training: ``[CLS] a [SEP]``, or ``[CLS] a [SEP] b [SEP]`` where b is to be written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from kexue.text.tokenizer import Tokens

Batch = dict[str, torch.Tensor]


def join_rows(tokens: Tokens, first: np.ndarray, second: np.ndarray | None, pad_id: int) -> Batch:
    """Return the rows of texts `first`, followed by the texts `second` where that is not -1.

    Args:
        tokens: the texts, each ``[CLS] ... [SEP]``.
        first: (B,) numbers of texts.
        second: (B,) numbers of texts whose [CLS] is left out, or -1; None: no text is to be written.
        pad_id: fills rows up to the longest.

    Returns:
        ``token_ids`` (B, T) int64, ``segment_ids`` (B, T) int64, ``mask`` (B, T) bool.
    """
    starts, lengths = tokens.starts, tokens.lengths
    rows = [tokens.ids[starts[i] : starts[i + 1]] for i in first]
    own = lengths[first]
    if second is not None:
        rows = [
            row if j < 0 else np.concatenate((row, tokens.ids[starts[j] + 1 : starts[j + 1]]))
            for row, j in zip(rows, second, strict=True)
        ]
    sizes = np.array([len(row) for row in rows])
    columns = np.arange(sizes.max())
    ids = np.full((len(rows), len(columns)), pad_id, dtype=np.int64)
    mask = columns < sizes[:, None]
    ids[mask] = np.concatenate(rows)
    segments = (columns >= own[:, None]) & mask
    return {
        "token_ids": torch.from_numpy(ids),
        "segment_ids": torch.from_numpy(segments.astype(np.int64)),
        "mask": torch.from_numpy(mask),
    }


class DistillRows(Dataset[Any]):
    """Rows of texts with the teacher's vectors of their first texts.

    Args:
        tokens: the texts.
        targets: (n, d) float, the teacher's vectors of the texts.
        first: (N,) numbers of the texts of the rows.
        second: (N,) numbers of the texts to be written, -1 for none; or None.
        pad_id: as of `join_rows`.
    """

    def __init__(
        self, tokens: Tokens, targets: np.ndarray, first: np.ndarray, second: np.ndarray | None, pad_id: int
    ) -> None:
        self.tokens, self.targets, self.first, self.second, self.pad_id = tokens, targets, first, second, pad_id

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row."""
        sizes = self.tokens.lengths
        if self.second is None:
            return sizes[self.first]
        return sizes[self.first] + np.where(self.second < 0, 0, sizes[self.second] - 1)

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        at = np.asarray(rows)
        first = self.first[at]
        batch = join_rows(self.tokens, first, None if self.second is None else self.second[at], self.pad_id)
        return {**batch, "targets": torch.from_numpy(self.targets[first]).float()}


class LengthBatches:
    """Batches of rows of similar lengths, in a new order each epoch: a batch sampler.

    Rows are shuffled, sorted by length within blocks of 32 batches, and the batches of the epoch shuffled again.

    Args:
        lengths: (N,) tokens of each row.
        size: rows of a batch; a last, smaller batch is left out unless it is the only one.
        seed: of the order.
    """

    def __init__(self, lengths: np.ndarray, size: int, seed: int) -> None:
        self.lengths, self.size, self.seed, self.epoch = lengths, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.lengths) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        block = 32 * self.size
        for start in range(0, len(order), block):
            part = order[start : start + block]
            order[start : start + block] = part[np.argsort(self.lengths[part], kind="stable")]
        for number in rng.permutation(len(self)):
            yield order[number * self.size : (number + 1) * self.size].tolist()
