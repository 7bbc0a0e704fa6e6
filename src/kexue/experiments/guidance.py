"""kexue.fm/archives/9257: guidance with and without a classifier, what it samples, and what it costs in variety.

Measures, of two Gaussians with exact denoisers: mean and variance of guided samples against closed forms. On
scikit-learn's digits, with one network that knows the classes and "no class": agreement with the class asked for,
Fréchet distance, precision and recall by the scale; guidance of the network without class by a classifier of noisy
digits, by one of clean digits on noisy and on denoised ones, by a similarity. Another classifier tells the agreement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import CLASSES, STEPS, Digits, train_model
from kexue.experiments._digit_guides import Guides, train_guides
from kexue.experiments._exact_gaussians import ConditionalGaussian, build_gaussian
from kexue.experiments._panels import draw_tiles
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
_PULLS = (1.0, 2.0, 5.0, 10.0)  # scales of what guides a network without class; of the similarity 10 times as much
_WAYS = {
    "noisy": "noisy: classifier of noisy digits",
    "clean": "clean: classifier of clean digits",
    "denoised": "denoised: the same on denoised ones",
    "stopgrad": "stopgrad: network not differentiated",
    "similarity": "similarity to the mean of a class",
}
_MEAN, _GIVEN, _WITHOUT = 1.0, 1.0, 2.0  # mean and variance with the condition; variance without, of mean 0
_GAUSSIAN_SCALES = (0.0, 1.0, 2.0, 3.0)
_CALLS = 50
_OPTIONS: dict[str, Any] = {"steps": _CALLS, "grid": "leading", "clip": "static"}


@experiment(
    "guidance",
    claim="A scale above 1 makes samples agree with the class asked for and costs variety; classifiers guide, too.",
    effect=(
        "agreement with the class {agreement_1} at scale 1, {agreement_2} at 2; recall {recall_1}, {recall_2} at 2, "
        "{recall_8} at 8; Fréchet distance {fd_1}, {fd_1.5} at 1.5, {fd_8} at 8, of test digits {fd_reference_test}; "
        "a classifier raises agreement from {agreement_0} to {agreement_noisy_5}"
    ),
    minutes=5,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure Gaussians, train a network and two classifiers for each seed, and guide."""
    import_optional("torch", extra="generative")
    count = {"smoke": 1, "small": 3, "full": 5}[budget]
    seeds, digits = tuple(range(seed, seed + count)), Digits.load()
    models = {s: train_model(digits, STEPS[budget], s) for s in seeds}
    guides = {s: train_guides(digits, models[s].schedule, STEPS[budget] // 2, s) for s in seeds}
    runs = [_measure_scales(models[s], digits, s) | _measure_guides(models[s], guides[s], digits, s) for s in seeds]
    figures = _measure_gaussians() | _measure_forms() | digits.reference_figures()
    figures |= {name: Figure.over_runs([one[name] for one in runs]) for name in runs[0]}
    return Report(
        tuple(_decide(runs, figures)),
        figures,
        notes=(
            f"Samples are {digits.count} by DDIM of {_CALLS} steps, estimates clipped to [-1, 1], all from one noise.",
            "Agreement is that of the classifier whose features measure the distance; it guides nothing.",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": digits.count},),
        draw=lambda figure: _draw(figure, figures, models[seed], guides[seed], seed),
    )


# ---- closed forms --------------------------------------------------------------------------------------------------


def _measure_gaussians() -> dict[str, Figure]:
    """Mean and variance of guided samples, with the closed form, and what the sharpened density would have."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import VP, ClassifierFreeGuidance, make_grid, solve

    schedule = VP()
    exact = ConditionalGaussian((_MEAN, _GIVEN), (0.0, _WITHOUT), schedule)
    x, condition = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    grid, figures = make_grid(schedule, 400, kind="quadratic"), dict[str, Figure]()
    for scale in _GAUSSIAN_SCALES:
        guided = ClassifierFreeGuidance(exact, scale, null=1)
        ends: Any = solve(guided, x, grid, solver="heun", condition=condition)  # a linear map: two points tell it
        low, high = ends[:, 0].tolist()
        mixed, precision = _GIVEN**scale * _WITHOUT ** (1 - scale), scale / _GIVEN + (1 - scale) / _WITHOUT
        figures |= {
            f"gaussian_variance_{scale:g}": Figure((high - low) ** 2, expected=mixed, source="computed"),
            f"gaussian_mean_{scale:g}": Figure(low),
            f"sharpened_variance_{scale:g}": Figure(1 / precision),
            f"sharpened_mean_{scale:g}": Figure(scale * _MEAN / _GIVEN / precision),
        }
    return figures


def _measure_forms() -> dict[str, Figure]:
    """Gradient of a sharpened classifier and the one used; shifts of a step, for each unit of the gradient."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import ClassifierGuidance, DiscreteSchedule, ddim_step

    logsigmoid = torch.nn.functional.logsigmoid
    at, t, s = torch.full((1, 1), 0.5, dtype=torch.float64), torch.tensor(1), torch.tensor(0)

    def shift(form: Any, squares: Sequence[float]) -> float:
        plain = build_gaussian(0.0, _WITHOUT, DiscreteSchedule.from_alphas_cumprod(squares))
        guided = ClassifierGuidance(plain, lambda x, _t: x[:, 0], 1.0, form=form)  # gradient 1
        return float(ddim_step(guided, at, t, s, eta=1.0).x - ddim_step(plain, at, t, s, eta=1.0).x)

    plain = build_gaussian(0.0, _WITHOUT, DiscreteSchedule.from_alphas_cumprod([0.7, 0.4]))
    guided = ClassifierGuidance(plain, lambda x, _t: logsigmoid(x[:, 0]), 2.0)
    used = float(guided.predict(at, t).score - plain.predict(at, t).score)
    x = at.clone().requires_grad_()
    sharpened = 2 * logsigmoid(x) - torch.logaddexp(2 * logsigmoid(x), 2 * logsigmoid(-x))
    true = float(torch.autograd.grad(sharpened.sum(), x)[0])
    a, large, small = math.sqrt(0.4 / 0.7), (0.7, 0.4), (0.4004, 0.4)
    return {
        "gradient_used": Figure(used, expected=2 / (1 + math.exp(0.5)), source="computed"),
        "gradient_sharpened": Figure(true, expected=2 / (1 + math.exp(1.0)), source="computed"),
        "shift_score": Figure(shift("score", large), expected=(1 - a * a) / a, source="computed"),
        "shift_mean": Figure(shift("mean", large), expected=(1 - a * a) * 0.3 / 0.6, source="computed"),
        "shift_mean_over_score_small_step": Figure(shift("mean", small) / shift("score", small)),
    }


# ---- digits --------------------------------------------------------------------------------------------------------


def _measure_scales(model: Any, digits: Digits, seed: int) -> dict[str, float]:
    """Measures of samples by the scale of the guidance without classifier."""
    torch = import_optional("torch", extra="generative")

    def sample(scale: float, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)
        options = {**_OPTIONS, "scale": scale, "generator": generator, **options}
        return model.sample(digits.count, condition=digits.labels(), **options)

    values: dict[str, float] = {}
    for scale in _SCALES:
        values |= {f"{name}_{scale:g}": value for name, value in _measure(sample(scale), digits).items()}
    for scale in (1.0, 2.0):
        values[f"fd_{scale:g}_unclipped"] = digits.distance(sample(scale, clip=None))
    return values


def _measure_guides(model: Any, guides: Guides, digits: Digits, seed: int) -> dict[str, float]:
    """Measures of samples of the network without class, guided from outside, and accuracies of the classifiers."""
    torch = import_optional("torch", extra="generative")
    values = dict(guides.accuracies)
    for way in _WAYS:
        for pull in _PULLS:
            z = torch.randn(digits.count, *model.event_shape, generator=torch.Generator().manual_seed(seed))
            x = _guide(model, guides, way, pull, z, digits.labels())
            values |= {f"{name}_{way}_{pull:g}": value for name, value in _measure(x, digits).items()}
    return values


def _guide(model: Any, guides: Guides, way: str, pull: float, z: Any, labels: Any) -> Any:
    """Samples of the network without class from the noise z, guided from outside."""
    torch = import_optional("torch", extra="generative")
    from kexue.generative.diffusion import make_grid, solve

    grid = make_grid(model.schedule, _CALLS, kind="leading")
    condition = None if way == "similarity" else labels  # its classes are in the similarity
    with torch.no_grad():
        return solve(guides.build(way, model.denoiser, pull, labels), z, grid, condition=condition, clip="static")


def _measure(x: Any, digits: Digits) -> dict[str, float]:
    quality = digits.measure(x)
    return {
        "agreement": digits.agreement(x, digits.labels()),
        "fd": quality.frechet_distance,
        "precision": quality.precision,
        "recall": quality.recall,
    }


# ---- claims and figures --------------------------------------------------------------------------------------------


def _decide(runs: Sequence[Mapping[str, float]], figures: Mapping[str, Figure]) -> list[Claim]:
    return [*_decide_closed_forms(figures), *_decide_scales(runs), *_decide_guides(runs)]


def _decide_closed_forms(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    variances = [f"gaussian_variance_{scale:g}" for scale in _GAUSSIAN_SCALES]
    exact = [figures[name] for name in ("gradient_used", "gradient_sharpened", "shift_score", "shift_mean")]
    return [
        Claim.check(
            "Guidance of Gaussians mixes their variances geometrically; it does not sample the sharpened density.",
            all(_near(figures[name], 0.01) for name in variances)
            and all(value[f"gaussian_variance_{n}"] < 0.9 * value[f"sharpened_variance_{n}"] for n in (2, 3)),
            rule=(
                "N(1, 1) with the condition, N(0, 2) without: variance within 1 % of V_c^scale V_u^(1 - scale) at 0, "
                "1, 2, 3, and more than 10 % below that of p(x) p(y|x)^scale at 2 and 3"
            ),
            figures=[*variances, "sharpened_variance_2", "gaussian_mean_2", "sharpened_mean_2"],
        ),
        Claim.check(
            "The scaled gradient is not that of the sharpened classifier; a shift of the mean and of eps differ, too.",
            all(_near(figure, 1e-6) for figure in exact)
            and value["gradient_used"] > 1.2 * value["gradient_sharpened"]
            and abs(value["shift_mean_over_score_small_step"] - 1) < 0.01,
            rule=(
                "a logistic classifier at 0.5, scale 2; a step of alpha^2 from 0.4 to 0.7: closed forms to 1e-6; from "
                "0.4 to 0.4004 both shifts agree within 1 %"
            ),
            figures=["gradient_used", "gradient_sharpened", "shift_mean", "shift_score"],
        ),
    ]


def _near(figure: Figure, share: float) -> bool:
    """Whether a figure is what is expected, up to a share of it."""
    return abs(figure.value / float(figure.expected or math.nan) - 1) < share


def _decide_scales(runs: Sequence[Mapping[str, float]]) -> list[Claim]:
    strong = [scale for scale in _SCALES if scale >= 1]
    return [
        Claim.check(
            "A scale above 1 makes more samples agree with the class asked for.",
            all(one["agreement_2"] > one["agreement_1"] > one["agreement_0"] for one in runs),
            rule="share of agreement in every seed larger at scale 2 than at 1, and there than at 0",
            figures=["agreement_0", "agreement_1", "agreement_2"],
        ),
        Claim.check(
            "The larger the scale, the less variety.",
            all(one[f"recall_{a:g}"] > one[f"recall_{b:g}"] for one in runs for a, b in pairwise(strong)),
            rule="recall in every seed falls from each of the scales 1, 1.5, 2, 3, 5, 8 to the next",
            figures=[f"recall_{scale:g}" for scale in strong],
        ),
        Claim.check(
            "The Fréchet distance is least at a scale a little above 1.",
            all(1 < min(_SCALES, key=lambda scale: one[f"fd_{scale:g}"]) <= 2 for one in runs),
            rule="in every seed the least distance of all the scales is at 1.5 or 2",
            figures=[f"fd_{scale:g}" for scale in _SCALES],
        ),
    ]


def _decide_guides(runs: Sequence[Mapping[str, float]]) -> list[Claim]:
    def best(one: Mapping[str, float], way: str, most: float = math.inf) -> float:
        return max(one[f"agreement_{way}_{pull:g}"] for pull in _PULLS if pull <= most)

    return [
        Claim.check(
            "A classifier of noisy digits guides a network that knows no class.",
            all(best(one, "noisy", 5) > 0.8 and one["agreement_0"] < 0.2 for one in runs),
            rule="agreement in every seed below 0.2 without guidance, above 0.8 at a scale of 1, 2 or 5",
            figures=["agreement_0", *(f"agreement_noisy_{pull:g}" for pull in _PULLS)],
        ),
        Claim.check(
            "A classifier of clean digits guides clearly worse on noisy digits than on denoised ones.",
            all(best(one, "clean") < best(one, "denoised") - 0.1 for one in runs),
            rule="the largest agreement of all scales is lower by 0.1 in every seed",
            figures=[f"agreement_{way}_{pull:g}" for way in ("clean", "denoised") for pull in _PULLS],
        ),
        Claim.check(
            "A similarity guides like a classifier.",
            all(best(one, "similarity") > 0.8 for one in runs),
            rule="cosine of the scores of a denoised digit and the mean of its class: agreement above 0.8, every seed",
            figures=[f"agreement_similarity_{pull:g}" for pull in _PULLS],
        ),
    ]


def _draw(figure: Any, figures: Mapping[str, Figure], model: Any, guides: Guides, seed: int) -> None:
    figure.set_size_inches(15, 9)
    panels = figure.subplots(2, 3)
    value = {name: one.value for name, one in figures.items()}
    for name in ("agreement", "precision", "recall"):
        panels[0, 0].plot(_SCALES, [value[f"{name}_{scale:g}"] for scale in _SCALES], "o-", label=name)
    panels[0, 0].set(title="one network with and without class", xlabel="scale", ylabel="share", ylim=(0, 1.05))
    panels[0, 0].legend()
    panels[0, 1].plot(_SCALES, [value[f"fd_{scale:g}"] for scale in _SCALES], "o-")
    for name, style, label in (("test", ":", "test images"), ("gaussian", "--", "Gaussian of pixels")):
        panels[0, 1].axhline(value[f"fd_reference_{name}"], color="gray", linestyle=style, label=label)
    panels[0, 1].set(title="distance of the samples", xlabel="scale", ylabel="Fréchet distance", yscale="log")
    panels[0, 1].legend()
    panel, wide = panels[0, 2], np.linspace(_GAUSSIAN_SCALES[0], _GAUSSIAN_SCALES[-1], 50)
    panel.plot(wide, _GIVEN**wide * _WITHOUT ** (1 - wide), label="geometric mixture")
    panel.plot(wide, 1 / (wide / _GIVEN + (1 - wide) / _WITHOUT), "--", label="sharpened density")
    panel.plot(_GAUSSIAN_SCALES, [value[f"gaussian_variance_{n:g}"] for n in _GAUSSIAN_SCALES], "ko", label="sampled")
    panel.set(title="Gaussians, exact denoiser", xlabel="scale", ylabel="variance", ylim=(0, None))
    panel.legend()
    for way, label in _WAYS.items():
        panels[1, 0].plot(_PULLS, [value[f"agreement_{way}_{pull:g}"] for pull in _PULLS], "o-", label=label)
    panels[1, 0].axhline(value["agreement_0"], color="gray", linestyle=":", label="no guidance")
    panels[1, 0].set(title="guided from outside", xlabel="scale", ylabel="agreement", ylim=(0, 1.05))
    panels[1, 0].legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.1))
    _draw_samples(panels[1, 1], panels[1, 2], model, guides, seed)


def _draw_samples(left: Any, right: Any, model: Any, guides: Guides, seed: int) -> None:
    """Digits of each class by scale, and by what guides from outside."""
    torch = import_optional("torch", extra="generative")
    classes, rows = torch.arange(CLASSES), (0.0, 1.0, 2.0, 8.0)
    options = {"condition": classes, "generator": seed, **_OPTIONS}
    draw_tiles(left, torch.stack([model.sample(CLASSES, scale=n, **options) for n in rows]), [f"{n:g}" for n in rows])
    left.set(title="one network", xlabel="classes 0 to 9", ylabel="scale")
    z = torch.randn(CLASSES, *model.event_shape, generator=torch.Generator().manual_seed(seed))
    ways = list(_WAYS)
    draw_tiles(right, torch.stack([_guide(model, guides, way, 5.0, z, classes) for way in ways]), ways)
    right.set(title="guided from outside, scale 5", xlabel="classes 0 to 9", ylabel="guide")
