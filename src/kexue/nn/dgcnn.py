"""Dilated gated convolutions, the encoder of "information extraction with DGCNN".

Source: kexue.fm/archives/5409 and 6671.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._tensors import clear_padding


class DilatedGatedConv1d(nn.Module):
    """Mix a sequence x with a convolution h of it, by a gate g from the same convolution.

        y = x sigma(g) + h (1 - sigma(g)),    (g, h) = conv(x)

    ``forward(x (B, T, dim), mask)`` gives (B, T, dim); `mask` (B, T) bool, True = token; padding is read and
    returned as zeros, so that more padding does not change the result.

    Args:
        dim: number of channels.
        kernel_size: odd; the input is padded so that the length stays.
        dilation: distance between the positions that a kernel reads.
        dropout: share of g that is dropped in training.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, dilation: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the length stays, got {kernel_size}")
        self.conv = nn.Conv1d(dim, 2 * dim, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2))
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the gated mixture."""
        return self.mix(_channels_first(x, mask), mask).transpose(1, 2)

    def mix(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mixture of channels (B, dim, T), zeros at padding, which convolve twice as fast."""
        g, h = self.conv(x).chunk(2, 1)
        gate = functional.dropout(g, self.dropout, self.training).sigmoid()  # section "Dilated gated convolutions"
        y = torch.lerp(h.to(x.dtype), x, gate.to(x.dtype))  # autocast computes h and gate in half precision
        return y if mask is None else y.masked_fill(~mask[:, None], 0.0)


def _channels_first(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x (B, T, d) as (B, d, T), contiguous, with zeros where the mask is False."""
    return clear_padding(x, mask).transpose(1, 2).contiguous()


class DGCNN(nn.Module):
    """Stack of `DilatedGatedConv1d`; with the default dilations it sees 27 tokens to either side."""

    def __init__(
        self, dim: int, *, dilations: Sequence[int] = (1, 2, 5, 1, 2, 5, 1, 2, 5, 1, 1, 1), dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DilatedGatedConv1d(dim, dilation=d, dropout=dropout) for d in dilations)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x (B, T, dim) and mask (B, T) to (B, T, dim)."""
        x = _channels_first(x, mask)
        for layer in self.layers:
            x = cast(DilatedGatedConv1d, layer).mix(x, mask)
        return x.transpose(1, 2)
