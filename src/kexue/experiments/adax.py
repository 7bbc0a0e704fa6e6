"""kexue.fm/archives/7387: AdaX, Adam with a second moment of exponentially growing memory.

Measures: the distance between the published recurrence and the normalised one; the step at which the published one
overflows float32, and a million steps of the normalised one; how fast the second moment follows a change in the size of
the gradients, early and late; and accuracy on digits beside Adam.

The first three take steps on given gradients and call the optimizer directly: nothing is trained there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue import optim
from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.experiments._data import attempt
from kexue.experiments._optimizers import (
    bind_rate,
    claim_as_accurate,
    compare_on_digits,
    draw_digits,
    figures_of_digits,
)
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_BETA1, _BETA2 = 0.9, 1e-4
_CHANGES = (1_000, 10_000, 100_000)
_RATES = {"adam": (1e-3, 3e-3, 1e-2), "adax": (1e-3, 3e-3, 1e-2)}


@experiment(
    "adax",
    claim="Adam with a second moment of exponentially growing memory stays stable, ends as SGD with a fixed "
    "preconditioner, and trains at least as well.",
    effect="gain in accuracy over Adam {digits_gain}",
    minutes=4,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Compare the two forms, run many steps, change the gradients' size, and train digits."""
    import_optional("torch", extra="train")
    figures = _recurrence_figures(budget, seed)
    responses = {name: [_response(name, t)[-1] for t in _CHANGES] for name in _RATES}
    for name, shares in responses.items():
        figures |= {f"seen_{name}_{t}": Figure(share) for t, share in zip(_CHANGES, shares, strict=True)}
    claims = [*_recurrence_claims(figures), _response_claim(responses)]
    seeds = tuple(range(seed, seed + {"smoke": 1, "small": 10, "full": 20}[budget]))
    notes: list[str] = []
    curves = attempt(lambda: compare_on_digits(_RATES, seeds, budget), "the digits", notes)
    if curves:
        figures |= figures_of_digits(curves) | {"digits_gain": _gain(curves)}
        claims += [claim_as_accurate(curves, "adax"), _better_claim(figures["digits_gain"])]
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        draw=lambda figure: _draw(figure, curves),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _form_gap(seed: int, steps: int) -> float:
    """Largest relative distance, over `steps` steps in float64, to the published recurrence."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.float64))
    optimizer = optim.AdaX([p], 1e-3, (_BETA1, _BETA2))
    x, m, v, gap = np.ones(8), np.zeros(8), np.zeros(8), 0.0
    for t in range(1, steps + 1):
        p.grad = p.detach() + torch.randn(8, generator=generator, dtype=torch.float64)
        optimizer.step()
        g = p.grad.numpy()
        m = _BETA1 * m + (1 - _BETA1) * g
        v = (1 + _BETA2) * v + _BETA2 * g**2
        x = x - 1e-3 * m / np.sqrt(v / ((1 + _BETA2) ** t - 1) + 1e-8)
        gap = max(gap, float(np.abs(p.detach().numpy() - x).max() / np.abs(x).max()))
    return gap


def _overflow_step() -> int:
    """The step at which the published v overflows float32, for gradients of size 1."""
    growth, added = np.float32(1 + _BETA2), np.float32(_BETA2)
    v, step = np.float32(0), 0
    with np.errstate(over="ignore"):
        while np.isfinite(v):
            v, step = growth * v + added, step + 1
    return step


def _run_many_steps(seed: int, steps: int) -> tuple[float, float, float]:
    """State after `steps` steps in float32 on a noisy quadratic.

    Returns the share of finite parameters, the relative distance of v to the weighted mean of g^2, and the relative
    move of v in the last tenth.
    """
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.ones(8))
    optimizer = optim.AdaX([p], 1e-3, (_BETA1, _BETA2))
    total, weights, early = torch.zeros(8, dtype=torch.float64), 0.0, None
    noise = torch.zeros(0, 8)
    for t in range(1, steps + 1):
        row = (t - 1) % 1000
        noise = torch.randn(1000, 8, generator=generator) if row == 0 else noise
        p.grad = p.detach() + noise[row]
        optimizer.step()
        weight = (1 + _BETA2) ** -t
        total += weight * p.grad.double().square()
        weights += weight
        if t == steps * 9 // 10:
            early = optimizer.state[p]["exp_avg_sq"].clone()
    v = optimizer.state[p]["exp_avg_sq"]
    return (
        float(torch.isfinite(p).double().mean()),
        float((v / (total / weights) - 1).abs().max()),
        float((v / early - 1).abs().max()),
    )


def _response(name: str, change: int, steps: int = 1_000) -> list[float]:
    """Share of the change from 1 to 100 that v has made, after each of `steps` steps with gradients of 10."""
    torch = import_optional("torch", extra="train")
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = bind_rate(name, 1e-3)([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    state, beta2 = optimizer.state[p], optimizer.param_groups[0]["betas"][1]
    state["step"].fill_(change)  # the state after that many gradients of 1
    state["exp_avg_sq"].fill_(1 - beta2**change if name == "adam" else 1)
    p.grad = torch.full_like(p, 10.0)
    shares = []
    for t in range(change + 1, change + steps + 1):
        optimizer.step()
        v = state["exp_avg_sq"].item() / (1 - beta2**t if name == "adam" else 1)
        shares.append((v - 1) / 99)
    return shares


def _recurrence_figures(budget: Budget, seed: int) -> dict[str, Figure]:
    count = {"smoke": 2_000, "small": 1_000_000, "full": 1_000_000}[budget]
    gap = _form_gap(seed, {"smoke": 1_000, "small": 10_000, "full": 10_000}[budget])
    finite, mean_gap, tail = _run_many_steps(seed, count)
    return {
        "form_gap": Figure(gap, unit="relative"),
        "raw_overflow_float32": Figure(_overflow_step(), unit="steps", expected=887_273, source="computed"),
        "steps_run": Figure(count),
        "finite_share": Figure(finite, expected=1.0, source="computed"),
        "weighted_mean_gap": Figure(mean_gap, unit="relative"),
        "move_of_the_last_tenth": Figure(tail, unit="relative"),
    }


def _gain(curves: Mapping[str, Array]) -> Figure:
    """Mean gain in accuracy over Adam, plus and minus twice its standard error."""
    gains = curves["adax"][:, -1] - curves["adam"][:, -1]
    mean, error = float(gains.mean()), float(gains.std() / max(1, len(gains) - 1) ** 0.5)
    return Figure(mean, low=mean - 2 * error, high=mean + 2 * error, n=len(gains))


# ---- claims --------------------------------------------------------------------------------------------------------


def _recurrence_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    return [
        Claim.check(
            "The published recurrence and the normalised one are the same algorithm.",
            value["form_gap"] < 1e-8,
            rule="largest relative distance of parameters in float64, over all steps, below 1e-8",
            figures=["form_gap"],
        ),
        Claim.check(
            "The second moment as published overflows float32; normalised, it stays finite and is the weighted mean "
            "(our addition).",
            value["raw_overflow_float32"] < 1_000_000
            and value["finite_share"] == 1
            and value["weighted_mean_gap"] < 1e-2,
            rule="overflow within a million steps of gradients of size 1; after a million steps of `AdaX`, "
            "parameters finite and v within 1 % of the mean of g^2 with weights (1 + beta2)^-t",
            figures=["raw_overflow_float32", "steps_run", "finite_share", "weighted_mean_gap"],
        ),
    ]


def _response_claim(responses: Mapping[str, list[float]]) -> Claim:
    adam, adax = responses["adam"], responses["adax"]
    return Claim.check(
        "Late in training the second moment stops changing: the later the gradients change their size, the less it "
        "follows, while Adam's follows at any time.",
        min(adam) > 0.5 and sorted(adax, reverse=True) == adax and adax[-1] < 0.01,
        rule="share of its final change that v has made 1,000 steps after the gradients grew tenfold: Adam's always "
        "above 50 %, AdaX's falling, at the end below 1 %",
        figures=[f"seen_{name}_{t}" for name in _RATES for t in _CHANGES],
    )


def _better_claim(gain: Figure) -> Claim:
    assert gain.high is not None
    return Claim.check(
        "It does better than Adam (the paper, on images and text).",
        gain.value > gain.high - gain.value > 0,
        rule="mean gain in accuracy over the seeds above twice its standard error",
        figures=[*(f"digits_accuracy_{name}" for name in _RATES), "digits_gain"],
    )


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, curves: Mapping[str, Array] | None) -> None:
    figure.set_size_inches(4.5 * (2 + bool(curves)), 4)
    panels = figure.subplots(1, 2 + bool(curves))
    steps = np.unique(np.logspace(0, 6, 200).astype(int))
    newest = _BETA2 / np.expm1(steps * np.log1p(_BETA2))
    panels[0].loglog(steps, newest, color="C1", label=r"AdaX, $\beta_2 = 10^{-4}$")
    panels[0].loglog(steps, 0.001 / -np.expm1(steps * np.log(0.999)), color="C0", label=r"Adam, $\beta_2 = 0.999$")
    panels[0].loglog(steps, 1 / steps, "--", color="gray", label="plain mean")
    panels[0].set(title="weight of the newest gradient", xlabel="step t", ylabel="weight in v", ylim=(1e-12, 2))
    since = range(1, 1001)
    panels[1].plot(since, [100 * x for x in _response("adam", _CHANGES[-1])], "C0", label=f"Adam, at {_CHANGES[-1]:,}")
    for change, style in zip(_CHANGES, ("-", "--", ":"), strict=True):
        panels[1].plot(since, [100 * x for x in _response("adax", change)], "C1" + style, label=f"AdaX, at {change:,}")
    panels[1].set(
        title="gradients grow tenfold at a step", xlabel="steps since", ylabel="share of the way v has gone, %"
    )
    if curves:
        draw_digits(panels[2], curves)
    for panel in panels:
        panel.legend()
