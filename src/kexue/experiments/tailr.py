"""kexue.fm/archives/9526: cross-entropy that weights its targets by the model's own probability.

Measures: accuracy, calibration and confidence by gamma, trained on digits with partly wrong labels; and a Gaussian
fitted to a mixture of two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import attempt, load_digits
from kexue.experiments._training import fit, shuffled_rows
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_GAMMAS = (0.0, 0.1, 0.5, 1.0)
_NOISES = (0.0, 0.3)  # share of the training labels replaced by random ones
_MEASURES = ("accuracy", "ece", "confidence")
_GRID = np.linspace(-16, 20, 361)


@experiment(
    "tailr",
    claim="Weighing each target by the model's own probability curbs the over-confidence of cross-entropy.",
    effect=(
        "accuracy with 30 % wrong labels {accuracy_noise_0.3_gamma_0} to {accuracy_noise_0.3_gamma_0.5}; "
        "calibration error on clean ones {ece_noise_0_gamma_0} to {ece_noise_0_gamma_0.1}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure digits with clean and wrong labels, a Gaussian fitted to a mixture, and the gradients of both forms."""
    import_optional("torch", extra="train")
    count, epochs = {"smoke": (1, 20), "small": (5, 200), "full": (20, 200)}[budget]
    steps = {"smoke": 300, "small": 1000, "full": 1000}[budget]
    seeds = range(seed, seed + count)
    fits = {gamma: _fit_gaussian(gamma, steps) for gamma in (0.0, 0.001, 0.01)}
    figures = {"gradient_gap": Figure(_measure_gradient_gap(seed))} | _mixture_figures(fits)
    claims = _gradient_and_mixture_claims(figures, fits)
    notes = [
        "a larger gamma makes the fitted Gaussian narrower than the mode: gamma should be small compared with the "
        "probabilities",
        "the article's and the paper's tasks (translation, summaries) are not repeated: digits take their place",
    ]
    digits = attempt(lambda: _measure_digits(seeds, epochs), "the digits", notes)
    if digits:
        figures |= _digit_figures(digits)
        claims += _digit_claims(figures)
        notes.append(
            "confidence is the mean largest probability on test data: the method ignores improbable targets, which "
            "makes the model more confident of the others"
        )
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        draw=lambda figure: _draw(figure, digits or {}, fits),
        seeds=tuple(seeds),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------

_Fit = tuple[float, float, float]  # mean, deviation and total variation of a fitted Gaussian


def _mixture_figures(fits: Mapping[float, _Fit]) -> dict[str, Figure]:
    figures = {}
    for gamma, fit_ in fits.items():
        figures[f"mixture_mean_gamma_{gamma:g}"] = Figure(fit_[0])
        figures[f"mixture_total_variation_gamma_{gamma:g}"] = Figure(fit_[2])
    return figures


def _digit_figures(digits: Mapping[float, Array]) -> dict[str, Figure]:
    """Means over seeds of arrays (gammas, seeds, measures), one for each share of wrong labels."""
    return {
        f"{name}_noise_{noise:g}_gamma_{g:g}": Figure.over_runs(v)
        for noise, values in digits.items()
        for g, rows in zip(_GAMMAS, values, strict=True)
        for name, v in zip(_MEASURES, rows.T, strict=True)
    }


def _gradient_and_mixture_claims(figures: Mapping[str, Figure], fits: Mapping[float, _Fit]) -> list[Claim]:
    return [
        Claim.check(
            "The weighted loss has the gradient of a bounded loss, and at gamma = 0 that of cross-entropy.",
            figures["gradient_gap"].value < 1e-12,
            rule="largest difference of gradients over gammas below 1e-12 in float64",
            figures=["gradient_gap"],
        ),
        Claim.check(
            "A Gaussian fitted to 80 % N(0, 1) and 20 % N(8, 1) ignores the far mode.",
            abs(fits[0.001][0]) < 0.3 and abs(fits[0.0][0] - 1.6) < 0.1 and fits[0.001][2] < fits[0.0][2],
            rule="mean within 0.3 of 0 at gamma 0.001 and within 0.1 of 1.6 at gamma 0, and less total variation",
            figures=[f"mixture_{what}_gamma_{g:g}" for g in fits for what in ("mean", "total_variation")],
        ),
    ]


def _digit_claims(figures: dict[str, Figure]) -> list[Claim]:
    def names(measure: str, noise: float) -> list[str]:
        return [f"{measure}_noise_{noise:g}_gamma_{g:g}" for g in _GAMMAS]

    def values(measure: str, noise: float) -> list[float]:
        return [figures[name].value for name in names(measure, noise)]

    accuracy, calibration = values("accuracy", 0.3), values("ece", 0.3)
    confidence = {noise: values("confidence", noise) for noise in _NOISES}
    return [
        Claim.check(
            "Training is more robust when some labels are wrong.",
            accuracy[2] > accuracy[0] + 0.03,
            rule="mean test accuracy at gamma 0.5 above that of cross-entropy by more than 0.03, 30 % wrong labels",
            figures=names("accuracy", 0.3),
        ),
        Claim.check(
            "With wrong labels a small gamma is better calibrated.",
            calibration[1] < calibration[0],
            rule="mean expected calibration error at gamma 0.1 below that of cross-entropy, 30 % wrong labels",
            figures=names("ece", 0.3),
        ),
        Claim.check(
            "It makes the model less confident.",
            all(means[-1] < means[0] for means in confidence.values()),
            rule="mean largest probability on test data lower at gamma 1 than with cross-entropy, clean and noisy",
            figures=names("confidence", 0.0) + names("confidence", 0.3),
        ),
        Claim.check(
            "On clean labels it is better calibrated than cross-entropy.",
            min(values("ece", 0.0)[1:]) < values("ece", 0.0)[0],
            rule="mean expected calibration error at the best gamma > 0 below that of cross-entropy, clean labels",
            figures=names("ece", 0.0),
        ),
    ]


def _draw(figure: Any, digits: Mapping[float, Array], fits: Mapping[float, _Fit]) -> None:
    """Accuracy and confidence against gamma, and the fitted Gaussians."""
    left, right = figure.subplots(1, 2)
    for noise, values in digits.items():
        for name, style in (("accuracy", "o-"), ("confidence", "s--")):
            mean = values[:, :, _MEASURES.index(name)].mean(axis=1)
            color = "C0" if noise == 0 else "C3"
            left.plot(range(len(_GAMMAS)), mean, style, color=color, label=f"{name}, {noise:.0%} wrong labels")
    left.set_xticks(range(len(_GAMMAS)), [f"{g:g}" for g in _GAMMAS])
    left.set_xlabel("gamma (0 = cross-entropy)")
    left.set_ylabel("digits, test data")
    if digits:
        left.legend()
    right.set_xlim(-7, 13)
    right.fill_between(_GRID, _mixture(), color="0.85", label="mixture")
    for gamma, (mean, deviation, _) in fits.items():
        right.plot(_GRID, _gaussian(mean, deviation), label=f"fitted, gamma = {gamma:g}")
    right.set_xlabel("x")
    right.set_ylabel("probability of a cell of width 0.1")
    right.legend()


# ---- measure -------------------------------------------------------------------------------------------------------


def _measure_digits(seeds: Sequence[int], epochs: int) -> dict[float, Array]:
    """For each share of wrong labels (gammas, seeds, measures)."""
    return {
        noise: np.array([[_train(seed, noise, gamma, epochs) for seed in seeds] for gamma in _GAMMAS])
        for noise in _NOISES
    }


def _train(seed: int, noise: float, gamma: float, epochs: int) -> tuple[float, float, float]:
    """Accuracy, expected calibration error and mean confidence on test data after training on 300 images."""
    import torch

    from kexue.losses import tailr_loss

    X, y = load_digits(seed)
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(300, generator=generator) < noise
    labels = torch.where(wrong, torch.randint(10, (300,), generator=generator), y[:300])
    W1, b1 = torch.randn(64, 64, generator=generator) / 8, torch.zeros(64)
    W2, b2 = torch.randn(64, 10, generator=generator) / 8, torch.zeros(10)
    weights = torch.nn.ParameterList([W1, b1, W2, b2])

    def scores(images: Any) -> Any:
        return torch.relu(images @ weights[0] + weights[1]) @ weights[2] + weights[3]

    fit(
        weights,
        lambda rows: tailr_loss(scores(X[rows]), labels[rows], gamma),
        shuffled_rows(300, 30, epochs, generator),
        torch.optim.Adam(weights, lr=1e-3),
    )
    with torch.no_grad():
        confidence, predicted = scores(X[300:]).softmax(-1).max(-1)
    right = (predicted == y[300:]).numpy().astype(float)
    return float(right.mean()), *_calibration(right, confidence.numpy().astype(float))


def _calibration(right: Array, confidence: Array) -> tuple[float, float]:
    """Expected calibration error in 15 bins, and mean confidence."""
    bins = np.minimum((confidence * 15).astype(int), 14)
    gaps = [abs((right - confidence)[bins == b].sum()) for b in range(15)]
    return float(sum(gaps) / len(confidence)), float(confidence.mean())


def _fit_gaussian(gamma: float, steps: int) -> _Fit:
    """Mean, deviation and total variation of the Gaussian fitted on the grid, from the fit of cross-entropy."""
    import torch

    from kexue.losses import tailr_loss

    grid, target = torch.tensor(_GRID), torch.tensor(_mixture())
    mean = float(target @ grid)
    start = [mean, float(target @ (grid - mean) ** 2) ** 0.5]  # the fit of cross-entropy, except at the ends
    at = torch.nn.Parameter(torch.tensor([start[0], np.log(start[1])]))
    cells = torch.arange(len(grid))

    def loss(_step: int) -> Any:
        scores = -0.5 * ((grid - at[0]) / at[1].exp()) ** 2
        return tailr_loss(scores.expand(len(grid), -1), cells, gamma, reduction="none") @ target  # by share of the data

    fit(torch.nn.ParameterList([at]), loss, range(steps), torch.optim.Adam([at], lr=1e-2))
    mean, deviation = float(at[0].detach()), float(at[1].detach().exp())
    return mean, deviation, float(0.5 * np.abs(_gaussian(mean, deviation) - _mixture()).sum())


def _gaussian(mean: float, deviation: float) -> Array:
    """Probabilities of the cells of the grid under a Gaussian."""
    density = np.exp(-0.5 * ((_GRID - mean) / deviation) ** 2)
    return np.asarray(density / density.sum())


def _mixture() -> Array:
    """Probabilities of the cells under the mixture."""
    return np.asarray(0.8 * _gaussian(0, 1) + 0.2 * _gaussian(8, 1))


def _measure_gradient_gap(seed: int) -> float:
    """Largest difference between the gradients of both forms, and of gamma = 0 and cross-entropy."""
    import torch
    from torch.nn.functional import cross_entropy

    from kexue.losses import tailr_loss

    generator = torch.Generator().manual_seed(seed)
    s = 3 * torch.randn(50, 10, dtype=torch.float64, generator=generator)
    y = torch.randint(10, (50,), generator=generator)

    def gradient(loss: Any) -> Any:
        at = s.clone().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]

    gaps = [gradient(lambda x: cross_entropy(x, y)) - gradient(lambda x: tailr_loss(x, y, 0.0))]
    for g in _GAMMAS:
        weighted = gradient(lambda x, g=g: tailr_loss(x, y, g))
        gaps.append(weighted - gradient(lambda x, g=g: tailr_loss(x, y, g, form="integrated")))
    return float(max(gap.abs().max() for gap in gaps))
