"""Units of training: the rows that are scored together, such as the options of a question, and what is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Any]


class Unit(NamedTuple):
    """Rows that are scored together.

    Attributes:
        rows: token ids of each row, (T,) int32; units of one task have the same number of rows.
        gold: what is right: the number of a class or row, or spans of tokens ``(type, start, end)``; None: unknown.
        places: (T, 2) characters of each token of the only row, -1 for those that no answer may touch; empty where
            answers are no spans.
        options: rows that may be chosen.
        cut: whether tokens were left out.
        lost: gold answers that no output can express: they split a token, were cut off, or are not in the text.
    """

    rows: tuple[np.ndarray, ...]
    gold: int | tuple[tuple[int, int, int], ...] | None = None
    places: np.ndarray = np.empty((0, 2), np.int64)
    options: int = 0
    cut: bool = False
    lost: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


def collate_rows(units: Sequence[Unit], pad_id: int) -> Batch:
    """Return ``token_ids`` (R, T) int64 and ``mask`` (R, T) bool of all rows of units, padded on the right."""
    rows = [row for unit in units for row in unit.rows]
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return {"token_ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}


def collate_classes(units: Sequence[Unit]) -> Tensor:
    """Return the gold classes (B,) int64; -1 where they are unknown."""
    return torch.tensor([-1 if unit.gold is None else unit.gold for unit in units])


def collate_spans(units: Sequence[Unit]) -> Tensor:
    """Return the gold spans (B, P, 3) int64 of ``(type, start, end)``, filled up with -1."""
    golds = [unit.gold if isinstance(unit.gold, tuple) else () for unit in units]
    spans = torch.full((len(units), max(1, *map(len, golds)), 3), -1)
    for row, gold in zip(spans, golds, strict=True):
        if gold:
            row[: len(gold)] = torch.tensor(gold)
    return spans
