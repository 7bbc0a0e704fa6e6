"""One Transformer encoder to read and to build on: any mask, several kinds of positions, and a cache.

With x of width d and heads h, a block whose norm stands after (`norm="post"`, as in BERT and RoFormer) is

    x <- LN(x + O attention(x)),    x <- LN(x + W2 gelu(W1 x + b1) + b2)

and one whose norm stands before is x <- x + O attention(LN x), x <- x + W2 gelu(W1 LN x + b1) + b2. Attention is
softmax(q k' / sqrt(d/h) + bias) v, computed without an array of its weights.

Source: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2019, arXiv:1810.04805; Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue.nn._affine import Affine
from kexue.nn.attention import attend
from kexue.nn.position import LearnedPositions, SinusoidalPositions, T5Bias, rotary_angles, rotate

Cache = tuple[tuple[Tensor, Tensor], ...]  # keys and values (B, H, T, D) of every layer
Turn = tuple[Tensor, Tensor]  # cosines and sines of the rotary angles


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a `Transformer`; JSON-ready with `dataclasses.asdict`.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size, num_layers, num_heads: d, L and h; h divides d.
        intermediate_size: inner width of the feed-forward maps; None is 4 d.
        position: ``"rotary"`` (d / h even), ``"sinusoidal"``, ``"t5"`` (one table of biases for all layers),
            ``"learned"`` (up to `max_length`) or ``"none"``.
        norm: ``"post"`` or ``"pre"``.
        dropout: of embeddings, attention weights and the two maps of a block.
        num_segments: rows of the segment table; 0 leaves it out.
        max_length: longest input, for ``"learned"`` only.
        pad_id: token whose embedding is and stays 0. It is attended to unless the mask says no.
    """

    vocab_size: int
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int | None = None
    position: Literal["rotary", "sinusoidal", "t5", "learned", "none"] = "rotary"
    norm: Literal["post", "pre"] = "post"
    dropout: float = 0.0
    num_segments: int = 2
    max_length: int = 512
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads must divide hidden_size, got {self.num_heads} and {self.hidden_size}")
        if self.position not in {"rotary", "sinusoidal", "t5", "learned", "none"}:
            raise ValueError(f"position must be rotary, sinusoidal, t5, learned or none, got {self.position!r}")
        if self.position == "rotary" and self.hidden_size // self.num_heads % 2:
            raise ValueError(f"rotary positions need an even head width, got {self.hidden_size // self.num_heads}")
        if self.norm not in {"post", "pre"}:
            raise ValueError(f"norm must be 'post' or 'pre', got {self.norm!r}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be in [0, {self.vocab_size}), got {self.pad_id}")


class TransformerOutput(NamedTuple):
    """States of a forward pass: the last ones (B, T, d), all L + 1 of them and the cache, where asked for."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    cache: Cache | None


class Transformer(nn.Module):
    """Token ids to states; see the head of this file for its equations. Weights start as normal(0, 0.02), biases as 0.

    Args:
        config: its shape.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_id)
        self.segments = nn.Embedding(config.num_segments, d) if config.num_segments else None
        self.positions: SinusoidalPositions | LearnedPositions | None = None
        if config.position == "sinusoidal":
            self.positions = SinusoidalPositions(d)
        elif config.position == "learned":
            self.positions = LearnedPositions(config.max_length, d)
        self.bias = T5Bias(config.num_heads) if config.position == "t5" else None
        self.norm = nn.LayerNorm(d, eps=1e-12)  # on the embeddings in "post", on the result in "pre"
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.apply(_start)
        with torch.no_grad():
            self.tokens.weight[config.pad_id].zero_()

    def forward(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | tuple[()] | None = None,
        hidden_states: bool = False,
    ) -> TransformerOutput:
        """Run the blocks over `token_ids` (B, T).

        Args:
            token_ids: int64 (B, T), in [0, vocab_size).
            mask: bool, True = may be attended. (B, S) keeps keys, S = T plus what is cached; (B, T, S) and anything
                that broadcasts to (B, h, T, S) says for every query which keys. None keeps all. A query without
                keys attends to nothing.
            segment_ids: (B, T); None is segment 0.
            positions: (T,) or (B, T); None counts on from the cache. Not for (B, T) after a cache under ``"t5"``.
            cache: None keeps none, ``()`` starts one, and what an earlier call returned continues it: new tokens
                then see the cached ones, and each other unless the mask says no.
            hidden_states: return the states before the first block and after each as well.

        Raises:
            TypeError: a mask that is not bool. ValueError: shapes that do not fit, a position beyond the table.
        """
        if token_ids.dim() != 2:
            raise ValueError(f"token_ids must be (batch, length), got shape {tuple(token_ids.shape)}")
        (batch, length), past = token_ids.shape, cache[0][0].shape[-2] if cache else 0
        if positions is None:
            positions = torch.arange(past, past + length, device=token_ids.device)
        allowed = _spread(mask, batch, length, past + length)
        x = self.tokens(token_ids)
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segment_ids is None else self.segments(segment_ids))
        if self.positions is not None:
            x = x + self.positions(positions).to(x.dtype)
        if self.config.norm == "post":
            x = self.norm(x)
        x = functional.dropout(x, self.config.dropout, self.training)
        turn = None
        if self.config.position == "rotary":
            turn = rotary_angles(positions, self.config.hidden_size // self.config.num_heads, dtype=x.dtype)
        added = allowed if self.bias is None else self._t5_bias(positions, past, allowed, x.dtype)

        states, kept = [x], []
        for i, block in enumerate(self.blocks):
            x, entry = block(x, added, turn, cache[i] if cache else None)
            if hidden_states:
                states.append(x)
            if cache is not None:
                kept.append(entry)
        if self.config.norm == "pre":
            x = self.norm(x)
        return TransformerOutput(
            x, tuple(states) if hidden_states else None, tuple(kept) if cache is not None else None
        )

    def _t5_bias(self, positions: Tensor, past: int, allowed: Tensor | None, dtype: torch.dtype) -> Tensor:
        assert self.bias is not None
        if past and positions.dim() == 2:
            raise ValueError("positions must be (T,) after a cache with position='t5': those of the cache are not kept")
        earlier = torch.arange(past, device=positions.device)
        bias: Tensor = self.bias(positions, torch.cat((earlier, positions)) if past else positions).to(dtype)
        return bias if allowed is None else torch.where(allowed, bias, -torch.inf)


class Block(nn.Module):
    """Attention and a feed-forward map, each with its residual and norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.heads, self.pre, self.dropout = config.num_heads, config.norm == "pre", config.dropout
        self.qkv = Affine(d, 3 * d)
        self.out = Affine(d, d)
        self.norm1 = nn.LayerNorm(d, eps=1e-12)
        self.up = Affine(d, inner)
        self.down = Affine(inner, d)
        self.norm2 = nn.LayerNorm(d, eps=1e-12)

    def forward(
        self, x: Tensor, added: Tensor | None, turn: Turn | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The new states, and this layer's keys and values with the past ones in front."""
        if self.pre:
            mixed, entry = self._attend(self.norm1(x), added, turn, past)
            x = x + mixed
            return x + self._feed(self.norm2(x)), entry
        mixed, entry = self._attend(x, added, turn, past)
        x = self.norm1(x + mixed)
        return self.norm2(x + self._feed(x)), entry

    def _attend(
        self, x: Tensor, added: Tensor | None, turn: Turn | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, D)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat((past[0], k), -2), torch.cat((past[1], v), -2)
        mixed = attend(q, k, v, added, dropout_p=self.dropout if self.training else 0.0)
        return self._drop(self.out(mixed.transpose(1, 2).flatten(-2))), (k, v)

    def _feed(self, x: Tensor) -> Tensor:
        return self._drop(self.down(functional.gelu(self.up(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _spread(mask: Tensor | None, batch: int, queries: int, keys: int) -> Tensor | None:
    """A mask of 2, 3 or 4 axes to one that broadcasts to (B, h, queries, keys)."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = may be attended, got {mask.dtype}; use mask.bool()")
    spread = {2: lambda m: m[:, None, None, :], 3: lambda m: m[:, None], 4: lambda m: m}.get(mask.dim())
    wide = mask if spread is None else spread(mask)
    if (
        wide.dim() != 4
        or wide.shape[0] not in {1, batch}
        or wide.shape[2] not in {1, queries}
        or wide.shape[3] not in {1, keys}
    ):
        raise ValueError(
            f"mask must be ({batch}, {keys}), ({batch}, {queries}, {keys}) or broadcast to "
            f"({batch}, heads, {queries}, {keys}), got {tuple(mask.shape)}"
        )
    return wide
