"""Flow matching: the loss and its minimum, densities of closed forms, couplings, pairs, classes."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from kexue.errors import NotSupported
from kexue.generative import FlowMatching, MLPDenoiser
from kexue.generative.diffusion import (
    EmpiricalPrior,
    LinearPath,
    NormalPrior,
    Pairs,
    UniformPrior,
    flow_matching_loss,
    pfgm_path,
)
from kexue.generative.diffusion.flow_matching import assign

MEAN, STD = 1.0, 0.5


class GaussianVelocity(nn.Module):
    """The velocity of straight lines from N(1, 0.25 I) to N(0, I), times a factor; it keeps the times it was given."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.times: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        self.times.append(timestep)
        t = timestep.reshape(-1, *[1] * (sample.ndim - 1))
        slope = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)
        return self.factor * (slope * (sample - (1 - t) * MEAN) - MEAN)


class Smooth(nn.Module):
    """A random network whose output changes slowly in x and t."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(3, 16, dtype=torch.float64, generator=draw))
        self.outer = nn.Parameter(torch.randn(16, 2, dtype=torch.float64, generator=draw) / 2)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(torch.cat([sample, timestep[:, None]], 1) @ self.inner) @ self.outer


class Straightened(nn.Module):
    """The velocity of the pairs (1 + x_1 / 2, x_1), whose straight lines do not cross."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        t = timestep[:, None]
        return (sample - (1 - t) * MEAN) / ((1 - t) * STD + t) * (1 - STD) - MEAN


class ByClass(nn.Module):
    """A constant velocity -c for class c."""

    num_classes = 3

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor]:
        return (-class_labels[:, None].to(sample).expand_as(sample),)


def gaussian(n: int, seed: int = 0) -> Tensor:
    return MEAN + STD * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact_model() -> FlowMatching:
    return FlowMatching(GaussianVelocity(), LinearPath(NormalPrior(2)))


def test_the_loss_of_given_points_by_hand() -> None:
    x0, x_1 = torch.randn(50, 2), torch.randn(50, 2)

    class Nothing(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return torch.zeros_like(sample)

    output = flow_matching_loss(Nothing(), x0, LinearPath(NormalPrior(2)), x_1=x_1, generator=0)
    torch.testing.assert_close(output.loss, (x_1 - x0).square().mean())
    assert torch.equal(output.parts["velocity"], output.loss)


def test_the_mean_velocity_has_the_least_loss() -> None:
    x0, path = gaussian(20_000), LinearPath(NormalPrior(2))
    net = GaussianVelocity()
    least = flow_matching_loss(net, x0, path, generator=0).loss
    (slope,) = torch.autograd.grad(least, net.factor)
    least = least.detach()
    assert abs(float(slope)) < 0.03
    for factor in (0.9, 1.1):
        assert flow_matching_loss(GaussianVelocity(factor), x0, path, generator=0).loss > least
    # the least loss is the variance of the target: E over t of s^2 / V, for the variance V of x_t
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    assert float(least) == pytest.approx(float((STD**2 / ((1 - t) ** 2 * STD**2 + t**2)).mean()), rel=0.02)


@pytest.mark.parametrize(
    ("time_sampling", "law"), [("uniform", stats.uniform().cdf), ("logit_normal", lambda t: stats.norm.cdf(_logit(t)))]
)
def test_times_follow_their_law(time_sampling: Any, law: Callable[..., Any]) -> None:
    net = GaussianVelocity()
    flow_matching_loss(net, gaussian(5000), LinearPath(NormalPrior(2)), time_sampling=time_sampling, generator=0)
    assert stats.kstest(net.times[0].numpy(), law).pvalue > 1e-3


def _logit(t: Any) -> Any:
    import numpy as np

    return np.log(t) - np.log1p(-t)


def test_density_samples_and_latents_of_a_gaussian() -> None:
    model, x = exact_model(), gaussian(40)
    truth = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), truth, rtol=0, atol=1e-3)
    z = model.encode(x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(z, (x - MEAN) / STD, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(z, rtol=1e-7, atol=1e-7), x, rtol=0, atol=1e-5)
    samples = model.sample(4000, generator=torch.Generator().manual_seed(0))
    assert stats.kstest(samples[:, 0].numpy(), stats.norm(MEAN, STD).cdf).pvalue > 1e-3
    few = model.sample(3, generator=0, steps=4, method="euler")
    z = NormalPrior(2).sample(3, generator=0, dtype=torch.float64)
    assert not few.requires_grad
    torch.testing.assert_close(few, model.decode(z, steps=4, method="euler"))


def test_random_traces_are_unbiased() -> None:
    model = FlowMatching(Smooth(), LinearPath(NormalPrior(2)))
    x = torch.tensor([[0.5, -0.3], [1.5, 1.0]], dtype=torch.float64)
    exact = model.log_prob(x, method="rk4")
    one = model.log_prob(x, trace="hutchinson", generator=0)
    assert torch.equal(one, model.log_prob(x, trace="hutchinson", generator=0))
    assert torch.equal(one[:1], model.log_prob(x[:1], trace="hutchinson", generator=0))
    many = model.log_prob(x, trace="hutchinson", probes=100, generator=0, method="rk4")
    single = [model.log_prob(x, trace="hutchinson", generator=s, method="rk4", steps=5) for s in range(20)]
    spread = torch.stack(single).std(0)
    assert (spread > 0.02).all()
    assert ((many - exact).abs() < 4 * spread / math.sqrt(100)).all()


@pytest.mark.parametrize("prior", [NormalPrior(2), UniformPrior([-2.0, -2.0], [2.0, 2.0])])
def test_any_network_gives_a_density_that_integrates_to_one(prior: Any) -> None:
    model = FlowMatching(Smooth(1), LinearPath(prior))
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = model.log_prob(grid, rtol=1e-3, atol=1e-3).exp()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.02)
    assert not torch.allclose(density, prior.log_prob(grid).exp(), atol=0.05)


def test_an_item_is_the_same_in_any_batch() -> None:
    torch.manual_seed(0)
    model = FlowMatching(MLPDenoiser(2, hidden=16), LinearPath(NormalPrior(2)))
    options: list[dict[str, Any]] = [{"method": "heun"}, {"method": "rk45", "rtol": 1e-3, "atol": 1e-3}]
    for how in options:
        whole = model.sample(7, generator=3, **how)
        torch.testing.assert_close(model.sample(7, generator=3, batch_size=2, **how), whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.sample(2, generator=3, **how), whole[:2], rtol=0, atol=1e-5)
    assert model.sample(0).shape == (0, 2)


def test_assignment_is_the_cheapest_permutation() -> None:
    draw = torch.Generator().manual_seed(0)
    x0, x_1 = torch.randn(6, 2, generator=draw), torch.randn(6, 2, generator=draw)

    def cost(order: Any) -> float:
        return float((x0 - x_1[torch.as_tensor(order)]).square().sum())

    assert cost(assign(x0, x_1)) == pytest.approx(min(map(cost, itertools.permutations(range(6)))), rel=1e-6)


def test_assignment_stays_within_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    x0, x_1 = torch.randn(40, 2, generator=draw), torch.randn(40, 2, generator=draw)
    classes = torch.randint(3, (40,), generator=draw)
    order = assign(x0, x_1, classes)
    assert torch.equal(order.sort().values, torch.arange(40))
    assert torch.equal(classes[order], classes)
    assert not torch.equal(order, torch.arange(40))


def test_coupled_training_has_a_smaller_least_loss() -> None:
    net, path, x0 = GaussianVelocity(), LinearPath(NormalPrior(2)), gaussian(400)
    loose = FlowMatching(net, path).loss(x0, generator=0).loss
    tight = FlowMatching(net, path, coupling="ot").loss(x0, generator=0).loss
    assert tight < 0.5 * loose


def test_pairs_of_reflow_are_latents_and_their_events() -> None:
    model = exact_model()
    pairs = model.reflow(30, generator=0, batch_size=7)
    assert isinstance(pairs, Pairs)
    torch.testing.assert_close(pairs.x0, MEAN + STD * pairs.x_1, rtol=0, atol=1e-3)
    assert pairs.condition is None
    straight = FlowMatching(Straightened(), LinearPath(NormalPrior(2)))
    assert straight.loss(pairs, generator=0).loss < 1e-5
    assert straight.loss((pairs.x0, pairs.x_1), generator=0).loss < 1e-5
    assert straight.loss(pairs.x0, generator=0).loss > 0.1
    one_step = straight.sample(30, generator=0, steps=1, method="euler")
    torch.testing.assert_close(one_step, pairs.x0.float(), rtol=0, atol=1e-3)


def test_classes_reach_the_network() -> None:
    model = FlowMatching(ByClass(), LinearPath(NormalPrior(1)))
    z = NormalPrior(1).sample(3, generator=0)
    classes = torch.tensor([0, 1, 2])
    x = model.sample(3, generator=0, condition=classes, steps=2)
    torch.testing.assert_close(x, z + classes[:, None])
    torch.testing.assert_close(model.encode(x, condition=classes), z)
    torch.testing.assert_close(model.log_prob(x, condition=classes), NormalPrior(1).log_prob(z))
    pairs = model.reflow(3, generator=0, condition=classes)
    assert pairs.condition is not None
    assert torch.equal(pairs.condition, classes)
    assert float(model.loss(pairs, generator=0).loss) < 1e-10
    assert float(model.loss((pairs.x0, classes), generator=0).loss) > 0.1
    unconditional = exact_model()
    assert torch.equal(  # classes of a batch are dropped where the model has none
        unconditional.loss((gaussian(3), classes), generator=0).loss, unconditional.loss(gaussian(3), generator=0).loss
    )
    with pytest.raises(ValueError, match="has 3 classes, got none"):
        model.sample(3)
    with pytest.raises(ValueError, match="has no classes, got a condition"):
        unconditional.sample(3, condition=1)


def test_a_path_that_ends_far_out() -> None:
    """One charge at the origin: z = x / t is constant on the way, so x at time 0 is 0 and the density is Cauchy's."""

    class Charge(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return sample / timestep[:, None]

    path = pfgm_path(2, t_max=10.0)
    model = FlowMatching(Charge(), path)
    assert model.sample(20, generator=0, method="rk45", rtol=1e-7, atol=1e-9).abs().max() < 1e-5
    x = torch.tensor([[3e-3, 1e-3]], dtype=torch.float64)  # density at t_min
    expected = path.prior.log_prob(x / path.t_min) - 2 * math.log(path.t_min)
    torch.testing.assert_close(model.log_prob(x, rtol=1e-8, atol=1e-10), expected, rtol=0, atol=1e-3)


def test_priors_without_density_have_samples_only() -> None:
    model = FlowMatching(GaussianVelocity(), LinearPath(EmpiricalPrior(torch.randn(10, 2, dtype=torch.float64))))
    assert model.sample(3, generator=0).shape == (3, 2)
    with pytest.raises(NotSupported, match="no density"):
        model.log_prob(gaussian(2))


@pytest.mark.slow
def test_training_from_a_uniform_prior(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = FlowMatching(MLPDenoiser(2, hidden=64, blocks=2), LinearPath(UniformPrior([-1.0, -1.0], [1.0, 1.0])))
    draw = torch.Generator().manual_seed(0)
    batches = [gaussian(256, seed=i).float() for i in range(400)]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for batch in batches:
        optimizer.zero_grad()
        model.loss(batch, generator=draw).loss.backward()
        optimizer.step()
    x = model.sample(2000, generator=torch.Generator().manual_seed(0))
    assert (x.mean(0) - MEAN).abs().max() < 0.06
    assert (x.std(0) - STD).abs().max() < 0.06
    model.save(tmp_path / "weights.safetensors")
    again = FlowMatching(MLPDenoiser(2, hidden=64, blocks=2), model.path).load(tmp_path / "weights.safetensors")
    assert torch.equal(again.sample(3, generator=0), model.sample(3, generator=0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowMatching(Smooth(), LinearPath(NormalPrior(2)), coupling="optimal"), "coupling must be"),  # type: ignore[arg-type]
        (lambda: FlowMatching(Smooth(), LinearPath(NormalPrior(2)), time_sampling="log"), "time_s"),  # type: ignore[arg-type]
        (lambda: flow_matching_loss(Smooth(), gaussian(2), LinearPath(NormalPrior(2)), time_sampling="l"), "time_s"),  # type: ignore[arg-type]
        (lambda: FlowMatching(MLPDenoiser(3), LinearPath(NormalPrior(2))), r"takes events \(3,\), .* has \(2,\)"),
        (lambda: FlowMatching(nn.Linear(2, 3), LinearPath(NormalPrior(2))).loss(torch.full((3, 2), math.nan)), "NaN"),
        (lambda: exact_model().log_prob(gaussian(2), trace="approximate"), "trace must be"),  # type: ignore[arg-type]
        (lambda: exact_model().log_prob(torch.zeros(2, 3)), r"\(B, 2\), got \(2, 3\)"),
        (lambda: exact_model().decode(torch.zeros(2, 3)), r"\(B, 2\), got \(2, 3\)"),
        (lambda: exact_model().decode(torch.full((2, 2), math.nan)), "z has NaN"),
        (lambda: exact_model().velocity(gaussian(2), -0.5), r"times must be in \[0, 1\], got -0.5"),
        (lambda: exact_model().sample(2, steps=0), "steps must be"),
        (lambda: exact_model().reflow(-1), "n must be"),
        (lambda: exact_model().reflow(2, batch_size=0), "batch_size must be"),
        (lambda: exact_model().loss(gaussian(0)), "one event"),
        (lambda: exact_model().loss((gaussian(4), gaussian(1))), r"\(4, 2\), got \(1, 2\)"),
        (lambda: exact_model().loss((gaussian(2), torch.zeros(2))), r"points of the prior must have shape \(B, 2\)"),
        (lambda: exact_model().loss((gaussian(2), gaussian(2) * math.nan)), "points of the prior has NaN"),
        (lambda: FlowMatching(ByClass(), LinearPath(NormalPrior(2))).sample(2), "3 classes, got none; give"),
        (lambda: exact_model().loss((gaussian(2), gaussian(2), gaussian(2))), "at most, got 3 parts"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_path_is_needed() -> None:
    with pytest.raises(TypeError, match=r"path must be a Path, .* got NormalPrior"):
        FlowMatching(Smooth(), NormalPrior(2))  # type: ignore[arg-type]


def test_an_output_of_another_shape_is_refused() -> None:
    class Wide(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return torch.cat([sample, sample], 1)

    with pytest.raises(ValueError, match=r"net must return the shape of its input, \(3, 2\), got \(3, 4\)"):
        FlowMatching(Wide(), LinearPath(NormalPrior(2))).loss(torch.zeros(3, 2))
