"""Comparison of an optimizer with Adam on digits, each at the best of its rates: training, figures, claim, curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kexue import optim
from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import split_digits
from kexue.experiments._training import build_mlp, fit, share_right, shuffled_rows, torch_seed
from kexue.experiments.registry import Budget
from kexue.experiments.report import Claim, Figure

Make = Callable[[Any], Any]  # parameters -> optimizer
Rates = Mapping[str, Sequence[float]]  # by name of the optimizer

LABELS = {"adam": "Adam", "adafactor": "AdaFactor", "adax": "AdaX"}


def bind_rate(name: str, rate: float) -> Make:
    """Return a function from parameters to the named optimizer with this learning rate."""
    torch = import_optional("torch", extra="train")
    kind = {"adam": torch.optim.Adam, "adafactor": optim.Adafactor, "adax": optim.AdaX}[name]
    return lambda params: kind(params, rate)


def limit_rates(rates: Sequence[float], budget: Budget) -> Sequence[float]:
    """All rates; at budget "smoke" the second one only."""
    return rates[1:2] if budget == "smoke" else rates


def train_digits(make: Make, seed: int, epochs: int) -> list[float]:
    """Test accuracy after each epoch of a network 64-256-256-10 on 1,200 digits, batches of 64, rate falling to 0."""
    torch = import_optional("torch", extra="train")
    X, y, X_test, y_test = (torch.from_numpy(part) for part in split_digits(seed))
    with torch_seed(seed):
        network = build_mlp(64, 256, 256, 10)
        batches = shuffled_rows(len(X), 64, epochs)
    an_epoch = len(batches) // epochs
    optimizer = make(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step // an_epoch / epochs)
    return fit(
        network,
        lambda rows: torch.nn.functional.cross_entropy(network(X[rows]), y[rows]),
        batches,
        optimizer,
        scheduler=schedule,
        evaluate=lambda: share_right(network, X_test, y_test),
        every=an_epoch,
    ).evaluations


def compare_on_digits(rates: Rates, seeds: Sequence[int], budget: Budget) -> dict[str, Array]:
    """Return accuracies (seed, epoch) of each optimizer, at the rate with the best mean over the seeds at the end.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    epochs = {"smoke": 2, "small": 15, "full": 30}[budget]
    best = {}
    for name, candidates in rates.items():
        runs = [
            np.array([train_digits(bind_rate(name, rate), seed, epochs) for seed in seeds])
            for rate in limit_rates(candidates, budget)
        ]
        best[name] = max(runs, key=lambda accuracies: float(accuracies[:, -1].mean()))
    return best


def figures_of_digits(curves: Mapping[str, Array]) -> dict[str, Figure]:
    """Accuracy of each optimizer after the last epoch."""
    return {f"digits_accuracy_{name}": Figure.over_runs(runs[:, -1]) for name, runs in curves.items()}


def claim_as_accurate(curves: Mapping[str, Array], name: str) -> Claim:
    """The claim that an optimizer classifies digits as well as Adam."""
    return Claim.check(
        "It classifies digits as well as Adam.",
        bool(curves[name][:, -1].mean() > curves["adam"][:, -1].mean() - 0.01),
        rule="mean accuracy on 597 test digits at the best of three rates each: at most 0.01 below Adam's",
        figures=["digits_accuracy_adam", f"digits_accuracy_{name}"],
    )


def draw_digits(panel: Any, curves: Mapping[str, Array]) -> None:
    """Mean accuracy by epoch."""
    for index, (name, runs) in enumerate(curves.items()):
        mean = 100 * runs.mean(0)
        panel.plot(range(1, len(mean) + 1), mean, "o-", ms=3, color=f"C{index}", label=LABELS[name])
    panel.set(title="digits", xlabel="epoch", ylabel="test accuracy, %")
