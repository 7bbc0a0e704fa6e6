"""The idempotent network: which weights each term trains, the loss without copies, clamps, projections."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kexue.errors import NotFittedError, NotSupported
from kexue.generative import IGN, MLP, Noise, SpectralNoise
from kexue.generative.ign import clamp_softly

SHAPE = (1, 4, 4)
TERMS = ("reconstruction", "idempotence", "tightness")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"distance": "l1"},
    {"weights": (1.0, 1.0, 1.0)},
    {"weights": (0.3, 2.0, 0.7), "clamp": 0.1},
    {"clamp": 1.5, "clamp_scale": "distance"},
    {"clamp": 1.5, "clamp_scale": "rec", "distance": "l1"},
]


def _build(seed: int = 0, **options: Any) -> IGN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(MLP(SHAPE, 5, hidden=(20,)), MLP(5, SHAPE, hidden=(20,)), nn.Tanh())
    return IGN(net.double(), event_shape=SHAPE, **options)


def _linear(matrix: Tensor, **options: Any) -> IGN:
    """A model whose f is this matrix."""
    net = nn.Linear(len(matrix), len(matrix), bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(matrix)
    return IGN(net, event_shape=(len(matrix),), **options)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _events(n: int = 12) -> Tensor:
    return _normal(n, *SHAPE, seed=1).tanh()


def _noise(n: int = 12) -> Tensor:
    """The noise that a seed of 0 gives."""
    return Noise(0, n).normal(SHAPE).double()


def _delta(model: IGN, output: Tensor, y: Tensor) -> Tensor:
    gap = (output - y).flatten(1)
    return (gap**2).mean(1) if model.distance == "l2" else gap.abs().mean(1)


def _terms_with_copies(model: IGN, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    """The three terms, with copies of the weights held constant where the article has them."""
    f = model.net
    constant = {name: weight.detach().clone() for name, weight in f.named_parameters()}
    y = f(z)
    fake = functional_call(f, constant, (z,))
    reconstruction, low = _delta(model, f(x), x), -_delta(model, f(fake), fake)
    if model.clamp is not None:
        scales = {None: torch.ones(()), "distance": _delta(model, fake, z), "rec": reconstruction.mean()}
        limit = model.clamp * scales[model.clamp_scale].detach()
        low = limit * torch.tanh(low / limit)
    idempotence = _delta(model, functional_call(f, constant, (y,)), y)
    return {"reconstruction": reconstruction.mean(), "idempotence": idempotence.mean(), "tightness": low.mean()}


def _gradients(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# ---- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_has_the_gradient_of_the_terms_with_copies(options: dict[str, Any]) -> None:
    model, x = _build(**options), _events()
    out, terms = model.loss(x, generator=0), _terms_with_copies(model, x, _noise())
    for name in TERMS:
        assert float(out.parts[name]) == pytest.approx(terms[name].item(), abs=1e-14)
    total = sum(weight * terms[name] for weight, name in zip(model.weights, TERMS, strict=True))
    expected = _gradients(total, model)  # type: ignore[arg-type]
    assert float((_gradients(out.loss, model) - expected).abs().max()) < 1e-12
    assert float(expected.abs().max()) > 1e-3


def test_it_is_a_wasserstein_gan_whose_critic_is_the_energy() -> None:
    """kexue.fm/archives/9969: D(x) - D(G*(z)) + D*(G(z)), a star for constant weights, with D = delta and G = f."""
    model, x, z = _build(weights=(1.0, 1.0, 1.0)), _events(), _noise()
    critic, generator = _build(), _build()  # two networks of equal weights
    real, fake = critic.energy(x).mean(), critic.energy(generator.net(z).detach()).mean()
    for_critic = _gradients(real - fake, critic)
    for_generator = _gradients(critic.energy(generator.net(z)).mean(), generator)
    out = model.loss(x, generator=0)
    assert float((_gradients(out.loss, model) - for_critic - for_generator).abs().max()) < 1e-12
    assert float(sum(out.parts.values())) == pytest.approx((real - fake + fake).item())


class _TwoCopies(nn.Module):
    """A network that passes events through one copy of itself, and what was made of them through another."""

    def __init__(self, net: nn.Module, again: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.calls = net, again, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        output: Tensor = (self.first if self.calls % 2 else self.second)(x)
        return output


@pytest.mark.parametrize(
    ("weights", "inner", "outer"), [((1, 0, 0), True, False), ((0, 1, 0), True, False), ((0, 0, 1), False, True)]
)
def test_each_term_trains_one_use_of_the_network(weights: tuple[float, float, float], inner: bool, outer: bool) -> None:
    net = _TwoCopies(_build().net, _build().net)
    model = IGN(net, weights=weights, event_shape=SHAPE)
    net.calls = 0
    model.loss(_events(), generator=0).loss.backward()  # type: ignore[no-untyped-call]
    assert net.calls == 2
    for copy, trained in ((net.first, inner), (net.second, outer)):
        largest = max(float(weight.grad.abs().max()) for weight in copy.parameters())  # type: ignore[union-attr]
        assert largest > 1e-3 if trained else largest < 1e-15


def test_a_step_down_moves_each_term_where_it_should_go() -> None:
    """Data come nearer to fixed points; so does what is made, judged by the old f; the new f leaves it less alone."""
    x, z = _events(), _noise()
    for term in range(3):
        model = _build(weights=tuple(float(i == term) for i in range(3)))
        old = _build()
        gradients = torch.autograd.grad(model.loss(x, generator=0).loss, list(model.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight.sub_(0.01 * gradient)
            made = old.net(z)
            changes = (
                (model.energy(x) - old.energy(x)).mean(),
                (old.energy(model.net(z)) - old.energy(made)).mean(),
                (old.energy(made) - model.energy(made)).mean(),
            )
        assert float(changes[term]) < 0, TERMS[term]


def test_without_constant_copies_two_terms_would_cancel() -> None:
    model, x = _build(weights=(0.0, 1.0, 1.0)), _events()
    y = model.net(_noise())
    naive = (model.energy(y) - model.energy(y)).mean()
    assert naive.item() == 0
    assert float(_gradients(naive, model).abs().max()) < 1e-15
    assert float(_gradients(model.loss(x, generator=0).loss, model).abs().max()) > 1e-3


def test_the_identity_is_stationary_and_refused() -> None:
    model = _linear(torch.eye(3).double() + 0.01)
    with torch.no_grad():
        model.net.weight.copy_(torch.eye(3))
    out = model.loss(_normal(5, 3), generator=0)
    assert all(float(part) == 0 for part in out.parts.values())
    assert float(_gradients(out.loss, model).abs().max()) == 0
    with pytest.raises(ValueError, match="net is the identity"):
        _linear(torch.eye(3).double())
    with pytest.raises(ValueError, match="net is the identity"):
        IGN(nn.Identity(), event_shape=(3,))


def test_a_limit_keeps_the_term_within_it() -> None:
    t = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    clamped = clamp_softly(t, torch.full((13,), 0.5, dtype=torch.float64))
    expected = [0.5 * math.tanh(value / 0.5) for value in t.tolist()]
    assert clamped.tolist() == pytest.approx(expected, abs=1e-15)
    (slope,) = torch.autograd.grad(clamped.sum(), t)
    assert slope.tolist() == pytest.approx([1 / math.cosh(value / 0.5) ** 2 for value in t.tolist()], abs=1e-15)


@pytest.mark.parametrize("limit", [0.0, 1e-45, 1e-30])
def test_a_limit_of_nothing_leaves_nothing_and_no_gradient(limit: float) -> None:
    t = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    clamped = clamp_softly(t, torch.full((3,), limit))
    (slope,) = torch.autograd.grad(clamped.sum(), t)
    assert clamped.abs().max() <= limit
    assert not slope[[0, 2]].any()
    assert bool(slope.isfinite().all())


def test_a_perfect_reconstruction_clamps_the_tightness_away() -> None:
    model = _linear(torch.diag(torch.tensor([1.0, 0.5, 0.0])).double(), clamp=1.0, clamp_scale="rec")
    x = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]).double()  # its fixed points
    out = model.loss(x, generator=0)
    assert out.parts["tightness"] == out.parts["reconstruction"] == 0 < out.parts["idempotence"]
    assert bool(_gradients(out.loss, model).isfinite().all())


# ---- use -----------------------------------------------------------------------------------------------------------


def test_a_projection_is_idempotent_and_a_scaling_is_not() -> None:
    basis = torch.linalg.qr(_normal(6, 2)).Q
    assert _linear(basis @ basis.T).idempotence_error(50, generator=0) < 1e-14
    for factor in (0.5, -2.0, 0.0):
        error = _linear(factor * torch.eye(6).double()).idempotence_error(50, generator=0)
        assert error == pytest.approx(abs(factor - 1) if factor else 0, abs=1e-14)


def test_samples_are_projected_noise_and_steps_repeat() -> None:
    model, z = _build().eval(), _noise(5)
    with torch.no_grad():
        once = model.net(z)
        assert torch.allclose(model.sample(5, generator=0), once)
        assert torch.allclose(model.sample(5, generator=0, steps=3), model.net(model.net(once)))
        assert torch.allclose(model.project(z, steps=2), model.net(once))
        assert torch.allclose(model.energy(z), (once - z).square().mean((1, 2, 3)))


def test_a_sample_does_not_depend_on_the_size_of_the_batch() -> None:
    model = _build()
    whole = model.sample(7, generator=3)
    assert torch.allclose(model.sample(5, generator=3, batch_size=2), whole[:5], atol=1e-12)
    assert float((whole[0] - whole[1]).abs().max()) > 1e-3


def test_half_precision_is_measured_in_single() -> None:
    model = _build().to(torch.bfloat16)
    out = model.loss(_events().float(), generator=0)
    assert out.loss.dtype == model.energy(_events().float()).dtype == torch.float32
    for name, part in _build().loss(_events(), generator=0).parts.items():
        assert float(out.parts[name]) == pytest.approx(float(part), rel=0.02)


def test_the_first_batch_sets_the_shape() -> None:
    told = _build()
    untold = IGN(told.net)
    with pytest.raises(NotFittedError, match="event_shape"):
        untold.sample(1)
    x = _events()
    assert torch.equal(untold.loss([x, torch.zeros(len(x))], generator=0).loss, told.loss(x, generator=0).loss)
    assert untold.event_shape == SHAPE
    assert torch.equal(untold.sample(2, generator=0), told.sample(2, generator=0))


def test_weights_and_noise_are_saved(tmp_path: object) -> None:
    path = f"{tmp_path}/model.safetensors"
    model = _build(noise=SpectralNoise(SHAPE).fit(_events().float()))
    model.save(path)
    again = _build(1, noise=SpectralNoise(SHAPE)).load(path)
    assert torch.equal(again.sample(4, generator=0), model.sample(4, generator=0))
    assert float((again.sample(4, generator=0) - _build().sample(4, generator=0)).abs().max()) > 1e-3


def test_bad_arguments_are_refused() -> None:
    net = _build().net
    bad: list[tuple[dict[str, Any], str]] = [
        ({"distance": "l3"}, "distance must be 'l2' or 'l1', got 'l3'"),
        ({"weights": (1.0, -1.0, 0.1)}, "weights must be three numbers >= 0"),
        ({"weights": (1.0, 1.0)}, "weights must be three numbers >= 0"),
        ({"weights": (1.0, 1.0, math.nan)}, "weights must be three numbers >= 0"),
        ({"clamp": 0.0}, "clamp must be > 0"),
        ({"clamp": math.inf}, "clamp must be > 0"),
        ({"clamp": 1.0, "clamp_scale": "reconstruction"}, "clamp_scale must be"),
        ({"clamp_scale": "rec"}, "with clamp None"),
        ({"event_shape": (2, 4, 4)}, "shape"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            IGN(net, **{"event_shape": SHAPE, **options})
    with pytest.raises(ValueError, match=r"net must return events \(3,\), got \(2,\)"):
        IGN(nn.Linear(3, 2), event_shape=(3,))


def test_bad_calls_are_refused() -> None:
    model, x = _build(), _events()
    for call in (model.loss, model.energy, model.project):
        with pytest.raises(ValueError, match=r"\(B, 1, 4, 4\)"):
            call(x[:, 0])
        with pytest.raises(ValueError, match="NaN"):
            call(x / 0 * 0)
    with pytest.raises(ValueError, match="one event at least"):
        model.loss(x[:0])
    for steps in (0, 1.5):
        with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
            model.project(x, steps=steps)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
            model.sample(2, steps=steps)
    with pytest.raises(ValueError, match="n must be a whole number >= 1, got 0"):
        model.idempotence_error(0)
    with pytest.raises(ValueError, match="no classes"):
        model.sample(1, condition=0)
    with pytest.raises(NotSupported, match="sample, energy, loss"):
        model.log_prob(x)


# ---- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 6, 5), (7,)])
def test_noise_of_data_has_their_mean_and_their_spectrum(shape: tuple[int, ...]) -> None:
    """Against the full transform, on a field that is smooth and whose mean is not 0."""
    axes = tuple(range(-min(2, len(shape)), 0))
    x = (_normal(300, *shape).cumsum(-1) + _normal(*shape, seed=1)).float()
    noise = SpectralNoise(shape)
    g = _normal(20_000, *shape, seed=2).float()
    assert torch.allclose(noise(g[:5]), g[:5], atol=1e-5)
    z = noise.fit(x)(g)

    def power(y: Tensor) -> Tensor:
        waves: Tensor = torch.fft.fftn(y - y.mean(0), dim=axes)
        return waves.abs().square().mean(0)

    assert torch.allclose(z.mean(0), x.mean(0), atol=0.06)
    assert torch.allclose(power(z), power(x), rtol=0.06)
    assert float(power(x).max() / power(x).min()) > 3


def test_noise_needs_data_of_its_shape() -> None:
    for x, message in (
        (torch.zeros(3, 1, 4, 5), r"x must have shape \(B, 1, 4, 4\), got \(3, 1, 4, 5\)"),
        (torch.zeros(0, *SHAPE), "one event at least"),
        (torch.full((2, *SHAPE), math.nan), "NaN or infinity, first in item 0"),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralNoise(SHAPE).fit(x)
    with pytest.raises(TypeError, match=r"x must be a tensor of floats, got torch.int64"):
        SpectralNoise(SHAPE).fit(torch.zeros(2, *SHAPE, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"g must have shape \(B, 1, 4, 4\), got \(2, 3, 4, 4\)"):
        SpectralNoise(SHAPE)(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="event_shape must be a size >= 1"):
        SpectralNoise(())


def test_noise_has_no_graph_of_its_data_and_takes_half_precision() -> None:
    x = torch.nn.Parameter(_normal(9, *SHAPE).float())
    noise = SpectralNoise(SHAPE).fit(x)
    assert not noise.mean.requires_grad
    assert not noise.amplitude.requires_grad
    assert torch.allclose(SpectralNoise(SHAPE).fit(x.bfloat16()).amplitude, noise.amplitude, rtol=0.02, atol=0.01)


def test_no_sample_of_spectral_noise_is_no_error() -> None:
    assert _build(noise=SpectralNoise(SHAPE)).sample(0).shape == (0, *SHAPE)


def test_noise_of_another_shape_is_refused() -> None:
    model = IGN(MLP(4, 4), event_shape=4, noise=nn.Linear(4, 1))
    for use in (lambda: model.sample(2), lambda: model.loss(torch.zeros(2, 4))):
        with pytest.raises(ValueError, match=r"noise must return events \(4,\), got \(1,\)"):
            use()


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 8, dtype=torch.int64), torch.full((2, 8), math.nan), torch.zeros(8), [[0.0]]]
)
def test_a_batch_that_is_refused_sets_no_shape(x: Any) -> None:
    model = IGN(MLP(4, 4))
    with pytest.raises((TypeError, ValueError), match=r"tensor of floats|NaN or infinity|event_shape must be"):
        model.energy(x)
    model.energy(torch.zeros(2, 4))
    assert model.event_shape == (4,)
