"""Framings that score each row by one number or one vector: a text or a pair, options of a question, idioms.

Source: kexue.fm/archives/8739, and the author's code for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import ChoiceExample, IdiomExample, TextExample
from kexue.clue.framings.rows import RowTokenizer, share_room
from kexue.clue.framings.units import Batch, Unit, collate_classes, collate_rows
from kexue.clue.metrics import assign_idioms
from kexue.clue.readers.idioms import BLANK
from kexue.errors import DataError

_DUMMY = "无效答案"  # option of a question that has fewer than the others
_OPTIONS = 4
_MASKS = 4  # characters of an idiom, as [MASK] each where it is not the one to fill in


def build_dense(width: int, outputs: int) -> nn.Linear:
    """Return a linear layer with the start of the encoders: weights normal(0, 0.02), biases 0."""
    dense = nn.Linear(width, outputs)
    nn.init.normal_(dense.weight, std=0.02)
    nn.init.zeros_(dense.bias)
    return dense


class _Classes:
    """What the framings of this file share: units of rows, a softmax over classes or rows."""

    pooled: ClassVar = True

    def __init__(self, info: TaskInfo) -> None:
        self.info = info

    def collate(self, units: Sequence[Unit], pad_id: int = 0) -> Batch:
        """Return the rows of units, and their ``gold`` classes (B,)."""
        return {**collate_rows(units, pad_id), "gold": collate_classes(units)}

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of scores (B, classes)."""
        return functional.cross_entropy(scores.float(), batch["gold"])


class Texts(_Classes):
    """A text or a pair of texts in one row, ``[CLS] a [SEP] b [SEP]``, and a class."""

    def encode(self, example: TextExample, tokenizer: RowTokenizer, max_length: int) -> list[Unit]:
        """Return the row of an example; of a pair that is too long the longer text is cut first.

        Raises:
            DataError: an empty text, a label that the task does not have.
        """
        parts = [tokenizer.read_one(example.first, example.id)]
        if example.second is not None:
            parts.append(tokenizer.read_one(example.second, example.id))
        room, sizes = max_length - 1 - len(parts), [len(part.ids) for part in parts]
        kept = [min(sizes[0], room)] if len(parts) == 1 else list(share_room(sizes[0], sizes[1], room))
        row = tokenizer.join(*(part.ids[:size] for part, size in zip(parts, kept, strict=True)))
        return [Unit((row,), self._class(example), cut=sum(kept) < sum(sizes))]

    def _class(self, example: TextExample) -> int | None:
        if example.label is None:
            return None
        if example.label not in self.info.labels:
            raise DataError(
                f"example {example.id!r} has the label {example.label!r}; {self.info.name} has "
                f"{', '.join(self.info.labels[:20])}.",
                remedy="Name the task of this file, or correct the label.",
            )
        return self.info.labels.index(example.label)

    def build_head(self, width: int) -> nn.Module:
        """Return the map from vectors (B, width) to scores (B, classes)."""
        return build_dense(width, len(self.info.labels))

    def read_scores(self, scores: Tensor, units: Sequence[Unit]) -> list[np.ndarray]:
        """Return the scores (classes,) of each unit."""
        return list(scores.float().numpy(force=True))

    def decode(self, outputs: Sequence[Sequence[np.ndarray]], examples: Sequence[TextExample]) -> list[str]:
        """Return the label with the highest score of each example."""
        return [self.info.labels[int(scores.argmax())] for [scores] in outputs]


class _Rows(_Classes):
    """A unit of several rows, each with one score, and a softmax over them."""

    rows: ClassVar[int]  # of a unit

    def build_head(self, width: int) -> nn.Module:
        """Return the map from the vectors (B rows, width) of all rows to the scores (B, rows) of each unit."""
        return nn.Sequential(build_dense(width, 1), nn.Flatten(0), nn.Unflatten(0, (-1, self.rows)))

    def read_scores(self, scores: Tensor, units: Sequence[Unit]) -> list[np.ndarray]:
        """Return the scores of each unit's own options, without those that fill it up."""
        table = scores.float().numpy(force=True)
        return [row[: unit.options] for row, unit in zip(table, units, strict=True)]


class Choice(_Rows):
    """A question with up to four options: a row ``[CLS] passage [SEP] question [SEP] option [SEP]`` for each.

    Options that are missing are filled up with a text that is no answer; it takes part in the softmax of the training,
    and is never chosen.
    """

    rows = _OPTIONS

    def encode(self, example: ChoiceExample, tokenizer: RowTokenizer, max_length: int) -> list[Unit]:
        """Return the rows of a question; where they are too long the passage loses its end.

        Raises:
            DataError: an empty passage or question, more than four options.
        """
        if len(example.options) > _OPTIONS:
            raise DataError(f"example {example.id!r} has {len(example.options)} options, at most {_OPTIONS} expected.")
        options = [*example.options, *[_DUMMY] * (_OPTIONS - len(example.options))]
        passage = tokenizer.read_one(example.passage, example.id, "passage").ids
        question = tokenizer.read_one(example.question, example.id, "question").ids
        rows, cut = [], False
        for option in tokenizer.read(options):
            room = max_length - 4
            own = option.ids[: room // 2]
            asked = question[: room - len(own)]
            text = passage[: room - len(own) - len(asked)]
            rows.append(tokenizer.join(text, asked, own))
            cut |= len(text) + len(asked) + len(own) < len(passage) + len(question) + len(option.ids)
        return [Unit(tuple(rows), example.answer, options=len(example.options), cut=cut)]

    def decode(self, outputs: Sequence[Sequence[np.ndarray]], examples: Sequence[ChoiceExample]) -> list[int]:
        """Return the number of the option with the highest score of each question."""
        return [int(scores.argmax()) for [scores] in outputs]


class Idioms(_Rows):
    """A blank with candidates: a row ``[CLS] candidate [SEP] text [SEP]`` for each.

    The blank is one token, [unused1]; each other blank of the text is four times [MASK].
    """

    rows = 10

    def encode(self, example: IdiomExample, tokenizer: RowTokenizer, max_length: int) -> list[Unit]:
        """Return the rows of a blank; where they are too long the text is cut around the blank.

        Raises:
            DataError: more than ten candidates.
        """
        if not 1 <= len(example.candidates) <= self.rows:
            raise DataError(
                f"example {example.id!r} has {len(example.candidates)} candidates, 1 to {self.rows} expected."
            )
        read, most = tokenizer.read(example.candidates), (max_length - 4) // 2
        candidates = [piece.ids[:most] for piece in read]
        room = max_length - 4 - max(map(len, candidates))
        left, right = (self._split(side, tokenizer) for side in (example.left, example.right))
        kept_left, kept_right = trim_around(left[::-1], right, room)
        text = np.concatenate([*kept_left[::-1], np.array([tokenizer.blank_id]), *kept_right])
        rows = [tokenizer.join(candidate, text) for candidate in candidates]
        rows += rows[:1] * (self.rows - len(rows))  # never chosen, and left out of the softmax
        cut = len(kept_left) < len(left) or len(kept_right) < len(right) or any(len(one.ids) > most for one in read)
        return [Unit(tuple(rows), example.answer, options=len(candidates), cut=cut)]

    @staticmethod
    def _split(text: str, tokenizer: RowTokenizer) -> list[np.ndarray]:
        """Return the tokens of a side of the blank, one an array, and the masks of each other blank as one array."""
        pieces = tokenizer.read(BLANK.split(text))  # other blanks are between them
        masks = np.full(_MASKS, tokenizer.mask_id)
        return [
            part
            for number, piece in enumerate(pieces)
            for part in (*([masks] if number else []), *piece.ids.reshape(-1, 1))
        ]

    def collate(self, units: Sequence[Unit], pad_id: int = 0) -> Batch:
        """Return the rows of units, their ``gold`` and the rows that are ``options`` (B, rows)."""
        options = torch.tensor([unit.options for unit in units])
        return {**super().collate(units, pad_id), "options": torch.arange(self.rows) < options[:, None]}

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy over the candidates of each blank."""
        return functional.cross_entropy(scores.float().masked_fill(~batch["options"], -torch.inf), batch["gold"])

    def decode(self, outputs: Sequence[Sequence[np.ndarray]], examples: Sequence[IdiomExample]) -> list[int]:
        """Return the number of the candidate of each blank: those of one group are distinct, and their sum is largest.

        A group with more blanks than candidates cannot have distinct ones; each blank then gets its best.

        Source: kexue.fm/archives/8739.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for number, example in enumerate(examples):
            groups[example.group].append(number)
        chosen = [0] * len(examples)
        for numbers in groups.values():
            scores = np.stack([outputs[number][0] for number in numbers])
            best = assign_idioms(scores) if len(numbers) <= scores.shape[1] else scores.argmax(axis=1)
            for number, candidate in zip(numbers, best.tolist(), strict=True):
                chosen[number] = candidate
        return chosen


def trim_around(
    left: Sequence[np.ndarray], right: Sequence[np.ndarray], room: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what is kept of both sides of a blank so that `room` tokens are left at most.

    The longer side loses its farthest token until both fit. Masks of another blank go as a whole, and also when the
    text behind them has gone.

    Args:
        left, right: tokens, from the blank outwards; an array of several tokens is another blank.
        room: tokens, >= 0.
    """
    sides = [list(left), list(right)]
    sizes = [sum(map(len, side)) for side in sides]
    while sum(sizes) > room:
        longer = 0 if sizes[0] > sizes[1] else 1
        side = sides[longer]
        sizes[longer] -= len(side.pop())
        while side and len(side[-1]) > 1:
            sizes[longer] -= len(side.pop())
    return sides[0], sides[1]
