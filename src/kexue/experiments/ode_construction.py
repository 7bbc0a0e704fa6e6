"""kexue.fm/archives/9379 and 9370: ODEs from any trajectories to any prior; their straightness; Poisson flows.

Measures, on eight Gaussians in a ring and on scikit-learn's digits: samples of flows from normal and uniform priors and
from Cauchy's (Poisson flow); how far trajectories are from straight, alone, with coupled batches and after reflow; the
integral of the density. The examples in one dimension are computed with exact velocities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._flows import fit_flow, train_ring_flows
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.generative import diffusion

_SAMPLES = 4000
_STEPS = (1, 2, 4, 8, 16)
_EULER = {2: 1.2, 4: 1.3405, 8: 1.4148, 16: 1.4557}
_SHARES = {0.5: 0.5, 1.2: 0.25, 1.7: 0.25}
_RATIO = 1.5
_KINDS = ("normal", "uniform", "coupled", "reflow", "poisson")
_PANELS = {
    (0, 1): ("normal", "normal prior"), (0, 2): ("uniform", "uniform prior"), (1, 0): ("coupled", "batches coupled"),
    (1, 1): ("reflow", "after reflow"), (1, 2): ("poisson", "Poisson flow (near the data)"),
}  # fmt: skip


class Size(NamedTuple):
    """What a budget allows.

    Attributes:
        ring, digits: training steps.
        points: of the grid on which the density is summed, a side.
        seeds: number of runs.
    """

    ring: int
    digits: int
    points: int
    seeds: int


_SIZES: dict[Budget, Size] = {
    "smoke": Size(60, 60, 41, 1),
    "small": Size(4000, 1500, 81, 3),
    "full": Size(8000, 6000, 161, 5),
}


@experiment(
    "ode-construction",
    claim="Trajectories to any prior, and their mean velocity, make a generative model; Poisson flows are one case.",
    effect=(
        "sliced Wasserstein distance of samples of the ring: normal prior {swd_normal}, uniform {swd_uniform}, "
        "Poisson flow {swd_poisson}, fresh data {swd_data}, a ring without parts {swd_circle}; bend of trajectories "
        "{bend_normal}, batches coupled {bend_coupled}, after reflow {bend_reflow}"
    ),
    minutes=9,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train flows of the ring and of digits for each seed, and compute the examples of one dimension."""
    import_optional("torch", extra="train")
    size = _SIZES[budget]
    seeds = tuple(range(seed, seed + size.seeds))
    rings = {s: train_ring_flows(size.ring, s) for s in seeds}
    measures = [_measure_ring(rings[s], s) for s in seeds]
    digits = [_measure_digits(size.digits, s) for s in seeds]
    figures = {name: Figure.over_runs([one[name] for one in measures]) for name in measures[0]}
    figures |= {name: Figure.over_runs([one[name] for one in digits]) for name in digits[0]}
    figures["mass"] = Figure(_integrate_density(rings[seed]["normal"], size.points), n=size.points**2)
    figures |= _compute_examples()
    return Report(
        tuple(_claims(figures)),
        figures,
        notes=(
            "Bend is the mean of |x_1 - x_0 - velocity|^2 along trajectories, divided by that of |x_1 - x_0|^2.",
            "The Poisson flow is trained to estimate the data: the velocity itself has no variance for Cauchy's prior.",
        ),
        seeds=seeds,
        data=(
            {"name": "eight gaussians", "split": "fresh", "n": _SAMPLES},
            {"name": "digits", "split": "train", "n": 540},
        ),
        draw=lambda figure: _draw(figure, rings[seed], figures, seed),
    )


# ---- flows of the ring --------------------------------------------------------------------------------------------


def _measure_ring(models: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Distances of samples from fresh data, by steps of Euler too, and bends."""
    torch = import_optional("torch", extra="train")
    ring = generative.eight_gaussians()
    fresh = ring.sample(_SAMPLES, generator=seed + 1000)

    def distance(x: Any) -> float:
        return float(generative.sliced_wasserstein(x, fresh))

    def sample(name: str, **options: Any) -> Any:
        return models[name].sample(_SAMPLES, generator=torch.Generator().manual_seed(seed), **options)

    measured = {
        "swd_data": distance(ring.sample(_SAMPLES, generator=seed + 2000)),
        "swd_circle": distance(_circle(seed)),
    }
    for name in _KINDS:
        measured[f"swd_{name}"] = distance(sample(name, steps=20))
    for name in ("normal", "coupled", "reflow"):
        for n in _STEPS:
            measured[f"swd_{name}_euler_{n}"] = distance(sample(name, steps=n, method="euler"))
        x_1 = models[name].path.prior.sample(500, generator=torch.Generator().manual_seed(seed))
        measured[f"bend_{name}"] = _bend(lambda t, x, name=name: models[name].velocity(x, t), x_1, 0.0)
    return measured


def _circle(seed: int) -> Any:
    """Points of the ring, their angles even: what a model without its eight parts would make."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(_SAMPLES, generator=generator)
    radius = 2 + 0.2 * torch.randn(_SAMPLES, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]


def _bend(velocity: Any, x_1: Any, end: float, *, steps: int = 50) -> float:
    """Mean of |x_1 - x_0 - velocity|^2 along trajectories from x_1 to x_0, divided by that of |x_1 - x_0|^2."""
    torch = import_optional("torch", extra="train")
    x, seen = x_1, []
    times = torch.linspace(1, end, steps + 1).tolist()
    with torch.no_grad():
        for t, s in pairwise(times):
            seen.append(velocity(torch.full((len(x),), t, dtype=x.dtype), x))
            x = diffusion.odeint(velocity, x, [t, s], method="heun").x
        if end:
            x = x - end * velocity(torch.full((len(x),), end, dtype=x.dtype), x)
        along = torch.stack([(x_1 - x - v).square().sum(1) for v in seen]).mean()
    return float(along / (x_1 - x).square().sum(1).mean())


def _integrate_density(model: Any, points: int) -> float:
    """Integral of exp(log_prob) over the square of side 8, on a grid."""
    torch = import_optional("torch", extra="train")
    axis = torch.linspace(-4, 4, points)
    grid = torch.cartesian_prod(axis, axis)
    density = torch.cat([model.log_prob(x, rtol=1e-4, atol=1e-4).exp() for x in torch.split(grid, 4096)])
    return float(density.double().sum() * (axis[1] - axis[0]) ** 2)


# ---- digits --------------------------------------------------------------------------------------------------------


def _measure_digits(steps: int, seed: int) -> dict[str, float]:
    """Fréchet distances of samples from the training images, for a normal and a uniform prior."""
    torch = import_optional("torch", extra="train")
    images = generative.load_images("digits")
    features = generative.feature_extractor(images)
    real = features(images.train)
    side = torch.ones(images.event_shape)
    priors = {"normal": diffusion.NormalPrior(images.event_shape), "uniform": diffusion.UniformPrior(-side, side)}
    measured = {"fd_digits_test": generative.frechet_distance(features(images.test), real)}
    for name, prior in priors.items():
        model = fit_flow(diffusion.LinearPath(prior), images.train, steps, seed)
        x = model.sample(len(images.test), generator=torch.Generator().manual_seed(seed))
        measured[f"fd_digits_{name}"] = generative.frechet_distance(features(x), real)
    return measured


# ---- examples in one dimension -------------------------------------------------------------------------------------


def _four_points() -> tuple[Any, Any, Any]:
    """The example of the article: path from U[0, 2], the data, the exact velocity."""
    torch = import_optional("torch", extra="train")
    path = diffusion.LinearPath(diffusion.UniformPrior([0.0], [2.0]))
    data = torch.tensor([[0.5], [0.5], [1.2], [1.7]], dtype=torch.float64)
    return path, data, lambda t, x: path.marginal_velocity(x, t, data)


def _compute_examples() -> dict[str, Figure]:
    """Shares and bend of the four points; steps of Euler for a Gaussian."""
    torch = import_optional("torch", extra="train")
    (path, data, velocity), end, n = _four_points(), 1e-3, 400
    x_1 = ((torch.arange(n, dtype=torch.float64) + 0.5) * (2 / n))[:, None]
    x = diffusion.odeint(velocity, x_1, [1.0, end], rtol=1e-6, atol=1e-6).x
    x = x - end * path.marginal_velocity(x, end, data)
    figures = {
        f"share_{at:g}": Figure(float(((x - at).abs() < 0.01).double().mean()), n=n, expected=share, source="article")
        for at, share in _SHARES.items()
    }
    figures["bend_four_points"] = Figure(_bend(velocity, x_1, end, steps=200), n=n)

    def gaussian(t: Any, x: Any) -> Any:  # of N(1, 0.25): x_t has mean 1 - t and variance V
        slope = (t - (1 - t) / 4) / ((1 - t) ** 2 / 4 + t**2)
        return slope[:, None] * (x - (1 - t)[:, None]) - 1

    for steps, expected in _EULER.items():
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        value = diffusion.odeint(gaussian, torch.ones(1, 1, dtype=torch.float64), grid, method="euler").x
        figures[f"euler_{steps}"] = Figure(float(value), expected=expected, source="computed")
    return figures


# ---- claims and figures --------------------------------------------------------------------------------------------


def _claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: one.value for name, one in figures.items()}
    ratios = [value[f"{kind}_uniform"] / value[f"{kind}_normal"] for kind in ("swd", "fd_digits")]
    return [
        Claim.check_parts(
            "Any prior works: a uniform one gives samples as good as a normal one.",
            [1 / _RATIO < ratio < _RATIO for ratio in ratios],
            rule=f"sliced Wasserstein distance of the ring, and Fréchet distance of digits: within {_RATIO} times of "
            "each other, means over seeds",
            figures=["swd_normal", "swd_uniform", "fd_digits_normal", "fd_digits_uniform"],
        ),
        Claim.check(
            "From the uniform prior on [0, 2] to the points 0.5 (twice), 1.2 and 1.7, each gets its share of the mass.",
            all(abs(value[f"share_{at:g}"] - share) <= 0.01 for at, share in _SHARES.items()),
            rule="shares within 0.01 of 1/2, 1/4, 1/4, with the exact velocity",
            figures=[f"share_{at:g}" for at in _SHARES],
        ),
        Claim.check(
            "Straight trajectories for each event superpose to curved ones.",
            value["bend_four_points"] > 0.05,
            rule="bend of the four points with the exact velocity above 0.05",
            figures=["bend_four_points"],
        ),
        Claim.check_parts(
            "Training on the model's own pairs (reflow), or on batches coupled by transport, makes them straighter.",
            [value["bend_reflow"] < value["bend_normal"], value["bend_coupled"] < value["bend_normal"]],
            rule="bend below that of independent pairs, means over seeds",
            figures=["bend_normal", "bend_coupled", "bend_reflow"],
        ),
        Claim.check(
            "The density along the trajectories is a density.",
            abs(value["mass"] - 1) < 0.02,
            rule="integral over a grid of the flow from the normal prior within 0.02 of 1",
            figures=["mass"],
        ),
        Claim.check(
            "Few steps of Euler end short of the goal, and twice as many halve the error.",
            all(abs(value[f"euler_{n}"] - end) < 5e-5 for n, end in _EULER.items()),
            rule="ends after 2, 4, 8, 16 steps towards 1.5 equal to the closed form in all four digits",
            figures=[f"euler_{n}" for n in _EULER],
        ),
        Claim.check(
            "A Poisson flow, the same family with Cauchy's prior and large times, samples the ring.",
            value["swd_poisson"] < 0.12,
            rule="sliced Wasserstein distance of the ring below 0.12, t_max = 40, a grid in log t, mean over seeds",
            figures=["swd_poisson", "swd_data"],
        ),
    ]


def _draw(figure: Any, models: Mapping[str, Any], figures: Mapping[str, Figure], seed: int) -> None:
    figure.set_size_inches(16, 8)
    grid = figure.add_gridspec(2, 4)
    _draw_four_points(figure.add_subplot(grid[0, 0]))
    for place, (name, title) in _PANELS.items():
        _draw_trajectories(figure.add_subplot(grid[place]), models[name], title, seed)
    panel = figure.add_subplot(grid[0, 3])
    for name, label in (("normal", "independent"), ("coupled", "batches coupled"), ("reflow", "after reflow")):
        panel.loglog(_STEPS, [figures[f"swd_{name}_euler_{n}"].value for n in _STEPS], "o-", label=label)
    panel.axhline(figures["swd_data"].value, color="gray", linestyle=":", label="fresh data")
    panel.axhline(figures["swd_circle"].value, color="gray", linestyle="--", label="ring without parts")
    panel.set(title="samples of the ring", xlabel="steps of Euler", ylabel="sliced Wasserstein distance")
    panel.set_xticks(_STEPS, map(str, _STEPS))
    panel.minorticks_off()
    panel.legend()
    panel = figure.add_subplot(grid[1, 3])
    steps = tuple(_EULER)
    panel.loglog(steps, [1.5 - figures[f"euler_{n}"].value for n in steps], "o-", label="measured")
    panel.loglog(steps, [0.3 * 2 / n for n in steps], ":", color="gray", label="halved by twice the steps")
    panel.set(title="Euler, from 1 to 1.5 of N(1, 0.25)", xlabel="steps", ylabel="error at the end")
    panel.set_xticks(steps, map(str, steps))
    panel.minorticks_off()
    panel.legend()


def _draw_four_points(panel: Any) -> None:
    torch = import_optional("torch", extra="train")
    _, _, velocity = _four_points()
    track = [torch.linspace(0.02, 1.98, 41, dtype=torch.float64)[:, None]]
    times = torch.linspace(1, 5e-3, 100).tolist()
    for t, s in pairwise(times):
        track.append(diffusion.odeint(velocity, track[-1], [t, s], method="heun").x)
    panel.plot(times, torch.cat(track, 1).T.numpy(), color="C0", linewidth=0.8)
    panel.scatter([0, 0, 0], list(_SHARES), color="C3", zorder=3, label="data")
    panel.set(title="four points, uniform prior on [0, 2]", xlabel="t", ylabel="x")
    panel.legend()


def _draw_trajectories(panel: Any, model: Any, title: str, seed: int) -> None:
    torch = import_optional("torch", extra="train")
    noise = model.path.prior.sample(400, generator=torch.Generator().manual_seed(seed))
    track, times = [model.path.end_scale * noise], model.path.make_grid(60)
    with torch.no_grad():
        for t, s in pairwise(times):
            track.append(diffusion.odeint(lambda t, x: model.velocity(x, t), track[-1], [t, s], method="heun").x)
    lines = torch.stack(track)
    for i in range(60):
        panel.plot(*lines[:, i].T.numpy(), color="gray", linewidth=0.5)
    panel.scatter(*track[-1].T.numpy(), s=3, color="C0", zorder=3)
    panel.set(title=title, xlabel="x", ylabel="y", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
