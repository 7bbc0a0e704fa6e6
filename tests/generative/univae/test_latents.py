"""Latents: divergences against quadrature and torch's own, free bits, paths that stay where latents may lie."""

import pytest
import torch

from kexue.generative import Noise
from kexue.generative.univae.latents import GaussianLatent, SphereLatent


def test_the_gaussian_divergence_is_torch_s() -> None:
    latent = GaussianLatent(3, 0.0)
    r = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.distributions.Normal(r[:, :3], torch.exp(r[:, 3:] / 2))
    prior = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(q, prior).sum(1)
    assert torch.allclose(latent.kl(r), expected)
    assert torch.allclose(latent.penalty(r), expected.mean())


def test_free_bits_are_for_each_number_on_the_mean_of_the_batch() -> None:
    r = torch.zeros(2, 4, requires_grad=True)
    shifted = r + torch.tensor([[2.0, 0.4, 0.0, 0.0], [0.0, 0.4, 0.0, 0.0]])  # divergences 2 and 0, 0.08 and 0.08
    penalty = GaussianLatent(2, 0.1).penalty(shifted)
    assert penalty.item() == pytest.approx(1.0 + 0.1)
    penalty.backward()
    assert r.grad is not None
    assert r.grad[:, 1].abs().max() == 0  # below the floor nothing pulls to the prior
    assert r.grad[0, 0] == pytest.approx(1.0)


def test_gaussian_samples_have_the_mean_and_the_variance() -> None:
    r = torch.tensor([0.5, -1.0, 0.0, -2.0]).expand(50_000, -1)
    z = GaussianLatent(2, 0.0).sample(r, Noise(torch.Generator().manual_seed(0), 50_000))
    assert torch.allclose(z.mean(0), torch.tensor([0.5, -1.0]), atol=0.02)
    assert torch.allclose(z.var(0), torch.tensor([1.0, -2.0]).sub(torch.tensor([1.0, 0.0])).exp(), atol=0.02)


def test_the_divergence_on_the_sphere_is_one_constant() -> None:
    latent = SphereLatent(16, 32.0)
    r = torch.randn(5, 16)
    assert torch.allclose(latent.kl(r), torch.full((5,), 7.5821), atol=1e-4)
    assert torch.allclose(latent.penalty(r), torch.tensor(7.5821), atol=1e-4)
    assert torch.allclose(latent.centre(3 * r), latent.centre(r))


@pytest.mark.parametrize("latent", [SphereLatent(4, 8.0), GaussianLatent(4, 0.0)], ids=["sphere", "gaussian"])
def test_paths_and_samples_stay_in_the_space(latent: SphereLatent | GaussianLatent) -> None:
    z = latent.sample_prior(Noise(0, 2))
    path = latent.path(z[0], z[1], 5)
    assert path.shape == (5, 4)
    assert torch.allclose(path[0], z[0])
    assert torch.allclose(path[-1], z[1])
    assert torch.allclose(latent.project(path), path, atol=1e-6)
    steps = (path[1:] - path[:-1]).norm(dim=1)
    if isinstance(latent, SphereLatent):
        assert torch.allclose(steps, steps[:1].expand(4), atol=1e-5)
        assert torch.allclose(z.norm(dim=1), torch.ones(2))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="kappa must be above 0"):
        SphereLatent(4, 0.0)
    with pytest.raises(ValueError, match="dim must be at least 2"):
        SphereLatent(1, 1.0)
    with pytest.raises(ValueError, match="latent_dim must be at least 1"):
        GaussianLatent(0, 0.0)
    with pytest.raises(ValueError, match="free_bits must be 0 or more"):
        GaussianLatent(2, -0.1)
