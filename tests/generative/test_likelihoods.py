"""Likelihoods against torch.distributions and by what probabilities must sum to."""

import math

import pytest
import torch
from torch import distributions

from kexue.generative import BernoulliLikelihood, GaussianLikelihood, Likelihood, LogisticLikelihood


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaussian_is_the_sum_of_normal_densities() -> None:
    x, output = _normal(4, 2, 3), _normal(4, 2, 3, seed=1)
    expected = distributions.Normal(output, 0.3).log_prob(x).sum((1, 2))
    for learned in (False, True):
        likelihood = GaussianLikelihood(0.3, learned=learned).double()
        assert torch.allclose(likelihood.log_prob(x, output), expected, rtol=1e-5)
        assert torch.equal(likelihood.mean(output), output)


def test_a_learned_deviation_becomes_that_of_the_residuals() -> None:
    x = 0.2 * _normal(500, 4)
    likelihood = GaussianLikelihood(1.0, learned=True).double()
    optimizer = torch.optim.Adam(likelihood.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-likelihood.log_prob(x, torch.zeros_like(x)).mean()).backward()
        optimizer.step()
    assert float(likelihood.sigma.detach()) == pytest.approx(float(x.square().mean().sqrt()), rel=1e-3)
    assert sum(p.requires_grad for p in likelihood.parameters()) == 1
    assert not [*GaussianLikelihood(1.0).parameters()]


def test_a_deviation_has_a_floor_and_a_gradient_there() -> None:
    likelihood = GaussianLikelihood(1.0, learned=True)
    with torch.no_grad():
        next(likelihood.parameters()).fill_(-10.0)
    assert float(likelihood.sigma.detach()) >= math.exp(-6)
    likelihood.log_prob(torch.ones(1, 1), torch.zeros(1, 1)).sum().backward()
    assert float(next(likelihood.parameters()).grad) > 0  # type: ignore[arg-type]


def test_bernoulli_is_summed_over_black_and_white_pixels() -> None:
    logits = 3 * _normal(5, 1, 4, 4)
    white = (_normal(5, 1, 4, 4, seed=2) > 0).double()
    likelihood = BernoulliLikelihood()
    expected = distributions.Bernoulli(logits=logits).log_prob(white).sum((1, 2, 3))
    assert torch.allclose(likelihood.log_prob(2 * white - 1, logits), expected)
    expected_mean = 2 * distributions.Bernoulli(logits=logits).mean - 1
    assert torch.allclose(likelihood.mean(logits), expected_mean)


def test_a_grey_pixel_has_the_mean_of_both() -> None:
    logits, likelihood = _normal(1, 1), BernoulliLikelihood()
    black, white, grey = (likelihood.log_prob(torch.full_like(logits, x), logits) for x in (-1.0, 1.0, -0.5))
    assert torch.allclose(grey, 0.75 * black + 0.25 * white)


def test_bernoulli_is_finite_at_extreme_logits() -> None:
    logits = torch.tensor([[1e4], [-1e4]])
    values = BernoulliLikelihood().log_prob(torch.tensor([[-1.0], [-1.0]]), logits)
    assert values.tolist() == [-1e4, 0.0]


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("sigma", [0.003, 0.2, 5.0])
def test_probabilities_of_levels_sum_to_one(levels: int, sigma: float) -> None:
    likelihood = LogisticLikelihood(levels, sigma=sigma).double()
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    for centre in (-1.7, -0.31, 0.0, 1.0):
        p = likelihood.log_prob(x, torch.full_like(x, centre)).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_level_has_the_difference_of_two_sigmoids() -> None:
    likelihood = LogisticLikelihood(17, sigma=0.3).double()
    s, half = 0.3 * math.sqrt(3) / math.pi, 1 / 16
    x, output = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    p = torch.sigmoid((x + half - output) / s) - torch.sigmoid((x - half - output) / s)
    assert likelihood.log_prob(x, output).item() == pytest.approx(math.log(float(p)), rel=1e-5)
    two = likelihood.log_prob(x.expand(1, 2), output.expand(1, 2))
    assert two.item() == pytest.approx(2 * math.log(float(p)), rel=1e-5)


def test_a_level_far_away_keeps_its_logarithm() -> None:
    likelihood = LogisticLikelihood(256, sigma=0.003)
    x = torch.tensor([[-1.0], [-253 / 255], [1.0]])
    values = likelihood.log_prob(x, torch.tensor([[1.0], [1.0], [-1.0]]))
    assert bool(values.isfinite().all())
    assert values.max().item() < -1000


def test_the_mean_of_levels_stays_in_range() -> None:
    assert LogisticLikelihood(4).mean(torch.tensor([-3.0, 0.2, 3.0])).tolist() == [-1, pytest.approx(0.2), 1]


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(), BernoulliLikelihood(), LogisticLikelihood(17)])
def test_half_precision_is_computed_in_float32(likelihood: Likelihood) -> None:
    x = torch.full((1, 4000), 0.5)
    output = torch.full((1, 4000), 0.25)
    value = likelihood.log_prob(x.half(), output.half())
    assert value.dtype == torch.float32
    assert torch.allclose(value, likelihood.log_prob(x, output), rtol=1e-4)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got 0 to 255"):
        BernoulliLikelihood().log_prob(torch.tensor([[0.0, 255.0]]), torch.zeros(1, 2))
    for likelihood in (GaussianLikelihood(), BernoulliLikelihood(), LogisticLikelihood(17)):
        with pytest.raises(ValueError, match=r"both be \(B, \*event_shape\), got \(2, 3\) and \(2, 1\)"):
            likelihood.log_prob(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(TypeError, match="abstract"):
        Likelihood()  # type: ignore[abstract]
    with pytest.raises(ValueError, match="one of 17 levels"):
        LogisticLikelihood(17).log_prob(torch.tensor([[0.01]]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="levels must be"):
        LogisticLikelihood(1)
    for sigma in (0.0, -1.0, 0.002, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma must be"):
            GaussianLikelihood(sigma)
