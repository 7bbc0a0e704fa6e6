"""Langevin chains: closed forms of the law they sample, its bias by the step, independence of the batch, no side
effects."""

import math

import pytest
import torch
from torch import nn

from kexue.generative import Noise, langevin, sample_generators
from kexue.generative.energy.chains import differentiate

N = 20_000


def quadratic(x):
    return x.square().sum(1) / 2


def double_well(x):
    """Wells at -1 and 1, the right one deeper."""
    return 4 * (x[:, 0].square() - 1).square() - 0.5 * x[:, 0]


def zeros(n=N, d=1):
    return torch.zeros(n, d, dtype=torch.float64)


def one_stream():
    """One stream for all chains, which is faster than one for each."""
    return torch.Generator().manual_seed(0)


def within(values, expected, errors=3.0):
    """Whether the mean of independent values is the expected one within some standard errors."""
    return abs(float(values.mean()) - expected) < errors * float(values.std()) / math.sqrt(len(values))


# ---- the law that is sampled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.5])
def test_the_step_widens_a_normal_distribution_as_the_closed_form_says(epsilon):
    """Steps x - (e/2) x + sqrt(e) z have the variance 1/(1 - e/4) in the end, which is not 1."""
    x = langevin(quadratic, zeros(), steps=int(60 / epsilon), step_size=epsilon / 2, generator=one_stream()).x
    assert within(x.square(), 1 / (1 - epsilon / 4))
    assert within(x, 0.0)
    if epsilon > 0.1:
        assert not within(x.square(), 1.0, errors=6.0)


@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_the_metropolis_test_removes_the_bias(epsilon):
    out = langevin(quadratic, zeros(), steps=60, step_size=epsilon / 2, metropolis=True, generator=one_stream())
    assert within(out.x.square(), 1.0)
    assert within(out.x.square().square(), 3.0)
    assert 0.5 < float(out.acceptance.mean()) < 1.0


def test_a_step_to_where_energy_and_gradient_are_known_passes_as_often_as_the_formula_says():
    """The share of first steps from 1 that pass is the mean of min(1, ratio) over proposals, U = x^2/2."""
    s, start = 0.6, torch.ones(N, 1, dtype=torch.float64)
    y = (1 - s) + math.sqrt(2 * s) * torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(torch.linspace(-8, 8, 4001, dtype=torch.float64) ** 2) / 2)

    def log_q(to, of):
        return -((to - (1 - s) * of) ** 2) / (4 * s)

    ratio = torch.exp((1 - y**2) / 2 + log_q(torch.ones_like(y), y) - log_q(y, torch.ones_like(y))).clamp(max=1)
    expected = float((ratio * density).sum() / density.sum())
    out = langevin(quadratic, start, steps=1, step_size=s, metropolis=True, generator=one_stream())
    assert expected < 0.95
    assert within(out.acceptance, expected)


def test_moments_of_a_double_well():
    """Shares of the wells and moments, by quadrature of exp(-U)."""
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    density = torch.exp(-double_well(grid[:, None]))
    density /= density.sum()
    out = langevin(double_well, zeros(4000), steps=1500, step_size=0.04, metropolis=True, generator=one_stream())
    x = out.x[:, 0]
    for function in (lambda t: t, torch.square, lambda t: (t > 0).double(), lambda t: double_well(t[:, None])):
        assert within(function(x), float((function(grid) * density).sum()))


def test_the_noise_sets_the_temperature():
    """Noise of a quarter is a temperature of a sixteenth: the variance, but for the step, is as much smaller."""
    s = 0.1
    out = langevin(quadratic, zeros(), steps=200, step_size=s, noise_scale=math.sqrt(2 * s) / 4, generator=one_stream())
    assert out.temperature == pytest.approx(1 / 16)
    assert within(out.x.square(), 1 / 16 / (1 - s / 2))
    cold = langevin(
        quadratic, zeros(), steps=99, step_size=0.4, noise_scale=0.2, metropolis=True, generator=one_stream()
    )
    assert within(cold.x.square(), cold.temperature)


def test_without_noise_a_chain_descends():
    out = langevin(quadratic, torch.ones(2, 3), steps=3, step_size=0.5, noise_scale=0, generator=one_stream())
    assert torch.equal(out.x, torch.full((2, 3), 0.125))
    assert (out.temperature, out.acceptance) == (0.0, None)


def test_the_gradient_is_limited_number_by_number():
    start = torch.tensor([[4.0, 0.25]])
    out = langevin(quadratic, start, steps=1, step_size=1.0, noise_scale=0, grad_clip=0.5)
    assert torch.equal(out.x, torch.tensor([[3.5, 0.0]]))
    exact = langevin(
        quadratic, zeros(), steps=99, step_size=0.4, grad_clip=0.5, metropolis=True, generator=one_stream()
    )
    assert within(exact.x.square(), 1.0)  # the test knows the clipped step


def test_bounds_hold():
    """Chains of a flat energy in a box: cut off they gather at the walls, with the test they are uniform."""
    options = {"steps": 400, "step_size": 0.05, "bounds": (-1.0, 1.0), "generator": one_stream()}

    def flat(x):
        return 0 * x.sum(1)

    cut, tested = langevin(flat, zeros(), **options), langevin(flat, zeros(), metropolis=True, **options)
    assert float(cut.x.abs().max()) == 1.0
    assert float((cut.x.abs() == 1.0).double().mean()) > 0.1
    assert float(tested.x.abs().max()) < 1.0
    assert within(tested.x.square(), 1 / 3)
    assert within(tested.x.abs(), 1 / 2)


# ---- items and side effects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metropolis", [False, True])
def test_a_chain_does_not_depend_on_the_batch(metropolis):
    start = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    options = {"steps": 9, "step_size": 0.3, "metropolis": metropolis}
    whole = langevin(quadratic, start, generator=3, **options)
    assert torch.equal(langevin(quadratic, start[:4], generator=3, **options).x, whole.x[:4])
    part = langevin(quadratic, start[5:], generator=sample_generators(3, 2, start=5), **options)
    assert torch.equal(part.x, whole.x[5:])


def test_parameters_and_modes_are_as_before():
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 1)).train()
    net[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def broken(x):
        net(x)
        raise RuntimeError("the energy broke")

    x0 = torch.zeros(3, 2, requires_grad=True)
    out = langevin(lambda x: net(x)[:, 0], x0, steps=4, step_size=0.1, generator=0)
    assert not out.x.requires_grad
    assert torch.equal(x0, torch.zeros(3, 2))
    with pytest.raises(RuntimeError, match="broke"):
        langevin(broken, x0, steps=4, step_size=0.1)
    assert x0.grad is None
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, False, True, True]
    assert all(part.training for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_within(context):
    expected = langevin(quadratic, torch.ones(3, 2), steps=4, step_size=0.1, generator=0).x
    with context():
        out = langevin(quadratic, torch.ones(3, 2), steps=4, step_size=0.1, generator=0).x
    assert torch.equal(out, expected)


def test_the_dtype_is_that_of_the_starts():
    seen = []

    def energy(x):
        seen.append(x.dtype)
        return x.square().sum(1) / 2

    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        out = langevin(energy, torch.zeros(500, 2, dtype=dtype), steps=50, step_size=0.01, generator=one_stream())
        assert out.x.dtype == dtype
        assert set(seen) == {dtype}
        # steps of 0.01 would be lost in bfloat16: the chain itself is in float32
        assert float(out.x.double().square().mean()) == pytest.approx(1 - math.exp(-1), rel=0.1)
        seen.clear()


def test_autocast_does_not_reach_the_energy():
    net = nn.Linear(2, 1)
    plain = langevin(lambda x: net(x)[:, 0], torch.ones(3, 2), steps=2, step_size=0.1, generator=0).x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = langevin(lambda x: net(x)[:, 0], torch.ones(3, 2), steps=2, step_size=0.1, generator=0).x
    assert torch.equal(out, plain)


def test_a_step_to_where_the_energy_is_no_number_is_rejected():
    def walled(x):
        return quadratic(x) + torch.log(1 - x[:, 0])

    out = langevin(walled, zeros(500), steps=200, step_size=0.2, metropolis=True, generator=one_stream())
    assert bool(out.x.isfinite().all())
    assert float(out.x.max()) < 1
    assert float(out.acceptance.max()) < 1


def test_energy_and_gradient_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    u, slope = differentiate(quadratic, x)
    assert torch.equal(u, torch.tensor([2.5, 12.5]))
    assert torch.equal(slope, x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"step_size": 0.0}, "step_size must be > 0 and finite, got 0.0"),
        ({"step_size": math.nan}, "step_size must be > 0"),
        ({"noise_scale": -1.0}, "noise_scale must be >= 0 and finite, got -1.0"),
        ({"noise_scale": 0.0, "metropolis": True}, "the Metropolis test needs noise"),
        ({"grad_clip": 0.0}, "grad_clip must be > 0, got 0.0"),
        ({"bounds": (1.0, -1.0)}, r"low < high, got \(1.0, -1.0\)"),
        ({"energy": lambda x: x}, r"must have shape \(3,\), one number for each item, got \(3, 2\)"),
        ({"energy": lambda x: torch.zeros(len(x))}, "must depend on x"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    options = {"energy": quadratic, "x0": torch.zeros(3, 2), "steps": 1, "step_size": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        langevin(options.pop("energy"), options.pop("x0"), **options)


def test_an_energy_of_weights_alone_is_refused():
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="must depend on x"):
        langevin(lambda x: weight.expand(len(x)), torch.zeros(3, 2), steps=1, step_size=0.1)


def test_noise_is_of_each_chain():
    for n in (1, 5):
        with pytest.raises(ValueError, match=f"noise must be of 3 chains, got that of {n}"):
            langevin(quadratic, torch.zeros(3, 2), steps=1, step_size=0.1, generator=Noise(0, n))


def test_numbers_are_chains_too():
    out = [
        langevin(energy, x0, steps=5, step_size=0.3, metropolis=True, bounds=(-0.5, 0.5), generator=one_stream())
        for energy, x0 in ((lambda x: x**2 / 2, torch.zeros(9)), (quadratic, torch.zeros(9, 1)))
    ]
    assert torch.equal(out[0].x, out[1].x[:, 0])
    assert 0 < out[0].acceptance.mean() < 1


def test_starts_are_floats():
    with pytest.raises(TypeError, match="x0 must be a tensor of floats, got torch"):
        langevin(quadratic, torch.zeros(3, 2, dtype=torch.int64), steps=1, step_size=0.1)
