"""Networks of couplings: their last layer starts at zero, and their first one reads a condition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class CouplingMLP(nn.Module):
    """Linear layers with ReLU between them, for vectors; the last one starts at zero.

    Args:
        n_in: width of the input.
        n_out: width of the output.
        hidden: widths between.
        condition: a module from conditions to (B, hidden[0]), which is added after the first layer, such as
            ``nn.Embedding(classes, hidden[0])``; None: no condition is read.
    """

    def __init__(self, n_in: int, n_out: int, hidden: Sequence[int], *, condition: nn.Module | None = None) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden must name at least one width, got none")
        widths = [n_in, *hidden, n_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.condition = condition
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the output (B, n_out)."""
        first, *rest = self.layers
        x = first(x)
        if self.condition is not None:
            x = x + self.condition(condition)
        for layer in rest:
            x = layer(x.relu_())
        return x


class ZeroConv2d(nn.Conv2d):
    """A 3 x 3 convolution that starts at zero, with a factor e^(3 s) for each output channel, as in Glow."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1)
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.log_scale = nn.Parameter(self.bias.new_zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (B, n_out, H, W)."""
        scale = (3 * self.log_scale).exp()
        assert self.bias is not None
        return nn.functional.conv2d(x, self.weight * scale[:, None, None, None], self.bias * scale, padding=1)


class CouplingConv(nn.Module):
    """Glow's network for images: 3 x 3, ReLU, 1 x 1, ReLU, 3 x 3; the last convolution starts at zero.

    Args:
        n_in: channels of the input.
        n_out: channels of the output.
        hidden: channels between.
        condition: a module from conditions to (B, hidden) or (B, hidden, H, W), which is added after the first
            convolution; None: no condition is read.
    """

    def __init__(self, n_in: int, n_out: int, hidden: int, *, condition: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, hidden, 3, padding=1)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.last = ZeroConv2d(hidden, n_out)
        self.condition = condition

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the output (B, n_out, H, W)."""
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        if self.condition is not None:
            added = self.condition(condition)
            x = x + (added[:, :, None, None] if added.ndim == 2 else added)
        places = x.relu_().permute(0, 2, 3, 1)  # a 1 x 1 convolution is a matrix at every place
        x = nn.functional.linear(places, self.middle.weight.flatten(1), self.middle.bias).relu_().permute(0, 3, 1, 2)
        return self.last(x)  # type: ignore[no-any-return]
