"""Rows of token ids: the start, the tokens of a sentence, the end, and padding up to one length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kexue._tensors import may_read


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that begin and end a sentence, and of the padding behind it.

    Raises:
        ValueError: two of them are equal.
    """

    start: int
    end: int
    pad: int

    def __post_init__(self) -> None:
        if len({self.start, self.end, self.pad}) < 3:
            raise ValueError(f"start, end and padding must be three ids, got {self.start}, {self.end}, {self.pad}")


def fill_rows(rows: Tensor, length: int, special: SpecialTokens) -> Tensor:
    """Return rows (B, T) padded to (B, length); longer ones, and what is no row, are left as they are."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] >= length:
        return rows
    return functional.pad(rows, (0, length - rows.shape[1]), value=special.pad)


def check_rows(rows: Tensor, length: int, special: SpecialTokens, vocab_size: int) -> None:
    """Raise unless these are rows (B, length) of a vocabulary: start, tokens, end, padding.

    Raises:
        ValueError: another shape, a longer sentence, an id outside the vocabulary, a row without start or end, or with
            tokens behind the end. TypeError: not integers.
    """
    if not isinstance(rows, Tensor) or rows.is_floating_point() or rows.dtype.is_complex or rows.dtype == torch.bool:
        raise TypeError(f"token ids must be a tensor of integers, got {getattr(rows, 'dtype', type(rows).__name__)}")
    if rows.ndim != 2 or rows.shape[1] != length:
        longer = rows.ndim == 2 and rows.shape[1] > length
        remedy = "; leave longer sentences out, or build the model with a larger max_length" if longer else ""
        raise ValueError(f"token ids must have shape (B, {length}), got {tuple(rows.shape)}{remedy}")
    if not may_read(rows):
        return
    if bool(((rows < 0) | (rows >= vocab_size)).any()):
        raise ValueError(f"token ids must be in [0, {vocab_size}), got {int(rows.min())} to {int(rows.max())}")
    ends = (rows == special.end).int()
    behind = ends.cumsum(1) - ends > 0
    wrong = (rows[:, 0] != special.start) | (ends.sum(1) != 1) | ((rows == special.pad) != behind).any(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"row {row} must be the start ({special.start}), tokens, one end ({special.end}) and padding "
            f"({special.pad}), got {rows[row].tolist()}"
        )
