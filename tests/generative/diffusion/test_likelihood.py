"""Log densities of exact denoisers against the closed form."""

import math

import pytest
import torch

from kexue.errors import NotSupported
from kexue.generative import eight_gaussians
from kexue.generative.diffusion import (
    VP,
    CosineSchedule,
    DiscreteSchedule,
    MixtureDenoiser,
    SubVP,
    flow_ode,
    log_likelihood,
    odeint,
)


def test_normal_data_by_hand(normal_denoiser):
    """Data N(1.5, 4), x = 2: -1.6433 with the true density at t_max, -1.6458 with the prior."""
    x = torch.tensor([[2.0]], dtype=torch.float64)
    told = log_likelihood(normal_denoiser(VP()), x, rtol=1e-8, atol=1e-8)
    assert float(told.value) == pytest.approx(-1.6458, abs=2e-4)
    last = torch.tensor(1.0)
    std = (4 * VP().alpha(last) ** 2 + VP().sigma(last) ** 2).sqrt()
    exact = torch.distributions.Normal(1.5 * VP().alpha(last), std).log_prob(told.latent).sum()
    prior = torch.distributions.Normal(0.0, VP().prior.std).log_prob(told.latent).sum()
    assert float(told.value + exact - prior) == pytest.approx(-1.6433, abs=2e-4)
    assert float(told.stderr) == 0


@pytest.mark.parametrize("schedule", [VP(), SubVP(), CosineSchedule()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("method", ["rk45", "rk4"])
def test_mixture_within_a_hundredth_of_a_nat(schedule, method):
    ring = eight_gaussians()
    x = ring.sample(20, generator=0).double()
    told = log_likelihood(MixtureDenoiser(ring, schedule), x, method=method)
    torch.testing.assert_close(told.value, ring.log_prob(x), rtol=0, atol=0.02)
    assert told.n_evals > 0


def test_density_of_noisy_data(normal_denoiser):
    """At time t data N(1.5, 4) are N(1.5 alpha, 4 alpha^2 + sigma^2)."""
    x, t = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor(0.3)
    told = log_likelihood(normal_denoiser(VP()), x, rtol=1e-8, atol=1e-8, start=0.3)
    std = (4 * VP().alpha(t) ** 2 + VP().sigma(t) ** 2).sqrt()
    exact = torch.distributions.Normal(1.5 * VP().alpha(t), std).log_prob(x).sum()
    last = torch.tensor(1.0)
    std = (4 * VP().alpha(last) ** 2 + VP().sigma(last) ** 2).sqrt()
    at_end = torch.distributions.Normal(1.5 * VP().alpha(last), std).log_prob(told.latent).sum()
    prior = VP().prior.log_prob(told.latent).sum()  # stands in for the density at the end
    assert float(told.value + at_end - prior) == pytest.approx(float(exact), abs=1e-6)
    for start in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"start must be in \[0\.001, 1\), got"):
            log_likelihood(normal_denoiser(VP()), x, start=start)


def test_density_integrates_to_one():
    axis = torch.linspace(-3.2, 3.2, 65, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    value = log_likelihood(MixtureDenoiser(eight_gaussians(), VP()), points).value
    assert float(value.exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_are_unbiased_and_know_their_error(probe):
    ring = eight_gaussians()
    x = ring.sample(8, generator=1).double()
    denoiser = MixtureDenoiser(ring, VP())
    exact = log_likelihood(denoiser, x)
    told = log_likelihood(denoiser, x, trace="hutchinson", probe=probe, probes=64, generator=0, method="rk4")
    assert bool(((told.value - exact.value).abs() < 4 * told.stderr + 0.02).all())
    single = log_likelihood(denoiser, x, trace="hutchinson", probe=probe, generator=0)
    assert bool(single.stderr.isnan().all())
    part = log_likelihood(denoiser, x[:3], trace="hutchinson", probe=probe, generator=0)
    torch.testing.assert_close(part.value, single.value[:3], rtol=1e-6, atol=1e-6)


def test_flow_ode_is_the_equation_with_the_score(normal_denoiser):
    """dx/dt = f - g^2/2 score."""
    denoiser, t = normal_denoiser(VP()), torch.tensor(0.3, dtype=torch.float64)
    x = torch.tensor([[0.7]], dtype=torch.float64)
    score = denoiser.predict(x, t).score
    expected = VP().drift(x, t) - VP().diffusion_squared(t) / 2 * score
    torch.testing.assert_close(flow_ode(denoiser)(t, x), expected)


def test_there_and_back():
    denoiser = MixtureDenoiser(eight_gaussians(), VP())
    x = eight_gaussians().sample(10, generator=0).double()
    rhs = flow_ode(denoiser)
    z = odeint(rhs, x, [1e-3, 1.0], rtol=1e-8, atol=1e-8).x
    torch.testing.assert_close(odeint(rhs, z, [1.0, 1e-3], rtol=1e-8, atol=1e-8).x, x, rtol=0, atol=1e-5)


def test_wrong_settings_are_refused(normal_denoiser):
    x = torch.zeros(1, 1)
    with pytest.raises(NotSupported, match="continuous"):
        log_likelihood(normal_denoiser(DiscreteSchedule.linear()), x)
    with pytest.raises(ValueError, match="trace"):
        log_likelihood(normal_denoiser(VP()), x, trace="quick")
    with pytest.raises(ValueError, match="probes"):
        log_likelihood(normal_denoiser(VP()), x, trace="hutchinson", probes=0)
    assert math.isfinite(float(log_likelihood(normal_denoiser(VP()), x).value))


def test_no_events_have_no_density(normal_denoiser):
    for options in ({}, {"trace": "hutchinson", "probes": 2}):
        told = log_likelihood(normal_denoiser(VP(), dim=3), torch.zeros(0, 3), **options)
        assert told.value.shape == told.stderr.shape == (0,)
