"""Energy-based models: the gradient of the likelihood, forms of the regulariser, chains leave no trace, resume."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from kexue.errors import NotSupported
from kexue.generative import (
    MLP,
    DivergenceError,
    EnergyModel,
    LangevinResult,
    ReplayBuffer,
    eight_gaussians,
    langevin,
)
from kexue.generative.diffusion import EmpiricalPrior, NormalPrior
from kexue.nn import apply_spectral_normalization
from kexue.train import TrainConfig, Trainer
from kexue.train.checkpoint import load_checkpoint


class Quadratic(nn.Module):
    """U(x) = a |x|^2 / 2 + c: a normal distribution of variance 1/a."""

    def __init__(self, a=1.0, c=0.0):
        super().__init__()
        self.a, self.c = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(c))

    def forward(self, x):
        return self.a * x.square().sum(1) / 2 + self.c


def stay(energy, starts, **_options):
    """Chains that do not move."""
    return LangevinResult(starts, None, 1.0)


def fixed(net, chains, **options):
    """A model whose chains all end at one event."""
    buffer = ReplayBuffer(1, chains.shape[1], init=EmpiricalPrior(chains))
    return EnergyModel(net, chains.shape[1], sampler=stay, buffer=buffer, **options)


def ring_model(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EnergyModel(MLP(2, 1, hidden=(16,)), 2, sampler=partial(langevin, steps=3, step_size=0.01), **options)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_likelihood():
    """Of exp(-a |x|^2 / 2), the gradient of -log p in a is mean |x|^2 / 2 - d / (2 a), here by exact chains."""
    a, d = 2.0, 3
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, d, generator=noise)

    def exact(energy, starts, *, generator):
        return LangevinResult(generator.normal((d,)) / math.sqrt(a), None, 1.0)

    model = EnergyModel(Quadratic(a), d, sampler=exact, regulariser="none")
    model.loss(x, generator=noise).loss.backward()
    assert float(model.net.a.grad) == pytest.approx(float(x.square().sum(1).mean()) / 2 - d / (2 * a), abs=0.02)
    assert float(model.net.a.grad) > 0.7  # the data are wider: a has to fall
    assert float(model.net.c.grad) == pytest.approx(0, abs=1e-6)


def test_the_energy_of_normal_data_is_learned():
    """From a = 2 to the a = 1 of the data, but for the bias of the steps: variance 1/(a (1 - a s/2)) = 1."""
    noise = torch.Generator().manual_seed(0)
    s = 0.1
    buffer = ReplayBuffer(1000, 2, init=NormalPrior(2))
    model = EnergyModel(Quadratic(2.0), 2, sampler=partial(langevin, steps=30, step_size=s), buffer=buffer, weight=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(150):
        optimizer.param_groups[0]["lr"] *= 0.98
        optimizer.zero_grad()
        model.loss(torch.randn(1000, 2, generator=noise), generator=noise).loss.backward()
        optimizer.step()
    expected = (1 - math.sqrt(1 - 2 * s)) / s  # a (1 - a s/2) = 1
    assert float(model.net.a.detach()) == pytest.approx(expected, abs=0.04)
    # the regulariser is least where the mean energy, c + a, is 0
    assert float(model.net.c.detach()) == pytest.approx(-expected, abs=0.1)


def test_the_forms_of_the_regulariser():
    """Data with energies 2 and 4, chains with 1: the squares' means are 10 and 1."""
    net, x = Quadratic(), torch.tensor([[2.0], [math.sqrt(8)]])
    chains = torch.full((1, 1), math.sqrt(2))
    for regulariser, squares in (("sum", 11.0), ("difference", 9.0), ("none", 0.0)):
        out = fixed(net, chains, regulariser=regulariser, weight=0.5).loss(x)
        assert float(out.parts["contrastive"]) == pytest.approx(3 - 1, rel=1e-5)
        assert float(out.parts["regularisation"]) == pytest.approx(0.5 * squares, rel=1e-5)
        assert float(out.loss.detach()) == pytest.approx(2 + 0.5 * squares, rel=1e-5)
        assert float(out.parts["data_energy"]) == pytest.approx(3, rel=1e-5)
        assert float(out.parts["chain_energy"]) == pytest.approx(1, rel=1e-5)


def test_only_the_sum_pins_the_constant():
    """The gradient in the constant c is 2 w (U + U_f) for the sum, 2 w (U - U_f) for the difference, 0 without."""
    slopes = {}
    for regulariser in ("sum", "difference", "none"):
        net = Quadratic(c=5.0)
        fixed(net, torch.ones(1, 1), regulariser=regulariser, weight=0.5).loss(torch.full((4, 1), 2.0)).loss.backward()
        slopes[regulariser] = float(net.c.grad)
    assert slopes == pytest.approx({"sum": 7 + 5.5, "difference": 7 - 5.5, "none": 0.0})


def test_no_gradient_goes_through_the_chains():
    """The gradient is that of a loss in which the ends of chains are numbers."""
    model, x = ring_model(), eight_gaussians().sample(32, generator=0)
    ends = []

    def keeping(*arguments, **options):
        ends.append(langevin(*arguments, steps=5, step_size=0.1, **options))
        return ends[-1]

    model.sampler = keeping
    model.loss(x, generator=0).loss.backward()
    got = [p.grad.clone() for p in model.net.parameters()]
    model.zero_grad()
    u, v = model.energy(x), model.energy(ends[0].x)
    (u.mean() - v.mean() + 0.1 * (u.square().mean() + v.square().mean())).backward()
    assert not ends[0].x.requires_grad
    for one, parameter in zip(got, model.net.parameters(), strict=True):
        assert torch.allclose(one, parameter.grad, atol=1e-6)


def test_chains_with_a_graph_are_constants_too():
    x, got = eight_gaussians().sample(32, generator=0), []
    for cut in (lambda end: end, torch.Tensor.detach):
        model = ring_model()
        model.sampler = lambda energy, starts, cut=cut, **_: LangevinResult(
            cut(starts + energy(starts)[:, None]), None, 1.0
        )
        model.loss(x, generator=0).loss.backward()
        got.append([p.grad for p in model.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


# ---- what chains leave untouched -------------------------------------------------------------------------------------


def test_chains_run_in_evaluation_mode_and_put_it_back():
    model, x, modes = ring_model(), torch.zeros(4, 2), []

    def broken(energy, starts, **_options):
        modes.append([part.training for part in model.modules()])
        energy(starts.requires_grad_()).sum()
        raise RuntimeError("the sampler broke")

    frozen = next(model.net.parameters()).requires_grad_(False)
    model.sampler = broken
    model.train()
    with pytest.raises(RuntimeError, match="broke"):
        model.loss(x)
    assert not any(modes[0])
    assert all(part.training for part in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_a_spectral_norm_takes_one_step_in_a_step_of_the_training():
    net = apply_spectral_normalization(MLP(2, 1, hidden=(8,)))
    model = EnergyModel(net, 2)
    x = eight_gaussians().sample(8, generator=0)
    twin = apply_spectral_normalization(MLP(2, 1, hidden=(8,)))
    twin.load_state_dict(net.state_dict())
    model.loss(x, generator=0)
    twin(x)
    for name, value in twin.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_the_buffer_grows_in_training_only():
    model, x = ring_model(), torch.zeros(4, 2)
    model.eval()
    model.loss(x)
    model.sample(3)
    model.diagnose(x)
    assert len(model.buffer) == 0
    model.train()
    ends = []
    model.sampler = lambda *arguments, **options: ends.append(stay(*arguments, **options)) or ends[-1]
    model.loss(x)
    assert torch.equal(model.buffer.items[:4], ends[0].x)
    with torch.no_grad():
        model.train().loss(x)
    assert len(model.buffer) == 8


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_start_in_the_buffer_unless_told_otherwise():
    model = EnergyModel(Quadratic(), 2, sampler=stay)
    model.buffer.push(torch.full((1, 2), 9.0))
    assert torch.equal(model.sample(50, generator=0), torch.full((50, 2), 9.0))
    assert float(model.sample(50, generator=0, from_buffer=False).abs().max()) < 1


def test_samples_of_a_known_energy_have_its_moments():
    a = 2.0
    model = EnergyModel(Quadratic(a), 2, sampler=partial(langevin, steps=2, step_size=0.1, metropolis=True))
    x = model.sample(20_000, generator=torch.Generator().manual_seed(0), steps=80)
    squares = x.double().square().mean(1)
    assert abs(float(squares.mean()) - 1 / a) < 3 * float(squares.std()) / math.sqrt(len(x))


def test_a_sample_does_not_depend_on_the_batch():
    model = ring_model()
    model.buffer.push(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    whole = model.sample(7, generator=3)
    assert torch.allclose(model.sample(5, generator=3, batch_size=2), whole[:5], atol=1e-5)


def test_the_score_is_the_gradient_of_minus_the_energy():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    model = EnergyModel(Quadratic(2.0), 3)
    with torch.no_grad():
        assert torch.allclose(model.score(x), -2 * x)
    assert model.net.a.grad is None


@pytest.mark.parametrize("d", [1, 2])
def test_the_constant_of_a_normal_density(d):
    model = EnergyModel(Quadratic(2.0, c=1.5), d)
    assert model.log_z_grid(-6, 6) == pytest.approx(d / 2 * math.log(math.pi) - 1.5, abs=1e-4)


def test_the_report_of_chains():
    """Data twice as wide as the model have four times its energy; small steps pass the test, large ones do not."""
    buffer = ReplayBuffer(1, 2, init=NormalPrior(2))
    x = 2 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    reports = {}
    for s in (0.01, 1.0):
        model = EnergyModel(Quadratic(), 2, sampler=partial(langevin, steps=20, step_size=s), buffer=buffer)
        reports[s] = model.diagnose(x, generator=torch.Generator().manual_seed(0))
    assert reports[0.01].temperature == pytest.approx(1.0)
    assert reports[0.01].data_energy == pytest.approx(4, rel=0.05)
    assert reports[0.01].chain_energy == pytest.approx(1, rel=0.05)
    assert reports[0.01].acceptance > 0.99
    assert reports[1.0].acceptance < 0.9
    cold = EnergyModel(Quadratic(), 2, sampler=partial(langevin, steps=20, step_size=0.1, noise_scale=0), buffer=buffer)
    assert cold.diagnose(x).acceptance is None


# ---- divergence, resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [2000.0, -2000.0, math.nan])
def test_energies_out_of_bounds_are_an_error(constant):
    model = EnergyModel(Quadratic(c=constant), 2)
    with pytest.raises(DivergenceError, match=r"the mean data energy is .*, beyond the limit of 1000"):
        model.loss(torch.zeros(4, 2))
    if math.isfinite(constant):
        model.limit = 3000.0
        model.loss(torch.zeros(4, 2))


def test_chains_that_run_away_are_an_error_and_stay_out_of_the_buffer():
    model = EnergyModel(Quadratic(-1e9), 2, sampler=partial(langevin, steps=9, step_size=1.0))
    with pytest.raises(DivergenceError, match="the mean chain energy is"):
        model.loss(torch.zeros(4, 2))
    assert len(model.buffer) == 0


def test_a_training_that_was_cut_off_ends_with_the_same_bits(tmp_path):
    """Buffer, weights and generators: six steps are three, and three more."""
    data = eight_gaussians().sample(64, generator=0)

    def train(folder, limit):
        model = ring_model(buffer=ReplayBuffer(40, 2))
        config = TrainConfig(folder, steps=6, limit=limit, ema=0.9, precision="fp32", device="cpu", log=())
        Trainer(model, torch.optim.Adam(model.parameters(), 1e-3), config).fit([data[:32], data[32:]])
        return model.state_dict(), load_checkpoint(folder / "last").ema

    whole = train(tmp_path / "whole", None)
    train(tmp_path / "parts", 3)
    parts = train(tmp_path / "parts", None)
    for expected, got in zip(whole, parts, strict=True):
        assert int(expected["buffer.pushed"]) == 6 * 32
        for name, value in expected.items():
            assert torch.equal(got[name], value), name


def test_a_file_holds_the_buffer(tmp_path):
    model, path = ring_model(), tmp_path / "model.safetensors"
    model.loss(eight_gaussians().sample(8, generator=0), generator=0)
    model.save(path)
    again = ring_model(seed=1).load(path)
    assert len(again.buffer) == 8
    assert torch.equal(again.sample(4, generator=0), model.sample(4, generator=0))


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": 0}, "event_shape must be a size >= 1"),
        ({"regulariser": "plus"}, "regulariser must be 'sum', 'difference' or 'none', got 'plus'"),
        ({"weight": -1.0}, "weight must be >= 0 and finite, got -1.0"),
        ({"limit": 0.0}, "limit must be > 0, got 0.0"),
        ({"buffer": ReplayBuffer(3, 3)}, r"the buffer must hold events of shape \(2,\), got \(3,\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EnergyModel(Quadratic(), **{"event_shape": 2} | options)


def test_bad_calls_are_refused():
    model = EnergyModel(Quadratic(), 3)
    for use in (model.loss, model.diagnose):
        with pytest.raises(ValueError, match="one event at least"):
            use(torch.zeros(0, 3))
    with pytest.raises(NotSupported, match="log_z_grid takes events of one or two numbers"):
        model.log_z_grid(-1, 1)
    with pytest.raises(NotSupported, match="does not support encode; it supports: sample, energy, loss"):
        model.encode(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="takes no condition"):
        model.sample(2, condition=1)
    with pytest.raises(ValueError, match="steps must be a whole number >= 1, got 0"):
        model.sample(2, steps=0)
    with pytest.raises(ValueError, match=r"net must return energies \(B,\) or \(B, 1\), got \(2, 3\) for 2 events"):
        EnergyModel(nn.Identity(), 3).energy(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="first in item 1"):
        model.loss(torch.tensor([[0.0, 0, 0], [math.nan, 0, 0]]))
    small = EnergyModel(Quadratic(), 1)
    for low, high in ((1.0, 1.0), (-math.inf, 0.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="low < high is expected"):
            small.log_z_grid(low, high)
    with pytest.raises(ValueError, match="points must be a whole number >= 1"):
        small.log_z_grid(-1, 1, points=0)


def test_a_sampler_that_does_not_fit_is_refused():
    def short(energy, starts, *, generator):
        return LangevinResult(starts, None, 1.0)

    model = EnergyModel(Quadratic(), 3, sampler=short)
    assert model.sample(2, generator=0).shape == (2, 3)
    with pytest.raises(TypeError, match=r"the sampler must take \(energy, starts, generator=..., steps=...\)"):
        model.sample(2, steps=5, generator=0)
    with pytest.raises(TypeError, match=r"the sampler must take \(energy, starts, generator=..., metropolis=...\)"):
        model.diagnose(torch.zeros(2, 3), generator=0)
    with pytest.raises(TypeError, match=r"take \(energy, starts, generator=...\): .* use langevin"):
        EnergyModel(Quadratic(), 3, sampler=lambda energy, starts: starts).loss(torch.zeros(2, 3))
    bare = EnergyModel(Quadratic(), 3, sampler=lambda energy, starts, **_: starts)
    with pytest.raises(TypeError, match="the sampler must return a LangevinResult, got Tensor"):
        bare.loss(torch.zeros(2, 3))
    fewer = EnergyModel(Quadratic(), 3, sampler=lambda energy, starts, **_: LangevinResult(starts[:1], None, 1.0))
    with pytest.raises(ValueError, match=r"an end for each start, \(2, 3\), got \(1, 3\)"):
        fewer.loss(torch.zeros(2, 3))


def test_an_error_inside_a_sampler_is_not_hidden():
    def broken(energy, starts, *, generator):
        return energy(starts, 1)

    with pytest.raises(TypeError, match="positional argument"):
        EnergyModel(Quadratic(), 3, sampler=broken).loss(torch.zeros(2, 3))
