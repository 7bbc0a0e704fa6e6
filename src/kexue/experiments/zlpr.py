"""kexue.fm/archives/7359, 9064: softmax and cross-entropy for several labels at once, without weights to tune.

Measures: micro-F1 on rare labels at the fixed threshold, against binary cross-entropy as it is, with the best of many
weights, and with the best threshold; soft labels recovered by the sigmoid of twice the score; and probabilities of hard
labels drawn at random, with and without a fitted temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._training import fit, shuffled_rows
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_FEATURES, _CLASSES, _POSITIVES = 32, 200, 3
_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 66.0)  # of the positives; 66 balances both sides
_WAYS = ("BCE", "BCE, best threshold", "BCE, best weight", "ZLPR")


@experiment(
    "zlpr",
    claim="One loss for several labels does as well as weighted binary cross-entropy, with nothing to tune.",
    effect=(
        "micro-F1 after 6 epochs {f1_early_bce} to {f1_early_zlpr}; "
        "gain over the best-weighted BCE after training {f1_late_zlpr_minus_bce_best_weight}"
    ),
    minutes=1.5,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure rare labels under a linear model, soft labels of known probability, and hard labels drawn from them."""
    import_optional("torch", extra="train")
    count, epochs = {"smoke": (1, 8), "small": (5, 40), "full": (20, 100)}[budget]
    seeds = range(seed, seed + count)
    runs = [_measure_rare_labels(s, epochs) for s in seeds]
    curves = {way: np.array([run[way] for run in runs]) for way in _WAYS}
    soft, readout = _fit_soft_labels(seed)
    errors = _measure_random_labels(seed, {"smoke": 300, "small": 1500, "full": 3000}[budget])
    figures = _curve_figures(curves) | _probability_figures(soft, readout, errors)
    return Report(
        _claims(figures, min(6, epochs)),
        figures,
        notes=("the article compares on text corpora, which are not repeated here: the data are synthetic",),
        draw=lambda figure: _draw(figure, curves, soft, readout),
        seeds=tuple(seeds),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------


def _curve_figures(curves: Mapping[str, Array]) -> dict[str, Figure]:
    """Micro-F1 after the sixth and after the last epoch, for curves (seeds, epochs)."""
    seeds, epochs = curves["ZLPR"].shape
    figures = {}
    for name, at in (("early", min(5, epochs - 1)), ("late", epochs - 1)):
        for way, values in curves.items():
            key = f"f1_{name}_{way.lower().replace(', ', '_').replace(' ', '_')}"
            figures[key] = Figure.over_runs(values[:, at])
    gaps = curves["ZLPR"] - curves["BCE, best weight"]
    return figures | {"f1_late_zlpr_minus_bce_best_weight": Figure(float(gaps[:, epochs - 1].mean()), n=seeds)}


def _probability_figures(soft: Array, readout: Mapping[str, Array], errors: Mapping[str, float]) -> dict[str, Figure]:
    """Errors of the probabilities for soft labels, and for hard labels drawn at random."""
    return {
        "soft_readout_error_twice": Figure(float(np.abs(readout["sigmoid(2s)"] - soft).max()), n=len(soft)),
        "soft_readout_error_once": Figure(float(np.abs(readout["sigmoid(s)"] - soft).max()), n=len(soft)),
        **{f"random_labels_{name}": Figure(value) for name, value in errors.items()},
    }


def _claims(figures: Mapping[str, Figure], early: int) -> tuple[Claim, ...]:
    plain = f"f1 after {early} epochs, mean over seeds"
    return (
        Claim.check(
            "Without tuning, rare labels are found far earlier than with plain binary cross-entropy.",
            figures["f1_early_zlpr"].value > figures["f1_early_bce"].value + 0.05,
            rule=f"micro-F1 at threshold 0 higher by more than 0.05 ({plain})",
            figures=["f1_early_zlpr", "f1_early_bce"],
        ),
        Claim.check(
            "It is comparable with binary cross-entropy whose positive weight was chosen on validation data.",
            figures["f1_late_zlpr_minus_bce_best_weight"].value > -0.02,
            rule="mean difference of micro-F1 after training above -0.02",
            figures=["f1_late_zlpr", "f1_late_bce_best_weight", "f1_late_zlpr_minus_bce_best_weight"],
        ),
        Claim.check(
            "Where the weight or the threshold was already tuned, the gain is small.",
            figures["f1_late_zlpr"].value
            - max(figures["f1_late_bce_best_weight"].value, figures["f1_late_bce_best_threshold"].value)
            < 0.05,
            rule="gain of mean micro-F1 after training over the better of both below 0.05",
            figures=["f1_late_zlpr", "f1_late_bce_best_weight", "f1_late_bce_best_threshold"],
        ),
        Claim.check(
            "Soft labels are read back by sigmoid(2s).",
            figures["soft_readout_error_twice"].value < 1e-3 < figures["soft_readout_error_once"].value,
            rule="largest error at the optimum below 1e-3, and not with sigmoid(s)",
            figures=["soft_readout_error_twice", "soft_readout_error_once"],
        ),
        Claim.check(
            "For hard labels drawn at random sigmoid(2s) is not the probability; a fitted temperature comes nearer "
            "(our addition).",
            figures["random_labels_error_fitted"].value < figures["random_labels_error_twice"].value,
            rule="mean absolute error of the probability lower with the temperature fitted on held-out labels",
            figures=["random_labels_error_twice", "random_labels_error_fitted"],
        ),
    )


def _draw(figure: Any, curves: Mapping[str, Array], soft: Array, readout: Mapping[str, Array]) -> None:
    """F1 against the epoch, and probabilities against soft labels."""
    left, right = figure.subplots(1, 2)
    at = np.arange(1, curves["ZLPR"].shape[1] + 1)
    for way, style in zip(_WAYS, ("-", "--", "-.", "-"), strict=True):
        left.plot(at, curves[way].mean(axis=0), style, label=way, linewidth=2.5 if way == "ZLPR" else 1.5)
    left.set_xlabel("epoch")
    left.set_ylabel(f"micro-F1 on test data, {_POSITIVES} of {_CLASSES} labels")
    left.legend()
    right.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for name, values in readout.items():
        right.plot(soft, values, "o", markersize=4, label=name)
    right.set_xlabel("soft label")
    right.set_ylabel("probability read from the trained score")
    right.legend()


# ---- measure -------------------------------------------------------------------------------------------------------


def _measure_rare_labels(seed: int, epochs: int) -> dict[str, list[float]]:
    """Test micro-F1 after each epoch of every way; weights and thresholds chosen on validation data, epoch by epoch."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from kexue.losses import zlpr_loss

    X, Y = _draw_rare_labels(seed)
    held, test, labels = slice(0, 1000), slice(1000, None), Y[3000:]

    def scores_of(weight: float) -> list[Any]:
        factor = torch.full((_CLASSES,), weight)
        return _train_linear(X, Y, seed, epochs, lambda s, y: binary_cross_entropy_with_logits(s, y, pos_weight=factor))

    def f1(scores: Any, labels: Any, threshold: float = 0.0) -> float:
        predicted = scores > threshold
        return float(2 * labels[predicted].sum() / (predicted.sum() + labels.sum()))

    weighted = [scores_of(weight) for weight in _WEIGHTS]
    curves: dict[str, list[float]] = {way: [] for way in _WAYS}
    for epoch, ours in enumerate(_train_linear(X, Y, seed, epochs, zlpr_loss)):
        plain = weighted[0][epoch]
        best = max((history[epoch] for history in weighted), key=lambda s: f1(s[held], labels[held]))
        threshold = max(np.linspace(-6, 1, 57).tolist(), key=lambda h: f1(plain[held], labels[held], h))
        curves["BCE"].append(f1(plain[test], labels[test]))
        curves["BCE, best threshold"].append(f1(plain[test], labels[test], threshold))
        curves["BCE, best weight"].append(f1(best[test], labels[test]))
        curves["ZLPR"].append(f1(ours[test], labels[test]))
    return curves


def _draw_rare_labels(seed: int) -> tuple[Any, Any]:
    """6,000 samples X and their labels Y, the three largest of 200 noisy scores."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(_FEATURES, _CLASSES, generator=generator)
    X = torch.randn(6000, _FEATURES, generator=generator)
    noisy = X @ directions + 2 * torch.randn(6000, _CLASSES, generator=generator)
    return X, torch.zeros_like(noisy).scatter_(1, noisy.topk(_POSITIVES, 1).indices, 1.0)


def _train_linear(X: Any, Y: Any, seed: int, epochs: int, loss: Callable[[Any, Any], Any]) -> list[Any]:
    """Train a linear model on the first 3,000 samples; its scores of the others after each epoch."""
    import torch

    W = torch.nn.Parameter(torch.zeros(_FEATURES + 1, _CLASSES))

    def scores(x: Any) -> Any:
        return x @ W[1:] + W[0]

    batches = shuffled_rows(3000, 100, epochs, torch.Generator().manual_seed(seed))
    return fit(
        torch.nn.ParameterList([W]),
        lambda rows: loss(scores(X[rows]), Y[rows]),
        batches,
        torch.optim.Adam([W], lr=1e-2),
        evaluate=lambda: scores(X[3000:]),
        every=30,
    ).evaluations


def _fit_soft_labels(seed: int) -> tuple[Array, dict[str, Array]]:
    """Free scores trained on soft labels, and the probabilities read from them."""
    import torch

    from kexue.losses import zlpr_loss, zlpr_proba

    labels = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    s = torch.randn(25, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.LBFGS([s], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> Any:
        optimizer.zero_grad()
        value = zlpr_loss(s, labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    s = s.detach()
    return labels.numpy(), {"sigmoid(2s)": zlpr_proba(s).numpy(), "sigmoid(s)": torch.sigmoid(s).numpy()}


def _measure_random_labels(seed: int, steps: int) -> dict[str, float]:
    """Mean errors of the probabilities for hard labels drawn with known ones, and the fitted temperature."""
    import torch

    from kexue.losses import fit_temperature, zlpr_loss, zlpr_proba

    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(8, 20, generator=generator)
    X = torch.randn(8000, 8, generator=generator)
    truth = torch.sigmoid(X @ true - 1)
    Y = torch.rand(truth.shape, generator=generator) < truth
    W, b = torch.nn.Parameter(torch.zeros(8, 20)), torch.nn.Parameter(torch.zeros(20))
    blocks = torch.split(torch.arange(4000), 200)
    fit(
        torch.nn.ParameterList([W, b]),
        lambda rows: zlpr_loss(X[rows] @ W + b, Y[rows]),
        [blocks[step % 20] for step in range(steps)],
        torch.optim.Adam([W, b], lr=1e-2),
    )
    with torch.no_grad():
        scores = X @ W + b
    temperature = fit_temperature(scores[4000:6000], Y[4000:6000])

    def error(probability: Any) -> float:
        return float((probability[6000:] - truth[6000:]).abs().mean())

    return {
        "error_twice": error(zlpr_proba(scores)),
        "error_fitted": error(zlpr_proba(scores, temperature=temperature)),
        "temperature": temperature,
    }
