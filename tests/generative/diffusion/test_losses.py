"""Losses: their known minimum on normal data, weights, times."""

import pytest
import torch

from kexue.errors import NotSupported
from kexue.generative import MLPDenoiser, Noise
from kexue.generative.diffusion import (
    VP,
    ConditionDropout,
    CosineSchedule,
    Denoiser,
    DiscreteSchedule,
    FlowSchedule,
    score_matching_loss,
)
from kexue.generative.diffusion.losses import draw_times

N = 60_000


def exact_net(denoiser, prediction):
    return lambda x, t: getattr(denoiser.predict(x, t), prediction)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity"])
@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule()], ids=lambda s: type(s).__name__)
def test_least_loss_on_normal_data(schedule, prediction, normal_denoiser):
    """Data N(m, s^2), V = a^2 s^2 + sigma^2: the least squared errors are a^2 s^2/V of eps, s^2 sigma^2/V of x0."""
    if isinstance(schedule, FlowSchedule):
        schedule.t_min, schedule.t_max = 0.05, 0.95
    x0 = 1.5 + 2 * torch.randn(N, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = exact_net(normal_denoiser(schedule), prediction)
    loss = float(
        score_matching_loss(Denoiser(net, schedule, prediction=prediction), x0, generator=torch.Generator()).loss
    )
    t = torch.linspace(schedule.t_min, schedule.t_max, 4001, dtype=torch.float64)
    a, s = schedule.alpha(t), schedule.sigma(t)
    least = {"eps": a**2 * 4, "x0": 4 * s**2}
    least["score"] = least["eps"]
    least["v"] = (a**2 + s**2) ** 2 * 4  # v = alpha eps - sigma x0, of which x leaves one direction
    least["velocity"] = (schedule.alpha_dot(t) * s - schedule.sigma_dot(t) * a) ** 2 * 4
    expected = float(torch.trapezoid(least[prediction] / (a**2 * 4 + s**2), t)) / (schedule.t_max - schedule.t_min)
    assert loss == pytest.approx(expected, rel=0.02)


def test_importance_has_the_same_mean_and_less_spread(normal_denoiser):
    x0 = 1.5 + 2 * torch.randn(512, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), VP())
    values = {}
    for importance in (False, True):
        generator = torch.Generator().manual_seed(1)
        values[importance] = torch.stack(
            [
                score_matching_loss(
                    denoiser, x0, weighting="likelihood", importance=importance, generator=generator
                ).loss
                for _ in range(40)
            ]
        )
    expected = float(VP().log_snr(1e-3) - VP().log_snr(1.0)) / (1 - 1e-3)  # E eps^2 = 1, so the mean weight is left
    assert float(values[True].mean()) == pytest.approx(expected, rel=0.02)
    assert float(values[False].mean()) == pytest.approx(expected, rel=0.05)
    assert float(values[True].std()) < float(values[False].std())


def test_min_snr_by_hand(smooth_net):
    schedule = DiscreteSchedule.linear(1000)
    x0 = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = score_matching_loss(Denoiser(smooth_net, schedule), x0, weighting="min_snr", generator=3).loss
    noise = Noise(3, 64)
    t = draw_times(schedule, noise)
    eps = noise.normal((3,), torch.float64)
    a, s = schedule.alpha(t), schedule.sigma(t)
    error = (smooth_net(a[:, None] * x0 + s[:, None] * eps, t) - eps).square().mean(1)
    snr = (a / s) ** 2
    assert float(loss) == pytest.approx(float((error * snr.clamp(max=5) / snr).mean()))


def test_the_minimiser_is_the_same_for_both_weightings():
    """1-D normal data, the score a(t) x by least squares at a time: -1/(alpha^2 s^2 + sigma^2) for every weight."""
    schedule, generator = VP(), torch.Generator().manual_seed(0)
    x0 = 2 * torch.randn(200_000, 1, dtype=torch.float64, generator=generator)
    for time in (0.2, 0.6):
        x, eps = schedule.marginal(x0, time, generator=generator)
        slope = float((x * -eps / schedule.sigma(time)).mean() / x.square().mean())
        expected = -1 / float(4 * schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2)
        assert slope == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("n", [1, 7, 256])
def test_times_are_spread_evenly(n):
    t = draw_times(VP(), Noise(0, n))
    place = ((t - 1e-3) / 0.999 * n).floor().sort().values
    assert place.tolist() == list(range(n))
    table = draw_times(DiscreteSchedule.linear(1000), Noise(0, 1000))
    assert sorted(table.tolist()) == list(range(1000))
    assert table.tolist() != list(range(1000))


def test_gradients_reach_the_network():
    net = MLPDenoiser(2, hidden=8, blocks=1, num_classes=3)
    denoiser = Denoiser(net, VP())
    out = score_matching_loss(denoiser, torch.randn(4, 2), condition=torch.tensor([0, 1, 2, 3]), generator=0)
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    again = score_matching_loss(denoiser, torch.randn(4, 2), condition=torch.tensor([0, 1, 2, 3]), generator=1)
    assert float(again.loss.detach()) != float(out.loss.detach())


def test_conditions_are_left_out_one_by_one():
    labels = torch.arange(10_000) % 7
    kept = ConditionDropout(0.2)(labels, 7, generator=torch.Generator().manual_seed(0))
    assert float((kept == 7).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert bool((kept[kept != 7] == labels[kept != 7]).all())
    vectors = ConditionDropout(0.5)(torch.ones(1000, 4), torch.zeros(4), generator=0)
    assert set(vectors.sum(1).tolist()) == {0.0, 4.0}
    assert bool((ConditionDropout(0.0)(labels, 7, generator=0) == labels).all())
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ConditionDropout(1.5)


def test_wrong_settings_are_refused(smooth_net):
    x0 = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="one event"):
        score_matching_loss(Denoiser(smooth_net, VP()), x0[:0])
    with pytest.raises(ValueError, match="weighting"):
        score_matching_loss(Denoiser(smooth_net, VP()), x0, weighting="uniform")
    with pytest.raises(ValueError, match="importance"):
        score_matching_loss(Denoiser(smooth_net, VP()), x0, importance=True)
    with pytest.raises(NotSupported, match="continuous"):
        score_matching_loss(Denoiser(smooth_net, DiscreteSchedule.linear(5)), x0, weighting="likelihood")
    with pytest.raises(ValueError, match="finite"):
        score_matching_loss(
            Denoiser(smooth_net, FlowSchedule(), prediction="velocity"), x0, weighting="likelihood", importance=True
        )
