"""The normal distribution of latents given an event, as an encoder states it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kexue.generative.noise import Noise


class Posterior(NamedTuple):
    """Independent normal distributions of the latents of each event, q(z | x).

    Attributes:
        mean: (B, d).
        log_var: logarithm of the variance, (B, d).

    Example:
        >>> Posterior(torch.zeros(1, 2), torch.zeros(1, 2)).kl(torch.tensor([1.0, 0.0]))
        tensor([[0.5000, 0.0000]])
    """

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Noise) -> Tensor:
        """Return mean + deviation * noise, (B, d); gradients reach both."""
        epsilon = noise.normal(self.mean.shape[1:], self.mean.dtype)
        return self.mean + torch.exp(self.log_var / 2) * epsilon  # section "One normal distribution for each image"

    def kl(self, prior_mean: Tensor | float = 0.0) -> Tensor:
        """Return the divergence (B, d), >= 0 and in nats, from a normal prior of deviation 1.

        KL = (|mean - prior_mean|^2 + variance - log variance - 1) / 2, for each latent.

        Args:
            prior_mean: (d,) or (B, d).

        Source: kexue.fm/archives/5253.
        """
        # section "One normal distribution for each image": the divergence; section "A prior for each class"
        return ((self.mean - prior_mean).square() + torch.expm1(self.log_var) - self.log_var) / 2

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z | x) of latents (B, d), summed over them: (B,) nats."""
        squares = (z - self.mean).square() * torch.exp(-self.log_var)
        return -(squares + self.log_var + math.log(2 * math.pi)).sum(1) / 2
