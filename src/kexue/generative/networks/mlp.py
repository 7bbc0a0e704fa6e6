"""Multilayer perceptrons on events of any shape, plain and residual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Shape = int | Sequence[int]
_SMALL = 256  # numbers in an image up to which a network without convolutions is used


def as_shape(shape: Shape, name: str = "shape") -> tuple[int, ...]:
    """Return a shape as a tuple, (d,) of a number d; ValueError unless every size is an integer >= 1."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"{name} must be a size >= 1, or several, got {shape!r}")
    return sizes


def is_small(shape: Shape) -> bool:
    """Return whether images have so few numbers, as digits of 8 x 8 do, that convolutions gain nothing."""
    return math.prod(as_shape(shape)) <= _SMALL


def check_input(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless x is a batch (B, *shape)."""
    if tuple(x.shape[1:]) != shape or not x.ndim:
        raise ValueError(f"input of shape (B, {', '.join(map(str, shape))}) is expected, got {tuple(x.shape)}")


class MLP(nn.Module):
    """Multilayer perceptron: linear layers with SiLU between them, from events of one shape to events of another.

    From an image to a vector it is an encoder, from a vector to an image a decoder.

    Args:
        input_shape: shape of an input without the batch, or its size d.
        output_shape: shape of an output.
        hidden: widths of the layers between, each >= 1; () is one linear map.

    Raises:
        ValueError: a size below 1; on a call, an input of another shape.

    Example:
        >>> encoder = MLP((1, 8, 8), 16, hidden=(256, 128))
        >>> encoder(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 16])
    """

    def __init__(self, input_shape: Shape, output_shape: Shape, *, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.input_shape, self.output_shape = as_shape(input_shape), as_shape(output_shape)
        between = as_shape(hidden, "hidden") if hidden else ()
        widths = [math.prod(self.input_shape), *between, math.prod(self.output_shape)]
        layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, *output_shape) of inputs (B, *input_shape)."""
        check_input(x, self.input_shape)
        out: Tensor = self.layers(x.flatten(1))
        return out.reshape(len(x), *self.output_shape)


class ResidualMLP(nn.Module):
    """Residual multilayer perceptron: Linear, blocks h + f(h), Linear; f is LayerNorm, Linear, SiLU, Linear.

    Args:
        input_shape: shape of an input without the batch, or its size d.
        output_shape: shape of an output; None is that of the input.
        hidden: width of the blocks, >= 1.
        blocks: number of blocks, >= 0.

    Raises:
        ValueError: a size out of range; on a call, an input of another shape.

    Example:
        >>> net = ResidualMLP(2, 1)
        >>> net(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, input_shape: Shape, output_shape: Shape | None = None, *, hidden: int = 256, blocks: int = 3
    ) -> None:
        super().__init__()
        self.input_shape = as_shape(input_shape)
        self.output_shape = self.input_shape if output_shape is None else as_shape(output_shape)
        if hidden < 1 or blocks < 0:
            raise ValueError(f"hidden must be >= 1 and blocks >= 0, got {hidden}, {blocks}")
        self.first = nn.Linear(math.prod(self.input_shape), hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )
        self.last = nn.Linear(hidden, math.prod(self.output_shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return outputs (B, *output_shape).

        Args:
            x: inputs (B, *input_shape).
            context: (B, hidden), added before every block; None adds nothing.
        """
        check_input(x, self.input_shape)
        h: Tensor = self.first(x.flatten(1))
        for block in self.blocks:
            h = h if context is None else h + context
            h = h + block(h)
        out: Tensor = self.last(torch.nn.functional.silu(h))
        return out.reshape(len(x), *self.output_shape)
