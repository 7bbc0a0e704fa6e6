"""Steps and the sampling loop: closed forms, orders, identities, peers."""

import inspect
import itertools
import math

import pytest
import torch

from kexue.errors import KexueError, NotSupported
from kexue.generative import eight_gaussians
from kexue.generative.diffusion import (
    VE,
    VP,
    CosineSchedule,
    Denoiser,
    DiscreteSchedule,
    FlowSchedule,
    FromAlphaSigma,
    MixtureDenoiser,
    Step,
    ddim_encode,
    ddim_step,
    ddpm_step,
    dpm1_step,
    dpmpp_2m_step,
    make_grid,
    predictor_corrector_step,
    solve,
    zero_terminal_snr,
)
from kexue.generative.diffusion.solver import SOLVERS

TABLE = DiscreteSchedule.linear(1000)
X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
NEED_DERIVATIVES = ("rk4", "midpoint", "euler_maruyama")
WITH_NOISE = [
    ("ddim", {"eta": 0.7}),
    ("ddim", {"noise": "forward"}),
    ("ddpm", {}),
    ("ancestral", {}),
    ("euler_maruyama", {}),
    ("predictor_corrector", {}),
    ("predictor_corrector", {"n_corrector": 2}),
    ("predictor_corrector", {"first": "corrector"}),
]
ON_SCHEDULES = [  # solvers that need no derivatives go with a table, too
    pytest.param(schedule, solver, id=f"{kind}-{solver}")
    for kind, schedule in (("table", TABLE), ("continuous", VP()))
    for solver in SOLVERS
    if not (schedule.discrete and solver in NEED_DERIVATIVES)
]


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "order", "options"),
    [
        ("euler", 1, {}),
        ("ddim", 1, {}),
        ("dpm1", 1, {}),
        ("heun", 2, {}),
        ("midpoint", 2, {}),
        ("ab", 2, {}),
        ("dpmpp_2m", 2, {}),
        ("ab", 3, {"order": 3}),
        ("ab", 4, {"order": 4}),
        ("rk4", 4, {}),
    ],
)
def test_order_on_normal_data(solver, order, options, normal_denoiser):
    """Halving the step divides the error by 2^order, on data N(1.5, 4) whose flow is known."""
    denoiser = normal_denoiser(CosineSchedule())
    start = torch.tensor([[0.8]], dtype=torch.float64)
    ends = torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    (a, b), (u, v) = ([f(t) for t in ends] for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    ratio = ((4 * b**2 + v**2) / (4 * a**2 + u**2)).sqrt()
    expected, errors = b * 1.5 + ratio * (start - a * 1.5), []
    for steps in (80, 160, 320):
        grid = torch.linspace(*[float(t) for t in ends], steps + 1, dtype=torch.float64)
        errors.append(float((solve(denoiser, start, grid, solver=solver, **options) - expected).abs()))
    for before, after in itertools.pairwise(errors):
        assert math.log2(before / after) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    "schedule", [VP(), VE(), CosineSchedule(), FlowSchedule(), TABLE], ids=lambda s: type(s).__name__
)
def test_dpm1_is_ddim(schedule, smooth_net):
    denoiser = Denoiser(smooth_net, schedule)
    grid = make_grid(schedule, 10, kind="lambda") if not schedule.discrete else make_grid(schedule, 10)
    grid = grid if not isinstance(schedule, FlowSchedule) else torch.linspace(0.98, 0, 11, dtype=torch.float64)
    x, y = X * 3, X * 3
    for t, s in itertools.pairwise(grid):
        x, y = ddim_step(denoiser, x, t, s).x, dpm1_step(denoiser, y, t, s).x
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_euler_on_a_table_is_ddim(smooth_net):
    denoiser, grid = Denoiser(smooth_net, TABLE), make_grid(TABLE, 7)
    torch.testing.assert_close(
        solve(denoiser, X, grid, solver="euler"), solve(denoiser, X, grid), rtol=1e-12, atol=1e-12
    )


def test_variance_of_ddim_with_ten_steps_of_angle():
    """Data N(0, 1), N steps of the angle: each multiplies x by cos(pi/2N), so the variance is cos(pi/2N)^2N."""
    angle = FromAlphaSigma(lambda t: (t * math.pi / 2).cos(), lambda t: (t * math.pi / 2).sin(), t_min=0.0)
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), angle, prediction="v")  # v = 0 is exact for N(0, 1)
    x = torch.ones(1, 1, dtype=torch.float64)
    for steps in (5, 10, 40):
        out = solve(denoiser, x, torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        assert float(out) ** 2 == pytest.approx(math.cos(math.pi / 2 / steps) ** (2 * steps), rel=1e-9)
    assert math.cos(math.pi / 20) ** 20 == pytest.approx(0.7805, abs=5e-5)


@pytest.mark.parametrize(
    ("eta", "steps", "expected"), [(0.0, 10, 2.958), (1.0, 10, 2.3893), (0.0, 1000, 3.9874), (1.0, 1000, 3.9748)]
)
def test_variance_of_ddim_on_a_table(eta, steps, expected, normal_denoiser):
    """Data N(0, 4) on DDPM's table: few steps shrink the variance, and noise shrinks it more."""
    denoiser, grid = normal_denoiser(TABLE, 0.0), make_grid(TABLE, steps, kind="leading")
    one, zero, variance = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), 1.0
    for t, s in itertools.pairwise(grid):
        slope = float(ddim_step(denoiser, one, t, s, eta=eta).x)
        noise = float(ddim_step(denoiser, zero, t, s, z=one, eta=eta).x)
        variance = slope**2 * variance + noise**2
    assert variance == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("steps", "expected"), [(50, 4.0646), (100, 4.0322), (1000, 4.0029)])
def test_euler_maruyama_reaches_the_variance(steps, expected, normal_denoiser):
    """Data N(0, 4), noise in the last step too: above 4, the closer the more steps."""
    denoiser, step, variance = normal_denoiser(VP(), 0.0), SOLVERS["euler_maruyama"].step, 1.0
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for t, s in itertools.pairwise(make_grid(VP(), steps)):
        slope, noise = float(step(denoiser, one, t, s).x), float(step(denoiser, zero, t, s, z=one).x)
        variance = slope**2 * variance + noise**2
    assert variance == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("solver", "options"), WITH_NOISE)
def test_solvers_with_noise_reach_mean_and_variance(solver, options, normal_denoiser):
    denoiser = normal_denoiser(VP(), dim=64)  # lengths of score and noise, as the corrector takes, are sure then
    x = VP().prior.sample((100, 64), generator=0).double()
    steps = 200 if options.get("noise") != "forward" else 400
    out = solve(
        denoiser, x, make_grid(VP(), steps), solver=solver, generator=torch.Generator().manual_seed(1), **options
    )
    assert float(out.mean()) == pytest.approx(1.5, abs=0.15)
    assert float(out.std()) == pytest.approx(2.0, rel=0.08)


@pytest.mark.parametrize("norm", ["sample", "batch", "noise"])
def test_corrector_by_hand(norm, normal_denoiser):
    """x + e score + sqrt(2 e) z with e = 2 (alpha_t/alpha_s)^2 (snr r)^2, r = |z|/|score|, of means, or sigma_s.

    The r of each event is no more than 2 sigma_s.
    """
    denoiser, t, s = normal_denoiser(TABLE, dim=3), torch.tensor(500), torch.tensor(499)
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = predictor_corrector_step(denoiser, X, t, s, z=z, snr=0.1, norm=norm)
    before = SOLVERS["ancestral"].step(denoiser, X, t, s, z=z[0]).x
    score = denoiser.predict(before, s).score
    lengths = z[1].norm(dim=1, keepdim=True), score.norm(dim=1, keepdim=True)
    length = {
        "sample": torch.minimum(lengths[0] / lengths[1], 2 * TABLE.sigma(s)),
        "batch": lengths[0].mean() / lengths[1].mean(),
        "noise": TABLE.sigma(s),
    }[norm]
    e = 2 * (TABLE.alpha(t) / TABLE.alpha(s) * 0.1 * length) ** 2
    torch.testing.assert_close(step.x, before + e * score + (2 * e).sqrt() * z[1])


def test_corrector_first_as_in_score_sde(normal_denoiser):
    """Its loop corrects at time t, with alpha = 1 - beta_t and means of lengths, and predicts from there."""
    denoiser, t, s = normal_denoiser(TABLE, dim=3), torch.tensor(500), torch.tensor(499)
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = predictor_corrector_step(denoiser, X, t, s, z=z, snr=0.1, norm="batch", first="corrector")
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[500]
    score = denoiser.predict(X, t).score
    e = (0.1 * z[1].norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2 * 2 * (1 - beta)
    x = X + e * score + (2 * e).sqrt() * z[1]
    expected = (x + beta * denoiser.predict(x, t).score) / (1 - beta).sqrt() + beta.sqrt() * z[0]
    torch.testing.assert_close(step.x, expected)


@pytest.mark.parametrize(
    ("options", "nats"), [({"norm": "noise"}, 0.3), ({"norm": "noise", "first": "corrector"}, 0.3), ({}, 0.6)]
)
def test_corrector_stays_with_the_data_in_two_dimensions(options, nats):
    """Scores vanish in the middle of each Gaussian: a step by the length of one score would be without limit."""
    ring = eight_gaussians()
    x = VP().prior.sample((500, 2), generator=0)
    made = solve(
        MixtureDenoiser(ring, VP()), x, make_grid(VP(), 50), solver="predictor_corrector",
        generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip
    assert float(made.norm(dim=1).max()) < 3.2
    data = ring.log_prob(ring.sample(500, generator=1)).mean()
    assert float(ring.log_prob(made).mean()) == pytest.approx(float(data), abs=nats)


def test_ancestral_equals_the_formulas_of_score_based_models(smooth_net):
    denoiser, t, s = Denoiser(smooth_net, TABLE), torch.tensor(700), torch.tensor(699)
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    beta = 1 - (TABLE.alpha(t) / TABLE.alpha(s)) ** 2
    score = denoiser.predict(X, t).score
    expected = (X + beta * score) / (1 - beta).sqrt() + beta.sqrt() * z
    torch.testing.assert_close(SOLVERS["ancestral"].step(denoiser, X, t, s, z=z).x, expected)
    ve, t, s = VE(), torch.tensor(0.5).double(), torch.tensor(0.49).double()
    denoiser = Denoiser(smooth_net, ve)
    gap = ve.sigma(t) ** 2 - ve.sigma(s) ** 2
    std = (ve.sigma(s) ** 2 * gap / ve.sigma(t) ** 2).sqrt()
    expected = X + gap * denoiser.predict(X, t).score + std * z
    torch.testing.assert_close(SOLVERS["ancestral"].step(denoiser, X, t, s, z=z).x, expected)


# ---- peers -----------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.mark.parametrize("kind", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [5, 50])
def test_ddim_equals_diffusers(diffusers, kind, eta, steps, smooth_net):
    peer = diffusers.DDIMScheduler(1000, clip_sample=False, timestep_spacing=kind)
    peer.alphas_cumprod = TABLE.alphas_cumprod
    peer.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    peer.set_timesteps(steps)
    net, x, y = smooth_net, X, X
    grid = make_grid(TABLE, steps, kind=kind)
    for t, s in itertools.pairwise(grid):
        z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(int(t)))
        x = ddim_step(Denoiser(net, TABLE), x, t, s, z=z, eta=eta).x
        y = peer.step(net(y, t), t, y, eta=eta, variance_noise=z if eta else None).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_ddim_differs_from_diffusers_on_its_linspace(diffusers, smooth_net):
    """Its step takes t - T // S as next time, which is not the next one of that grid."""
    peer = diffusers.DDIMScheduler(1000, clip_sample=False, timestep_spacing="linspace")
    peer.set_timesteps(7)
    net, x, y = smooth_net, X, X
    grid = make_grid(TABLE, 7, kind="linspace")
    assert grid[:-1].tolist() == peer.timesteps.tolist()
    for t, s in itertools.pairwise(grid):
        x = ddim_step(Denoiser(net, TABLE), x, t, s).x
        y = peer.step(net(y, t), t, y).prev_sample
    assert float((x - y).abs().max()) > 1e-4


@pytest.mark.parametrize("clip", [None, "static"])
@pytest.mark.parametrize(("variance", "noise"), [("fixed_small", "posterior"), ("fixed_large", "forward")])
def test_ddpm_equals_diffusers(diffusers, variance, noise, clip, smooth_net):
    peer = diffusers.DDPMScheduler(1000, clip_sample=clip is not None, variance_type=variance)
    peer.alphas_cumprod, peer.betas = TABLE.alphas_cumprod, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    peer.alphas, peer.one = 1 - peer.betas, torch.ones((), dtype=torch.float64)
    peer.set_timesteps(20)
    net, x, y = smooth_net, X, X
    grid = make_grid(TABLE, 20, kind="leading")
    for t, s in itertools.pairwise(grid[:-1]):
        generator = torch.Generator().manual_seed(int(t))
        y = peer.step(net(y, t), t, y, generator=generator).prev_sample
        z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(int(t)))
        x = ddpm_step(Denoiser(net, TABLE), x, t, s, z=z, noise=noise, clip=clip).x
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_learned_variance_equals_diffusers(diffusers, smooth_net):
    peer = diffusers.DDPMScheduler(1000, clip_sample=False, variance_type="learned_range")
    peer.alphas_cumprod, peer.betas = TABLE.alphas_cumprod, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    peer.alphas, peer.one = 1 - peer.betas, torch.ones((), dtype=torch.float64)
    peer.set_timesteps(1000)
    net = smooth_net
    both = lambda x, t: torch.cat([net(x, t), net(-x, t)], 1)  # noqa: E731
    for t in (torch.tensor(700), torch.tensor(3)):
        expected = peer.step(both(X, t), t, X, generator=torch.Generator().manual_seed(5)).prev_sample
        z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        step = ddpm_step(Denoiser(both, TABLE, learned_variance=True), X, t, t - 1, z=z)
        torch.testing.assert_close(step.x, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_ode_steps_equal_diffusers(diffusers, name, smooth_net):
    """Its solvers work with x/alpha and sigma/alpha; ours reach the same, scaled by alpha, which is 1 at the end."""
    cls = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}[name]
    peer = cls(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing")
    peer.set_timesteps(10)
    net, grid = smooth_net, make_grid(TABLE, 10, kind="trailing")
    ratio = (TABLE.sigma(grid) / TABLE.alpha(grid)).double()
    first = TABLE.alpha(grid[0])
    start = X.clone()
    x = solve(Denoiser(net, TABLE), start, grid, solver=name)
    y = start / first
    at = grid[0]
    times, sigmas = peer.timesteps, peer.sigmas.double()
    if name == "euler":
        for i, t in enumerate(times):
            scaled = y / (1 + ratio[i] ** 2).sqrt()
            eps = net(scaled, t.long())
            y = y + (ratio[i + 1] - ratio[i]) * eps
            peer_y = peer.step(eps, t, (y - (ratio[i + 1] - ratio[i]) * eps)).prev_sample
            torch.testing.assert_close(peer_y.double(), y, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    else:
        z = y
        for t in times:
            sigma = sigmas[peer.step_index if peer.step_index is not None else 0]
            eps = net(z / (1 + sigma**2).sqrt(), t.long())
            z = peer.step(eps, t, z).prev_sample
        torch.testing.assert_close(x, z.double(), rtol=5e-5, atol=5e-5)
    assert int(at) == 999


def test_dpmpp_2m_equals_diffusers(diffusers, smooth_net):
    peer = diffusers.DPMSolverMultistepScheduler(
        1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", final_sigmas_type="zero", lower_order_final=True
    )
    grid = make_grid(TABLE, 20, kind="trailing")
    peer.set_timesteps(timesteps=grid[:-1].tolist())
    net, x, y, state = smooth_net, X, X, None
    for t, s in itertools.pairwise(grid):
        step = dpmpp_2m_step(Denoiser(net, TABLE), x, t, s, state=state)
        y = peer.step(net(y, t), t, y).prev_sample
        x, state = step.x, step.state
        torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6)


def test_flow_matching_euler_equals_diffusers(diffusers, smooth_net):
    peer = diffusers.FlowMatchEulerDiscreteScheduler(1000)
    peer.set_timesteps(sigmas=torch.linspace(1.0, 0.1, 10).numpy())
    net, schedule = smooth_net, FlowSchedule()
    grid = make_grid(schedule, 10)
    y = X
    for i, t in enumerate(peer.timesteps):
        y = peer.step(net(y, grid[i]), t, y).prev_sample
    x = solve(Denoiser(net, schedule, prediction="velocity"), X, grid, solver="euler")
    torch.testing.assert_close(x, y.double(), rtol=1e-6, atol=1e-6)


# ---- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "solver", "options"),
    [
        (schedule, solver, options)
        for schedule in (VP(), TABLE)
        for solver, options in [*WITH_NOISE, ("heun", {}), ("dpmpp_2m", {})]
        if not (schedule.discrete and solver in NEED_DERIVATIVES)
    ],
)
def test_an_event_is_the_same_in_a_batch_of_any_size(schedule, solver, options, normal_denoiser):
    denoiser, grid = normal_denoiser(schedule, dim=3), make_grid(schedule, 8)
    whole = solve(denoiser, X, grid, solver=solver, generator=7, **options)
    part = solve(denoiser, X[:2], grid, solver=solver, generator=7, **options)
    torch.testing.assert_close(part, whole[:2], rtol=1e-12, atol=1e-12)
    other = solve(denoiser, X, grid, solver=solver, generator=8, **options)
    assert bool((other != whole).any()) == (SOLVERS[solver].draws(options) > 0)


@pytest.mark.parametrize(("solver", "calls"), [("ddim", 10), ("heun", 19), ("dpmpp_2m", 10), ("ab", 10)])
def test_trajectory_has_all_stops(solver, calls, smooth_net):
    seen = []
    grid = make_grid(TABLE, 10)
    path = solve(
        Denoiser(smooth_net, TABLE),
        X,
        grid,
        solver=solver,
        return_trajectory=True,
        callback=lambda i, t, s: seen.append(int(t)),
    )
    assert path.xs.shape == (11, 4, 3)
    assert bool((path.xs[0] == X).all())
    assert bool((path.xs[-1] == path.x).all())
    assert path.n_evals == calls
    assert seen == grid[1:].tolist()


def test_the_given_events_are_not_changed(normal_denoiser):
    before = X.clone()
    for solver in SOLVERS:
        schedule = VP()
        solve(normal_denoiser(schedule, dim=3), X, make_grid(schedule, 3), solver=solver, generator=0)
    assert bool((before == X).all())


def test_precision_of_the_events_is_kept(normal_denoiser):
    for dtype in (torch.float32, torch.float64):
        for solver in SOLVERS:
            x = X.to(dtype)
            assert solve(normal_denoiser(VP(), dim=3), x, make_grid(VP(), 3), solver=solver, generator=0).dtype == dtype


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(("schedule", "name"), ON_SCHEDULES)
def test_times_of_each_event(schedule, name, prediction, smooth_net):
    """Events at different times, some on their way to clean data, move as each of them alone."""
    denoiser, step = Denoiser(smooth_net, schedule, prediction=prediction), SOLVERS[name].step
    t = torch.tensor([500, 20, 3, 0]) if schedule.discrete else torch.tensor([0.5, 0.2, 0.1, 0.01]).double()
    s = torch.tensor([400, -1, 2, -1]) if schedule.discrete else torch.tensor([0.4, 0.0, 0.02, 0.0]).double()
    z = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = z.expand(2, 4, 3) if name == "predictor_corrector" else z
    together = step(denoiser, X, t, s, z=draws).x
    each = [step(denoiser, X[i : i + 1], t[i], s[i], z=draws[..., i : i + 1, :]).x for i in range(4)]
    torch.testing.assert_close(together, torch.cat(each), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "name"), ON_SCHEDULES)
def test_steps_compile_without_breaks(schedule, name, smooth_net):
    """Also the step to clean data, whose coefficients cannot be read then."""
    denoiser, step = Denoiser(smooth_net, schedule), SOLVERS[name].step
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = z if name == "predictor_corrector" else z[0]
    times = torch.tensor([500, 300, -1]) if schedule.discrete else torch.tensor([0.5, 0.3, 0.0]).double()

    def two(x, t, s, u):
        first = step(denoiser, x, t, s, z=z)
        return step(denoiser, first.x, s, u, z=z, state=first.state).x

    torch._dynamo.reset()
    compiled = torch.compile(two, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X, *times), two(X, *times), rtol=1e-12, atol=1e-12)


def test_all_steps_have_one_form():
    for solver in SOLVERS.values():
        names = list(inspect.signature(solver.step).parameters)
        assert names[:7] == ["denoiser", "x", "t", "s", "z", "state", "condition"]


# ---- inversion -------------------------------------------------------------------------------------------------------


def test_inversion_returns(smooth_net):
    denoiser, grid = Denoiser(smooth_net, VP()), make_grid(VP(), 50)
    inverted = ddim_encode(denoiser, X, grid, tol=1e-12, max_iter=100)
    torch.testing.assert_close(solve(denoiser, inverted.z, grid), X, rtol=1e-6, atol=1e-6)
    assert inverted.residual <= 1e-12
    naive = ddim_encode(denoiser, X, grid, method="naive")
    assert float((solve(denoiser, naive.z, grid) - X).abs().max()) > 1e-4
    assert math.isnan(naive.residual)


def test_inversion_returns_from_a_time_without_signal(smooth_net):
    schedule = FlowSchedule()
    denoiser, grid = Denoiser(smooth_net, schedule, prediction="velocity"), make_grid(schedule, 50)[:-1]
    inverted = ddim_encode(denoiser, X, grid, tol=1e-12, max_iter=200)
    torch.testing.assert_close(solve(denoiser, inverted.z, grid), X, rtol=1e-6, atol=1e-6)


def test_inversion_on_a_table_returns(smooth_net):
    denoiser, grid = Denoiser(smooth_net, TABLE), make_grid(TABLE, 50, kind="trailing")
    inverted = ddim_encode(denoiser, X, grid, tol=1e-12, max_iter=200)
    torch.testing.assert_close(solve(denoiser, inverted.z, grid), X, rtol=1e-6, atol=1e-6)
    assert bool(ddim_encode(denoiser, X, grid, method="naive").z.isfinite().all())
    assert ddim_encode(denoiser, X, grid, max_iter=1).residual > 1e-6


def test_inversion_does_not_hide_nan():
    for factor, words in ((float("nan"), "1 iterations"), (1e6, "time")):
        with pytest.raises(KexueError, match=words):
            ddim_encode(Denoiser(lambda x, t, f=factor: f * x, TABLE), X, make_grid(TABLE, 3), max_iter=1000)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_eta_out_of_range(smooth_net):
    denoiser, grid = Denoiser(smooth_net, TABLE), make_grid(TABLE, 5)
    with pytest.raises(ValueError, match="eta"):
        solve(denoiser, X, grid, eta=-0.1)
    with pytest.raises(ValueError, match="more noise"):
        solve(denoiser, X, grid, eta=3.0, generator=0)
    with pytest.warns(UserWarning, match="eta"):
        ddim_step(denoiser, X, torch.tensor(500), torch.tensor(499), eta=1.2)
    with pytest.raises(ValueError, match="eta is 1"):
        solve(denoiser, X, grid, eta=0.5, noise="forward")


def test_values_whose_sum_overflows_are_finite():
    x = torch.full((4, 3), 1.5e38)
    made = solve(
        Denoiser(lambda x, t: x, VP()), x, [1.0, 0.9], solver=lambda denoiser, x, t, s, **_: _stay(denoiser, x, t)
    )
    assert math.isinf(x.sum())
    assert torch.equal(made, x)


def _stay(denoiser, x, t):
    return Step(x, None, denoiser.predict(torch.zeros_like(x), t))


def test_nan_from_the_network_names_time_and_step():
    def net(x, t):
        return x * (float("nan") if int(t) < 500 else 1.0)

    with pytest.raises(KexueError, match=r"step 3 of 5, at time 399"):
        solve(Denoiser(net, TABLE), X, make_grid(TABLE, 5, kind="trailing"))


def test_wrong_settings_are_refused(normal_denoiser, smooth_net):
    denoiser = Denoiser(smooth_net, TABLE)
    with pytest.raises(ValueError, match="solver must be one of ddim"):
        solve(denoiser, X, [900, -1], solver="magic")
    with pytest.raises(ValueError, match="fall"):
        solve(denoiser, X, [100, 900])
    with pytest.raises(TypeError, match="eta"):
        solve(denoiser, X, [900, -1], solver="heun", eta=1.0)
    with pytest.raises(NotSupported, match="dpmpp_2m"):
        solve(denoiser, X, [900, -1], solver="rk4")
    with pytest.raises(NotSupported, match="continuous"):
        solve(denoiser, X, [900, 500, -1], solver="euler_maruyama")
    for order in (7, 2.5, True):
        with pytest.raises(ValueError, match="order"):
            solve(denoiser, X, [900, -1], solver="ab", order=order)
    for options in ({"method": "fast"}, {"max_iter": 0}, {"max_iter": 2.5}, {"tol": -1e-6}, {"tol": math.nan}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ddim_encode(denoiser, X, [900, -1], **options)
    with pytest.raises(ValueError, match="noise_level"):
        solve(normal_denoiser(VP(), dim=3), X, [1.0, 0.1], solver="euler_maruyama", noise_level=2.0)


@pytest.mark.parametrize(
    ("solver", "options", "words"),
    [
        ("ddim", {"noise": "prior", "eta": 1.0}, "noise must"),
        ("ddpm", {"noise": "prior"}, "noise must"),
        ("predictor_corrector", {"norm": "item"}, "norm must"),
        ("predictor_corrector", {"snr": 0.0}, "snr"),
        ("predictor_corrector", {"n_corrector": -1}, "n_corrector"),
        ("predictor_corrector", {"first": "both"}, "first must"),
    ],
)
def test_wrong_options_of_steps_are_refused(solver, options, words, smooth_net):
    with pytest.raises(ValueError, match=words):
        solve(Denoiser(smooth_net, TABLE), X, [900, 500, -1], solver=solver, generator=0, **options)


def test_a_pile_of_another_number_of_noises_is_refused(smooth_net):
    times = torch.tensor(500), torch.tensor(499)
    with pytest.raises(ValueError, match="1 or 4 noises, got 2"):
        predictor_corrector_step(Denoiser(smooth_net, TABLE), X, *times, z=torch.zeros(2, 4, 3), n_corrector=3)


def test_events_that_are_not_floats_are_refused(smooth_net):
    for solver in ("ddim", "ddpm"):
        with pytest.raises(TypeError, match="floats"):
            solve(Denoiser(smooth_net, TABLE), X.long(), [900, -1], solver=solver)


@pytest.mark.parametrize("solver", ["ancestral", "predictor_corrector", "euler", "heun", "ab"])
def test_steps_that_need_signal_say_so(solver, smooth_net):
    table = zero_terminal_snr(TABLE)
    with pytest.raises(ValueError, match=r"alpha.*0.*ddim.*time 999"):
        solve(Denoiser(smooth_net, table, prediction="v"), X, make_grid(table, 5, kind="trailing"), solver=solver)
    flow = Denoiser(smooth_net, FlowSchedule(), prediction="velocity")
    with pytest.raises(ValueError, match=r"alpha is 0.*time 1"):
        solve(flow, X, make_grid(FlowSchedule(), 5), solver="euler_maruyama")
