"""What the output of a decoder says about an event: the distributions p(x | z).

All sum over the numbers of an event, so that the weight of the divergence beside them means the same for every size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from kexue._counts import check_counts
from kexue._tensors import at_least_float32, may_read

_FLOOR = -6.0  # of the logarithm of a learned deviation: without it the density of one good pixel has no bound
_TOLERANCE = 0.01  # of a level
_ROUNDING = 1e-6  # of a pixel that was scaled to [-1, 1]


class Likelihood(nn.Module, ABC):
    """The distribution of an event given the output of a decoder; the base class of those below."""

    @abstractmethod
    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return log p(x | z) of events (B, *event_shape), in nats and summed over the numbers of an event: (B,).

        Args:
            x: events.
            output: what the decoder returned for their latents, of the same shape.

        Raises:
            ValueError: two shapes.
        """

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of p(x | z), (B, *event_shape): the event without noise."""
        return output


class _Deviation(nn.Module):
    """One positive number above exp(-6), learned or not."""

    def __init__(self, value: float, *, learned: bool) -> None:
        super().__init__()
        if not (math.isfinite(value) and math.log(max(value, 1e-300)) > _FLOOR):
            raise ValueError(f"sigma must be a finite number above exp({_FLOOR:g}) = 0.0025, got {value}")
        above = math.log(value) - _FLOOR
        start = torch.tensor(above + math.log(-math.expm1(-above)))  # the inverse of softplus
        if learned:
            self.raw = nn.Parameter(start)
        else:
            self.register_buffer("raw", start)

    @property
    def log(self) -> Tensor:
        """Logarithm of the number; a smooth floor has a gradient everywhere."""
        return _FLOOR + functional.softplus(at_least_float32(self.raw))


class GaussianLikelihood(Likelihood):
    """Normal numbers of one deviation sigma around the decoder's output.

    log p(x | z) = -|x - output|^2 / (2 sigma^2) - D log sigma - D log(2 pi) / 2, D numbers in an event.

    Args:
        sigma: deviation, above 0.0025, in units of x; where it is learned, the value to start from.
        learned: whether sigma is learned, one number for all pixels.

    Raises:
        ValueError: sigma too small or not finite.

    Source: kexue.fm/archives/5343.

    Example:
        >>> round(float(GaussianLikelihood(1.0).log_prob(torch.ones(1, 2), torch.zeros(1, 2))), 4)
        -2.8379
    """

    def __init__(self, sigma: float = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        self._deviation = _Deviation(sigma, learned=learned)

    @property
    def sigma(self) -> Tensor:
        """The deviation, a scalar."""
        return self._deviation.log.exp()

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the log density (B,)."""
        x, output = _match(x, output)
        log_sigma = self._deviation.log
        scaled = (x - output) * torch.exp(-log_sigma)
        return -(scaled.square() / 2 + log_sigma + math.log(2 * math.pi) / 2).flatten(1).sum(1)


class BernoulliLikelihood(Likelihood):
    """Black or white pixels: the decoder's output is the logit of white.

    Events lie in [-1, 1], black is -1 and white is 1. A pixel in between counts as white with probability (x + 1) / 2,
    so that its log-probability is the mean over both.

    log p(x | z) = sum of t log sigmoid(output) + (1 - t) log sigmoid(-output), t = (x + 1) / 2.

    Source: kexue.fm/archives/5343.

    Example:
        >>> round(float(BernoulliLikelihood().log_prob(torch.tensor([[-1.0, 1.0]]), torch.zeros(1, 2))), 4)
        -1.3863
    """

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the log-probability (B,); ValueError where x is outside [-1, 1]."""
        x, output = _match(x, output)
        _check_range(x)
        white = (x + 1) / 2
        return (white * output - functional.softplus(output)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return 2 sigmoid(output) - 1, in [-1, 1]."""
        return torch.tanh(at_least_float32(output) / 2)


class LogisticLikelihood(Likelihood):
    """Pixels with a few levels: each has the part of a logistic density, centred at the decoder's output, around it.

    Level k of n is the number x_k = 2 k / (n - 1) - 1 in [-1, 1]; with h = 1 / (n - 1), half the distance of levels,

        P(k | z) = sigmoid((x_k + h - output) / s) - sigmoid((x_k - h - output) / s),

    where the first term is 1 at the highest level and the second is 0 at the lowest one, so the sum over k is 1. One
    scale s is learned for all pixels.

    Args:
        levels: n, >= 2; 256 for bytes, 17 for scikit-learn's digits.
        sigma: deviation to start from, s pi / sqrt(3), above 0.0025.

    Raises:
        ValueError: fewer than 2 levels; sigma too small or not finite.

    Example:
        >>> likelihood = LogisticLikelihood(3)
        >>> x = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> likelihood.log_prob(x, torch.full((3, 1), 0.3)).exp().sum().round(decimals=4).item()
        1.0
    """

    def __init__(self, levels: int = 256, *, sigma: float = 1.0) -> None:
        super().__init__()
        check_counts(2, levels=levels)
        self.levels = levels
        self._deviation = _Deviation(sigma, learned=True)

    @property
    def sigma(self) -> Tensor:
        """The deviation of the density, a scalar."""
        return self._deviation.log.exp()

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the log-probability (B,) of the levels; ValueError where x is not at one of them."""
        x, output = _match(x, output)
        _check_range(x)
        position = (x + 1) * ((self.levels - 1) / 2)
        level = position.round()
        if may_read(x) and bool(((position - level).abs() > _TOLERANCE).any()):
            raise ValueError(f"x must lie at one of {self.levels} levels, 2 k / {self.levels - 1} - 1; give its levels")
        log_scale = self._deviation.log - math.log(math.pi / math.sqrt(3))
        half, per_scale = 1 / (self.levels - 1), torch.exp(-log_scale)
        centre = 2 * half * level - 1 - output
        above, below = (centre + half) * per_scale, (centre - half) * per_scale
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which does not cancel
        inner = functional.logsigmoid(above) + functional.logsigmoid(-below)
        inner = inner + torch.log(-torch.expm1(-2 * half * per_scale))
        ends = torch.where(level == 0, functional.logsigmoid(above), functional.logsigmoid(-below))
        inside = (level > 0) & (level < self.levels - 1)
        return torch.where(inside, inner, ends).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return the centre of the density, limited to [-1, 1]."""
        return output.clamp(-1, 1)


def _match(x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return events and the decoder's output in float32 or wider; ValueError unless both are (B, *event_shape)."""
    if x.shape != output.shape or x.ndim < 2:
        raise ValueError(
            f"events and the decoder's output must both be (B, *event_shape), got {tuple(x.shape)} and "
            f"{tuple(output.shape)}"
        )
    return at_least_float32(x), at_least_float32(output)


def _check_range(x: Tensor) -> None:
    """ValueError unless x lies in [-1, 1]."""
    if may_read(x) and x.numel() and bool((x.abs() > 1 + _ROUNDING).any()):
        raise ValueError(f"x must lie in [-1, 1], got {float(x.min()):g} to {float(x.max()):g}; scale it first")
