"""Named entities: every span and type with a positive score.

Source: kexue.fm/archives/8373 (scores), 8877 (their efficient form), 7359 (loss), 8739 (task). Differences: 8739 has a
head with its own queries and keys for each type; the efficient form learns from far fewer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import Entity, EntityExample, Mentions, mentions_of
from kexue.clue.framings.rows import RowTokenizer
from kexue.clue.framings.units import Batch, Unit, collate_rows, collate_spans
from kexue.errors import DataError
from kexue.losses.multilabel import sparse_zlpr_loss
from kexue.nn.pointer import GlobalPointer, decode_spans


class Entities:
    """A text in one row, ``[CLS] text [SEP]``, and its entities as spans of tokens."""

    pooled: ClassVar = False

    def __init__(self, info: TaskInfo) -> None:
        self.info = info

    def encode(self, example: EntityExample, tokenizer: RowTokenizer, max_length: int) -> list[Unit]:
        """Return the row of a text. Entities that split a token, or were cut off, are counted as lost.

        Raises:
            DataError: an empty text, a type that the task does not have.
        """
        pieces = tokenizer.read_one(example.text, example.id)
        room = max_length - 2
        row = tokenizer.join(pieces.ids[:room])
        places = np.full((len(row), 2), -1)
        places[1:-1] = pieces.offsets[:room]
        gold = []
        for entity in example.entities or ():
            if entity.type not in self.info.labels:
                raise DataError(f"example {example.id!r} has the type {entity.type!r}, not one of {self.info.labels}.")
            first = np.flatnonzero(places[:, 0] == entity.start)
            last = np.flatnonzero(places[:, 1] == entity.end + 1)
            if len(first) and len(last):
                gold.append((self.info.labels.index(entity.type), int(first[0]), int(last[-1])))
        known = None if example.entities is None else tuple(gold)
        lost = len(example.entities or ()) - len(gold)
        return [Unit((row,), known, places, cut=len(pieces.ids) > room, lost=lost)]

    def collate(self, units: Sequence[Unit], pad_id: int = 0) -> Batch:
        """Return the rows of units, and their ``gold`` spans (B, P, 3)."""
        return {**collate_rows(units, pad_id), "gold": collate_spans(units)}

    def build_head(self, width: int) -> nn.Module:
        """Return the scores (B, types, T, T) of all spans of states (B, T, width)."""
        return GlobalPointer(width, len(self.info.labels), efficient=True)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the mean of `sparse_zlpr_loss` over texts and types."""
        batches, types, length, _ = scores.shape
        gold = batch["gold"]
        of_type = gold[:, None, :, 0] == torch.arange(types, device=gold.device)[None, :, None]
        cells = (gold[..., 1] * length + gold[..., 2])[:, None].expand(batches, types, -1)
        return sparse_zlpr_loss(scores.flatten(2), cells.masked_fill(~of_type, -1))

    def read_scores(self, scores: Tensor, units: Sequence[Unit]) -> list[list[tuple[str, int, int]]]:
        """Return the type and characters, the end inclusive, of all spans of each text with a positive score."""
        found = []
        for unit, spans in zip(units, decode_spans(scores), strict=True):
            starts, ends = unit.places[:, 0], unit.places[:, 1]
            inside = [(kind, first, last) for kind, first, last in spans if starts[first] >= 0 and starts[last] >= 0]
            named = [(self.info.labels[k], int(starts[i]), int(ends[j]) - 1) for k, i, j in inside]
            found.append(list(dict.fromkeys(named)))  # tokens of one character may share its place
        return found

    def decode(self, outputs: Sequence[Sequence[Any]], examples: Sequence[EntityExample]) -> list[Mentions]:
        """Return the entities of each text, by type and text."""
        return [
            mentions_of(example.text, [Entity(*span) for span in spans])
            for [spans], example in zip(outputs, examples, strict=True)
        ]
