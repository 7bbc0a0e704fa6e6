"""Guidance on normal data, where everything is known."""

import pytest
import torch

from kexue.generative import GaussianMixture, MLPDenoiser
from kexue.generative.diffusion import (
    VP,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Denoiser,
    DiscreteSchedule,
    FlowSchedule,
    MixtureDenoiser,
    SimilarityGuidance,
    cosine_similarity_score,
    ddim_step,
    ddpm_step,
    flow_ode,
    gram_score,
    make_grid,
    solve,
    zero_terminal_snr,
)
from kexue.generative.diffusion.divergence import value_and_divergence

T = torch.tensor(0.4, dtype=torch.float64)
X = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class TwoClasses:
    """Exact denoiser of classes: class 0 is N(1, 1), no class (1) is N(0, 2)."""

    def __init__(self, schedule=None):
        self.schedule = schedule or VP()
        self.calls = 0
        mixtures = [GaussianMixture(torch.tensor([[m]]).double(), s) for m, s in ((1.0, 1.0), (0.0, 2**0.5))]
        self._each = [MixtureDenoiser(mixture, self.schedule) for mixture in mixtures]

    def predict(self, x, t, *, condition=None):
        self.calls += 1
        told = [one.predict(x, t) for one in self._each]
        free = torch.ones(len(x), dtype=torch.long) if condition is None else condition
        pick = lambda name: torch.where(free[:, None] == 0, getattr(told[0], name), getattr(told[1], name))  # noqa: E731
        return type(told[0])(pick("x0"), pick("eps"), self.schedule, torch.as_tensor(t))


def test_classifier_gives_the_conditional_score(normal_denoiser):
    """N(0, 4) and p(y | x_t) of a noisy observation of x_0: the sum is the exact score of the posterior."""
    schedule = VP()
    joint = normal_denoiser(schedule, 0.0, 2.0)
    posterior = normal_denoiser(schedule, 0.8, 0.8**0.5 * 1.0)  # of y = 1, observed with variance 1: mean 4/5, var 4/5

    def log_prob(x, t):
        told = joint.predict(x, t)  # p(y | x_t) = N(y; E x0, Var x0 + 1)
        a, s = schedule.alpha(t), schedule.sigma(t)
        return torch.distributions.Normal(told.x0, (4 * s**2 / (4 * a**2 + s**2) + 1).sqrt()).log_prob(
            torch.tensor(1.0)
        )[:, 0]

    guided = ClassifierGuidance(joint, log_prob, 1.0)
    torch.testing.assert_close(guided.predict(X, T).score, posterior.predict(X, T).score)
    told = guided.predict(X, T)
    torch.testing.assert_close(schedule.alpha(T) * told.x0 + schedule.sigma(T) * told.eps, X)
    free = ClassifierGuidance(joint, log_prob, 0.0).predict(X, T)
    torch.testing.assert_close(free.eps, joint.predict(X, T).eps)


def test_mean_form_shifts_the_mean_by_the_variance_of_the_step(normal_denoiser):
    table = DiscreteSchedule.linear(1000)
    denoiser, t, s = normal_denoiser(table), torch.tensor(600), torch.tensor(500)
    slope = lambda x, t: 3 * x[:, 0]  # noqa: E731 - its gradient is 3
    plain = ddpm_step(denoiser, X, t, s).x
    guided = ddpm_step(ClassifierGuidance(denoiser, slope, 2.0, form="mean"), X, t, s).x
    forward = table.sigma(t) ** 2 - (table.alpha(t) / table.alpha(s) * table.sigma(s)) ** 2
    variance = forward * table.sigma(s) ** 2 / table.sigma(t) ** 2
    torch.testing.assert_close(guided - plain, (6 * variance).expand_as(plain))
    by_hand = {"posterior": variance, "forward": forward}
    for noise, expected in by_hand.items():  # the shift is by the variance of the noise that the step adds
        for step, options in ((ddpm_step, {}), (ddim_step, {"eta": 1.0})):
            both = [
                step(one, X, t, s, noise=noise, **options).x
                for one in (ClassifierGuidance(denoiser, slope, 2.0, form="mean"), denoiser)
            ]
            torch.testing.assert_close(both[0] - both[1], (6 * expected).expand_as(plain))
    for solver in ("heun", "ddim"):  # ddim adds no noise unless eta says so
        with pytest.raises(ValueError, match="form 'mean'"):
            solve(ClassifierGuidance(denoiser, slope, 1.0, form="mean"), X, [600, 500, -1], solver=solver)


def test_mean_form_with_a_learned_variance():
    table, t, s = DiscreteSchedule.linear(1000), torch.tensor(600), torch.tensor(500)
    denoiser = Denoiser(lambda x, t: torch.cat([x, 0.3 * torch.ones_like(x)], 1), table, learned_variance=True)
    plain = ddpm_step(denoiser, X, t, s).x
    guided = ddpm_step(ClassifierGuidance(denoiser, lambda x, t: 3 * x[:, 0], 2.0, form="mean"), X, t, s).x
    forward = table.sigma(t) ** 2 - (table.alpha(t) / table.alpha(s) * table.sigma(s)) ** 2
    posterior = forward * table.sigma(s) ** 2 / table.sigma(t) ** 2
    torch.testing.assert_close(guided - plain, (6 * forward**0.65 * posterior**0.35).expand_as(plain))


def test_forms_agree_as_steps_shrink(normal_denoiser):
    """alpha^2 from 0.7 to 0.4: the score form shifts by .5669, the mean form by .2143, of gamma times the gradient."""
    table = DiscreteSchedule.from_alphas_cumprod([0.7, 0.4])
    denoiser = normal_denoiser(table)
    one = lambda x, t: x[:, 0]  # noqa: E731
    t, s = torch.tensor(1), torch.tensor(0)
    plain = ddpm_step(denoiser, X, t, s).x
    for form, shift in (("score", 0.5669), ("mean", 0.2143)):
        moved = ddpm_step(ClassifierGuidance(denoiser, one, 1.0, form=form), X, t, s).x - plain
        assert moved[:, 0].tolist() == pytest.approx([shift] * 5, abs=1e-4)


def test_gradient_through_the_denoiser_or_not(normal_denoiser):
    """x0 is linear in x_t with slope k: the exact gradient has k, the cheap one 1/alpha."""
    denoiser = normal_denoiser(VP(), 0.0, 2.0)
    one = lambda x: x[:, 0]  # noqa: E731
    a, s = VP().alpha(T), VP().sigma(T)
    slope = a * 4 / (a**2 * 4 + s**2)
    plain = denoiser.predict(X, T).score
    for through, gradient in (("denoiser", slope), ("stopgrad", 1 / a)):
        guided = SimilarityGuidance(denoiser, one, 2.0, on="denoised", through=through).predict(X, T)
        torch.testing.assert_close(guided.score - plain, (2 * gradient).expand_as(plain))
    with torch.no_grad():
        SimilarityGuidance(denoiser, one, 2.0, on="denoised").predict(X, T)
    with torch.inference_mode():
        SimilarityGuidance(denoiser, one, 2.0).predict(X, T)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 3.5])
def test_free_guidance_is_the_line_through_both_noises(scale):
    denoiser = TwoClasses()
    condition = torch.zeros(5, dtype=torch.long)
    told = ClassifierFreeGuidance(denoiser, scale, null=1).predict(X, T, condition=condition)
    with_, without = denoiser.predict(X, T, condition=condition), denoiser.predict(X, T)
    w = scale - 1
    torch.testing.assert_close(told.eps, (1 + w) * with_.eps - w * without.eps)
    torch.testing.assert_close(VP().alpha(T) * told.x0 + VP().sigma(T) * told.eps, X)


def test_free_guidance_samples_the_geometric_mean():
    """V_c = 1, V_u = 2, scale 2: variance V_c^2 / V_u = 1/2, not the 2/3 of the sharpened density; mean 1.614."""
    denoiser = ClassifierFreeGuidance(TwoClasses(), 2.0, null=1)
    z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    out = solve(
        denoiser, z, make_grid(VP(), 400, kind="lambda"), solver="dpmpp_2m", condition=torch.zeros(3, dtype=torch.long)
    )
    assert float(out[2] - out[0]) / 2 == pytest.approx(0.5**0.5, rel=0.02)
    assert float(out[1]) == pytest.approx(1.614, rel=0.02)


def test_one_call_of_twice_the_batch_and_none_where_it_is_off():
    denoiser = TwoClasses()
    condition = torch.zeros(5, dtype=torch.long)
    ClassifierFreeGuidance(denoiser, 2.0, null=1).predict(X, T, condition=condition)
    assert denoiser.calls == 1
    guided = ClassifierFreeGuidance(denoiser, 2.0, null=1, interval=(0.5, 0.8))
    torch.testing.assert_close(
        guided.predict(X, T, condition=condition).eps, denoiser.predict(X, T, condition=condition).eps
    )
    inside = guided.predict(X, torch.tensor(0.6).double(), condition=condition).eps
    assert not torch.allclose(inside, denoiser.predict(X, torch.tensor(0.6).double(), condition=condition).eps)
    times = torch.tensor([0.1, 0.6, 0.9, 0.55, 0.2], dtype=torch.float64)
    mixed = guided.predict(X, times, condition=condition).eps
    plain = denoiser.predict(X, times, condition=condition).eps
    assert (mixed != plain)[:, 0].tolist() == [False, True, False, True, False]


def test_scales_of_each_event_and_of_time():
    denoiser, condition = TwoClasses(), torch.zeros(5, dtype=torch.long)
    each = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).double()
    together = ClassifierFreeGuidance(denoiser, each, null=1).predict(X, T, condition=condition).eps
    for i in range(5):
        alone = ClassifierFreeGuidance(denoiser, float(each[i]), null=1).predict(
            X[i : i + 1], T, condition=condition[:1]
        )
        torch.testing.assert_close(together[i : i + 1], alone.eps)
    timed = ClassifierFreeGuidance(denoiser, lambda t: 1 + t, null=1).predict(X, T, condition=condition).eps
    torch.testing.assert_close(
        timed, ClassifierFreeGuidance(denoiser, 1.4, null=1).predict(X, T, condition=condition).eps
    )
    with pytest.raises(ValueError, match="scale"):
        ClassifierFreeGuidance(denoiser, each[:3], null=1).predict(X, T, condition=condition)


def test_rescaled_noise_has_the_spread_of_the_conditional_one(smooth_net):
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def net(x, t, class_labels):
        return smooth_net(x, t) * (1 + class_labels[:, None])

    denoiser, labels = Denoiser(net, VP()), torch.tensor([3, 2, 3, 2])
    told = ClassifierFreeGuidance(denoiser, 4.0, null=0, rescale=1.0).predict(x, T, condition=labels)
    conditional = denoiser.predict(x, T, condition=labels)
    torch.testing.assert_close(told.eps.std(1), conditional.eps.std(1))
    torch.testing.assert_close(VP().alpha(T) * told.x0 + VP().sigma(T) * told.eps, x)


def test_the_networks_class_for_no_condition():
    denoiser = Denoiser(MLPDenoiser(2, num_classes=7), VP())
    assert ClassifierFreeGuidance(denoiser, 2.0).null == 7
    with pytest.raises(ValueError, match="num_classes"):
        ClassifierFreeGuidance(Denoiser(MLPDenoiser(2), VP()), 2.0)
    with pytest.raises(ValueError, match="needs a condition"):
        ClassifierFreeGuidance(denoiser, 2.0).predict(torch.zeros(1, 2), T)


def test_scores_of_similarity():
    target = torch.tensor([1.0, 0.0])
    score = cosine_similarity_score(lambda x: x, target)
    torch.testing.assert_close(
        score(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])), torch.tensor([1.0, 0.0, -1.0])
    )
    picture = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    style = gram_score(picture)
    assert float(style(picture[None])) == 0
    moved = picture.flip(2)[None]  # the products do not know places
    assert float(style(moved)) == pytest.approx(0, abs=1e-10)
    assert float(style(2 * picture[None])) < -1


def test_wrong_settings_are_refused(normal_denoiser):
    denoiser = normal_denoiser(VP())
    one = lambda x: x[:, 0]  # noqa: E731
    for make, words in (
        (lambda: SimilarityGuidance(denoiser, one, 1.0, on="clean"), "on must"),
        (lambda: SimilarityGuidance(denoiser, one, 1.0, through="all"), "through must"),
        (lambda: ClassifierGuidance(denoiser, one, 1.0, form="eps"), "form must"),
        (lambda: ClassifierFreeGuidance(denoiser, 1.0, null=0, rescale=2.0), "rescale"),
        (lambda: ClassifierFreeGuidance(denoiser, 1.0, null=0, interval=(0.5, 0.1)), "interval"),
        (lambda: SimilarityGuidance(denoiser, lambda x: x, 1.0).predict(X, T), r"\(5,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_guided_samples_go_through_every_solver():
    schedule = FlowSchedule()
    guided = ClassifierFreeGuidance(TwoClasses(VP()), 1.5, null=1)
    for solver in ("ddim", "heun", "dpmpp_2m", "euler_maruyama"):
        out = solve(
            guided, X, make_grid(VP(), 5), solver=solver, condition=torch.zeros(5, dtype=torch.long), generator=0
        )
        assert bool(out.isfinite().all())
    assert schedule.t_min == 0


def test_likelihood_knows_how_guidance_changes_with_the_events(normal_denoiser):
    """Data N(0, I) and the score -k x^2/2: the velocity is linear, with divergence (1 + k) d g^2/2 less the drift."""
    base, k = normal_denoiser(VP(), 0.0, 1.0, 2), 3.0
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g2, f = VP().diffusion_squared(T), VP().drift_coefficient(T)
    for on, slope in (("noisy", k), ("denoised", k * VP().alpha(T) ** 2)):  # x0 = alpha x of this data
        guided = SimilarityGuidance(base, lambda y: -k / 2 * y.square().sum(1), 1.0, on=on)
        rhs = flow_ode(guided)
        expected = 2 * (f + g2 / 2 * (1 + slope))
        got = value_and_divergence(lambda y, rhs=rhs: rhs(T, y), x)[1][:, 0]
        torch.testing.assert_close(got, expected.expand(4))


def test_rescaling_of_one_value_changes_nothing():
    """One value has no spread, which is no reason for NaN."""
    condition = torch.zeros(5, dtype=torch.long)
    plain, rescaled = (
        ClassifierFreeGuidance(TwoClasses(), 3.0, null=1, rescale=share).predict(X, T, condition=condition)
        for share in (0.0, 0.7)
    )
    torch.testing.assert_close(rescaled.eps, plain.eps)
    torch.testing.assert_close(rescaled.x0, plain.x0)


def test_rescaling_where_there_is_no_signal(smooth_net):
    """At alpha = 0 the noise is x whatever the guidance, and the data come from the predictions of v."""
    table = zero_terminal_snr(DiscreteSchedule.linear(10))
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(lambda x, t, class_labels: smooth_net(x, t) * class_labels[:, None], table, prediction="v")
    labels = torch.tensor([1, 2, 3, 1])
    told = ClassifierFreeGuidance(denoiser, 2.0, null=0, rescale=0.7).predict(x, torch.tensor(9), condition=labels)
    torch.testing.assert_close(told.eps, x)
    torch.testing.assert_close(told.x0, -2 * smooth_net(x, torch.tensor(9)) * labels[:, None])
    for through in ("denoiser", "stopgrad"):
        tilted = SimilarityGuidance(
            Denoiser(smooth_net, table, prediction="v"), lambda y: y.sum(1), 1.0, on="denoised", through=through
        )
        with pytest.raises(ValueError, match="alpha is 0"):
            tilted.predict(x, torch.tensor(9))


def test_times_and_scores_of_another_number_are_refused(normal_denoiser):
    for through in ("denoiser", "stopgrad"):
        guided = SimilarityGuidance(normal_denoiser(VP()), lambda y: y, 1.0, on="denoised", through=through)
        with pytest.raises(ValueError, match=r"\(5,\)"):
            guided.predict(X, T)
    with pytest.raises(TypeError, match="int"):
        ClassifierFreeGuidance(TwoClasses(), 2.0, null=1).predict(X, T, condition=3)
    one_time = ClassifierFreeGuidance(TwoClasses(), 2.0, null=1).predict(
        X, T[None], condition=torch.zeros(5, dtype=torch.long)
    )
    assert one_time.eps.shape == X.shape


def test_scores_without_a_gradient_are_refused(normal_denoiser):
    for score in (lambda x: x.detach().sum(1), lambda x: torch.zeros(len(x))):
        with pytest.raises(ValueError, match="without gradient"):
            SimilarityGuidance(normal_denoiser(VP()), score, 1.0).predict(torch.zeros(2, 1), 0.5)
