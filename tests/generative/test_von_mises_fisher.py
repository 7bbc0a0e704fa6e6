"""The von Mises-Fisher distribution against Bessel functions, closed forms in two and three dimensions, and limits."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from kexue.generative import Noise, VonMisesFisher


def bessel(dim: int, kappa: float) -> tuple[float, float]:
    """Mean cosine and divergence from the uniform sphere, by Bessel functions."""
    order = dim / 2 - 1
    log_bessel = math.log(special.ive(order, kappa)) + kappa
    mean = special.ive(order + 1, kappa) / special.ive(order, kappa)
    log_c = order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_bessel
    log_sphere = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    return mean, kappa * mean + log_c + log_sphere


@pytest.mark.parametrize("dim", [2, 3, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("kappa", [0.01, 1.0, 32.0, 500.0, 20_000.0])
def test_mean_and_divergence_are_those_of_bessel_functions(dim: int, kappa: float) -> None:
    sphere = VonMisesFisher(dim, kappa)
    if special.ive(dim / 2 - 1, kappa) == 0:  # too small for a float: to first order the mean cosine is kappa / dim
        assert sphere.mean_cosine == pytest.approx(kappa / dim, rel=1e-4)
        return
    mean, kl = bessel(dim, kappa)
    assert sphere.mean_cosine == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert sphere.kl == pytest.approx(kl, rel=1e-9, abs=1e-9)


def test_the_article_s_setting() -> None:
    sphere = VonMisesFisher(16, 32.0)
    assert sphere.kl == pytest.approx(7.5821, abs=5e-5)
    assert sphere.mean_cosine == pytest.approx(0.78990, abs=5e-6)


def test_three_dimensions_in_closed_form() -> None:
    kappa = 5.0
    sphere = VonMisesFisher(3, kappa)
    assert sphere.mean_cosine == pytest.approx(1 / math.tanh(kappa) - 1 / kappa, abs=1e-12)
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    # the CDF of w is (exp(kappa w) - exp(-kappa)) / (exp(kappa) - exp(-kappa)), and a large w is a small angle
    w = torch.log(torch.exp(torch.tensor(-kappa)).double() + (1 - u) * 2 * math.sinh(kappa)) / kappa
    assert torch.allclose(torch.cos(sphere.draw_angles(u)), w, atol=1e-6)


def test_two_dimensions_are_the_von_mises_distribution() -> None:
    kappa = 2.0
    sphere = VonMisesFisher(2, kappa)
    assert sphere.mean_cosine == pytest.approx(special.i1(kappa) / special.i0(kappa), abs=1e-12)
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    assert np.allclose(sphere.draw_angles(u), stats.vonmises.ppf((1 + u.numpy()) / 2, kappa), atol=1e-6)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_kappa_to_zero_is_the_uniform_sphere(dim: int) -> None:
    for kappa in (0.0, 1e-8):
        sphere = VonMisesFisher(dim, kappa)
        assert sphere.kl == pytest.approx(0, abs=1e-12)
        assert sphere.mean_cosine == pytest.approx(kappa / dim, abs=1e-12)
    mean = torch.eye(dim)[:1].expand(20_000, -1)
    z = sphere.sample(mean, Noise(torch.Generator().manual_seed(0), 20_000))
    assert torch.allclose(z.mean(0), torch.zeros(dim), atol=0.03)
    assert torch.allclose(z.T @ z / len(z), torch.eye(dim) / dim, atol=0.03)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 10.0), (16, 32.0)])
def test_samples_have_the_moments_of_the_distribution(dim: int, kappa: float) -> None:
    n = 40_000
    mean = torch.nn.functional.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(1)), dim=0)
    sphere = VonMisesFisher(dim, kappa)
    z = sphere.sample(mean.expand(n, -1), Noise(torch.Generator().manual_seed(2), n))
    assert torch.allclose(z.norm(dim=1), torch.ones(n), atol=1e-5)
    cosine = z @ mean
    assert float(cosine.mean()) == pytest.approx(sphere.mean_cosine, abs=4 * float(cosine.std()) / n**0.5)
    across = z - cosine[:, None] * mean
    assert torch.allclose(across.mean(0), torch.zeros(dim), atol=0.02)
    second = (1 - cosine.square()).mean() / (dim - 1)  # the same in all directions across the mean
    expected = second * (torch.eye(dim) - torch.outer(mean, mean))
    assert torch.allclose(across.T @ across / n, expected, atol=0.02)


def test_the_gradient_passes_to_the_mean_direction() -> None:
    raw = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sphere = VonMisesFisher(4, 3.0)

    def sample(r: torch.Tensor) -> torch.Tensor:
        return sphere.sample(torch.nn.functional.normalize(r, dim=-1), Noise(0, 5))

    assert torch.autograd.gradcheck(sample, raw)


@pytest.mark.parametrize(("dim", "kappa"), [(1, 1.0), (3, -1.0), (3, math.inf), (3, math.nan)])
def test_numbers_out_of_range_are_refused(dim: int, kappa: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        VonMisesFisher(dim, kappa)
