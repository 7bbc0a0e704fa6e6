"""Distributions to start from: normal, uniform, Cauchy, and items of a data set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import direction_and_length
from kexue.errors import NotSupported
from kexue.generative.networks.mlp import Shape, as_shape
from kexue.generative.noise import Noise


class Prior(ABC):
    """A distribution that is easily sampled, from which an ODE makes events.

    A subclass sets `event_shape` and states `draw` and `log_prob`.

    Attributes:
        event_shape: shape of one event.
    """

    event_shape: tuple[int, ...]

    @abstractmethod
    def draw(self, noise: Noise, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) events, each made of the noise of its item."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density (B,) of events (B, *event_shape), in nats."""

    def distance(self, x: Tensor) -> Tensor:
        """Return how far events (B, *event_shape) are from where the density is positive, (B,); 0 for most priors."""
        return x.new_zeros(len(x))

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return n independent events (n, *event_shape).

        Args:
            n: number of events, >= 0.
            generator: as of `Noise`: with an int, event i is the same whatever n is.
            dtype: of the events; None is torch's default.
        """
        return self.draw(Noise(generator, check_count(n, "n")), dtype=dtype)

    def check(self, x: Tensor) -> Tensor:
        """Return events as vectors (B, d); ValueError for another shape."""
        if not isinstance(x, Tensor) or not x.ndim or tuple(x.shape[1:]) != self.event_shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"events must have shape (B, {', '.join(map(str, self.event_shape))}), got {got}")
        return x.reshape(len(x), math.prod(self.event_shape))


class NormalPrior(Prior):
    """Standard normal distribution N(0, I).

    Args:
        event_shape: shape of one event, or the size of a vector.

    Example:
        >>> prior = NormalPrior(2)
        >>> prior.sample(3, generator=0).shape, prior.log_prob(torch.zeros(1, 2))
        (torch.Size([3, 2]), tensor([-1.8379]))
    """

    def __init__(self, event_shape: Shape) -> None:
        self.event_shape = as_shape(event_shape, "event_shape")

    def draw(self, noise: Noise, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) events, each made of the noise of its item."""
        return noise.normal(self.event_shape, dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return -|x|^2/2 - d/2 log 2 pi, (B,)."""
        z = self.check(x)
        return -0.5 * z.square().sum(1) - z.shape[1] * 0.5 * math.log(2 * math.pi)


class UniformPrior(Prior):
    """Uniform distribution in a box, low <= x < high in every value.

    Args:
        low, high: corners of the box, tensors of the shape of an event, or lists for vectors; low < high.

    Raises:
        ValueError: corners of different shapes, or not in this order, or not finite.

    Example:
        >>> prior = UniformPrior([0.0, 0.0], [2.0, 2.0])
        >>> prior.log_prob(torch.tensor([[0.5, 1.0], [3.0, 0.0]]))
        tensor([-1.3863,    -inf])
    """

    def __init__(self, low: Tensor | Sequence[float], high: Tensor | Sequence[float]) -> None:
        self.low, self.high = (torch.as_tensor(corner, dtype=torch.float64) for corner in (low, high))
        if self.low.shape != self.high.shape or not self.low.ndim:
            raise ValueError(
                "low and high must be tensors of the shape of an event, such as torch.full((1, 8, 8), -1.0), "
                f"got shapes {tuple(self.low.shape)} and {tuple(self.high.shape)}"
            )
        if not bool((self.low < self.high).all()) or not bool((self.high - self.low).isfinite().all()):
            raise ValueError("low < high is expected in every value, and both finite")
        self.event_shape = tuple(self.low.shape)

    def draw(self, noise: Noise, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) events, each made of the noise of its item."""
        u = noise.uniform(self.event_shape, dtype)
        low, high = self.low.to(u), self.high.to(u)
        return low + (high - low) * u

    def log_prob(self, x: Tensor) -> Tensor:
        """Return minus the log of the volume in the box, corners included; -inf outside; (B,)."""
        self.check(x)
        low, high = self.low.to(x.device), self.high.to(x.device)
        inside = ((x >= low.to(x.dtype)) & (x <= high.to(x.dtype))).reshape(len(x), -1).all(1)
        log_volume = float((high - low).log().sum())
        return torch.full((len(x),), -log_volume, dtype=x.dtype, device=x.device).masked_fill(~inside, -math.inf)

    def distance(self, x: Tensor) -> Tensor:
        """Return the distance (B,) of events from the box, 0 inside."""
        beyond = self.check(x - x.clamp(self.low.to(x), self.high.to(x)))
        return beyond.square().sum(1).sqrt()


class CauchyPrior(Prior):
    """Multivariate Cauchy distribution, p(z) proportional to (1 + |z|^2)^(-(d+1)/2); it has no mean and no variance.

    z = e / |e_0| with d + 1 independent standard normal numbers (e, e_0).

    Args:
        dim: size d of a vector, or the shape of an event of d values.

    Source: kexue.fm/archives/9370, "(d+1)-isotropic" solution; for d = 1 this is Cauchy's distribution.

    Example:
        >>> prior = CauchyPrior(1)
        >>> prior.log_prob(torch.zeros(1, 1)).exp() * torch.pi
        tensor([1.0000])
    """

    def __init__(self, dim: Shape) -> None:
        self.event_shape = as_shape(dim, "dim")

    def draw(self, noise: Noise, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) events, each made of the noise of its item."""
        e = noise.normal((math.prod(self.event_shape) + 1,), dtype)
        scale = e[:, -1:].abs().clamp(min=torch.finfo(e.dtype).tiny)
        return (e[:, :-1] / scale).reshape(len(e), *self.event_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log Gamma((d+1)/2) - (d+1)/2 (log pi + log(1 + |x|^2)), (B,)."""
        z = self.check(x)
        half = (z.shape[1] + 1) / 2
        r = direction_and_length(z)[1][:, 0]
        # log(1 + r^2) is 2 log r for large r, whose square would overflow
        log_factor = torch.where(r < 1e4, torch.log1p(r.clamp(max=1e4).square()), 2 * r.clamp(min=1.0).log())
        return math.lgamma(half) - half * (math.log(math.pi) + log_factor)


class EmpiricalPrior(Prior):
    """Items of a data set, each as often as the others, drawn with replacement; it has no density.

    Args:
        data: (N >= 1, *event_shape), floats.

    Example:
        >>> EmpiricalPrior(torch.eye(3)).sample(5, generator=0).sum(1)
        tensor([1., 1., 1., 1., 1.])
    """

    def __init__(self, data: Tensor) -> None:
        if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2 or not len(data):
            raise ValueError(
                f"data must be a tensor (N >= 1, *event_shape) of floats, got {getattr(data, 'shape', data)}"
            )
        self.data = data
        self.event_shape = tuple(data.shape[1:])

    def draw(self, noise: Noise, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) items, each chosen by the noise of its item."""
        u = noise.uniform((), torch.float64)
        rows = (u * len(self.data)).long().clamp(max=len(self.data) - 1)
        return self.data.to(noise.device)[rows].to(dtype or self.data.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Raise NotSupported: items of a data set have no density."""
        raise NotSupported("items of a data set have no density; EmpiricalPrior supports: sample.")
