"""An encoder with the head of a task: tuned as a whole, beside a ladder, or not at all.

    full     every weight of encoder and head is trained, but not a token table of more than 100,000 rows: that of a
             multilingual encoder has most of its weights, of which a task touches few
    ladder   the encoder is frozen, and a small network that reads its states is trained (kexue.nn.LadderSideNetwork)
    linear   the encoder is frozen, and the head alone is trained

Source: kexue.fm/archives/8739 (heads), 9138 (ladder; its sizes are those of the author's code for CLUE).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kexue.clue.config import Tune
from kexue.clue.framings import Framing
from kexue.clue.framings.units import Batch
from kexue.nn.cached_states import MASK, CachedStates, write_states
from kexue.nn.ladder import LadderSideNetwork
from kexue.text.pooling import pool
from kexue.text.trainable import TrainableEncoder
from kexue.train.config import LossOutput

TOP = "top"  # name of the cached states of a frozen encoder without a ladder
STATES = "states"  # key of cached states in a batch
_LARGE_TABLE = 100_000  # tokens
_WIDTH, _RUNGS = 128, 4  # of a ladder


class TaskModel(nn.Module):
    """Encoder and head, with the `training_step` of `kexue.train.Trainer`.

    Args:
        encoder: token ids to states.
        framing: of the task.
        tune: what is trained.
        pooling: how a vector is made of the states of a row, a name that `kexue.text.pool` knows.
    """

    def __init__(self, encoder: TrainableEncoder, framing: Framing, tune: Tune, pooling: str) -> None:
        super().__init__()
        self.framing, self.tune, self.pooling = framing, tune, pooling
        self.encoder: TrainableEncoder | LadderSideNetwork = encoder
        width = encoder.hidden_size
        if len(encoder.token_table) > _LARGE_TABLE:
            encoder.token_table.requires_grad_(False)
        if tune == "linear":
            encoder.requires_grad_(False)
        if tune == "ladder":
            width = min(_WIDTH, width)
            taps = choose_taps(encoder.num_layers)
            self.encoder = LadderSideNetwork(
                encoder, taps=taps, width=width, causal=False, mode="additive", upsample=False
            )
        self.head = framing.build_head(width)

    def train(self, mode: bool = True) -> TaskModel:
        """Set the training mode; an encoder that is not trained stays in evaluation mode."""
        super().train(mode)
        if self.tune == "linear":
            self.encoder.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the scores of a batch as `Framing.collate` makes it, with or without cached states."""
        states, mask = self._states(batch)
        inputs = (pool([states], mask, self.pooling),) if self.framing.pooled else (states, mask)
        scores: Tensor = self.head(*inputs)
        return scores

    def _states(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the states (R, T, width) that the head reads, and their mask (R, T)."""
        mask = batch["mask"]
        if STATES not in batch:
            frozen = self.tune == "linear"
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                return self.encoder(batch["token_ids"], mask=mask), mask
        cached = batch[STATES]
        if self.tune == "ladder":
            return self.encoder(states=cached), cached[MASK]
        return cached[TOP], cached[MASK]

    def training_step(self, batch: Batch, *, optimizer_index: int = 0, generator: Any = None) -> LossOutput:
        """Compute the loss of a batch; its units are the weight of the batch in a step of several."""
        return LossOutput(self.framing.loss(self(batch), batch), {"units": float(len(batch["gold"]))})

    def trained_state(self) -> dict[str, Tensor]:
        """Return the weights that training has made, by name; `load_trained` reads them."""
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def load_trained(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` has returned; KeyError or RuntimeError for weights that do not fit."""
        own = self.trained_state()
        if own.keys() != state.keys():
            raise KeyError(f"weights {sorted(own.keys() ^ state.keys())[:5]}")
        self.load_state_dict(dict(state), strict=False)

    def cache_states(self, batches: Iterable[Batch], folder: Path) -> CachedStates:
        """Write the states of a frozen encoder, row by row, into a folder: what a ladder or a head reads of them.

        Where the head reads one vector of each row, its row is one state long.
        """
        rows = ({"token_ids": batch["token_ids"], "mask": batch["mask"]} for batch in batches)
        if isinstance(self.encoder, LadderSideNetwork):
            return self.encoder.cache_states(rows, folder)
        return write_states((self._top(row) for row in rows), [TOP], folder)

    def _top(self, row: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            states, mask = self._states(row)
        if not self.framing.pooled:
            return {TOP: states, MASK: mask}
        vectors = pool([states], mask, self.pooling)
        return {TOP: vectors[:, None], MASK: mask[:, :1]}


def choose_taps(layers: int) -> list[int]:
    """Return the states that a ladder reads: what enters the first layer, and up to four outputs, the last among them.

    >>> choose_taps(12), choose_taps(3)
    ([0, 3, 6, 9, 12], [0, 1, 2, 3])
    """
    rungs = min(_RUNGS, layers)
    return [round(layers * rung / rungs) for rung in range(rungs + 1)]
