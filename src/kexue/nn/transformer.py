"""Transformer encoder: any mask, several kinds of positions, and a cache.

With states x of width d and h heads, a block with `norm="post"` (the norm after its map, as in BERT and RoFormer) is

    x <- LN(x + O attention(x)),    x <- LN(x + W2 gelu(W1 x + b1) + b2)

and one with `norm="pre"` is x <- x + O attention(LN x), x <- x + W2 gelu(W1 LN x + b1) + b2. Attention is
softmax(q k' / sqrt(d/h) + bias) v, computed without an array of its weights.

Source: Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2019, arXiv:1810.04805; Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue.nn.attention import attend
from kexue.nn.growing_cache import GrowingKeysValues, KeysValues
from kexue.nn.linear import Affine
from kexue.nn.position import LearnedPositions, SinusoidalPositions, T5Bias, rotary_angles, rotate

Past = KeysValues | GrowingKeysValues
Cache = tuple[Past, ...]  # keys and values of every layer
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
        dropout: of embeddings, attention weights and the two maps of a block, in [0, 1).
        num_segments: rows of the segment table; 0 leaves it out.
        max_length: longest input, for ``"learned"`` only.
        pad_id: token whose embedding is 0 and is not trained. It is attended to unless the mask excludes it.
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be in [0, {self.vocab_size}), got {self.pad_id}")


class TransformerOutput(NamedTuple):
    """Result of a `Transformer`.

    Attributes:
        last_hidden_state: (B, T, d).
        hidden_states: the L + 1 states before the first block and after each; None unless requested.
        cache: keys and values of every layer; None unless requested.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    cache: Cache | None


class Transformer(nn.Module):
    """Transformer from token ids to states; the equations are in the module's docstring.

    Weights start as normal(0, 0.02), biases as 0.

    Args:
        config: shape of the model.
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
        self.apply(_initialize)
        with torch.no_grad():
            self.tokens.weight[config.pad_id].zero_()

    def forward(
        self,
        token_ids: Tensor,
        *,
        mask: Tensor | Sequence[Tensor] | None = None,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | tuple[()] | None = None,
        hidden_states: bool = False,
        before_block: Callable[[int, Tensor], Tensor] | None = None,
    ) -> TransformerOutput:
        """Compute the states of `token_ids` (B, T).

        Args:
            token_ids: int64 (B, T), in [0, vocab_size).
            mask: bool, True = may be attended. (B, S) keeps keys, S = T plus what is cached; (B, T, S) and anything
                that broadcasts to (B, h, T, S) selects keys for every query. None keeps all. A query without keys
                attends to nothing. A list has one mask for each block.
            segment_ids: (B, T); None is segment 0.
            positions: (T,) or (B, T); None counts from the number of cached tokens. Under ``"t5"`` (T,) only, if there
                is a cache.
            cache: None stores none, ``()`` starts one, and the cache that an earlier call returned continues it: new
                tokens then see the cached ones, and each other unless the mask excludes them. A tuple of
                `GrowingKeysValues` is continued in place, without a copy.
            hidden_states: whether to return the states before the first block and after each as well.
            before_block: called before each block with its number, from 0, and the states (B, T, d); the block gets
                the states that it returns.

        Raises:
            TypeError: a mask that is not bool. ValueError: shapes that do not fit, a position beyond the table, a
                list of masks of another length than L.
        """
        if token_ids.dim() != 2:
            raise ValueError(f"token_ids must be (batch, length), got shape {tuple(token_ids.shape)}")
        (batch, length), past = token_ids.shape, cache[0][0].shape[-2] if cache else 0
        if positions is None:
            positions = torch.arange(past, past + length, device=token_ids.device)
        x = self._embed(token_ids, segment_ids, positions)
        turn = None
        if self.config.position == "rotary":
            turn = rotary_angles(positions, self.config.hidden_size // self.config.num_heads, dtype=x.dtype)
        added = self._masks_and_bias(mask, batch, positions, past, x.dtype)
        states, new_cache = [x], []
        for i, block in enumerate(self.blocks):
            if before_block is not None:
                x = before_block(i, x)
            x, keys_values = block(x, added[i], turn, cache[i] if cache else None)
            if hidden_states:
                states.append(x)
            if cache is not None:
                new_cache.append(keys_values)
        if self.config.norm == "pre":
            x = self.norm(x)
        return TransformerOutput(
            x, tuple(states) if hidden_states else None, tuple(new_cache) if cache is not None else None
        )

    def _embed(self, token_ids: Tensor, segment_ids: Tensor | None, positions: Tensor) -> Tensor:
        """Return the states before the first block: tokens + (positions + segments), normalised in "post"."""
        x: Tensor = self.tokens(token_ids)
        places = None if self.positions is None else self.positions(positions).to(x.dtype)
        if self.segments is not None:
            segment = self.segments.weight[0] if segment_ids is None else self.segments(segment_ids)
            places = segment if places is None else places + segment
        if places is not None:
            x = x + places
        if self.config.norm == "post":
            x = self.norm(x)
        return functional.dropout(x, self.config.dropout, self.training)

    def _masks_and_bias(
        self, mask: Tensor | Sequence[Tensor] | None, batch: int, positions: Tensor, past: int, dtype: torch.dtype
    ) -> list[Tensor | None]:
        """Return what the attention of each block adds: its mask, or T5's bias with the mask in it."""
        length, blocks = positions.shape[-1], len(self.blocks)

        def add(one: Tensor | None) -> Tensor | None:
            allowed = _broadcast_mask(one, batch, length, past + length)
            return allowed if self.bias is None else self._t5_bias(positions, past, allowed, dtype)

        if mask is None or isinstance(mask, Tensor):
            return [add(mask)] * blocks
        if len(mask) != blocks:
            raise ValueError(f"mask must be one for all {blocks} blocks, or one for each, got {len(mask)}")
        return [add(one) for one in mask]

    def _t5_bias(self, positions: Tensor, past: int, allowed: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return T5's bias (h, T, S) or (B, h, T, S), -inf where the mask excludes a key."""
        assert self.bias is not None
        if past and positions.dim() == 2:
            raise ValueError("positions must be (T,) after a cache with position='t5': those of the cache are not kept")
        earlier = torch.arange(past, device=positions.device)
        bias: Tensor = self.bias(positions, torch.cat((earlier, positions)) if past else positions).to(dtype)
        return bias if allowed is None else torch.where(allowed, bias, -torch.inf)


class BlockMaps(NamedTuple):
    """The six layers of a block, each from (..., in) to (..., out): modules, or functions of plain tensors.

    Functions save the time of calling a module, a tenth of the whole for a short text on a processor; only modules
    have hooks and take part in training.
    """

    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    norm1: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]


def run_block(
    x: Tensor,
    maps: BlockMaps,
    heads: int,
    added: Tensor | None,
    *,
    pre: bool = False,
    turn: Turn | None = None,
    past: Past | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Past]:
    """Compute a block: attention and a feed-forward map, each with its residual and norm.

    Args:
        x: states (B, T, d).
        maps: the block's maps.
        heads: h, a divisor of d.
        added: mask (bool, True = may be attended) or bias, broadcastable to (B, h, T, S); None attends everywhere.
        pre: whether the norms stand before their maps.
        turn: rotary angles of the T places.
        past: keys and values of earlier tokens, (B, h, S - T, d / h) each.
        dropout: of the attention weights and of both residual branches.

    Returns:
        the new states, and keys and values (B, h, S, d / h) with the past ones in front.
    """
    batch, length, width = x.shape
    q, k, v = _split_heads(maps.qkv(maps.norm1(x) if pre else x), heads)
    if turn is not None:
        q, k = rotate(q, turn), rotate(k, turn)
    seen: Past = (k, v)
    if isinstance(past, GrowingKeysValues):
        past.append(k, v)
        seen = past
    elif past is not None:
        seen = torch.cat((past[0], k), -2), torch.cat((past[1], v), -2)
    mixed = attend(q, seen[0], seen[1], added, dropout_p=dropout)
    branch = maps.out(mixed.transpose(1, 2).reshape(batch, length, width))
    x = x + (functional.dropout(branch, dropout) if dropout else branch)
    if not pre:
        x = maps.norm1(x)
    branch = maps.down(functional.gelu(maps.up(maps.norm2(x) if pre else x)))
    x = x + (functional.dropout(branch, dropout) if dropout else branch)
    return (x if pre else maps.norm2(x)), seen


def _split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (B, h, T, d / h) each, of their common product (B, T, 3 d)."""
    batch, length, width = qkv.shape
    q, k, v = qkv.reshape(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


class Block(nn.Module):
    """One layer of a `Transformer`, computed by `run_block`."""

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

    def forward(self, x: Tensor, added: Tensor | None, turn: Turn | None, past: Past | None) -> tuple[Tensor, Past]:
        """Return the new states, and this layer's keys and values with the past ones in front."""
        maps = BlockMaps(self.qkv, self.out, self.norm1, self.up, self.down, self.norm2)
        dropout = self.dropout if self.training else 0.0
        return run_block(x, maps, self.heads, added, pre=self.pre, turn=turn, past=past, dropout=dropout)

    def keys_values(self, x: Tensor, turn: Turn | None = None) -> KeysValues:
        """Return the keys and values (B, h, T, d / h) that states x (B, T, d) offer here to later tokens.

        `turn` has the rotary angles of their places; at place 0 they are 0, which None is.
        """
        _, k, v = _split_heads(self.qkv(self.norm1(x) if self.pre else x), self.heads)
        return (k if turn is None else rotate(k, turn)), v


def _initialize(module: nn.Module) -> None:
    """Set the weights of one map or table at random, its bias to 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _broadcast_mask(mask: Tensor | None, batch: int, queries: int, keys: int) -> Tensor | None:
    """Return a mask of 2, 3 or 4 axes with axes that broadcast to (B, h, queries, keys)."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = may be attended, got {mask.dtype}; use mask.bool()")
    wide = mask[:, None, None] if mask.dim() == 2 else mask[:, None] if mask.dim() == 3 else mask
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
