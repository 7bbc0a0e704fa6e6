"""Paths: the continuity equation, the article's examples, closed forms, supports of bounded priors."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from kexue.generative.diffusion import (
    CauchyPrior,
    LinearPath,
    NormalPrior,
    Path,
    TrajectoryPath,
    UniformPrior,
    odeint,
    pfgm_path,
)

DATA = torch.tensor([[-1.0], [0.5], [0.7], [2.0]], dtype=torch.float64)


def bent_label(x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """A label that is no linear function of x, and x itself at t = 1."""
    straight = (x - (1 - t) * x0) / t
    return straight + 0.3 * (1 - t) * straight**3


PATHS = {
    "straight": LinearPath(NormalPrior(1)),
    "identity": LinearPath(NormalPrior(1), mu="identity"),
    "cosine": LinearPath(
        NormalPrior(1),
        mu=(lambda t, x0: (t * math.pi / 2).cos() * x0, lambda t, x0: -math.pi / 2 * (t * math.pi / 2).sin() * x0),
        sigma=(lambda t: (t * math.pi / 2).sin(), lambda t: math.pi / 2 * (t * math.pi / 2).cos()),
    ),
    "pfgm": pfgm_path(1),
    "trajectory": TrajectoryPath(bent_label, NormalPrior(1)),
}


def density(path: Path, x: Tensor, t: float) -> Tensor:
    """p_t at points (B, 1): the mean over the data."""
    each = [path.log_prob(x, x0.expand_as(x), t) for x0 in DATA]
    return torch.stack(each).exp().mean(0)


@pytest.mark.parametrize("name", PATHS)
def test_density_and_velocity_obey_the_continuity_equation(name: str) -> None:
    path, t, h = PATHS[name], 0.6, 1e-4
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    in_time = (density(path, x, t + h) - density(path, x, t - h)) / (2 * h)

    def flux(x: Tensor) -> Tensor:
        return density(path, x, t) * path.marginal_velocity(x, t, DATA)[:, 0]

    in_space = (flux(x + h) - flux(x - h)) / (2 * h)
    assert in_time.abs().max() > 0.05
    assert (in_time + in_space).abs().max() < 1e-5  # 9379: d p/dt = -div (f p)


@pytest.mark.parametrize("name", PATHS)
def test_densities_integrate_to_one(name: str) -> None:
    # x = tan(u): even tails like 1/x^2 are summed
    u = torch.linspace(-math.pi / 2, math.pi / 2, 20_001, dtype=torch.float64)[1:-1, None]
    mass = (density(PATHS[name], u.tan(), 0.6) / u.cos()[:, 0] ** 2).sum() * (u[1, 0] - u[0, 0])
    assert float(mass) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name", PATHS)
def test_points_and_targets_lie_on_the_trajectories(name: str) -> None:
    path = PATHS[name]
    x0 = DATA.repeat(5, 1)
    t = torch.linspace(0.2, 0.95, 20, dtype=torch.float64)
    x_t, target, x_1 = path.sample(x0, t, generator=0)
    torch.testing.assert_close(path.label(x_t, t, x0), x_1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(path.conditional_velocity(x_t, t, x0), target)
    h = 1e-3
    moved = [path.between(x0, x_1, t + s * h).x_t for s in (-1, 1)]
    torch.testing.assert_close((moved[1] - moved[0]) / (2 * h), target, rtol=1e-3, atol=1e-3)


def test_samples_follow_the_density() -> None:
    path = LinearPath(UniformPrior([0.0], [2.0]))
    x0 = torch.full((4000, 1), 0.5)
    x_t = path.sample(x0, 0.7, generator=torch.Generator().manual_seed(0)).x_t
    assert stats.kstest(x_t[:, 0].numpy(), stats.uniform(0.3 * 0.5, 1.4).cdf).pvalue > 1e-3
    assert path.log_prob(x_t[:1], x0[:1], 0.7).tolist() == pytest.approx([-math.log(1.4)])


def test_straight_lines_end_exactly_at_the_prior() -> None:
    path = LinearPath(NormalPrior(2))
    x_t, target, x_1 = path.sample(torch.ones(3, 2), 1.0, generator=0)
    assert torch.equal(x_t, x_1)
    assert torch.equal(target, x_1 - 1)
    assert torch.equal(path.sample(torch.ones(3, 2), 0.0, generator=0).x_t, torch.ones(3, 2))
    assert torch.equal(path.sample(torch.ones(2, 2), 1.0, generator=0).x_t, x_t[:2])


def flow_to_data(path: Path, x_1: Tensor, data: Tensor, end: float) -> Tensor:
    """The exact flow of a finite data set, from time t_max to nearly 0, and a last step along the velocity."""

    def rhs(t: Tensor, x: Tensor) -> Tensor:
        return path.marginal_velocity(x, t, data)

    x = odeint(rhs, path.end_scale * x_1, [path.t_max, end], rtol=1e-6, atol=1e-6).x
    return x - end * path.marginal_velocity(x, end, data)


def test_the_example_of_the_article() -> None:
    """9379: from the uniform distribution on [0, 2] to 0.5 (twice), 1.2 and 1.7; flows on a line keep the order."""
    data = torch.tensor([[0.5], [0.5], [1.2], [1.7]], dtype=torch.float64)
    x_1 = torch.linspace(0.01, 1.99, 100, dtype=torch.float64)[:, None]
    path = LinearPath(UniformPrior([0.0], [2.0]))
    x = flow_to_data(path, x_1, data, 1e-3)
    expected = torch.where(x_1 < 1, 0.5, torch.where(x_1 < 1.5, 1.2, 1.7)).double()
    inner = ((x_1 - 1).abs() > 0.015) & ((x_1 - 1.5).abs() > 0.015)
    torch.testing.assert_close(x[inner], expected[inner], rtol=0, atol=2e-3)
    shares = [(x.round(decimals=1) == value).double().mean() for value in (0.5, 1.2, 1.7)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.02)


def test_outside_of_every_support_the_nearest_item_gives_the_velocity() -> None:
    path = LinearPath(UniformPrior([0.0], [2.0]))
    data = torch.tensor([[0.5], [1.7]], dtype=torch.float64)
    x = torch.tensor([[0.1], [1.95], [1.0]], dtype=torch.float64)  # at t = 0.1: [0.45, 0.65] and [1.53, 1.73]
    velocity = path.marginal_velocity(x, 0.1, data)
    expected = (x - torch.tensor([[0.5], [1.7], [0.5]], dtype=torch.float64)) / 0.1
    torch.testing.assert_close(velocity, expected)
    assert torch.equal(path.marginal_velocity(x.float(), 0.1, data).isfinite(), torch.ones(3, 1, dtype=torch.bool))


def test_marginal_velocity_of_many_events_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import kexue.generative.diffusion.path as module

    path, x = LinearPath(NormalPrior(3)), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    data, t = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 1, 50)
    whole = path.marginal_velocity(x, t, data)
    monkeypatch.setattr(module, "_PAIRS", 400)
    torch.testing.assert_close(path.marginal_velocity(x, t, data), whole)
    # by hand, for one event: p(x | x0) is N((1-t) x0, t^2)
    weights = (-(x[7] - (1 - t[7]) * data).square().sum(1) / (2 * t[7] ** 2)).softmax(0)
    torch.testing.assert_close(whole[7], weights @ ((x[7] - data) / t[7]))


def gaussian_velocity(mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of straight lines from N(mean, std^2) to N(0, 1), in closed form."""

    def rhs(t: Tensor, x: Tensor) -> Tensor:
        t = t[:, None]
        slope = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
        return slope * (x - (1 - t) * mean) - mean

    return rhs


@pytest.mark.parametrize(("steps", "end"), [(2, 1.2), (4, 1.3405), (8, 1.4148), (16, 1.4557)])
def test_few_steps_of_euler(steps: int, end: float) -> None:
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x = odeint(gaussian_velocity(1.0, 0.5), torch.ones(1, 1, dtype=torch.float64), grid, method="euler").x
    assert float(x) == pytest.approx(end, abs=5e-5)


def test_rk45_follows_the_closed_form_of_a_gaussian() -> None:
    x_1 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = odeint(gaussian_velocity(1.0, 0.5), x_1, [1.0, 0.0], rtol=1e-8, atol=1e-8).x
    torch.testing.assert_close(x, 1 + 0.5 * x_1, rtol=0, atol=1e-6)


def test_poisson_flow_is_the_field_of_charges() -> None:
    """9370: (u_1, u) = C (t, x - x0) / (t^2 + |x - x0|^2)^((d+1)/2), summed over the data."""
    path = pfgm_path(2)
    data = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = 3 * torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = 0.8
    away = x[:, None] - data
    power = (t**2 + away.square().sum(-1, keepdim=True)) ** -1.5
    torch.testing.assert_close(path.marginal_velocity(x, t, data), (away * power).sum(1) / (t * power.sum(1)))
    assert isinstance(path.prior, CauchyPrior)


def test_poisson_flow_leads_back_to_the_data() -> None:
    path = pfgm_path(2)
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    data = torch.stack([angles.cos(), angles.sin()], 1)
    x = flow_to_data(path, path.prior.sample(100, generator=0, dtype=torch.float64), data, path.t_min)
    distance, item = torch.cdist(x, data).min(1)
    assert (distance < 1e-2).double().mean() >= 0.98  # all but points on the border of two items
    assert torch.bincount(item, minlength=8).min() >= 4  # all eight, about equally


def test_float32_far_out_does_not_underflow() -> None:
    path = pfgm_path(16)
    x = torch.full((1, 16), 1e6)
    velocity = path.marginal_velocity(x, 1e-3, torch.zeros(2, 16))
    torch.testing.assert_close(velocity, x / 1e-3)


def test_trajectories_of_straight_lines_are_the_linear_path() -> None:
    linear = LinearPath(NormalPrior(3))
    phi = TrajectoryPath(lambda x, t, x0: (x - (1 - t) * x0) / t, NormalPrior(3))
    fast = TrajectoryPath(
        lambda x, t, x0: (x - (1 - t) * x0) / t, NormalPrior(3), inverse=lambda x_1, t, x0: (1 - t) * x0 + t * x_1
    )
    x0 = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    expected = linear.sample(x0, t, generator=0)
    for path in (phi, fast):
        torch.testing.assert_close(path.sample(x0, t, generator=0), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(path.log_prob(expected.x_t, x0, t), linear.log_prob(expected.x_t, x0, t))
        torch.testing.assert_close(
            path.marginal_velocity(expected.x_t, t, x0), linear.marginal_velocity(expected.x_t, t, x0)
        )
    single = fast.sample(x0.float(), 0.5, generator=0)
    assert single.x_t.dtype == single.target.dtype == torch.float32
    assert bool(fast.sample(x0, 0.0, generator=0).target.isfinite().all())


def test_grids() -> None:
    assert LinearPath(NormalPrior(1)).make_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    grid = pfgm_path(2).make_grid(3)
    assert (grid[0], grid[-1]) == (40.0, 1e-3)
    assert grid[1] / grid[0] == pytest.approx(grid[3] / grid[2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearPath(NormalPrior(1), mu="linear"), "mu must be 'straight', 'identity' or a pair"),  # type: ignore[arg-type]
        (lambda: LinearPath(NormalPrior(1), mu=(torch.sin,)), "mu must be a pair"),  # type: ignore[arg-type]
        (lambda: LinearPath(NormalPrior(1), sigma=(torch.zeros_like, torch.zeros_like)), "sigma must be > 0"),
        (lambda: LinearPath(NormalPrior(1), t_max=2.0), "reach the prior at t = 1"),
        (lambda: LinearPath(NormalPrior(1), t_min=1.0), "t_min < t_max"),
        (lambda: PATHS["straight"].label(torch.ones(1, 1), 0.0, torch.ones(1, 1)), "use t > 0"),
        (lambda: PATHS["straight"].sample(torch.ones(2, 1), torch.ones(3)), "one for each of 2 events, got 3"),
        (lambda: PATHS["straight"].sample(torch.ones(2, 4), 0.5), r"\(B, 1\), got \(2, 4\)"),
        (lambda: PATHS["straight"].marginal_velocity(torch.ones(2, 1), 0.5, torch.ones(0, 1)), "at least one item"),
        (lambda: PATHS["trajectory"].sample(torch.ones(2, 1), torch.ones(3)), "one for each of 2 events"),
        (lambda: PATHS["straight"].sample(torch.ones(2, 1), -0.5), r"times must be in \[0, 1\], got -0.5"),
        (lambda: PATHS["straight"].conditional_velocity(torch.ones(2, 1), 2.0, torch.ones(2, 1)), "got 2"),
        (lambda: PATHS["straight"].marginal_velocity(torch.ones(2, 1), 1.5, torch.ones(2, 1)), "got 1.5"),
        (lambda: PATHS["straight"].marginal_velocity(torch.ones(2, 1), torch.ones(3), torch.ones(2, 1)), "got 3"),
        (lambda: PATHS["trajectory"].sample(torch.ones(2, 1), math.nan), "got nan"),
        (lambda: PATHS["straight"].make_grid(0), "steps must be"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
