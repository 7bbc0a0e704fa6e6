"""Denoisers: conversions between predictions, and what is refused."""

import math

import pytest
import torch

from kexue.generative import MLPDenoiser, TinyUNet
from kexue.generative.diffusion import (
    VP,
    Denoiser,
    DiscreteSchedule,
    FlowSchedule,
    ReverseSDE,
    SubVP,
    zero_terminal_snr,
)
from kexue.generative.diffusion.denoiser import ClippedDenoiser
from kexue.generative.networks.denoiser import Denoised

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.05, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
@pytest.mark.parametrize("schedule", [VP(), SubVP(), FlowSchedule()], ids=lambda s: type(s).__name__)
def test_every_prediction_gives_all_others_back(schedule, prediction, normal_denoiser):
    exact = normal_denoiser(schedule, dim=3).predict(X, T)
    told = Denoiser(lambda x, t: getattr(exact, prediction), schedule, prediction=prediction).predict(X, T)
    for name in ("x0", "eps", "score", "v", "velocity"):
        torch.testing.assert_close(getattr(told, name), getattr(exact, name), rtol=1e-9, atol=1e-9)


def test_exact_score_is_the_gradient_of_the_density(normal_denoiser):
    denoiser = normal_denoiser(VP(), dim=3)
    x = X.clone().requires_grad_()
    std = (VP().alpha(T) ** 2 * 4 + VP().sigma(T) ** 2).sqrt()[:, None]
    density = torch.distributions.Normal(VP().alpha(T)[:, None] * 1.5, std).log_prob(x).sum()
    torch.testing.assert_close(denoiser.predict(X, T).score, torch.autograd.grad(density, x)[0])


def test_edm_scales_keep_unit_variance(normal_denoiser):
    """With F = 0 D is the best linear estimate for data of std 0.5; the input of F has variance 1."""
    seen = []

    def net(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    told = Denoiser(net, VP(), prediction="edm").predict(X, T)
    torch.testing.assert_close(told.x0, normal_denoiser(VP(), 0.0, 0.5, 3).predict(X, T).x0)
    inside, noise = seen[0]
    scale = (VP().alpha(T) ** 2 * 0.25 + VP().sigma(T) ** 2).sqrt()
    torch.testing.assert_close(inside, X / scale[:, None])
    torch.testing.assert_close(noise, (VP().sigma(T) / VP().alpha(T)).log() / 4)


def test_networks_in_every_form():
    schedule = DiscreteSchedule.linear(10)
    for out in (lambda x: x * 2, lambda x: (x * 2,), lambda x: Denoised(x * 2)):
        told = Denoiser(lambda x, t, out=out: out(x), schedule).predict(X, torch.tensor(3))
        torch.testing.assert_close(told.eps, X * 2)
    images = torch.zeros(2, 1, 8, 8)
    net = TinyUNet((1, 8, 8), channels=8, num_classes=3)
    labels = torch.tensor([0, 2])
    assert Denoiser(net, schedule).predict(images, torch.tensor(3), condition=labels).x0.shape == images.shape
    assert Denoiser(MLPDenoiser(3), VP()).predict(X.float(), torch.tensor(0.3)).x0.dtype == torch.float32


def test_conditions_go_by_their_type():
    seen = {}

    def net(x, t, **named):
        seen.update(named)
        return x

    Denoiser(net, VP()).predict(X, T, condition=torch.arange(5))
    Denoiser(net, VP()).predict(X, T, condition=torch.zeros(5, 7))
    assert sorted(seen) == ["class_labels", "encoder_hidden_states"]


def test_learned_variance_is_split():
    schedule = DiscreteSchedule.linear(10)
    both = lambda x, t: torch.cat([x, x / 10], 1)  # noqa: E731
    told = Denoiser(both, schedule, learned_variance=True).predict(X, torch.tensor(3))
    torch.testing.assert_close(told.fraction, X / 10)
    with pytest.raises(ValueError, match="learned_variance=True"):
        Denoiser(both, schedule).predict(X, torch.tensor(3))
    with pytest.raises(ValueError, match=r"\(5, 6\)"):
        Denoiser(lambda x, t: x, schedule, learned_variance=True).predict(X, torch.tensor(3))
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        Denoiser(lambda x, t: x[:, :2], schedule).predict(X, torch.tensor(3))


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_noise_alone_tells_nothing(prediction, smooth_net):
    schedule = zero_terminal_snr(DiscreteSchedule.linear(10))
    with pytest.raises(ValueError, match=r"alpha is 0.*v or x0.*time 9"):
        Denoiser(smooth_net, schedule, prediction=prediction).predict(X, torch.tensor(9))
    for other in ("v", "x0", "edm"):
        told = Denoiser(smooth_net, schedule, prediction=other).predict(X, torch.tensor(9))
        assert bool(told.x0.isfinite().all())
        torch.testing.assert_close(told.eps, X)


def test_clean_data_have_no_noise(smooth_net):
    with pytest.raises(ValueError, match="clean data"):
        Denoiser(smooth_net, VP(), prediction="x0").predict(X, torch.tensor(0.0))
    told = Denoiser(smooth_net, VP()).predict(X, torch.tensor(0.0))
    torch.testing.assert_close(told.x0, X)
    with pytest.raises(ValueError, match="sigma is 0"):
        _ = told.score
    with pytest.raises(ValueError, match="prediction"):
        Denoiser(smooth_net, VP(), prediction="noise")


def test_clipped_data_take_the_noise_with_them():
    schedule, t = DiscreteSchedule.linear(10), torch.tensor(5)
    wild = Denoiser(lambda x, t: 30 * x, schedule)
    for clip in ("static", "dynamic"):
        told = ClippedDenoiser(wild, clip).predict(X, t)
        assert float(told.x0.abs().max()) <= 1
        torch.testing.assert_close(schedule.alpha(t) * told.x0 + schedule.sigma(t) * told.eps, X)
    with pytest.raises(ValueError, match="clip"):
        ClippedDenoiser(wild, "hard")


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_reverse_equation_keeps_the_variance(level, normal_denoiser):
    """The variance falls backwards at the rate of the forward process: -dV/dt = -2 (slope) V + c^2 g^2."""
    schedule, t = VP(), torch.tensor(0.4, dtype=torch.float64)
    denoiser = normal_denoiser(schedule, 0.0)
    sde = ReverseSDE(denoiser, noise_level=level)
    slope = float(sde.drift(torch.ones(1, 1, dtype=torch.float64), t))
    variance = schedule.alpha(t) ** 2 * 4 + schedule.sigma(t) ** 2
    rate = 2 * schedule.alpha(t) * schedule.alpha_dot(t) * 4 + 2 * schedule.sigma(t) * schedule.sigma_dot(t)
    g2 = float(sde.diffusion(t)) ** 2
    assert g2 == pytest.approx(level**2 * float(schedule.diffusion_squared(t)), abs=1e-12)
    assert -float(rate) == pytest.approx(-2 * slope * float(variance) + g2, rel=1e-9)
    with pytest.raises(ValueError, match="noise_level"):
        ReverseSDE(denoiser, noise_level=1.2)


def test_whole_times_of_a_continuous_schedule_are_floats():
    """A network takes integers for the numbers of a table: time 1 must reach it as 1.0."""
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    for t in (1, 1.0, torch.tensor(1), torch.ones(5, dtype=torch.int32)):
        told = Denoiser(net, VP()).predict(X, t)
        assert seen[-1].dtype == torch.float64
        torch.testing.assert_close(told.score, X / -VP().sigma(1.0))
    assert float(Denoiser(net, VP()).predict(X, 0.4).t) == 0.4  # not rounded to float32


def test_wrong_times_events_and_conditions_are_refused(smooth_net, normal_denoiser):
    denoiser = Denoiser(smooth_net, VP())
    for t in (torch.rand(3), torch.rand(5, 1)):
        for one in (denoiser, normal_denoiser(VP(), dim=3)):
            with pytest.raises(ValueError, match=r"one for each of 5 events"):
                one.predict(X, t)
    for t, got in ((-0.5, "-0.5"), (1.5, "1.5"), (math.nan, "nan"), (torch.tensor([0.1, 0.2, 0.3, 0.4, 2.0]), "2")):
        for call in (denoiser.predict, normal_denoiser(VP(), dim=3).predict, VP().marginal, ReverseSDE(denoiser).drift):
            with pytest.raises(ValueError, match=rf"times must be in \[0, 1\], got {got}$"):
                call(X, t)
    assert denoiser.predict(X, torch.tensor(1.0000001)).x0.shape == X.shape  # rounding of float32
    for x in (X.long(), X.bool()):
        with pytest.raises(TypeError, match="floats"):
            denoiser.predict(x, 0.5)
    for condition, words in (
        (3, "int"),
        ([1, 2, 3, 4, 5], "list"),
        (torch.ones(5, dtype=torch.bool), "bool"),
        (torch.ones(5), "long"),
    ):
        with pytest.raises(TypeError, match=words):
            denoiser.predict(X, 0.5, condition=condition)
    for condition in (torch.tensor([1]), torch.tensor(1), torch.zeros(4, 7)):
        with pytest.raises(ValueError, match="one row for each of 5"):
            denoiser.predict(X, 0.5, condition=condition)
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        normal_denoiser(VP(), dim=3).predict(X[:, :1], 0.5)


def test_scales_of_edm_keep_a_learned_variance():
    both = lambda x, t: torch.cat([x, x / 10], 1)  # noqa: E731
    told = Denoiser(both, VP(), prediction="edm", learned_variance=True).predict(X, torch.tensor(0.5))
    assert told.fraction is not None
    assert told.fraction.shape == X.shape


def test_autocast_does_not_round_the_coefficients():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 3)
    denoiser, x, t = Denoiser(lambda x, t: net(x), VP()), X.float(), torch.tensor(0.9)
    with torch.autocast("cpu", torch.bfloat16):
        told = denoiser.predict(x, t)
    assert told.eps.dtype == told.velocity.dtype == torch.float32
    torch.testing.assert_close(told.score * -float(VP().sigma(0.9)), told.eps, rtol=1e-6, atol=1e-6)


def test_no_events_are_clipped_to_none(smooth_net):
    told = ClippedDenoiser(Denoiser(smooth_net, VP()), "dynamic").predict(X[:0], torch.tensor(0.5))
    assert told.x0.shape == (0, 3)
