"""How the tasks of CLUE are put to an encoder: examples to rows, heads, losses, and scores to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from kexue.clue.catalogue import TaskInfo
from kexue.clue.framings.classes import Choice, Idioms, Texts
from kexue.clue.framings.entities import Entities
from kexue.clue.framings.rows import RowTokenizer
from kexue.clue.framings.spans import Spans
from kexue.clue.framings.units import Batch, Unit


class Framing(Protocol):
    """One way to put a task to an encoder.

    Attributes:
        pooled: whether the head reads one vector of each row, and not the states of its tokens.
    """

    pooled: ClassVar[bool]

    def encode(self, example: Any, tokenizer: RowTokenizer, max_length: int) -> list[Unit]:
        """Return the units of an example, one at least; rows have at most `max_length` tokens."""

    def collate(self, units: Sequence[Unit], pad_id: int = 0) -> Batch:
        """Return ``token_ids`` and ``mask`` (R, T) of all rows of units, and what the loss needs."""

    def build_head(self, width: int) -> nn.Module:
        """Return a new head, from vectors (R, width) or states (R, T, width) and their mask to scores."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of the units of a batch."""

    def read_scores(self, scores: Tensor, units: Sequence[Unit]) -> list[Any]:
        """Return what the scores of each unit say, in a few numbers."""

    def decode(self, outputs: Sequence[Sequence[Any]], examples: Sequence[Any]) -> list[Any]:
        """Return the prediction of each example from what `read_scores` returned of its units."""


_FRAMINGS: dict[str, Any] = {"text": Texts, "choice": Choice, "idiom": Idioms, "span": Spans, "entity": Entities}


def build_framing(info: TaskInfo) -> Framing:
    """Return the framing of a task."""
    framing: Framing = _FRAMINGS[info.framing](info)
    return framing
