"""kexue.fm/archives/9181: DDIM, its noise and its steps, the way back to latents, paths between them, a faster solver.

Measures, of a Gaussian with its exact denoiser: variance of the samples by eta and number of steps, against closed
forms. On scikit-learn's digits, with and without classes: Fréchet distance and recall by noise and number of steps;
paths between latents; the round trip of images; DPM-Solver++ with 10 calls beside DDIM with 50, on grids that were
chosen with a network of another seed.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import STEPS, Digits, train_model
from kexue.experiments._exact_gaussians import follow_variance
from kexue.experiments._fast_solvers import WAYS, Sampler, choose_grids, compare_solvers, decide_solvers, draw_solvers
from kexue.experiments._panels import draw_tiles
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_COUNTS = (5, 10, 50, 1000)
_FEW, _MANY = (5, 10), 50
_SETTINGS = (*WAYS, "clipped")  # the last: without classes, estimates of the image clipped to [-1, 1]
_ETAS = (0.0, 0.5, 1.0)
_NOISES: dict[str, dict[str, Any]] = {"eta0": {"eta": 0.0}, "eta1": {"eta": 1.0}, "forward": {"noise": "forward"}}
_OTHER_SEED = 100  # between the networks that are measured and the one that grids are chosen with
_CLEAR, _VARIANCE = 1.15, 4.0


@experiment(
    "ddim",
    claim="One trained DDPM is sampled in 5 to 50 steps without noise, whose latents can be found and mixed.",
    effect=(
        "Fréchet distance of digits in 10 steps: without noise {fd_free_eta0_10}, with DDPM's {fd_free_eta1_10}; in "
        "1000: {fd_free_eta0_1000}, {fd_free_eta1_1000}; DPM-Solver++ in 10 calls {fd_free_dpmpp_10}, DDIM in 50 "
        "{fd_free_ddim_50}; of test digits {fd_reference_test}; round trip {error_fixed_point}, naive {error_naive}"
    ),
    minutes=8,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure a Gaussian, train a network for each seed and one more to choose grids with, and sample."""
    import_optional("torch", extra="generative")
    count = {"smoke": 1, "small": 3, "full": 5}[budget]
    seeds, digits = tuple(range(seed, seed + count)), Digits.load()
    counts = tuple(n for n in _COUNTS if budget != "smoke" or n <= _MANY)
    other = train_model(digits, STEPS[budget], seed + _OTHER_SEED)
    grids = choose_grids(digits, _sampler(other, digits, seed))
    models = {s: train_model(digits, STEPS[budget], s) for s in seeds}
    runs = [_measure(models[s], digits, counts, grids, s) for s in seeds]
    figures = _measure_gaussian() | digits.reference_figures()
    figures |= {name: Figure.over_runs([one[name] for one in runs]) for name in runs[0]}
    chosen = ", ".join(f"{name} {way}: {grid}" for (name, way), grid in grids.items())
    return Report(
        tuple(_decide(runs, figures, counts)),
        figures,
        notes=(
            f"Samples are {digits.count}, from the same noise in every setting of a seed.",
            f"Grids chosen with a network of seed {seed + _OTHER_SEED}, which is not measured: {chosen}.",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": digits.count},),
        draw=lambda figure: _draw(figure, figures, counts, models[seed], seed),
    )


# ---- a Gaussian ----------------------------------------------------------------------------------------------------


def _measure_gaussian() -> dict[str, Figure]:
    """Variance of samples of N(0, 4), by eta and steps; of N(0, 1) in equal steps of the angle."""
    from kexue.generative.diffusion import CosineSchedule, DiscreteSchedule, make_grid

    table = DiscreteSchedule.linear()
    figures = {
        f"variance_eta{eta:g}_{n}": Figure(follow_variance(table, make_grid(table, n, kind="leading"), eta, _VARIANCE))
        for eta, n in itertools.product(_ETAS, _COUNTS)
    }
    cosine = CosineSchedule()  # alpha = cos(pi t/2)
    angle = cosine.t_max * math.pi / 2 / 10
    times = [cosine.t_max * (10 - i) / 10 for i in range(11)]
    return figures | {
        "variance_of_angles_10": Figure(
            follow_variance(cosine, make_grid(cosine, times), 0.0, 1.0),
            expected=(math.sin(10 * angle) * math.cos(angle) ** 10) ** 2,  # sigma, then a factor for each step
            source="computed",
        )
    }


# ---- digits --------------------------------------------------------------------------------------------------------


def _sampler(model: Any, digits: Digits, seed: int) -> Sampler:
    """The function that draws samples of a network, always from the same noise."""
    torch = import_optional("torch", extra="generative")

    def sample(way: str, n: int, **options: Any) -> Any:
        classes = digits.labels() if way == "class" else None
        clip = "static" if way == "clipped" else None
        options = {"grid": "leading", "clip": clip, "generator": torch.Generator().manual_seed(seed), **options}
        return model.sample(digits.count, condition=classes, steps=n, **options)

    return sample


def _measure(
    model: Any, digits: Digits, counts: Sequence[int], grids: Mapping[tuple[str, str], str], seed: int
) -> dict[str, float]:
    """All numbers of one network."""
    sample, values = _sampler(model, digits, seed), dict[str, float]()
    for way, (name, options), n in itertools.product(_SETTINGS, _NOISES.items(), counts):
        if name != "forward" or n <= _MANY:
            quality = digits.measure(sample(way, n, **options))
            values[f"fd_{way}_{name}_{n}"] = quality.frechet_distance
            values[f"recall_{way}_{name}_{n}"] = quality.recall
            values[f"precision_{way}_{name}_{n}"] = quality.precision
    for way, n, name in itertools.product(_SETTINGS, _FEW, ("eta0", "eta1")):
        x = sample(way, n, grid="trailing", **_NOISES[name])
        values[f"fd_{way}_{name}_{n}_trailing"] = digits.distance(x)
    values |= compare_solvers(digits, grids, sample)
    for way in WAYS:
        values |= _measure_paths(model, digits, way, seed)
    return values | _measure_inversion(model, digits)


def _measure_paths(model: Any, digits: Digits, way: str, seed: int) -> dict[str, float]:
    """Fréchet distance and recall of images of latents, and of those half way between two; lengths of the latents."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import make_grid, solve

    draw = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(digits.count, *model.event_shape, generator=draw) for _ in range(2))
    latents = {
        "ends": z1,
        "circular": generative.interpolate(z1, z2, 3)[1],
        "linear": generative.interpolate(z1, z2, 3, method="linear")[1],
    }
    classes, grid = digits.labels() if way == "class" else None, make_grid(model.schedule, _MANY, kind="leading")
    values = {}
    for name, z in latents.items():
        quality = digits.measure(solve(model.denoiser, z, grid, condition=classes))
        values[f"fd_{way}_path_{name}"] = quality.frechet_distance
        values[f"recall_{way}_path_{name}"] = quality.recall
        values[f"length_{name}"] = float(z.flatten(1).norm(dim=1).mean() / 8)
    return values


def _measure_inversion(model: Any, digits: Digits) -> dict[str, float]:
    """Root mean square of what 100 test images have lost on their way to latents and back, in float64."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import Denoiser, ddim_encode, make_grid, solve

    exact = Denoiser(copy.deepcopy(model.net).double(), model.schedule)
    x, grid = digits.images.test[:100].double(), make_grid(model.schedule, _MANY, kind="trailing")
    methods: dict[str, dict[str, Any]] = {
        "naive": {"method": "naive"},
        "fixed_point_5": {"max_iter": 5},
        "fixed_point": {"max_iter": 200},
    }
    values = {}
    with torch.no_grad():
        for name, options in methods.items():
            back: Any = solve(exact, ddim_encode(exact, x, grid, tol=1e-9, **options).z, grid)
            values[f"error_{name}"] = float((back - x).square().mean().sqrt())
    return values


# ---- claims and figures --------------------------------------------------------------------------------------------


def _decide(runs: Sequence[Mapping[str, float]], figures: Mapping[str, Figure], counts: Sequence[int]) -> list[Claim]:
    return [
        _decide_gaussian(figures),
        *_decide_noise(runs),
        *_decide_steps(runs, max(counts)),
        *_decide_latents(runs),
        decide_solvers(figures),
    ]


def _decide_gaussian(figures: Mapping[str, Figure]) -> Claim:
    value = {name: figure.value for name, figure in figures.items()}
    angle = figures["variance_of_angles_10"]
    grows = [[value[f"variance_eta{eta:g}_{n}"] for n in _COUNTS] for eta in _ETAS]
    falls = list(zip(*grows, strict=True))
    holds = (
        all(a < b for row in grows for a, b in itertools.pairwise([*row, _VARIANCE]))
        and all(a > b for column in falls for a, b in itertools.pairwise(column))
        and all(row[-1] > 0.99 * _VARIANCE for row in grows)
        and abs(angle.value - float(angle.expected or 0)) < 1e-9
    )
    return Claim.check(
        "Few steps shrink the variance of samples, more noise shrinks it more, and many steps reach it.",
        holds,
        rule=(
            "data N(0, 4), exact denoiser: variance falls with eta at 5, 10, 50, 1000 steps, rises with the steps, and "
            "is within 1 % at 1000; of N(0, 1) in 10 equal angles it is the closed form to 1e-9"
        ),
        figures=[f"variance_eta{eta:g}_{n}" for eta in (0.0, 1.0) for n in (10, 1000)] + ["variance_of_angles_10"],
    )


def _decide_noise(runs: Sequence[Mapping[str, float]]) -> list[Claim]:
    return [
        Claim.check_parts(
            "With few steps, samples without noise are better than with DDPM's.",
            (_everywhere(runs, f"fd_{way}_eta0_{n}", f"fd_{way}_eta1_{n}", _CLEAR) for way, n in _pairs()),
            rule=(
                f"Fréchet distance of eta 1 above {_CLEAR} times that of eta 0 in every seed, at 5 and at 10 steps, "
                "without classes, with them, and without them but clipped to [-1, 1], on the leading grid"
            ),
            figures=[f"fd_{way}_eta{eta}_{n}" for way, n in _pairs() for eta in (0, 1)],
        ),
        Claim.check_parts(
            "The same holds on the trailing grid, which begins where almost no signal is left (our question).",
            (_everywhere(runs, f"fd_{w}_eta0_{n}_trailing", f"fd_{w}_eta1_{n}_trailing", _CLEAR) for w, n in _pairs()),
            rule="as before, on the trailing grid",
            figures=[f"fd_{way}_eta{eta}_{n}_trailing" for way, n in _pairs() for eta in (0, 1)],
        ),
        Claim.check_parts(
            "The noise of the forward steps is the worst with few steps (the paper's finding).",
            (_everywhere(runs, f"fd_{way}_eta1_{n}", f"fd_{way}_forward_{n}") for way, n in _pairs()),
            rule="Fréchet distance above that of eta 1 in every seed, at 5 and at 10 steps, all three ways",
            figures=[f"fd_{way}_{name}_{n}" for way, n in _pairs() for name in ("eta1", "forward")],
        ),
    ]


def _decide_steps(runs: Sequence[Mapping[str, float]], most: int) -> list[Claim]:
    return [
        Claim.check_parts(
            "With all steps, samples with noise are better.",
            (_everywhere(runs, f"fd_{way}_eta1_{most}", f"fd_{way}_eta0_{most}") for way in _SETTINGS),
            rule=f"Fréchet distance of eta 1 below that of eta 0 at {most} steps in every seed, all three ways",
            figures=[f"fd_{way}_eta{eta}_{most}" for way in _SETTINGS for eta in (0, 1)],
        ),
        Claim.check_parts(
            "Fewer steps make samples less diverse, and less noise keeps more diversity.",
            [
                _everywhere(runs, f"recall_{w}_eta{eta}_5", f"recall_{w}_eta{eta}_{most}")
                for w in _SETTINGS
                for eta in (0, 1)
            ]
            + [_everywhere(runs, f"recall_{w}_eta1_{n}", f"recall_{w}_eta0_{n}") for w, n in _pairs()],
            rule=(
                f"in every seed, all three ways: recall of 5 steps below that of {most} for eta 0 and 1; that of eta 1 "
                "below that of eta 0 at 5 and at 10 steps"
            ),
            figures=[f"recall_{way}_eta{eta}_{n}" for way in _SETTINGS for eta in (0, 1) for n in (5, most)],
        ),
    ]


def _decide_latents(runs: Sequence[Mapping[str, float]]) -> list[Claim]:
    return [
        Claim.check(
            "Images are found again from their latents.",
            all(one["error_fixed_point"] < 1e-6 and one["error_naive"] > 1e-5 for one in runs),
            rule=(
                "root mean square error of 100 test images after 50 steps up and 50 down, float64, below 1e-6 by "
                "iteration and above 1e-5 without it, in every seed"
            ),
            figures=["error_fixed_point", "error_fixed_point_5", "error_naive"],
        ),
        Claim.check_parts(
            "A path on the circle keeps the images half way as good and as varied, a straight one does not.",
            [one[f"fd_{way}_path_circular"] < _CLEAR * one[f"fd_{way}_path_ends"] for way in WAYS for one in runs]
            + [one[f"fd_{way}_path_linear"] > one[f"fd_{way}_path_circular"] for way in WAYS for one in runs]
            + [
                one[f"recall_{way}_path_linear"] < one[f"recall_{way}_path_circular"] - 0.1
                for way in WAYS
                for one in runs
            ],
            rule=(
                f"50 steps without noise, in every seed and both ways: the Fréchet distance on the circle is below "
                f"{_CLEAR} times that of the ends, that on the line above it, with a recall lower by 0.1"
            ),
            figures=[f"{m}_{way}_path_{p}" for m in ("fd", "recall") for way in WAYS for p in ("circular", "linear")],
        ),
    ]


def _pairs() -> list[tuple[str, int]]:
    return list(itertools.product(_SETTINGS, _FEW))


def _everywhere(runs: Sequence[Mapping[str, float]], low: str, high: str, times: float = 1.0) -> bool:
    """Whether one number is the larger one in every run, by a factor."""
    return all(one[high] > times * one[low] for one in runs)


def _draw(figure: Any, figures: Mapping[str, Figure], counts: Sequence[int], model: Any, seed: int) -> None:
    figure.set_size_inches(18, 9)
    grid = figure.add_gridspec(2, 12)
    panels = [figure.add_subplot(grid[0, 3 * i : 3 * i + 3]) for i in range(4)]
    below = [figure.add_subplot(grid[1, 4 * i : 4 * i + 4]) for i in range(3)]
    value = {name: one.value for name, one in figures.items()}
    for eta in _ETAS:
        panels[0].plot(_COUNTS, [value[f"variance_eta{eta:g}_{n}"] for n in _COUNTS], "o-", label=f"eta {eta:g}")
    panels[0].axhline(_VARIANCE, color="gray", linestyle=":", label="data")
    panels[0].set(title="a Gaussian, exact denoiser", xlabel="steps", ylabel="variance of samples", xscale="log")
    panels[0].legend()
    titles = ("digits without classes", "digits with classes", "without classes, clipped")
    for panel, way, title in zip(panels[1:], _SETTINGS, titles, strict=True):
        for name, label in (("eta0", "no noise"), ("eta1", "noise of DDPM"), ("forward", "noise of forward steps")):
            shown = [n for n in counts if f"fd_{way}_{name}_{n}" in figures]
            panel.plot(shown, [value[f"fd_{way}_{name}_{n}"] for n in shown], "o-", label=label)
        for name, style, label in (("test", ":", "test images"), ("gaussian", "--", "Gaussian of pixels")):
            panel.axhline(value[f"fd_reference_{name}"], color="gray", linestyle=style, label=label)
        panel.set(title=title, xlabel="steps", ylabel="Fréchet distance", xscale="log", yscale="log")
    panels[1].legend(fontsize="small")
    draw_solvers(below[0], figures)
    _draw_steps(below[1], model, seed)
    _draw_paths(below[2], model, seed)


def _draw_steps(panel: Any, model: Any, seed: int) -> None:
    """Digits by number of steps and noise."""
    torch = import_optional("torch", extra="generative")
    rows = [(n, eta) for n in (5, 10, 50) for eta in (0.0, 1.0)]
    images = [
        model.sample(10, generator=seed, condition=torch.arange(10), steps=n, eta=eta, grid="leading")
        for n, eta in rows
    ]
    draw_tiles(panel, torch.stack(images), [f"{n}, {eta:g}" for n, eta in rows])
    panel.set(title="samples by class", xlabel="classes 0 to 9", ylabel="steps, eta")


def _draw_paths(panel: Any, model: Any, seed: int) -> None:
    """Digits without class on paths between latents, on the circle and straight."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import make_grid, solve

    draw, grid = torch.Generator().manual_seed(seed), make_grid(model.schedule, _MANY, kind="leading")
    rows, labels = [], []
    for _ in range(3):
        z1, z2 = torch.randn(2, *model.event_shape, generator=draw)
        for method, label in (("circular", "circle"), ("linear", "line")):
            z = generative.interpolate(z1, z2, 10, method=method)  # type: ignore[arg-type]
            rows.append(solve(model.denoiser, z, grid))
            labels.append(label)
    draw_tiles(panel, torch.stack(rows), labels)
    panel.set(title="between two latents, no classes", xlabel="from one latent to the other", ylabel="path")
