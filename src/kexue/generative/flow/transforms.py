"""What a transform is, and those that only change order or shape, and so no volume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from kexue._tensors import as_generator

Mapped = tuple[Tensor, Tensor]  # the result, and the log-determinant (B,)


class Transform(nn.Module):
    """An invertible map of events that knows how it changes volumes.

    ``forward(x) -> (z, logdet)`` goes from events to latents, and ``inverse(z) -> (x, logdet)`` back. `logdet` (B,) is
    log |det dz/dx| of `forward`, and log |det dx/dz| of `inverse`, so the two are each other's negative. Both take
    `condition`, which only transforms with a network read.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the latents of events, and log |det dz/dx| (B,)."""
        raise NotImplementedError

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the events of latents, and log |det dx/dz| (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Set what depends on data from a batch of events; return the batch's latents."""
        return self.forward(x, condition)[0]

    def find_faults(self, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield what makes the transform impossible to invert with these weights, given by their names in it."""
        yield from ()


def spread(value: Tensor | float, x: Tensor) -> Tensor:
    """Return one log-determinant as that of each event of a batch (B,)."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value.expand(len(x))


def sum_events(values: Tensor) -> Tensor:
    """Return the sum over each event of a batch (B,)."""
    return values.sum(tuple(range(1, values.ndim)))


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """Return numbers (C,) in a shape that goes with x (B, C, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


def count_places(x: Tensor) -> int:
    """Return the number of values of one channel in one event of x (B, C, ...)."""
    return math.prod(x.shape[2:])


def find_scale_faults(log_scale: Tensor, name: str = "log_scale") -> Iterator[str]:
    """Yield a fault where exp(log_scale) is zero or infinite in its precision, or not a number."""
    scale = log_scale.detach().exp()
    if not bool((scale.isfinite() & (scale > 0)).all()):
        at = int((~(scale.isfinite() & (scale > 0))).nonzero()[0, 0])
        yield f"{name} has {float(log_scale.flatten()[at]):.4g}, whose exponential is not a positive number"


class Permutation(Transform):
    """The channels in another, fixed order: z[:, i] = x[:, order[i]], log-determinant 0.

    Args:
        order: a permutation of 0 to C - 1.

    Raises:
        ValueError: `order` is not a permutation.

    Example:
        >>> Permutation([2, 0, 1])(torch.tensor([[5.0, 6.0, 7.0]]))[0]
        tensor([[7., 5., 6.]])
    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int] | Tensor) -> None:
        super().__init__()
        order = torch.as_tensor(order)
        if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"order must be a permutation of 0 to {order.numel() - 1}, got {order.tolist()}")
        self.register_buffer("order", order.clone())
        self.register_buffer("back", order.argsort())

    @classmethod
    def reverse(cls, channels: int) -> Self:
        """The opposite order; what NICE mixes with."""
        return cls(torch.arange(channels).flip(0))

    @classmethod
    def random(cls, channels: int, generator: torch.Generator | int | None = None) -> Self:
        """A random order; what RealNVP mixes with."""
        return cls(torch.randperm(channels, generator=as_generator(generator)))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return x in the order, 0."""
        return x.index_select(1, self.order), spread(0.0, x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return z in the former order, 0."""
        return z.index_select(1, self.back), spread(0.0, z)

    def find_faults(self, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield an order that is not a permutation, or whose inverse is another."""
        order, back = weights["order"], weights["back"]
        if not torch.equal(order.sort().values, torch.arange(len(order))) or not torch.equal(order.argsort(), back):
            yield "order is not a permutation with back as its inverse"


class Squeeze(Transform):
    """Blocks of 2 x 2 places as channels: (C, H, W) to (4C, H/2, W/2), log-determinant 0.

    Channel 4c + 2p + q of the result holds channel c at row p and column q of each block, as
    `torch.nn.functional.pixel_unshuffle` orders them.

    Raises:
        ValueError: in `forward` an odd height or width.

    Example:
        >>> Squeeze()(torch.arange(4.0).reshape(1, 1, 2, 2))[0].flatten()
        tensor([0., 1., 2., 3.])
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the blocks as channels, 0."""
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"images (B, C, H, W) of even height and width are expected, got {tuple(x.shape)}")
        blocks = nn.functional.pixel_unshuffle(x, 2)
        return blocks.contiguous(memory_format=torch.channels_last), spread(0.0, x)  # convolutions are faster so

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the channels as blocks, 0."""
        return nn.functional.pixel_shuffle(z, 2), spread(0.0, z)


class Flatten(Transform):
    """Events of any shape as vectors, log-determinant 0.

    Args:
        shape: of an event.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return x (B, D), 0."""
        return x.flatten(1), spread(0.0, x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return z (B, *shape), 0."""
        return z.reshape(-1, *self.shape), spread(0.0, z)
