"""Mixtures of Gaussians of one width, with exact density, score and samples: a test bed for models of vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kexue._counts import check_counts
from kexue._tensors import as_generator


class GaussianMixture:
    """Mixture of Gaussians N(mean_i, std^2 I) with equal weights.

    p(x) = (1/K) sum_i N(x; mean_i, std^2 I).

    Args:
        means: (K >= 1, d >= 1), floats.
        std: standard deviation in every direction, > 0.

    Raises:
        ValueError: means of another shape, a std that is not positive and finite.
    """

    def __init__(self, means: Tensor, std: float) -> None:
        if means.ndim != 2 or not means.numel() or not means.is_floating_point() or not bool(means.isfinite().all()):
            raise ValueError(
                f"means must be finite floats (K >= 1, d >= 1), got {means.dtype} of shape {tuple(means.shape)}"
            )
        if not 0 < std < math.inf:
            raise ValueError(f"std must be > 0 and finite, got {std}")
        self.means, self.std = means, float(std)

    def sample(self, n: int, *, generator: torch.Generator | int | None = None) -> Tensor:
        """Return n independent points (n, d)."""
        check_counts(0, n=n)
        draw = as_generator(generator)
        of = torch.randint(len(self.means), (n,), generator=draw)
        noise = torch.randn(n, self.means.shape[1], generator=draw, dtype=self.means.dtype)
        return self.means[of] + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density (B,) of points (B, d), in nats."""
        d = self.means.shape[1]
        constant = math.log(len(self.means)) + d * (math.log(self.std) + math.log(2 * math.pi) / 2)
        return self._exponents(x).logsumexp(-1) - constant

    def score(self, x: Tensor) -> Tensor:
        """Return the gradient (B, d) of the log density at points (B, d)."""
        weights = self._exponents(x).softmax(-1)
        return (weights @ self.means.to(x) - x) / self.std**2

    def _exponents(self, x: Tensor) -> Tensor:
        """Return -|x - mean_i|^2 / (2 std^2), (B, K)."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1] or not x.is_floating_point():
            raise ValueError(f"x must be floats (B, {self.means.shape[1]}), got {x.dtype} of shape {tuple(x.shape)}")
        return -(x[:, None] - self.means.to(x)).square().sum(-1) / (2 * self.std**2)


def eight_gaussians() -> GaussianMixture:
    """Return eight Gaussians of standard deviation 0.2, evenly on the circle of radius 2, in float32.

    Example:
        >>> ring = eight_gaussians()
        >>> x = ring.sample(1000, generator=0)
        >>> x.shape, ring.log_prob(x).shape
        (torch.Size([1000, 2]), torch.Size([1000]))
    """
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture((2 * torch.stack([angles.cos(), angles.sin()], -1)).float(), 0.2)
