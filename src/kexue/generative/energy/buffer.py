"""The buffer of ends of chains, from which later chains go on.

Source: kexue.fm/archives/6612; Du and Mordatch 2019, arXiv:1903.08689.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kexue._counts import check_counts
from kexue.generative.diffusion.prior import Prior, UniformPrior
from kexue.generative.networks.mlp import Shape, as_shape
from kexue.generative.noise import Noise


class ReplayBuffer(nn.Module):
    """The last `capacity` ends of chains: a chain that starts at one of them has in effect as many steps more.

    A start is with probability `reinit` a new event, else one of the buffer, each as likely; of an empty buffer always
    a new one. The contents are part of the state dict, so that checkpoints and files of weights hold them. Of several
    processes that train a model all go on from the buffer of the first, as DDP copies buffers.

    Args:
        capacity: events kept, >= 1; the oldest ones go first.
        event_shape: shape of one event, or the size of a vector.
        reinit: probability of a new event, in [0, 1]; with 1 no chain goes on from another.
        init: new events; None: uniform in [-1, 1].

    Attributes:
        items: (capacity, *event_shape), a buffer of torch; the first `len` rows are in use.
        pushed: number of events pushed so far, a buffer of torch.

    Raises:
        ValueError: an argument out of range, or new events of another shape.

    Example:
        >>> buffer = ReplayBuffer(100, 2)
        >>> buffer.push(torch.ones(3, 2))
        >>> len(buffer), buffer.sample(5, generator=0).shape
        (3, torch.Size([5, 2]))
    """

    items: Tensor
    pushed: Tensor

    def __init__(self, capacity: int, event_shape: Shape, *, reinit: float = 0.05, init: Prior | None = None) -> None:
        super().__init__()
        check_counts(capacity=capacity)
        if not 0 <= reinit <= 1:
            raise ValueError(f"reinit is a probability in [0, 1], got {reinit}")
        shape = as_shape(event_shape, "event_shape")
        self.init = UniformPrior(-torch.ones(shape), torch.ones(shape)) if init is None else init
        if self.init.event_shape != shape:
            raise ValueError(f"init must have events of shape {shape}, got {self.init.event_shape}")
        self.reinit = reinit
        self.register_buffer("items", torch.zeros(capacity, *shape))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Return the number of events in the buffer."""
        return min(int(self.pushed), len(self.items))

    def sample(self, n: int, *, generator: torch.Generator | Sequence[torch.Generator] | int | None = None) -> Tensor:
        """Return n starts (n, *event_shape).

        Args:
            n: number of starts, >= 0.
            generator: as of `GenerativeModel.sample`: with a seed, start i is the same whatever n is.
        """
        check_counts(0, n=n)
        return self.draw(Noise(generator, n, self.items.device))

    def draw(self, noise: Noise, *, reinit: float | None = None) -> Tensor:
        """Return len(noise) starts, each made of the noise of its item.

        Args:
            noise: of the choices, and of the new events.
            reinit: probability of a new event; None: that of the buffer.
        """
        new = self.init.draw(noise, dtype=self.items.dtype)
        choice, place = noise.uniform((2,), torch.float64).T
        size = len(self)
        if not size:
            return new
        old = self.items[(place * size).long().clamp(max=size - 1)]
        fresh = choice < (self.reinit if reinit is None else reinit)
        return torch.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    @torch.no_grad()
    def push(self, x: Tensor) -> None:
        """Add events x (B, *event_shape) in order, the oldest ones going; those with NaN or infinity stay out.

        Raises:
            ValueError: events of another shape.
        """
        if tuple(x.shape[1:]) != tuple(self.items.shape[1:]) or not x.ndim:
            expected = ", ".join(map(str, self.items.shape[1:]))
            raise ValueError(f"x must have shape (B, {expected}), got {tuple(x.shape)}")
        x = x.to(self.items)  # where a number of another precision may become infinite
        x = x[x.isfinite().flatten(1).all(1)]
        places = (self.pushed + torch.arange(len(x), device=x.device)) % len(self.items)
        last = slice(max(len(x) - len(self.items), 0), None)  # of equal places the last one counts
        self.items[places[last]] = x[last]
        self.pushed += len(x)
