"""Latents of one block of a UniVAE: their distribution given what was read, their prior, and the space they lie in."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from kexue._tensors import SHORTEST, may_read
from kexue.generative.interpolation import interpolate
from kexue.generative.noise import Noise
from kexue.generative.posterior import Posterior
from kexue.generative.von_mises_fisher import VonMisesFisher


class Latent(Protocol):
    """Family of distributions q(z | r) over latents z (B, d), with the parameters r (B, width), and a prior.

    Attributes:
        dim: d.
        width: numbers that describe one distribution.
        scale: root of the mean square of |z| under the prior.
    """

    dim: int
    width: int
    scale: float

    def centre(self, r: Tensor) -> Tensor:
        """Return the middle (B, d) of each distribution."""

    def sample(self, r: Tensor, noise: Noise) -> Tensor:
        """Return one latent (B, d) of each distribution, with a gradient to r."""

    def kl(self, r: Tensor) -> Tensor:
        """Return the divergence (B,) of each distribution from the prior, in nats."""

    def penalty(self, r: Tensor) -> Tensor:
        """Return what the loss counts as the mean divergence: a scalar, in nats."""

    def sample_prior(self, noise: Noise) -> Tensor:
        """Return one latent (n, d) of the prior for each item of the noise."""

    def project(self, z: Tensor) -> Tensor:
        """Return the points (..., d) nearest to z that a latent may have."""

    def path(self, z1: Tensor, z2: Tensor, n: int) -> Tensor:
        """Return n latents (n, d) from z1 (d,) to z2 (d,)."""


class SphereLatent:
    """Von Mises-Fisher distribution of one kappa around the direction of r, with the uniform sphere as its prior.

    Its divergence is a constant, so that no latent can become useless: there is nothing to gain by it.

    Args:
        dim: d, at least 2.
        kappa: concentration, > 0.
    """

    def __init__(self, dim: int, kappa: float) -> None:
        if not kappa > 0:
            raise ValueError(f"kappa must be above 0, since at 0 a latent tells nothing, got {kappa}")
        self.dim, self.width, self.scale = dim, dim, 1.0
        self.distribution = VonMisesFisher(dim, kappa)

    def centre(self, r: Tensor) -> Tensor:
        """Return the mean directions (B, d)."""
        return functional.normalize(r, dim=-1)

    def sample(self, r: Tensor, noise: Noise) -> Tensor:
        """Return one direction (B, d) around each mean direction."""
        return self.distribution.sample(self.centre(r), noise)

    def kl(self, r: Tensor) -> Tensor:
        """Return the constant divergence (B,)."""
        return r.new_full(r.shape[:-1], self.distribution.kl)

    def penalty(self, r: Tensor) -> Tensor:
        """Return the constant divergence."""
        return r.new_tensor(self.distribution.kl)

    def sample_prior(self, noise: Noise) -> Tensor:
        """Return uniform directions (n, d)."""
        return self.distribution.sample_uniform(noise)

    def project(self, z: Tensor) -> Tensor:
        """Return the directions of z; ValueError for a vector of length 0, which has none."""
        if may_read(z) and bool((torch.linalg.vector_norm(z, dim=-1) <= SHORTEST).any()):
            raise ValueError("a latent of length 0 has no direction; give other numbers, or another strength")
        return functional.normalize(z, dim=-1)

    def path(self, z1: Tensor, z2: Tensor, n: int) -> Tensor:
        """Return n directions (n, d) on the great circle from z1 to z2."""
        return interpolate(z1, z2, n, method="slerp")


class GaussianLatent:
    """Normal distribution with means and log-variances r side by side, and a standard normal prior.

    Args:
        dim: d, at least 1.
        free_bits: nats that each of the d numbers may tell, on the mean of a batch, before the loss counts it; >= 0.
    """

    def __init__(self, dim: int, free_bits: float) -> None:
        if dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {dim}")
        if not 0 <= free_bits < math.inf:
            raise ValueError(f"free_bits must be 0 or more, in nats, and finite, got {free_bits}")
        self.dim, self.width, self.scale, self.free_bits = dim, 2 * dim, dim**0.5, free_bits

    def centre(self, r: Tensor) -> Tensor:
        """Return the means (B, d)."""
        return r[..., : self.dim]

    def sample(self, r: Tensor, noise: Noise) -> Tensor:
        """Return mean + sigma e of normal noise e."""
        return Posterior(*r.chunk(2, -1)).sample(noise)

    def kl(self, r: Tensor) -> Tensor:
        """Return the sum over the d numbers of (mean^2 + sigma^2 - 1 - log sigma^2) / 2."""
        return Posterior(*r.chunk(2, -1)).kl().sum(-1)

    def penalty(self, r: Tensor) -> Tensor:
        """Return the sum over the numbers of max(mean divergence, free_bits)."""
        return Posterior(*r.chunk(2, -1)).kl().mean(0).clamp(min=self.free_bits).sum()

    def sample_prior(self, noise: Noise) -> Tensor:
        """Return standard normal numbers (n, d)."""
        return noise.normal((self.dim,))

    def project(self, z: Tensor) -> Tensor:
        """Return z: every point is allowed."""
        return z

    def path(self, z1: Tensor, z2: Tensor, n: int) -> Tensor:
        """Return n latents (n, d), cos(a) z1 + sin(a) z2 with a from 0 to a right angle."""
        return interpolate(z1, z2, n, method="circular")
