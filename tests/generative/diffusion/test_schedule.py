"""Continuous and discrete schedules: derivatives, inverses, limits, peers."""

import math

import pytest
import torch

from kexue.errors import NotSupported
from kexue.generative.diffusion import (
    VE,
    VP,
    CosineSchedule,
    DiscreteSchedule,
    FlowSchedule,
    FromAlphaSigma,
    QuadraticExp,
    SubVP,
    zero_terminal_snr,
)

CONTINUOUS = [
    VP(),
    VP(0.0, 5.0),
    SubVP(),
    VE(),
    QuadraticExp(),
    CosineSchedule(),
    FlowSchedule(),
    FromAlphaSigma(lambda t: (-2 * t).exp(), lambda t: t.square() + 0.1 * t),
    FromAlphaSigma((torch.ones_like, torch.zeros_like), (lambda t: t, torch.ones_like), t_max=80.0),
]
TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_derivatives_equal_autograd(schedule):
    for value, derivative in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        t = TIMES.clone().requires_grad_()
        y = value(t)
        expected = torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(TIMES), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(schedule.log_alpha(TIMES).exp(), schedule.alpha(TIMES))


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_diffusion_keeps_the_variance(schedule):
    """Of data of variance v: d(alpha^2 v + sigma^2)/dt = 2 f (alpha^2 v + sigma^2) + g^2, the forward equation's."""
    v = 1.7
    variance = schedule.alpha(TIMES) ** 2 * v + schedule.sigma(TIMES) ** 2
    rate = 2 * schedule.alpha(TIMES) * schedule.alpha_dot(TIMES) * v + 2 * schedule.sigma(TIMES) * schedule.sigma_dot(
        TIMES
    )
    g2 = schedule.diffusion_squared(TIMES)
    torch.testing.assert_close(rate, 2 * schedule.drift_coefficient(TIMES) * variance + g2, rtol=1e-9, atol=1e-9)
    assert bool((g2 > 0).all())
    torch.testing.assert_close(schedule.diffusion(TIMES) ** 2, g2)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_time_of_log_snr_is_the_inverse(schedule):
    v = schedule.log_snr(TIMES)
    assert bool((v.diff() < 0).all())
    torch.testing.assert_close(schedule.time_of_log_snr(v), TIMES, rtol=1e-9, atol=1e-9)


def test_derivatives_of_own_functions_under_every_transform():
    """In inference mode autograd would say 0."""
    schedule = FromAlphaSigma(lambda t: (-2 * t).exp(), lambda t: t.square() + 0.1 * t)
    expected = 2 * TIMES + 0.1
    with torch.inference_mode():
        torch.testing.assert_close(schedule.sigma_dot(TIMES.clone()), expected)
    with torch.no_grad():
        torch.testing.assert_close(schedule.sigma_dot(TIMES), expected)
    torch.testing.assert_close(torch.func.vmap(schedule.sigma_dot)(TIMES), expected)
    compiled = torch.compile(schedule.sigma_dot, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(TIMES), expected)
    constant = FromAlphaSigma(torch.ones_like, lambda t: t)
    assert float(constant.alpha_dot(0.5)) == 0


def test_times_of_extreme_ratios_are_finite():
    for schedule in (VP(), QuadraticExp(), SubVP()):
        assert float(schedule.time_of_log_snr(math.inf)) == pytest.approx(0, abs=1e-9)
        assert float(schedule.time_of_log_snr(2000.0)) == pytest.approx(0, abs=1e-9)


def test_closed_forms_of_score_based_models():
    """The coefficients of the three processes of Song et al.: -b/2 x, and b, b (1 - alpha^4), 2 sigma^2 log(ratio)."""
    beta = 0.1 + TIMES * 19.9
    integral = 0.1 * TIMES + 19.9 * TIMES**2 / 2
    torch.testing.assert_close(VP().drift_coefficient(TIMES), -beta / 2)
    torch.testing.assert_close(VP().diffusion_squared(TIMES), beta)
    torch.testing.assert_close(VP().sigma(TIMES) ** 2, 1 - (-integral).exp())
    torch.testing.assert_close(SubVP().diffusion_squared(TIMES), beta * (1 - (-2 * integral).exp()))
    torch.testing.assert_close(SubVP().sigma(TIMES), 1 - (-integral).exp())
    sigma = 0.01 * 5000**TIMES
    torch.testing.assert_close(VE().sigma(TIMES), sigma)
    torch.testing.assert_close(VE().diffusion_squared(TIMES), 2 * sigma**2 * math.log(5000))
    torch.testing.assert_close(QuadraticExp().log_alpha(TIMES), -5 * TIMES**2)


def test_near_time_0_no_digits_are_lost():
    t = 1e-6
    exact = math.sqrt(-math.expm1(-2 * (0.25 * t * t * 19.9 + 0.05 * t)))
    assert float(VP().sigma(t)) == pytest.approx(exact, rel=1e-12)


def test_marginal_is_the_formula_and_item_by_item():
    x0 = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.1, 0.9, 6)
    x, eps = VP().marginal(x0, t, generator=3)
    alpha, sigma = VP().alpha(t).float()[:, None, None], VP().sigma(t).float()[:, None, None]
    torch.testing.assert_close(x, alpha * x0 + sigma * eps)
    assert x.dtype == x0.dtype
    again, _ = VP().marginal(x0[:2], t[:2], generator=3)
    assert bool((again == x[:2]).all())
    assert VP().marginal(x0, 0.5, generator=0)[0].shape == x0.shape


def test_an_event_of_the_prior_is_the_same_in_a_batch_of_any_size():
    prior = VP().prior
    whole = prior.sample((40, 3), generator=0, dtype=torch.float64)
    assert torch.equal(prior.sample((5, 3), generator=0, dtype=torch.float64), whole[:5])
    assert whole.dtype == torch.float64


def test_prior_is_normal():
    prior = VE().prior
    x = prior.sample((20_000, 2), generator=0)
    assert float(x.std()) == pytest.approx(50, rel=0.02)
    expected = torch.distributions.Normal(0.0, 50.0).log_prob(x[:5]).sum(1)
    torch.testing.assert_close(prior.log_prob(x[:5]), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(1.0, 0.5),
        lambda: VP(-1.0, 2.0),
        lambda: VE(0.0, 1.0),
        lambda: VE(1.0, 0.1),
        lambda: FromAlphaSigma(torch.ones_like, lambda t: 1 - t),
        lambda: FromAlphaSigma(torch.ones_like, torch.zeros_like),
        lambda: FromAlphaSigma(torch.ones_like, lambda t: t, t_min=1.0, t_max=0.5),
    ],
)
def test_wrong_continuous_schedules_are_refused(make):
    with pytest.raises(ValueError, match=r"expected|must"):
        make()


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_discrete_schedules_equal_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    for name, schedule in (
        ("linear", DiscreteSchedule.linear(1000)),
        ("squaredcos_cap_v2", DiscreteSchedule.cosine(1000)),
    ):
        peer = diffusers.DDIMScheduler(1000, beta_schedule=name)
        torch.testing.assert_close(schedule.alphas_cumprod.float(), peer.alphas_cumprod, rtol=2e-5, atol=1e-7)
    peer = diffusers.DDIMScheduler(1000, rescale_betas_zero_snr=True)
    ours = zero_terminal_snr(DiscreteSchedule.linear())
    torch.testing.assert_close(ours.alphas_cumprod.float(), peer.alphas_cumprod, rtol=2e-3, atol=1e-6)


def test_discrete_schedules_agree_with_one_another():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = DiscreteSchedule.from_betas(betas)
    torch.testing.assert_close(schedule.alphas_cumprod, (1 - betas).cumprod(0))
    again = DiscreteSchedule.from_alphas_cumprod(schedule.alphas_cumprod)
    index = torch.tensor([-1, 0, 500, 999])
    torch.testing.assert_close(schedule.alpha(index), again.alpha(index))
    torch.testing.assert_close(schedule.alpha(index) ** 2 + schedule.sigma(index) ** 2, torch.ones(4).double())
    assert schedule.alpha(-1) == 1
    assert schedule.sigma(-1) == 0
    assert math.copysign(1, schedule.sigma(-1)) == 1
    torch.testing.assert_close(torch.func.vmap(schedule.sigma)(index), schedule.sigma(index))
    inside = torch.tensor([3, 700])
    assert schedule.time_of_log_snr(schedule.log_snr(inside)).tolist() == [3, 700]


def test_zero_terminal_snr_keeps_the_first_alpha():
    before, after = DiscreteSchedule.cosine(100), zero_terminal_snr(DiscreteSchedule.cosine(100))
    assert float(after.alpha(99)) == 0
    assert float(after.sigma(99)) == 1
    assert float(after.alpha(0)) == pytest.approx(float(before.alpha(0)), rel=1e-12)


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.5], [0.1, math.nan], []])
def test_wrong_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"betas|expected"):
        DiscreteSchedule.from_betas(betas)


def test_wrong_tables_and_times_are_refused():
    with pytest.raises(ValueError, match="fall"):
        DiscreteSchedule.from_alphas_cumprod([0.5, 0.6])
    with pytest.raises(ValueError, match="num_steps"):
        DiscreteSchedule.linear(0)
    schedule = DiscreteSchedule.linear(10)
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(schedule.alpha(torch.tensor([1, 0, 1], dtype=kind)), schedule.alpha(torch.tensor([1, 0, 1])))
    assert DiscreteSchedule.linear(1000).alpha(torch.tensor([200], dtype=torch.uint8)).shape == (1,)
    for t in (True, torch.tensor([True, False])):
        with pytest.raises(TypeError, match="integers"):
            schedule.alpha(t)
    with pytest.raises(TypeError, match="floats"):
        schedule.marginal(torch.zeros(2, 3, dtype=torch.long), 3)
    with pytest.raises(ValueError, match=r"\[-1, 9\]"):
        schedule.alpha(10)
    with pytest.raises(TypeError, match="integers"):
        schedule.alpha(0.5)
    with pytest.raises(NotSupported, match="continuous"):
        schedule.drift(torch.zeros(1, 1), 3)
    with pytest.raises(ValueError, match="two times"):
        zero_terminal_snr(DiscreteSchedule.linear(1))
