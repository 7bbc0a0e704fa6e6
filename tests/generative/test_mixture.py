"""Gaussian mixtures: density, score and samples against closed forms."""

import math

import pytest
import torch

from kexue.generative import GaussianMixture, eight_gaussians


def test_density_integrates_to_one() -> None:
    ring = eight_gaussians()
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = ring.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 1e-6


def test_score_is_the_gradient_of_the_log_density() -> None:
    ring = eight_gaussians()
    x = ring.sample(50, generator=0).double().requires_grad_()
    ring.log_prob(x).sum().backward()
    torch.testing.assert_close(ring.score(x.detach()), x.grad)


def test_one_component_is_a_gaussian() -> None:
    mean = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    mixture = GaussianMixture(mean, 0.7)
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.log_prob(x), torch.distributions.Normal(mean, 0.7).log_prob(x).sum(-1))


def test_samples_have_the_moments_of_the_ring() -> None:
    n = 40_000
    ring = eight_gaussians()
    x = ring.sample(n, generator=3)
    assert torch.equal(x, ring.sample(n, generator=3))
    assert x.mean(0).abs().max() < 4 * math.sqrt(2.04 / n)  # variance of a coordinate: 2^2 / 2 + 0.2^2
    assert abs(float(x.square().sum(-1).mean()) - 4.08) < 0.03
    counts = torch.bincount(torch.cdist(x, ring.means).argmin(1), minlength=8)
    assert (counts - n / 8).abs().max() < 4.5 * math.sqrt(n / 8)
    # minus the entropy: 8 separate Gaussians
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.04)
    assert abs(float(-ring.log_prob(x).mean()) - entropy) < 0.02


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="std"):
        GaussianMixture(torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match="means"):
        GaussianMixture(torch.zeros(2), 1)
    with pytest.raises(ValueError, match="floats"):
        GaussianMixture(torch.zeros(1, 2, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="must be floats"):  # whole numbers would cut off the means
        eight_gaussians().log_prob(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="n must be a whole number >= 0, got -1"):
        eight_gaussians().sample(-1)
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        eight_gaussians().log_prob(torch.zeros(3))
