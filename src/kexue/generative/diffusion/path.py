"""Paths from data to a prior: which trajectories lead from an event to which point of the prior, and how fast."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue.generative.diffusion.prior import CauchyPrior, Prior
from kexue.generative.diffusion.schedule import check_times
from kexue.generative.networks.mlp import Shape
from kexue.generative.noise import Noise

Generators = torch.Generator | Sequence[torch.Generator] | int | None
_PAIRS = 2**21  # numbers of a block of pairs (event, item of the data)


class PathSample(NamedTuple):
    """Points on trajectories, and what a network learns from them.

    Attributes:
        x_t: points (B, *event) at their times.
        target: velocity (B, *event) of the trajectory there.
        x_1: points (B, *event) of the prior to which the trajectories lead.
    """

    x_t: Tensor
    target: Tensor
    x_1: Tensor


class Path(ABC):
    """A family of trajectories: from each event x_0 at time 0 one to every point x_1 of a prior, at time t_max.

    The trajectories through x_0 do not cross, so (x_t, t, x_0) tells x_1, the label of the trajectory. Then

    - the velocity given x_0 is that of the trajectory on which x_t lies;
    - the density given x_0 is p(x_t | x_0) = prior(label) |det d label / dx_t|;
    - the velocity that carries the whole of the data to the prior is the mean of E[velocity given x_0 | x_t], which a
      network learns.

    A subclass states `between`, `label`, `log_volume` and `conditional_velocity`.

    Attributes:
        prior: distribution of x_1.
        t_min, t_max: times at which an ODE along the path ends and starts.
        end_scale: an ODE starts from this times x_1.

    Source: kexue.fm/archives/9379.
    """

    end_scale = 1.0

    def __init__(self, prior: Prior, *, t_min: float = 0.0, t_max: float = 1.0) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(f"prior must be a Prior, such as NormalPrior, got {type(prior).__name__}")
        if not 0 <= t_min < t_max < math.inf:
            raise ValueError(f"0 <= t_min < t_max is expected, got {t_min} and {t_max}")
        self.prior, self.t_min, self.t_max = prior, float(t_min), float(t_max)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.prior.event_shape

    @abstractmethod
    def between(self, x0: Tensor, x_1: Tensor, t: Tensor | float) -> PathSample:
        """Return points at time t on the trajectories from x0 to x_1, and their velocities."""

    @abstractmethod
    def label(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return the points x_1 of the prior to which the trajectories from x0 through x at time t lead."""

    @abstractmethod
    def log_volume(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return log |det d label / dx| (B,)."""

    @abstractmethod
    def conditional_velocity(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return the velocity at x and time t > 0 of the trajectories that start from x0, (B, *event)."""

    def sample(self, x0: Tensor, t: Tensor | float, *, generator: Generators = None) -> PathSample:
        """Return points at time t on trajectories from x0 to points of the prior that are drawn.

        Args:
            x0: events (B, *event).
            t: one time, or one for each event (B,).
            generator: as of `kexue.generative.Noise`.
        """
        self.prior.check(x0)
        return self.between(x0, self.prior.draw(Noise(generator, len(x0), x0.device), dtype=x0.dtype), t)

    def log_prob(self, x: Tensor, x0: Tensor, t: Tensor | float) -> Tensor:
        """Return the log density (B,) of x at time t > 0 given x0, in nats."""
        return self.prior.log_prob(self.label(x, t, x0)) + self.log_volume(x, t, x0)  # section "The recipe", 3

    def marginal_velocity(self, x: Tensor, t: Tensor | float, data: Tensor) -> Tensor:
        """Return the exact velocity (B, *event) of a finite data set: what a perfect network would learn.

        It is the mean over the data of the velocities given x0, weighted by p(x | x0). Where no item of the data can
        have led to x, outside of a bounded prior, it is the velocity given the item that came closest.

        Args:
            x: (B, *event).
            t: one time > 0, or one for each event (B,).
            data: (N, *event), all equally likely.
        """
        d = self.prior.check(x).shape[1]
        if len(self.prior.check(data)) < 1:
            raise ValueError("data must have at least one item")
        times = self.spread_times(t, x.double())
        rows = max(1, _PAIRS // (len(data) * d))
        items = data.to(x.device, torch.float64)
        parts = zip(x.double().split(rows), times.split(rows), strict=True)  # type: ignore[no-untyped-call]
        blocks = [self._mean_velocity(part, time, items) for part, time in parts]
        return torch.cat(blocks).to(x.dtype) if blocks else torch.zeros_like(x)

    def _mean_velocity(self, x: Tensor, t: Tensor, data: Tensor) -> Tensor:
        n, event = len(data), x.shape[1:]
        at, times = x.repeat_interleave(n, 0), t.repeat_interleave(n)
        sources = data.repeat(len(x), *[1] * len(event))
        labels = self.label(at, times, sources)
        log_weights = (self.prior.log_prob(labels) + self.log_volume(at, times, sources)).reshape(-1, n)
        distances = self.prior.distance(labels).reshape(-1, n)
        nearest = torch.where(distances == distances.amin(1, keepdim=True), 0.0, -math.inf)
        nowhere = log_weights.amax(1, keepdim=True) == -math.inf
        weights = torch.where(nowhere, nearest, log_weights).softmax(1)
        velocities = self.conditional_velocity(at, times, sources).reshape(len(x), n, -1)
        return torch.einsum("bn,bnd->bd", weights, velocities).reshape(x.shape)  # section "The recipe", 4

    def spread_times(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Return times (B,), one for each of the events x (B, *event), in their precision.

        Raises:
            ValueError: as many times as there are events, or one, are expected; times outside of [0, t_max].
        """
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1)
        if len(times) not in (1, len(x)):
            raise ValueError(f"t must be one time, or one for each of {len(x)} events, got {len(times)}")
        check_times(times, self.t_max)
        return times.expand(len(x))

    def make_grid(self, steps: int) -> list[float]:
        """Return steps + 1 times from t_max down to t_min: equally spaced, or geometric where t_min > 0."""
        steps = check_count(steps, "steps", 1)
        low, high = (math.log(self.t_min), math.log(self.t_max)) if self.t_min else (0.0, self.t_max)
        times = [high + (low - high) * i / steps for i in range(steps + 1)]
        inner = [math.exp(t) for t in times[1:-1]] if self.t_min else times[1:-1]
        return [self.t_max, *inner, self.t_min]


Curve = tuple[Callable[..., Tensor], Callable[..., Tensor]]


class LinearPath(Path):
    """Trajectories x_t = mu_t(x_0) + sigma_t x_1 with x_1 of any prior.

    Args:
        prior: distribution of x_1.
        mu: ``"straight"`` is mu = (1 - t) x_0, with sigma = t straight lines, which end exactly at the prior;
            ``"identity"`` is mu = x_0, which ends near t_max times the prior if the data are far smaller than that; or
            a pair (f, df), functions of (t, x_0) that return mu and its derivative in t. They get t as (B, 1, ...).
        sigma: a pair (f, df) of functions of t, with f(0) = 0 and f > 0 after; None is t.
        t_min, t_max: times at which an ODE along the path ends and starts.

    Source: kexue.fm/archives/9379.

    Example:
        >>> from kexue.generative.diffusion import NormalPrior
        >>> path = LinearPath(NormalPrior(2))
        >>> x_t, target, x_1 = path.sample(torch.ones(3, 2), 0.5, generator=0)
        >>> bool(torch.allclose(target, x_1 - 1.0))
        True
    """

    def __init__(
        self,
        prior: Prior,
        *,
        mu: Literal["straight", "identity"] | Curve = "straight",
        sigma: Curve | None = None,
        t_min: float = 0.0,
        t_max: float = 1.0,
    ) -> None:
        super().__init__(prior, t_min=t_min, t_max=t_max)
        if isinstance(mu, str) and mu not in _MEANS:
            raise ValueError(f"mu must be 'straight', 'identity' or a pair of functions (f, df), got {mu!r}")
        if mu == "straight" and t_max > 1:
            raise ValueError(f"straight lines reach the prior at t = 1, got t_max = {t_max}")
        self._mu = _MEANS[mu] if isinstance(mu, str) else _check_pair("mu", mu)
        self._sigma = (_same, torch.ones_like) if sigma is None else _check_pair("sigma", sigma)
        self.end_scale = float(self._sigma[0](torch.tensor(self.t_max, dtype=torch.float64)))
        if not 0 < self.end_scale < math.inf:
            raise ValueError(f"sigma must be > 0 and finite at t_max = {t_max}, got {self.end_scale}")

    def between(self, x0: Tensor, x_1: Tensor, t: Tensor | float) -> PathSample:
        """Return points at time t on the trajectories from x0 to x_1, and their velocities."""
        t = self._columns(t, x0)
        x_t = self._mu[0](t, x0) + self._sigma[0](t) * x_1
        # Never (x_t - mu) / sigma, which is rounding alone near t = 0
        return PathSample(x_t, self._mu[1](t, x0) + self._sigma[1](t) * x_1, x_1)

    def label(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return (x - mu) / sigma."""
        t = self._columns(t, x)
        sigma = self._sigma[0](t)
        if not bool((sigma > 0).all()):
            raise ValueError("at t = 0 all trajectories of an event are in one point; use t > 0")
        return (x - self._mu[0](t, x0)) / sigma

    def log_volume(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return -d log sigma, (B,)."""
        return -math.prod(self.event_shape) * self._sigma[0](self._columns(t, x)).log().reshape(len(x))

    def conditional_velocity(self, x: Tensor, t: Tensor | float, x0: Tensor) -> Tensor:
        """Return mu' + (sigma'/sigma)(x - mu), for a straight line (x - x0)/t, (B, *event)."""
        label, t = self.label(x, t, x0), self._columns(t, x)
        return self._mu[1](t, x0) + self._sigma[1](t) * label  # section "Straight lines, and any prior"

    def _columns(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Return times (B, 1, ...) for events (B, *event)."""
        return self.spread_times(t, x).reshape(-1, *[1] * (x.ndim - 1))


def _same(t: Tensor) -> Tensor:
    return t


_MEANS: dict[str, Curve] = {
    "straight": (lambda t, x0: (1 - t) * x0, lambda t, x0: -x0),
    "identity": (lambda t, x0: x0, lambda t, x0: torch.zeros_like(x0)),
}


def _check_pair(name: str, pair: Curve) -> Curve:
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(callable, pair)):
        raise ValueError(f"{name} must be a pair of functions (f, df), the second the derivative in t, got {pair!r}")
    return pair


def pfgm_path(dim: Shape, *, t_max: float = 40.0) -> LinearPath:
    """Return the path of Poisson flows (PFGM): x_t = x_0 + t z with z of Cauchy's distribution in d dimensions.

    The velocity given x_0 is (x - x_0)/t, along the field of a charge in d + 1 dimensions. Times run from t_max to
    1e-3; t_max must be far larger than the data. Targets of training have no variance, since z has none: a network that
    estimates x_0 learns from a bounded target instead, and gives the velocity (x - x_0)/t.

    Args:
        dim: size d of a vector, or the shape of an event of d values.
        t_max: where sampling starts, > 1e-3.

    Source: kexue.fm/archives/9370, 9379.

    Example:
        >>> path = pfgm_path(2)
        >>> path.conditional_velocity(torch.tensor([[3.0, 0.0]]), 2.0, torch.zeros(1, 2))
        tensor([[1.5000, 0.0000]])
    """
    return LinearPath(CauchyPrior(dim), mu="identity", t_min=1e-3, t_max=t_max)
