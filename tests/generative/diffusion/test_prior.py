"""Priors: densities against torch and scipy, samples against their laws, one item the same in any batch."""

import math

import pytest
import torch
from scipy import stats

from kexue.errors import NotSupported
from kexue.generative.diffusion import CauchyPrior, EmpiricalPrior, NormalPrior, Prior, UniformPrior

PRIORS = [
    NormalPrior((1, 2, 2)),
    UniformPrior([-1.0, 0.0, 2.0], [1.0, 0.5, 7.0]),
    CauchyPrior(5),
    EmpiricalPrior(torch.arange(12.0).reshape(4, 3)),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
def test_an_item_is_the_same_in_any_batch(prior: Prior) -> None:
    x = prior.sample(7, generator=3)
    assert x.shape == (7, *prior.event_shape)
    assert torch.equal(x[:2], prior.sample(2, generator=3))
    assert not torch.equal(x, prior.sample(7, generator=4))
    assert prior.sample(0).shape == (0, *prior.event_shape)
    assert prior.sample(2, generator=3, dtype=torch.float64).dtype == torch.float64
    stream = torch.Generator().manual_seed(0)
    assert not torch.equal(prior.sample(50, generator=stream), prior.sample(50, generator=stream))


def test_normal_density() -> None:
    x = torch.randn(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(PRIORS[0].log_prob(x), expected)


def test_uniform_density_and_samples() -> None:
    prior = UniformPrior([-1.0, 2.0], [1.0, 7.0])
    x = prior.sample(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.log_prob(x), torch.full((5000,), -math.log(10.0)))
    assert stats.kstest(x[:, 1].numpy(), stats.uniform(2, 5).cdf).pvalue > 1e-3
    assert prior.log_prob(torch.tensor([[0.0, 7.1], [-1.1, 3.0]])).tolist() == [-math.inf, -math.inf]


def test_cauchy_density_is_scipys() -> None:
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    expected = stats.multivariate_t(loc=[0.0] * 5, df=1).logpdf(x.numpy())
    torch.testing.assert_close(CauchyPrior(5).log_prob(x), torch.from_numpy(expected))
    line = torch.linspace(-50, 50, 11, dtype=torch.float64)
    torch.testing.assert_close(CauchyPrior(1).log_prob(line[:, None]), torch.from_numpy(stats.cauchy.logpdf(line)))
    # far away only 2 log r remains, where r^2 overflows in float32
    far = CauchyPrior(2).log_prob(torch.tensor([[1e25, 0.0]]))
    assert float(far) == pytest.approx(math.lgamma(1.5) - 1.5 * (math.log(math.pi) + 50 * math.log(10)), rel=1e-5)


@pytest.mark.parametrize("d", [1, 2, 16])
def test_radii_of_cauchy_samples_are_betas(d: int) -> None:
    z = CauchyPrior(d).sample(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squares = z.square().sum(1)
    assert stats.kstest((squares / (1 + squares)).numpy(), stats.beta(d / 2, 0.5).cdf).pvalue > 1e-3
    if d > 1:  # directions are uniform on the sphere: a coordinate squared is a beta, too
        share = z[:, 0].square() / squares
        assert stats.kstest(share.numpy(), stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-3


def test_items_of_data_come_equally_often() -> None:
    data = torch.arange(8.0)[:, None]
    x = EmpiricalPrior(data).sample(8000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(x[:, 0].long(), minlength=8)
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)
    with pytest.raises(NotSupported, match="no density"):
        EmpiricalPrior(data).log_prob(x)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="event_shape"):
        NormalPrior(0)
    with pytest.raises(ValueError, match="shape of an event"):
        UniformPrior(0.0, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="low < high"):
        UniformPrior([0.0], [0.0])
    with pytest.raises(ValueError, match="data must be"):
        EmpiricalPrior(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"\(B, 2\), got \(3, 3\)"):
        NormalPrior(2).log_prob(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="n must be"):
        NormalPrior(2).sample(-1)
