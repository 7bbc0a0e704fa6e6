"""Von Mises-Fisher distribution: directions around a mean direction, as if a normal distribution lay on a sphere.

A unit vector z of d numbers has the density C exp(kappa mu'z), mu the mean direction. The cosine w = mu'z has a density
proportional to exp(kappa w) (1 - w^2)^((d - 3) / 2), and the rest of z is uniform on the sphere across mu:

    z = w mu + sqrt(1 - w^2) nu,      nu a uniform unit vector with mu'nu = 0.

Source: kexue.fm/archives/8404; Davidson et al. 2018, arXiv:1804.00891.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kexue._arrays import Array
from kexue.generative.noise import Noise

_CELLS, _NODES = 4096, 4  # of the angle between z and mu, and nodes of Gauss and Legendre in each
_DEEP = 50.0  # log of the largest density over the smallest that is tabulated: e^-50 of the mass is left out


class VonMisesFisher:
    """Von Mises-Fisher distribution on the unit sphere of `dim` dimensions, at any mean direction.

    Args:
        dim: d, at least 2.
        kappa: concentration, >= 0 and finite; 0 is the uniform distribution.

    Attributes:
        mean_cosine: E[mu'z] = A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa), in [0, 1).
        kl: divergence from the uniform distribution, in nats. It is the same for every mean direction.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> sphere = VonMisesFisher(16, 32.0)
        >>> round(sphere.kl, 4), round(sphere.mean_cosine, 4)
        (7.5821, 0.7899)
    """

    def __init__(self, dim: int, kappa: float) -> None:
        if dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}")
        if not 0 <= kappa < math.inf:
            raise ValueError(f"kappa must be 0 or more, and finite, got {kappa}")
        self.dim, self.kappa = dim, float(kappa)
        edges = np.linspace(*_range(dim, self.kappa), _CELLS + 1)  # of the angle a between z and mu, w = cos a
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        width = (edges[1] - edges[0]) / 2
        inside = edges[:-1, None] + width * (1 + nodes)
        log_density = _log_density(inside, dim, self.kappa)
        peak = float(log_density.max())
        mass = np.exp(log_density - peak) * weights * width
        total = float(mass.sum())
        self.mean_cosine = float((mass * np.cos(inside)).sum()) / total
        log_uniform = math.log(math.pi) / 2 + math.lgamma((dim - 1) / 2) - math.lgamma(dim / 2)
        self.kl = max(0.0, self.kappa * (self.mean_cosine - 1) - math.log(total) - peak + log_uniform)
        below = np.concatenate([[0.0], np.cumsum(mass.sum(1))]) / total
        self._below, self._edges = torch.from_numpy(below), torch.from_numpy(edges)

    def draw_angles(self, uniform: Tensor) -> Tensor:
        """Return angles between z and mu, in [0, pi], of uniform numbers in [0, 1), any shape: the inverse of the CDF.

        Between 4,097 tabulated angles the CDF is taken as linear.
        """
        below, edges = (table.to(uniform.device) for table in (self._below, self._edges))
        u = uniform.to(below.dtype).contiguous()
        right = torch.searchsorted(below, u, right=True).clamp(1, _CELLS)
        low, high = below[right - 1], below[right]
        share = ((u - low) / (high - low).clamp(min=torch.finfo(u.dtype).tiny)).clamp(0, 1)
        return torch.lerp(edges[right - 1], edges[right], share).to(uniform.dtype)

    def sample(self, mean: Tensor, noise: Noise) -> Tensor:
        """Return one direction (n, d) around each mean direction (n, d), of length 1.

        The gradient passes to `mean`, since the numbers drawn do not depend on it.

        Args:
            mean: unit vectors (n, d).
            noise: of n items.
        """
        angle = self.draw_angles(noise.uniform((1,))).to(mean.dtype)
        across = noise.normal((self.dim,), mean.dtype)
        for _ in range(2):  # once leaves a rounding error where the noise is nearly parallel to the mean
            across = functional.normalize(across - (across * mean).sum(-1, keepdim=True) * mean, dim=-1)
        return torch.cos(angle) * mean + torch.sin(angle) * across

    def sample_uniform(self, noise: Noise) -> Tensor:
        """Return one uniform direction (n, d) for each item of the noise."""
        return functional.normalize(noise.normal((self.dim,)), dim=-1)


def _range(dim: int, kappa: float) -> tuple[float, float]:
    """Return two angles between which all but about e^-50 of the mass lies."""
    grid = np.concatenate([np.geomspace(1e-12, 1e-3, 10_000), np.linspace(1e-3, math.pi, 100_000)[1:]])
    values = _log_density(grid, dim, kappa)
    inside = np.flatnonzero(values > values.max() - _DEEP)
    first, last = int(inside[0]), int(inside[-1])
    return float(grid[first - 1]) if first else 0.0, float(grid[min(last + 1, len(grid) - 1)])


def _log_density(angle: Array, dim: int, kappa: float) -> Array:
    """Return kappa (cos a - 1) + (d - 2) log sin a, for angles in (0, pi]."""
    value: Array = -2 * kappa * np.sin(angle / 2) ** 2
    return value if dim == 2 else value + (dim - 2) * np.log(np.sin(angle))
