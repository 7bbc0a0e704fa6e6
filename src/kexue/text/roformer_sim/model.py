"""The network of RoFormer-Sim: states under the UniLM mask, a linear pooler for vectors, a tied head for tokens.

A row is ``[CLS] a [SEP] b [SEP]`` with segment ids 0 for the first part and 1 for the second. Part a sees itself only,
part b sees a and its own past, so the vector of [CLS] is that of a alone, whether b follows or not:

    vector = P h_CLS + c,      scores of the next token after t = E LN(gelu(D h_t + e)) + f,      E the token table.

Source: kexue.fm/archives/8454; the mask is that of 6933 and 7427.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue.losses.distillation import seq2seq_loss
from kexue.nn.attention import unilm_mask
from kexue.nn.linear import Affine, affine
from kexue.nn.transformer import Transformer, TransformerConfig
from kexue.text.pooling import pool


@dataclass(frozen=True)
class RoFormerSimConfig(TransformerConfig):
    """Shape of a `RoFormerSim`: that of a `Transformer`; ``position="learned"`` is SimBERT.

    Attributes:
        max_length: longest input in tokens, special ones included.
        num_segments: 2 or more, as texts and what is written after them have their own; 0 leaves the table out.
        vector_size: width of a vector, at least 1; None is `hidden_size`.
        pooling: ``"cls"``, as the article: the pooler reads the state of [CLS]; ``"mean"``: the mean of the states of
            the first text and its special tokens, which networks of few layers learn faster (ours).
    """

    dropout: float = 0.1
    max_length: int = 512
    vector_size: int | None = None
    pooling: Literal["cls", "mean"] = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_segments == 1:
            raise ValueError("num_segments must be 0, or at least 2 (a text and what is written after it), got 1")
        if self.vector_size is not None and self.vector_size < 1:
            raise ValueError(f"vector_size must be at least 1, or None for hidden_size, got {self.vector_size}")
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {self.pooling!r}")

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self.vector_size or self.hidden_size


class SentenceStates(NamedTuple):
    """Result of a `SentenceNetwork`.

    Attributes:
        vectors: (B, width of a vector), not normalised.
        states: (B, T, d) of the last block.
    """

    vectors: Tensor
    states: Tensor


class SentenceNetwork(nn.Module):
    """Layers of RoFormer-Sim, from token ids; the formulas are in the docstring of the module.

    Args:
        config: shape of the model.
    """

    def __init__(self, config: RoFormerSimConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.transformer = Transformer(config)
        self.pooler = nn.Linear(d, config.width)
        self.head = Affine(d, d)
        self.head_norm = nn.LayerNorm(d, eps=1e-12)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))
        for linear in (self.pooler, self.head):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(
        self, token_ids: Tensor, segment_ids: Tensor | None = None, mask: Tensor | None = None
    ) -> SentenceStates:
        """Compute vectors and states.

        Args:
            token_ids: int64 (B, T), [CLS] first.
            segment_ids: (B, T), 0 then 1; None is 0 everywhere, a plain encoder.
            mask: (B, T) bool, True = token; None keeps all. Padding needs it: the segments alone do not exclude it.
        """
        allowed = mask if segment_ids is None else unilm_mask(segment_ids, mask)
        states = self.transformer(token_ids, mask=allowed, segment_ids=segment_ids).last_hidden_state
        return SentenceStates(self.pooler(self._pool(states, segment_ids, mask)), states)

    def _pool(self, states: Tensor, segment_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return what the pooler reads (B, d): neither a second text nor padding has a part in it."""
        if self.config.pooling == "cls":
            return states[:, 0]
        keep = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask
        if segment_ids is not None:
            keep = keep & (segment_ids == 0)
        return pool([states], keep, "last-avg")

    def score_tokens(self, states: Tensor) -> Tensor:
        """Return the scores (..., V) of the next token after states (..., d)."""
        hidden = self.head_norm(functional.gelu(self.head(states)))
        return affine(hidden, self.transformer.tokens.weight, self.head_bias)

    def writing_loss(
        self, states: Tensor, token_ids: Tensor, segment_ids: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the tokens of segment 1, as `kexue.losses.seq2seq_loss`, scored only where they are."""
        target = segment_ids == 1 if mask is None else (segment_ids == 1) & mask
        places = functional.pad(target[:, 1:], (0, 1))  # a token is scored at the place before it
        scores = self.score_tokens(states[places])
        if not len(scores):
            return states.sum() * 0.0
        # one row: the scores of all targets, and behind them a place that has no next token
        row = functional.pad(scores, (0, 0, 0, 1))[None]
        ids = functional.pad(token_ids[:, 1:][target[:, 1:]], (1, 0))[None]
        return seq2seq_loss(row, ids, torch.ones_like(ids))
