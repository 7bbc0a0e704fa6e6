"""kexue.fm/archives/9158: the multi-label loss extended to n m-way decisions, an attempt without gain.

Measures: identities of the pairwise form; recall on digits of both forms and of cross-entropy, also with one dominant
class; and the loss of the centered form for a wrong answer, which can be almost 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import attempt, load_digits
from kexue.experiments._panels import draw_runs
from kexue.experiments._training import fit
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_WAYS = ("cross_entropy", "pairwise", "centered")
_TASKS, _TRAIN = 60, 1200  # images taken together as one sample; images to train on
_COMMON = 0.9  # share of the digit 0 in the unbalanced stream


@experiment(
    "nmway",
    claim="The multi-label loss extends to n m-way classifications in two forms, neither of which beats cross-entropy.",
    effect=(
        "mean recall over digits {accuracy_cross_entropy} to {accuracy_pairwise}; "
        "with one class of 90 % {balanced_accuracy_common_cross_entropy} to {balanced_accuracy_common_pairwise}"
    ),
    minutes=0.2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure identities, the failing example, and linear models of digits: balanced, and with one dominant digit."""
    import_optional("torch", extra="train")
    count, epochs = {"smoke": (1, 5), "small": (5, 30), "full": (20, 30)}[budget]
    seeds = range(seed, seed + count)
    figures = {name: Figure(value) for name, value in _measure_identities(seed).items()}
    claims = _identity_claims(figures)
    notes = ["the article's verdict, given in words, is tested on digits with a linear model"]
    recalls = attempt(lambda: _measure_digits(seeds, epochs), "the digits", notes)
    if recalls:
        figures |= {
            f"{kind}_{way}": Figure.over_runs(v) for kind, values in recalls.items() for way, v in values.items()
        }
        claims += _digit_claims(figures)
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        draw=lambda figure: _draw(figure, recalls or {}),
        seeds=tuple(seeds),
    )


# ---- claims --------------------------------------------------------------------------------------------------------


def _identity_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    return [
        Claim.check(
            "The pairwise form is cross-entropy for one task and for tasks whose classes all differ, and the "
            "multi-label loss for two classes.",
            figures["identity_gap"].value < 1e-12,
            rule="largest difference below 1e-12 in float64",
            figures=["identity_gap"],
        ),
        Claim.check(
            "Only the centered form has its optimum for soft labels at their softmax.",
            figures["slope_at_softmax_centered"].value < 1e-12 and figures["slope_at_softmax_pairwise"].value > 1e-3,
            rule="largest gradient entry at softmax(s) = t below 1e-12, against more than 1e-3 for the pairwise form",
            figures=["slope_at_softmax_centered", "slope_at_softmax_pairwise"],
        ),
        Claim.check(
            "The centered loss can be small while the prediction is wrong.",
            figures["wrong_answer_centered"].value < 0.2 and figures["wrong_answer_pairwise"].value > 5,
            rule="scores (10, 5, -5), true class the second: centered below 0.2, pairwise above 5",
            figures=["wrong_answer_centered", "wrong_answer_pairwise"],
        ),
    ]


def _digit_claims(figures: dict[str, Figure]) -> list[Claim]:
    gain = figures["accuracy_pairwise"].value - figures["accuracy_cross_entropy"].value
    loss = figures["accuracy_cross_entropy"].value - figures["accuracy_centered"].value
    common = "balanced_accuracy_common"
    figures["accuracy_gain_pairwise"] = Figure(gain)
    figures["accuracy_loss_centered"] = Figure(loss)
    figures[f"{common}_gain_pairwise"] = Figure(
        figures[f"{common}_pairwise"].value - figures[f"{common}_cross_entropy"].value
    )
    return [
        Claim.check(
            "On hard labels the pairwise form does as well as cross-entropy, and brings nothing more.",
            abs(gain) < 0.02,
            rule="mean recall over the digits within 0.02 of cross-entropy",
            figures=["accuracy_cross_entropy", "accuracy_pairwise", "accuracy_gain_pairwise"],
        ),
        Claim.check(
            "The centered form is worse on hard labels.",
            loss > 0.02,
            rule="mean recall over the digits lower than with cross-entropy by more than 0.02",
            figures=["accuracy_cross_entropy", "accuracy_centered", "accuracy_loss_centered"],
        ),
        Claim.check(
            "Where one class dominates, the pairwise form balances the classes (the article's aim, our measurement).",
            figures[f"{common}_gain_pairwise"].value > 0.01,
            rule="mean recall over the digits higher than with cross-entropy by more than 0.01, the digit 0 being "
            f"{_COMMON:.0%} of the training stream",
            figures=[f"{common}_cross_entropy", f"{common}_pairwise", f"{common}_gain_pairwise"],
        ),
    ]


def _draw(figure: Any, recalls: Mapping[str, Mapping[str, Array]]) -> None:
    """Recall by loss, balanced and with one dominant digit."""
    if not recalls:
        figure.text(0.5, 0.5, "scikit-learn is not installed: no digits", ha="center")
        return
    titles = {
        "accuracy": "digits as they are",
        "balanced_accuracy_common": f"{_COMMON:.0%} of the training stream is the digit 0",
    }
    for panel, (kind, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        draw_runs(panel, {way.replace("_", "-"): recalls[kind][way] for way in _WAYS})
        panel.set(title=title, xlabel="loss")
    figure.axes[0].set_ylabel("mean recall of the ten digits, test data")


# ---- measure -------------------------------------------------------------------------------------------------------


def _measure_identities(seed: int) -> dict[str, float]:
    """How far the loss is from what it must equal, and the two failings of its forms."""
    import torch
    from torch.nn.functional import cross_entropy

    from kexue.losses import nmway_loss, zlpr_loss

    generator = torch.Generator().manual_seed(seed)
    s = 3 * torch.randn(6, 6, dtype=torch.float64, generator=generator)
    order = torch.randperm(6, generator=generator)
    gaps = [
        nmway_loss(s[:1], order[:1]) - cross_entropy(s[:1], order[:1]),
        nmway_loss(s, order) - cross_entropy(s, order, reduction="sum"),
        nmway_loss(s[:, :2], order % 2) - zlpr_loss(s[:, 0] - s[:, 1], order % 2 == 0),
    ]
    slopes = {}
    for form in ("pairwise", "centered"):
        at = s.clone().requires_grad_()
        nmway_loss(at, s.softmax(-1), form=form).backward()  # type: ignore[no-untyped-call]
        assert at.grad is not None
        slopes[f"slope_at_softmax_{form}"] = float(at.grad.abs().max())
    wrong = torch.tensor([[10.0, 5.0, -5.0]])
    return {
        "identity_gap": max(abs(float(gap)) for gap in gaps),
        **slopes,
        "wrong_answer_pairwise": float(nmway_loss(wrong, torch.tensor([1]))),
        "wrong_answer_centered": float(nmway_loss(wrong, torch.tensor([1]), form="centered")),
    }


def _measure_digits(seeds: Sequence[int], epochs: int) -> dict[str, dict[str, Array]]:
    """Mean recall over the ten digits by seed, for each way of training, balanced and not."""
    from torch.nn.functional import cross_entropy

    from kexue.losses import nmway_loss

    losses: dict[str, Callable[[Any, Any], Any]] = {
        "cross_entropy": cross_entropy,
        "pairwise": nmway_loss,
        "centered": lambda s, t: nmway_loss(s, t, form="centered"),
    }
    streams = {"accuracy": False, "balanced_accuracy_common": True}
    return {
        kind: {way: np.array([_train(loss, s, epochs, common) for s in seeds]) for way, loss in losses.items()}
        for kind, common in streams.items()
    }


def _train(loss: Callable[[Any, Any], Any], seed: int, epochs: int, common: bool) -> float:
    """Train a linear model, with `common` on a stream of mostly zeros; mean recall over the digits of the test data."""
    import torch

    X, y = load_digits(seed)
    order = torch.Generator().manual_seed(seed)
    odds = torch.ones(_TRAIN)
    if common:
        zero = (y[:_TRAIN] == 0).float()
        odds = zero * _COMMON / zero.sum() + (1 - zero) * (1 - _COMMON) / (1 - zero).sum()
    W = torch.nn.Parameter(torch.zeros(65, 10))
    fit(
        torch.nn.ParameterList([W]),
        lambda rows: loss(X[rows] @ W[1:] + W[0], y[rows]),
        [
            rows
            for _ in range(epochs)
            for rows in torch.split(torch.multinomial(odds, _TRAIN, common, generator=order), _TASKS)
        ],
        torch.optim.Adam([W], lr=1e-2),
    )
    with torch.no_grad():
        right = (X[_TRAIN:] @ W[1:] + W[0]).argmax(-1) == y[_TRAIN:]
    return float(np.mean([right[y[_TRAIN:] == digit].float().mean() for digit in range(10)]))
