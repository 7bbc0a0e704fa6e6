"""Questions whose answer is a span of a long text: windows, and one softmax over all (start, end) of a window.

Source: kexue.fm/archives/8739, and the author's code for it. Differences: pairs that can be no answer, such as an end
before its start or [CLS] with another token, take no part in the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kexue._tensors import at_least_float32
from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import Answer, SpanExample
from kexue.clue.framings.rows import RowTokenizer
from kexue.clue.framings.units import Batch, Unit, collate_rows, collate_spans
from kexue.nn.pointer import GlobalPointer

_STRIDE = 128  # characters from one window to the next
_NOWHERE = (0, 0, 0)  # [CLS] to [CLS]


class Found(NamedTuple):
    """The best span of a window: its score, and its characters in the context, the end exclusive."""

    score: float
    start: int
    end: int


class Spans:
    """A question and windows of its context: a row ``[CLS] question [SEP] window [SEP]`` for each window.

    The target of a window that does not contain the whole answer is [CLS] to [CLS].
    """

    pooled: ClassVar = False

    def __init__(self, info: TaskInfo) -> None:
        self.info = info

    def encode(self, example: SpanExample, tokenizer: RowTokenizer, max_length: int) -> list[Unit]:
        """Return a unit for each window; the first gold answer is the one to learn.

        An answer that is whole in no window, splits a token, or is no span of the context is counted as lost, once.

        Raises:
            DataError: an empty question or context.
        """
        question = tokenizer.read_one(example.question, example.id, "question").ids
        asked = question[: max_length // 2]
        tokenizer.read_one(example.context.strip()[:max_length], example.id, "context")
        room = max_length - 3 - len(asked)
        starts = list_windows(len(example.context), room)
        windows = tokenizer.read([example.context[start : start + room] for start in starts])
        answer = example.answers[0] if example.answers else None
        units = []
        for start, window in zip(starts, windows, strict=True):
            cut = len(asked) < len(question) or len(window.ids) > room
            row = tokenizer.join(asked, window.ids[:room])
            places = np.full((len(row), 2), -1)
            places[len(asked) + 2 : -1] = window.offsets[:room] + start
            gold = None if example.answers is None else (self._gold(answer, places, start, start + room),)
            units.append(Unit((row,), gold, places, cut=cut))
        if answer is not None and all(unit.gold == (_NOWHERE,) for unit in units):
            units[0] = units[0]._replace(lost=1)
        return units

    @staticmethod
    def _gold(answer: Answer | None, places: np.ndarray, start: int, stop: int) -> tuple[int, int, int]:
        """Return the span (0, first, last) of tokens of an answer, (0, 0, 0) where it is not in the window."""
        if answer is None or answer.start < start or answer.start + len(answer.text) > stop:
            return _NOWHERE
        first = np.flatnonzero(places[:, 0] == answer.start)
        last = np.flatnonzero(places[:, 1] == answer.start + len(answer.text))
        if len(first) and len(last):
            return 0, int(first[0]), int(last[-1])
        return _NOWHERE

    def collate(self, units: Sequence[Unit], pad_id: int = 0) -> Batch:
        """Return the rows of units, the tokens that may be an ``end`` (B, T) and the ``gold`` spans (B, 1, 3)."""
        batch = collate_rows(units, pad_id)
        return {**batch, "ends": mark_ends(units, batch["mask"].shape[1]), "gold": collate_spans(units)}

    def build_head(self, width: int) -> nn.Module:
        """Return the scores (B, 1, T, T) of all spans of states (B, T, width)."""
        return GlobalPointer(width, 1)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy over all (start, end) of a window that may be an answer, [CLS] to [CLS] among them.

        Source: kexue.fm/archives/8739.
        """
        legal = legal_cells(scores[:, 0], batch["ends"])
        legal[:, 0, 0] = scores[:, 0, 0, 0].to(legal.dtype)
        start, end = batch["gold"][:, 0, 1], batch["gold"][:, 0, 2]
        right = legal[torch.arange(len(legal), device=legal.device), start, end]
        return (legal.flatten(1).logsumexp(1) - right).mean()

    def read_scores(self, scores: Tensor, units: Sequence[Unit]) -> list[Found]:
        """Return the best span of each window, [CLS] to [CLS] left out."""
        legal = legal_cells(scores[:, 0], mark_ends(units, scores.shape[-1]).to(scores.device))
        best, cell = legal.flatten(1).max(1)
        length, found = legal.shape[-1], []
        for value, one, unit in zip(best.tolist(), cell.tolist(), units, strict=True):
            first, last = divmod(one, length)
            found.append(Found(value, int(unit.places[first, 0]), int(unit.places[last, 1])))
        return found

    def decode(self, outputs: Sequence[Sequence[Found]], examples: Sequence[SpanExample]) -> list[str]:
        """Return the best span of all windows of each example, as it stands in its context."""
        best = [max(windows) for windows in outputs]
        return [example.context[one.start : one.end] for one, example in zip(best, examples, strict=True)]


def list_windows(length: int, width: int) -> list[int]:
    """Return the first character of each window of a text: 0, 128, ..., up to the first that reaches the end.

    >>> list_windows(700, 400)
    [0, 128, 256, 384]
    """
    step = min(_STRIDE, width)
    starts = [0]
    while starts[-1] + width < length:
        starts.append(starts[-1] + step)
    return starts


def mark_ends(units: Sequence[Unit], length: int) -> Tensor:
    """Return the tokens (B, length) bool at which an answer may start or end: those of the context."""
    ends = torch.zeros(len(units), length, dtype=torch.bool)
    for row, unit in zip(ends, units, strict=True):
        row[: len(unit.places)] = torch.from_numpy(unit.places[:, 0] >= 0)
    return ends


def legal_cells(scores: Tensor, ends: Tensor) -> Tensor:
    """Return scores (B, T, T) in float32 or wider, -inf where the start or the end is no token of the context."""
    return at_least_float32(scores).masked_fill(~(ends[:, :, None] & ends[:, None, :]), -torch.inf)
