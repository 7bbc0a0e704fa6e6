"""What a transform is, and those that only change order or shape, and so no volume."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from kexue._tensors import as_generator

Mapped = tuple[Tensor, Tensor]  # the result, and the log-determinant (B,)


class Transform(nn.Module, ABC):
    """An invertible map of events that knows how it changes volumes.

    ``forward(x) -> (z, logdet)`` goes from events to latents, and ``inverse(z) -> (x, logdet)`` back. `logdet` (B,) is
    log |det dz/dx| of `forward`, and log |det dx/dz| of `inverse`, so the two are each other's negative. Both take
    `condition`, which only transforms with a network read.
    """

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the latents of events, and log |det dz/dx| (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the events of latents, and log |det dx/dz| (B,)."""

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


def check_channels(x: Tensor, channels: int) -> None:
    """Raise ValueError unless x is (B, channels, ...): with others a log-determinant would be wrong, unnoticed."""
    if x.ndim < 2 or x.shape[1] != channels:
        raise ValueError(f"x must have {channels} channels, (B, {channels}, ...), got shape {tuple(x.shape)}")


def check_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless x is (B, *shape)."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"a batch (B, {', '.join(map(str, shape))}) is expected, got shape {tuple(x.shape)}")


def is_permutation(order: Tensor) -> bool:
    """Return whether a tensor holds 0 to C - 1, each once, C >= 1."""
    whole = order.dtype in {torch.int32, torch.int64} and order.ndim == 1 and order.numel() > 0
    return whole and sorted(order.tolist()) == list(range(len(order)))


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
        if not is_permutation(order):
            raise ValueError(f"order must be a permutation of 0 to C - 1, got {order.tolist()}")
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
        check_channels(x, len(self.order))
        return x.index_select(1, self.order), spread(0.0, x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return z in the former order, 0."""
        check_channels(z, len(self.order))
        return z.index_select(1, self.back), spread(0.0, z)

    def find_faults(self, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield an order that is not a permutation, or whose inverse is another."""
        order, back = weights["order"], weights["back"]
        if not is_permutation(order) or not torch.equal(order.argsort(), back):
            yield "order is not a permutation with back as its inverse"


class Squeeze(Transform):
    """Blocks of 2 x 2 places as channels: (C, H, W) to (4C, H/2, W/2), log-determinant 0.

    Channel 4c + 2p + q of the result holds channel c at row p and column q of each block, as
    `torch.nn.functional.pixel_unshuffle` orders them.

    Raises:
        ValueError: in `forward` an odd height or width; in `inverse` a number of channels not divisible by 4.

    Example:
        >>> Squeeze()(torch.arange(4.0).reshape(1, 1, 2, 2))[0].flatten()
        tensor([0., 1., 2., 3.])
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the blocks as channels, 0."""
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"images (B, C, H, W) of even height and width are expected, got {tuple(x.shape)}")
        b, c, h, w = x.shape
        blocks = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return blocks.reshape(b, 4 * c, h // 2, w // 2), spread(0.0, x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return the channels as blocks, 0."""
        if z.ndim != 4 or z.shape[1] % 4:
            raise ValueError(f"latents (B, C, H, W) with C divisible by 4 are expected, got {tuple(z.shape)}")
        b, c, h, w = z.shape
        x = z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(b, c // 4, 2 * h, 2 * w), spread(0.0, z)


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
        check_shape(x, self.shape)
        return x.flatten(1), spread(0.0, x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Mapped:
        """Return z (B, *shape), 0."""
        check_shape(z, (math.prod(self.shape),))
        return z.reshape(len(z), *self.shape), spread(0.0, z)
