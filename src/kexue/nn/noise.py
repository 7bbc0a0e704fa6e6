"""Noise distributions for `perturb_max`: logarithm of the distribution function, and quantile function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Noise(Protocol):
    """A distribution of noise: elementwise, differentiable `log_cdf`, and the quantile function `icdf` on (0, 1)."""

    @property
    def log_cdf(self) -> Callable[[Tensor], Tensor]:
        """Log F, elementwise and differentiable."""
        ...

    @property
    def icdf(self) -> Callable[[Tensor], Tensor]:
        """The inverse of F, on float64 in (0, 1)."""
        ...


@dataclass(frozen=True)
class _Distribution:
    """A `Noise` of two functions."""

    log_cdf: Callable[[Tensor], Tensor]
    icdf: Callable[[Tensor], Tensor]


def _log_if_positive(x: Tensor, log_cdf: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `log_cdf` where x > 0 and -inf elsewhere, without NaN in the gradient."""
    inside = x > 0
    return torch.where(inside, log_cdf(torch.where(inside, x, 1.0)), -math.inf)


def _log_normal_cdf(x: Tensor) -> Tensor:
    """Return log Phi(x).

    The gradient of torch's own function subtracts numbers near x^2/2, which is wrong in float32 from -1e3 on.
    """
    left = x < -1
    z = torch.where(left, x, -1.0) * -math.sqrt(0.5)
    tail = torch.log(torch.special.erfcx(z) / 2) - z * z
    return torch.where(left, tail, torch.log1p(-torch.erfc(torch.where(left, -1.0, x) * math.sqrt(0.5)) / 2))


NOISES: dict[str, Noise] = {
    "gumbel": _Distribution(lambda x: -torch.exp(-x), lambda t: -torch.log(-torch.log(t))),
    "normal": _Distribution(_log_normal_cdf, torch.special.ndtri),
    "logistic": _Distribution(lambda x: -softplus(-x), torch.logit),
    "exponential": _Distribution(
        lambda x: _log_if_positive(x, lambda y: torch.log(-torch.expm1(-y))), lambda t: -torch.log1p(-t)
    ),
    "cauchy": _Distribution(
        lambda x: torch.log(torch.atan2(torch.ones_like(x), -x) / math.pi),  # 1/2 + atan(x)/pi without cancellation
        lambda t: torch.tan(math.pi * (t - 0.5)),
    ),
    "uniform": _Distribution(lambda x: _log_if_positive(x, lambda y: torch.log(y.clamp(max=1.0))), lambda t: t),
}


def as_noise(noise: str | Noise) -> Noise:
    """Return the distribution with a name of `NOISES`, or the object itself if it has `log_cdf` and `icdf`.

    Raises:
        ValueError: an unknown name. TypeError: an object without these methods.
    """
    if isinstance(noise, str):
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)} or an object with log_cdf, icdf; got {noise!r}")
        return NOISES[noise]
    if not (hasattr(noise, "log_cdf") and hasattr(noise, "icdf")):
        raise TypeError(f"a noise needs the methods log_cdf and icdf; {type(noise).__name__} lacks them")
    return noise
