"""GlobalPointer: a score for every span and type, and the spans with a positive score.

Source: kexue.fm/archives/8373 and 8877 (efficient form); Su et al. 2022, arXiv:2208.03054.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kexue._tensors import at_least_float32, clear_padding, without_autocast
from kexue.nn.position import rotary_angles, rotate


class GlobalPointer(nn.Module):
    """Score s_a(i, j) of the span i..j, both ends included, and type a; train with the multi-label loss `zlpr_loss`.

        s_a(i, j) = (R_i q_ai)' (R_j k_aj) / sqrt(D),    q_ai = Q_a h_i + b_a,  k_aj = K_a h_j + c_a

    with R the rotary positions. The efficient form shares q and k between the types, which then cost 4 D + 2 numbers
    each instead of 2 D (hidden_size + 1):

        s_a(i, j) = (R_i q_i)' (R_j k_j) / sqrt(D) + u_a' [q_i; k_i] + w_a' [q_j; k_j] + const_a

    ``forward(hidden (B, T, hidden_size), mask)`` gives (B, num_types, T, T), row = start, column = end. `mask` (B, T)
    bool, True = token; dropped cells are -inf. Half precision is scored in float32.

    Args:
        hidden_size: width of the states, >= 1.
        num_types: number of span types, >= 1.
        head_dim: D, >= 1, even with `rotary`.
        rotary: whether q and k carry rotary positions; without them scores do not depend on the length of a span.
        upper_only: whether to drop the cells whose end is before their start.
        efficient: whether to use the second form.
    """

    def __init__(
        self,
        hidden_size: int,
        num_types: int,
        *,
        head_dim: int = 64,
        rotary: bool = True,
        upper_only: bool = True,
        efficient: bool = False,
    ) -> None:
        super().__init__()
        if min(hidden_size, num_types, head_dim) < 1:
            raise ValueError(
                f"hidden_size, num_types and head_dim must be at least 1, got {hidden_size}, {num_types}, {head_dim}"
            )
        if rotary and head_dim % 2:
            raise ValueError(f"head_dim must be even with rotary=True, got {head_dim}")
        self.num_types, self.head_dim, self.rotary, self.upper_only = num_types, head_dim, rotary, upper_only
        self.qk = nn.Linear(hidden_size, 2 * head_dim * (1 if efficient else num_types))
        self.ends = nn.Linear(2 * head_dim, 2 * num_types) if efficient else None

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the scores (B, num_types, T, T)."""
        if hidden.dim() != 3 or hidden.shape[-1] != self.qk.in_features:
            raise ValueError(f"hidden must be (batch, length, {self.qk.in_features}), got {tuple(hidden.shape)}")
        length = hidden.shape[1]
        hidden = clear_padding(hidden, mask)  # padding may hold NaN, which would reach the gradients
        both = self.qk(hidden)  # (B, T, types * 2 * D), or (B, T, 2 * D)
        wide = at_least_float32(both)
        q, k = (
            torch.unflatten(wide, -1, (-1, 2, self.head_dim)).permute(3, 0, 2, 1, 4).unbind(0)
        )  # (B, types or 1, T, D)
        if self.rotary:
            turn = rotary_angles(torch.arange(length, device=hidden.device), self.head_dim, dtype=wide.dtype)
            q, k = rotate(q, turn), rotate(k, turn)
        with without_autocast(hidden):
            scores: Tensor = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)  # (B, types or 1, T, T)
        if self.ends is not None:
            start, end = self.ends(both).to(scores.dtype).transpose(1, 2).chunk(2, 1)  # (B, types, T) each
            scores = scores + start[..., :, None] + end[..., None, :]
        keep = torch.ones(length, length, dtype=torch.bool, device=hidden.device)
        if self.upper_only:
            keep = keep.triu()
        if mask is not None:
            keep = keep & (mask[:, None, :, None] & mask[:, None, None, :])
        return scores.masked_fill(~keep, -torch.inf)


def decode_spans(scores: Tensor, *, threshold: float = 0.0) -> list[list[tuple[int, int, int]]]:
    """Return every cell above the threshold: for each text its (type, start, end), ends included, in ascending order.

    Args:
        scores: (B, num_types, T, T) as from `GlobalPointer`.
        threshold: lower limit of the scores, excluded; 0 fits the multi-label loss.
    """
    if scores.dim() != 4 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"scores must be (batch, types, length, length), got {tuple(scores.shape)}")
    spans: list[list[tuple[int, int, int]]] = [[] for _ in range(len(scores))]
    for text, kind, start, end in (scores > threshold).nonzero().tolist():
        spans[text].append((kind, start, end))
    return spans
