"""Constraints of a critic compared on images: steps to a distance, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._digit_diffusion import SHAPE, Digits
from kexue.experiments._image_gans import train_gan
from kexue.experiments._measures import count_multiplications, time_in_turns
from kexue.experiments._training import torch_seed
from kexue.experiments.report import Claim, Figure

Curves = Mapping[str, Sequence[Mapping[int, float]]]  # Fréchet distance by step, of each seed, by constraint
_TARGET = 5.0  # a Gaussian with the mean and the covariance of the pixels has 4.9
_BATCH, _LARGE = 64, (1, 28, 28)
_CONSTRAINTS: dict[str, dict[str, Any]] = {
    "normalised": {"constraint": "spectral"},
    "penalty_1": {"constraint": "gradient_penalty", "strength": 1.0},
    "penalty_10": {"constraint": "gradient_penalty", "strength": 10.0},
    "clipped_0.01": {"constraint": "clip", "strength": 0.01},
    "clipped_0.1": {"constraint": "clip", "strength": 0.1},
}
_PENALTIES, _CLIPPED = ("penalty_1", "penalty_10"), ("clipped_0.01", "clipped_0.1")


def measure_curves(seeds: Sequence[int], steps: int, every: int) -> Curves:
    """Distances of Wasserstein GANs of digits on the way, for each constraint and seed."""
    digits = Digits.load()
    return {
        kind: [train_gan(digits, steps, seed, every=every, loss="wasserstein", **options).distances for seed in seeds]
        for kind, options in _CONSTRAINTS.items()
    }


def make_figures(curves: Curves, seeds: Sequence[int], rounds: int) -> dict[str, Figure]:
    """Steps to the distance, distance at the end, and time and work of a critic step over those of a normalised one.

    Where the distance is not reached, the number of steps is that of all.
    """
    figures = {}
    for kind, runs in curves.items():
        figures[f"digits_{kind}_steps"] = Figure.over_runs(map(_find_step, runs), unit="steps")
        figures[f"digits_{kind}_distance"] = Figure.over_runs(list(run.values())[-1] for run in runs)
        reached = [min(run.values()) <= _TARGET for run in runs]
        figures[f"digits_{kind}_reached"] = Figure(float(np.mean(reached)), unit="of the seeds", n=len(runs))
    for name, shape in (("digits", SHAPE), ("large", _LARGE)):
        figures |= _cost_figures(name, shape, seeds, rounds)
    return figures


def _find_step(run: Mapping[int, float]) -> int:
    """The first step at which the distance was reached, else the last one."""
    return next((step for step, distance in run.items() if distance <= _TARGET), max(run))


def _cost_figures(name: str, shape: tuple[int, ...], seeds: Sequence[int], rounds: int) -> dict[str, Figure]:
    """Seconds and multiplications of a critic step; the ratio of the medians of calls in turn, for each seed."""
    figures = {}
    kinds = {kind: _CONSTRAINTS[kind] for kind in ("normalised", "penalty_10", "clipped_0.01")}
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in seeds:
        steps = {kind: _prepare_step(shape, seed, options) for kind, options in kinds.items()}
        seconds = time_in_turns({kind: partial(partial, step) for kind, step in steps.items()}, rounds)
        for kind, times in seconds.items():
            ratios[kind].append(float(np.median(times) / np.median(seconds["normalised"])))
    work = {kind: count_multiplications(step) for kind, step in steps.items()}
    for kind in ("penalty_10", "clipped_0.01"):
        short = kind.split("_")[0]
        figures[f"{name}_{short}_over_normalised_time"] = Figure.over_runs(ratios[kind], unit="times")
        figures[f"{name}_{short}_over_normalised_work"] = Figure(work[kind] / work["normalised"], unit="times")
    return figures


def _prepare_step(shape: tuple[int, ...], seed: int, options: Mapping[str, Any]) -> Callable[[], None]:
    """Return the bare step of a critic on one batch of noise."""
    torch = import_optional("torch", extra="generative")
    with torch_seed(seed):
        model = generative.sngan(shape, loss="wasserstein", **options)
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(_BATCH, *shape, generator=generator) - 1
    adam = torch.optim.Adam(model.critic.parameters(), 8e-4, (0.0, 0.9))

    def step() -> None:
        adam.zero_grad()
        loss: Any = model.training_step(x, generator=generator).loss
        loss.backward()
        adam.step()

    return step


def make_claims(curves: Curves, figures: Mapping[str, Figure]) -> list[Claim]:
    """What the article says of images, on digits."""
    steps = {kind: np.array([_find_step(run) for run in runs]) for kind, runs in curves.items()}
    last = {kind: np.array([list(run.values())[-1] for run in runs]) for kind, runs in curves.items()}
    return [
        Claim.check_parts(
            "On images, too, normalisation converges in fewer steps than the gradient penalty.",
            [bool((steps["normalised"] < steps[kind]).all()) for kind in _PENALTIES],
            rule=f"fewer steps to a Fréchet distance of {_TARGET:g} from the digits in every seed than with a weight "
            "of 1; than with one of 10",
            figures=[f"digits_{kind}_steps" for kind in ("normalised", *_PENALTIES)],
        ),
        Claim.check(
            "A critic step on images of 28 x 28 costs nearly twice as much with the penalty.",
            1.5 < figures["large_penalty_over_normalised_work"].value < 2.5,
            rule="ratio of multiplications in matrix products between 1.5 and 2.5, convolutional critic, batch 64",
            figures=["large_penalty_over_normalised_work", "digits_penalty_over_normalised_work"],
        ),
        Claim.check_parts(
            "Clipped weights make a poorer critic.",
            [bool((last[kind] > 2 * last["normalised"]).all()) for kind in _CLIPPED],
            rule="after all steps more than twice the Fréchet distance of normalisation in every seed, weights "
            "clipped at 0.01; at 0.1",
            figures=[f"digits_{kind}_distance" for kind in ("normalised", *_CLIPPED)],
        ),
    ]


def draw_curves(panel: Any, curves: Curves) -> None:
    """Mean distances by step, with the range of the seeds."""
    for at, (kind, runs) in enumerate(curves.items()):
        steps = list(runs[0])
        values = np.array([list(run.values()) for run in runs])
        panel.plot(
            steps, values.mean(0), color=f"C{at}", label=kind.replace("_", ", ").replace("penalty", "gradient penalty")
        )
        panel.fill_between(steps, values.min(0), values.max(0), color=f"C{at}", alpha=0.2)
    panel.axhline(_TARGET, color="0.5", linestyle=":")
    panel.set(yscale="log", xlabel="steps", ylabel="Fréchet distance", title="WGANs of digits")
    panel.legend(fontsize=8)
