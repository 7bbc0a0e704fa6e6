"""Denoisers for tests: exact ones, and a small smooth network."""

import pytest
import torch

from kexue.generative import GaussianMixture
from kexue.generative.diffusion import MixtureDenoiser


@pytest.fixture
def normal_denoiser():
    """Return the function that makes the exact denoiser of data N(mean, std^2) of any dimension on a schedule."""

    def make(schedule, mean=1.5, std=2.0, dim=1):
        return MixtureDenoiser(GaussianMixture(torch.full((1, dim), mean, dtype=torch.float64), std), schedule)

    return make


@pytest.fixture(scope="session")
def smooth_net():
    """Return a small smooth network of times and events (B, 3), in the precision of its input."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).double() / 3 for shape in ((3, 3), (3,)))

    def net(x, t, class_labels=None):
        shift = (t.double() * (1.0 if t.is_floating_point() else 1e-3)).reshape(-1, 1) * b
        return torch.tanh(x @ a.to(x) + shift.to(x))

    return net
