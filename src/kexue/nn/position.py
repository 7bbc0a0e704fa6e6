"""Positions of tokens: rotary, sinusoidal and learned ones, and T5's relative buckets.

Positions are integers of shape (T,) or (B, T). Relative tables use the offset key - query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kexue._tensors import float32_or_wider, is_transformed, may_read


def apply_rotary(
    q: Tensor, k: Tensor, positions: Tensor | None = None, *, base: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their positions, so that their products depend on the distance alone.

        (x_2i, x_2i+1) <- (x_2i cos a - x_2i+1 sin a, x_2i sin a + x_2i+1 cos a),   a = position * base^(-2i/D)

    Then <q rotated by m, k rotated by n> is a function of n - m. Source: kexue.fm/archives/8265; Su et al. 2021,
    arXiv:2104.09864.

    Args:
        q, k: (B, H, T, D), D even; they may differ in H.
        positions: (T,) or (B, T); None is 0 to T - 1.
        base: of the angles, > 0.

    Returns:
        q and k rotated, in their own dtypes; half precision is computed in float32.

    Raises:
        ValueError: D is odd, or lengths do not fit together.
    """
    if q.shape[-2:] != k.shape[-2:]:
        raise ValueError(f"q and k must share length and width, got {tuple(q.shape)} and {tuple(k.shape)}")
    if positions is None:
        positions = torch.arange(q.shape[-2], device=q.device)
    elif positions.shape[-1] != q.shape[-2]:
        raise ValueError(f"positions must end in the length {q.shape[-2]}, got {tuple(positions.shape)}")
    angles = rotary_angles(positions, q.shape[-1], base, dtype=torch.promote_types(q.dtype, k.dtype))
    return rotate(q, angles), rotate(k, angles)


def rotary_angles(
    positions: Tensor, dim: int, base: float = 10000.0, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of position * base^(-2i/dim), for `rotate`: (T, dim/2), or (B, 1, T, dim/2) for (B, T).

    In float64 for that `dtype`, otherwise in float32.
    """
    wide = float32_or_wider(dtype)
    angles = _angles(positions, dim, base)
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)
    return angles.cos().to(wide), angles.sin().to(wide)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of x (B, H, T, D) by angles from `rotary_angles`.

    On a processor by a product of complex numbers: the same bits, 6 to 20 times as fast, because nothing is copied in
    steps of two numbers. The compiler has no complex numbers.
    """
    cos, sin = turn
    pairs = x.to(cos.dtype).reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed():
        if any(step % 2 for step in (*pairs.stride()[:-2], pairs.storage_offset())) or pairs.stride()[-2:] != (2, 1):
            pairs = pairs.contiguous()
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        a, b = pairs.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def _angles(positions: Tensor, dim: int, base: float) -> Tensor:
    """Return position * base^(-2i/dim) for i < dim/2, in float64: at position 10^5 float32 is off by 0.01 of a turn."""
    if dim % 2:
        raise ValueError(f"positions rotate pairs of numbers, so the width must be even, got {dim}")
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    frequency = base ** (-torch.arange(0, dim, 2, dtype=wide, device=positions.device) / dim)
    return positions.to(wide)[..., None] * frequency


class SinusoidalPositions(nn.Module):
    """Fixed positions: entry 2i is sin(position * 10000^(-2i/dim)), entry 2i+1 the cosine.

    ``forward(positions)`` maps (..., T) to (..., T, dim), in the dtype of the module, float32 for half precision.
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    dtype_of: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and at least 2, got {dim}")
        self.dim = dim
        self.register_buffer("dtype_of", torch.zeros(()), persistent=False)  # moves with .double() and the like

    def forward(self, positions: Tensor) -> Tensor:
        """Return the vectors at `positions`."""
        angles = _angles(positions, self.dim, 10000.0)
        wide = float32_or_wider(self.dtype_of.dtype)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2).to(wide)


class LearnedPositions(nn.Module):
    """Learned vector for each position: ``forward(positions)`` maps (..., T) below `max_length` to (..., T, dim)."""

    def __init__(self, max_length: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the vectors at `positions`; ValueError for one beyond the table."""
        last = self.table.num_embeddings - 1
        if positions.numel() and may_read(positions) and int(positions.max()) > last:
            raise ValueError(f"position {int(positions.max())} is beyond max_length - 1 = {last}")
        vectors: Tensor = self.table(positions)
        return vectors


class T5Bias(nn.Module):
    """Learned number for every head and bucket of offsets, added to the scores before the softmax.

    ``forward(q_positions, k_positions)`` gives (H, Lq, Lk), or (B, H, Lq, Lk) for positions (B, L). Small offsets have
    a bucket each, larger ones share one (`relative_buckets`); the table may serve all layers. Source: Raffel et al.
    2020, arXiv:1910.10683, section 2.1. T5 itself does not scale its scores by 1/sqrt(D).

    Args:
        num_heads: H.
        num_buckets: columns of the table; half of them for each direction when `bidirectional`.
        max_distance: offset from which on all share the last bucket.
        bidirectional: False puts every key after the query into bucket 0, for causal masks.
    """

    def __init__(
        self, num_heads: int, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        check_buckets(num_buckets, max_distance, bidirectional)
        self.num_buckets, self.max_distance, self.bidirectional = num_buckets, max_distance, bidirectional
        self.table = nn.Parameter(torch.zeros(num_heads, num_buckets))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """Return the biases between positions (Lq,) and (Lk,)."""
        offset = relative_offsets(q_positions, k_positions)
        return look_up(self.table, relative_buckets(offset, self.num_buckets, self.max_distance, self.bidirectional))


def relative_offsets(q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """Return key - query: (..., Lq) and (..., Lk) to (..., Lq, Lk)."""
    return k_positions[..., None, :] - q_positions[..., :, None]


def look_up(table: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of a table (H, C) at columns (..., Lq, Lk): (..., H, Lq, Lk)."""
    return table[:, columns].movedim(0, -3)


def check_buckets(num_buckets: int, max_distance: int, bidirectional: bool = True) -> None:
    """Raise ValueError unless every direction has a small and a large bucket, and the distances to fill them."""
    side = num_buckets // 2 if bidirectional else num_buckets
    if side < 2 or max_distance <= side // 2:
        raise ValueError(
            f"a direction needs two buckets or more and max_distance above half of them, "
            f"got num_buckets={num_buckets}, max_distance={max_distance}, bidirectional={bidirectional}"
        )


def relative_buckets(offset: Tensor, num_buckets: int, max_distance: int, bidirectional: bool = True) -> Tensor:
    """Return T5's buckets of offsets key - query: one per offset near 0, then wider ones up to `max_distance`.

    With n buckets per side and e = n // 2, a distance x >= e falls into e + floor((n - e) log(x/e) / log(max/e)), at
    most n - 1. Keys after the query take the upper half of the buckets.
    """
    side = num_buckets // 2 if bidirectional else num_buckets
    shift = (offset > 0).long() * side if bidirectional else 0
    distance = offset.abs() if bidirectional else (-offset).clamp(min=0)
    exact = side // 2
    large = (distance.clamp(min=exact).float() / exact).log() / math.log(max_distance / exact) * (side - exact)
    return shift + torch.where(distance < exact, distance, (exact + large.long()).clamp(max=side - 1))
