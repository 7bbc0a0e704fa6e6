"""kexue.fm/archives/9228: the probability-flow equation gives latents, likelihoods and fast solvers.

Gaussian data, with a closed-form solution, show the order of each solver. A denoiser of the ring of eight Gaussians is
measured by its exact log-likelihood, on test points and on a grid, beside the true density. A denoiser of digits shows
how near decoded latents are to the images, and the error of solvers at few calls of the network, by their distance to
a solution of 1000 steps. The exact score is sampled with three shares of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._denoisers import train_digits, train_ring
from kexue.experiments._panels import label_ticks
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.generative import diffusion

_ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "ab": 2, "dpm1": 1, "dpmpp_2m": 2}
_TESTED = ("euler", "heun", "rk4")  # of which the orders are a claim
_GRIDS: tuple[Literal["uniform", "lambda"], ...] = ("uniform", "lambda")  # in time, in log(alpha/sigma)
_LABELS = {
    "euler": "Euler in t",
    "ddim": "DDIM",
    "ab": "Adams-Bashforth",
    "heun": "Heun",
    "dpmpp_2m": "DPM-Solver++ 2M",
}
_TOLERANCES = (1e-4, 1e-5, 1e-6)
_LEVELS = (0.0, 0.5, 1.0)  # shares of the noise
_REACH = 3.5  # the grid of densities covers [-3.5, 3.5]^2


class Size(NamedTuple):
    """What a budget allows.

    Attributes:
        ring, digits: training steps.
        points: of the ring, that likelihoods are means over.
        cells: of the grid of densities, in each direction.
        images: of the errors of solvers and of decoding.
        reference: steps of the solution that is taken as true.
        calls: of the network.
        samples: by the exact score.
        seeds: number of runs.
    """

    ring: int
    digits: int
    points: int
    cells: int
    images: int
    reference: int
    calls: tuple[int, ...]
    samples: int
    seeds: int


_SIZES: dict[Budget, Size] = {
    "smoke": Size(20, 20, 20, 9, 2, 30, (4, 10), 200, 1),
    "small": Size(5000, 1500, 1000, 41, 40, 1000, (4, 6, 10, 20, 50), 4000, 3),
    "full": Size(10_000, 6000, 4000, 71, 200, 1000, (4, 6, 10, 20, 50), 20_000, 5),
}


class Runs(NamedTuple):
    """What was measured for each seed.

    Attributes:
        log_likelihood, truth: means over test points, of the model and of the true density.
        mass: integral of the model's density over the grid.
        density: of the model on the grid.
        decoded: root mean square of decoded latents minus images, by tolerance.
        errors: root mean square distance to the reference, by solver and calls, for each grid.
    """

    log_likelihood: float
    truth: float
    mass: float
    density: Any
    decoded: dict[float, float]
    errors: dict[str, dict[int, list[float]]]


@experiment(
    "probability-flow-ode",
    claim="An ordinary equation with the same densities gives latents, likelihoods and solvers that need few calls.",
    effect=(
        "mean log-likelihood of the ring {log_likelihood}, true {truth}; its density integrates to {mass}; error at 10 "
        "calls: Euler {error_euler_10}, DDIM {error_ddim_10}, DPM-Solver++ 2M {error_dpmpp_2m_10}; decoded latents off "
        "by {decoded_1e-05}"
    ),
    minutes=6,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train on the ring and on digits for each seed; measure likelihoods, latents and solvers."""
    import_optional("torch", extra="train")
    size = _SIZES[budget]
    seeds = tuple(range(seed, seed + size.seeds))
    errors = {solver: _gaussian_errors(solver) for solver in _ORDERS}
    runs = [_measure(size, s) for s in seeds]
    figures = {
        f"order_{solver}": Figure(_order(error), expected=_ORDERS[solver], source="computed")
        for solver, error in errors.items()
    }
    for name in ("log_likelihood", "truth"):
        figures[name] = Figure.over_runs([getattr(one, name) for one in runs], "nat")
    figures["gap"] = Figure.over_runs([one.truth - one.log_likelihood for one in runs], "nat")
    figures["mass"] = Figure.over_runs([one.mass for one in runs], expected=1.0, source="computed")
    figures |= {f"decoded_{tol:g}": Figure.over_runs([one.decoded[tol] for one in runs]) for tol in _TOLERANCES}
    for solver in _LABELS:
        for calls in size.calls:
            by_grid = zip(*(one.errors[solver][calls] for one in runs), strict=True)
            both = [Figure.over_runs(values) for values in by_grid]
            figures |= {f"error_{solver}_{grid}_{calls}": f for grid, f in zip(_GRIDS, both, strict=True)}
            figures[f"error_{solver}_{calls}"] = min(both, key=lambda f: f.value)
    figures["ddim_gap"] = Figure(_ddim_gap())
    figures |= _level_figures(size, seed)
    return Report(
        tuple(_claims(figures)),
        figures,
        notes=(
            f"Test points are the same for the model and the true density; {size.points} a seed.",
            "Errors of solvers are those on the better of two grids, even in time or in log(alpha/sigma).",
            "Tolerances of rk45 are rtol = atol, of each step; errors of decoding are of pixels in [-1, 1].",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": size.images},),
        draw=lambda figure: _draw(figure, runs, figures, errors),
    )


# ---- Gaussian data -------------------------------------------------------------------------------------------------


def _gaussian_errors(solver: str) -> dict[int, float]:
    """Root mean square error of samples of N(1.5, 4) against the closed form, in float64, by steps."""
    torch = import_optional("torch", extra="train")
    schedule = diffusion.VP()
    mean, variance = 1.5, 4.0
    mixture = generative.GaussianMixture(torch.full((1, 1), mean).double(), math.sqrt(variance))
    denoiser = diffusion.MixtureDenoiser(mixture, schedule)
    x = torch.linspace(-2, 2, 9).double()[:, None]
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    alpha, v = schedule.alpha(ends), schedule.alpha(ends).square() * variance + schedule.sigma(ends).square()
    exact = alpha[1] * mean + (v[1] / v[0]).sqrt() * (x - alpha[0] * mean)
    kind: Any = "lambda" if solver.startswith("dpm") else "uniform"
    errors = {}
    for steps in (20, 40, 80, 160):
        grid = diffusion.make_grid(schedule, steps, kind=kind)
        errors[steps] = _rms(_solve(denoiser, x, grid, solver) - exact)
    return errors


def _solve(denoiser: Any, x: Any, grid: Any, solver: str, **options: Any) -> Any:
    torch = import_optional("torch", extra="train")
    with torch.no_grad():
        return diffusion.solve(denoiser, x, grid, solver=solver, **options)


def _order(errors: Mapping[int, float]) -> float:
    """Order seen between the smallest and the largest number of steps."""
    few, many = min(errors), max(errors)
    return math.log(errors[few] / errors[many]) / math.log(many / few)


def _ddim_gap() -> float:
    """Largest difference of DDIM without noise, the first-order exponential step and Euler's step in sigma/alpha."""
    torch = import_optional("torch", extra="train")
    schedule = diffusion.VP()
    mixture = generative.eight_gaussians()
    denoiser = diffusion.MixtureDenoiser(generative.GaussianMixture(mixture.means.double(), 0.2), schedule)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, s = torch.tensor([0.6, 0.4], dtype=torch.float64)
    ddim = diffusion.ddim_step(denoiser, x, t, s).x
    first = diffusion.dpm1_step(denoiser, x, t, s).x
    (alpha_t, alpha_s), (sigma_t, sigma_s) = ([f(t), f(s)] for f in (schedule.alpha, schedule.sigma))
    euler = alpha_s * (x / alpha_t + denoiser.predict(x, t).eps * (sigma_s / alpha_s - sigma_t / alpha_t))
    return float(max((ddim - first).abs().max(), (ddim - euler).abs().max()))


# ---- trained models ------------------------------------------------------------------------------------------------


def _measure(size: Size, seed: int) -> Runs:
    ring = generative.eight_gaussians()
    model = train_ring(size.ring, seed)
    test = ring.sample(size.points, generator=1000 * seed + 7)
    inside = diffusion.log_likelihood(model.denoiser, test).value
    cells, side = _cells(size.cells)
    density = diffusion.log_likelihood(model.denoiser, cells, rtol=1e-4, atol=1e-4).value.exp()
    decoded, errors = _measure_digits(size, seed)
    return Runs(
        float(inside.mean()), float(ring.log_prob(test).mean()), float(density.sum()) * side**2,
        density.reshape(size.cells, size.cells), decoded, errors,
    )  # fmt: skip


def _cells(count: int) -> tuple[Any, float]:
    """Centres of the cells of a grid, (count^2, 2), and the side of a cell."""
    torch = import_optional("torch", extra="train")
    line = torch.linspace(-_REACH, _REACH, count)
    return torch.cartesian_prod(line, line), 2 * _REACH / (count - 1)


def _measure_digits(size: Size, seed: int) -> tuple[dict[float, float], dict[str, dict[int, list[float]]]]:
    """Errors of decoded latents by tolerance, and errors of solvers by calls."""
    torch = import_optional("torch", extra="train")
    images = generative.load_images("digits")
    model = train_digits(images.train, size.digits, seed)
    schedule, x = model.schedule, images.test[: size.images]
    velocity = diffusion.flow_ode(model.denoiser)
    decoded = {}
    with torch.no_grad():
        for tol in _TOLERANCES:
            z = diffusion.odeint(velocity, x, [schedule.t_min, schedule.t_max], rtol=tol, atol=tol).x
            back = diffusion.odeint(velocity, z, [schedule.t_max, schedule.t_min], rtol=tol, atol=tol).x
            decoded[tol] = _rms(back - x)
    noise = schedule.prior.sample((size.images, *model.event_shape), generator=seed)
    grid = diffusion.make_grid(schedule, size.reference, kind="uniform")
    reference = _solve(model.denoiser, noise, grid, "heun")
    errors: dict[str, dict[int, list[float]]] = {}
    for solver in _LABELS:
        for calls in size.calls:
            steps = calls // 2 if solver == "heun" else calls
            grids = [diffusion.make_grid(schedule, steps, kind=kind) for kind in _GRIDS]
            made = [_solve(model.denoiser, noise, grid, solver) - reference for grid in grids]
            errors.setdefault(solver, {})[calls] = [_rms(gap) for gap in made]
    return decoded, errors


def _rms(x: Any) -> float:
    return float(x.square().mean().sqrt())


def _level_figures(size: Size, seed: int) -> dict[str, Figure]:
    """Sliced Wasserstein distance of the ring to samples by the exact score, with shares of the noise; and of data."""
    torch = import_optional("torch", extra="train")
    ring, schedule = generative.eight_gaussians(), diffusion.VP()
    denoiser = diffusion.MixtureDenoiser(ring, schedule)
    grid = diffusion.make_grid(schedule, 200, kind="uniform")
    data, other = (ring.sample(size.samples, generator=seed + i) for i in (1, 2))
    figures = {"swd_floor": Figure(generative.sliced_wasserstein(other, data), n=size.samples)}
    x = schedule.prior.sample((size.samples, 2), generator=seed)
    for level in _LEVELS:
        stream = torch.Generator().manual_seed(seed)
        made = _solve(denoiser, x, grid, "euler_maruyama", generator=stream, noise_level=level)
        figures[f"swd_level_{level:g}"] = Figure(generative.sliced_wasserstein(made, data), n=size.samples)
    return figures


# ---- claims and figures --------------------------------------------------------------------------------------------


def _claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    return [
        Claim.check(
            "The equation encodes images, and decodes them to the same images.",
            value["decoded_1e-05"] < 1e-4,
            rule="root mean square error of decoded latents of digits below 1e-4 with rk45 at tolerances of 1e-5, mean "
            "over seeds",
            figures=["decoded_1e-05", "decoded_1e-06"],
        ),
        Claim.check(
            "It gives the likelihood of a trained model, which is near that of the data.",
            abs(value["gap"]) < 0.1,
            rule="mean log-likelihood of test points within 0.1 nat of that of the true density, mean over seeds",
            figures=["log_likelihood", "truth", "gap"],
        ),
        Claim.check(
            "This likelihood is a density: it integrates to 1.",
            all(abs(v - 1) < 0.02 for v in (figures["mass"].low, figures["mass"].high) if v is not None),
            rule="sum over a grid times the area of a cell within 0.02 of 1, every seed",
            figures=["mass"],
        ),
        Claim.check(
            "Solvers reach their orders: Euler 1, Heun 2, Runge-Kutta 4.",
            all(abs(value[f"order_{s}"] - _ORDERS[s]) < 0.25 for s in _TESTED),
            rule="order from 20 to 160 steps on Gaussian data within 0.25",
            figures=[f"order_{s}" for s in _ORDERS],
        ),
        Claim.check(
            "DDIM without noise is Euler's step of this equation in sigma/alpha, and the exponential step of order 1.",
            value["ddim_gap"] < 1e-12,
            rule="largest difference of the three on the ring, in float64, below 1e-12",
            figures=["ddim_gap"],
        ),
        Claim.check_parts(
            "A solver of second order needs fewer calls.",
            [2 * value["error_dpmpp_2m_10"] < value[f"error_{one}_10"] for one in ("euler", "ddim")],
            rule="distance of digits to the solution of 1000 steps at 10 calls: DPM-Solver++ 2M below half of Euler's "
            "in time, and below half of DDIM's, which is Euler's in sigma/alpha; means over seeds, better grids",
            figures=["error_dpmpp_2m_10", "error_euler_10", "error_ddim_10"],
        ),
        Claim.check(
            "Every share of the noise leads to the same density.",
            all(value[f"swd_level_{level:g}"] < 2 * value["swd_floor"] for level in _LEVELS),
            rule="sliced Wasserstein distance of samples with shares 0, 0.5, 1 to the ring, exact score and 200 steps, "
            "below twice that of two sets of data",
            figures=[f"swd_level_{level:g}" for level in _LEVELS] + ["swd_floor"],
        ),
    ]


def _draw(figure: Any, runs: Sequence[Runs], figures: Mapping[str, Figure], errors: Mapping[str, Any]) -> None:
    figure.set_size_inches(15, 8)
    panels = figure.subplots(2, 3)
    panel = panels[0, 0]
    for at, (solver, by_steps) in enumerate(errors.items()):
        label = f"{solver}, order {figures[f'order_{solver}'].value:.2f}"
        panel.loglog(list(by_steps), list(by_steps.values()), "o-", color=f"C{at}", label=label)
    panel.set(title="Gaussian data", xlabel="steps", ylabel="root mean square error", ylim=(1e-14, 2))
    label_ticks(panel, list(errors["euler"]))
    panel.legend(fontsize="small", loc="lower left", ncols=2)
    panel = panels[0, 1]
    calls = list(next(iter(runs[0].errors.values())))
    for at, (solver, label) in enumerate(_LABELS.items()):
        for grid, style in zip(_GRIDS, ("o:", "o-"), strict=True):
            line = [figures[f"error_{solver}_{grid}_{n}"].value for n in calls]
            panel.loglog(calls, line, style, color=f"C{at}", label=label if grid == "lambda" else None)
    panel.set(
        title="digits; dotted: grid even in time", xlabel="calls of the network", ylabel="distance to the solution"
    )
    label_ticks(panel, calls)
    panel.legend(fontsize="small")
    panel = panels[0, 2]
    for at, tol in enumerate(_TOLERANCES):
        values = [one.decoded[tol] for one in runs]
        panel.loglog([tol] * len(values), values, f"C{at}o")
    panel.axhline(1e-4, color="gray", linestyle=":")
    panel.set(title="digits, encoded and decoded", xlabel="tolerances of rk45", ylabel="root mean square error")
    torch = import_optional("torch", extra="train")
    cells, _ = _cells(len(runs[0].density))
    truth = generative.eight_gaussians().log_prob(cells).exp().reshape(runs[0].density.shape)
    shown = {"density of the model": runs[0].density, "true density": truth}
    top = float(torch.stack(list(shown.values())).max())
    for panel, (title, density) in zip(panels[1], shown.items(), strict=False):
        panel.imshow(density.T.numpy(), origin="lower", extent=[-_REACH, _REACH] * 2, vmin=0, vmax=top)
        panel.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
    panel = panels[1, 2]
    heights = {f"share {level:g}": figures[f"swd_level_{level:g}"].value for level in _LEVELS}
    heights["data"] = figures["swd_floor"].value
    panel.bar(list(heights), list(heights.values()), color=["C0"] * len(_LEVELS) + ["gray"])
    panel.set(title="exact score, shares of the noise", xlabel="samples", ylabel="sliced Wasserstein distance")
