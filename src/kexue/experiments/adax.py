"""kexue.fm/archives/7387: AdaX, whose second moment remembers ever longer.

Shows: that the published recurrence and the normalised one give the same steps; where the published one leaves
float32, and a million steps that do not; how much slower than Adam it takes in a change of the gradients' size, the
later the slower; and accuracy on digits beside Adam.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kexue import optim
from kexue._optional import import_optional
from kexue.errors import MissingDependencyError
from kexue.experiments._optimizers import Make, best_digits
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_BETA1, _BETA2 = 0.9, 1e-4
_CHANGES = (1_000, 10_000, 100_000)
_RATES = {"adam": (1e-3, 3e-3, 1e-2), "adax": (1e-3, 3e-3, 1e-2)}
_LABELS = {"adam": "Adam", "adax": "AdaX"}


@experiment(
    "adax",
    claim="Adam with a second moment of exponentially growing memory stays stable, ends as SGD with a fixed "
    "preconditioner, and trains at least as well.",
    effect="gain in accuracy over Adam {digits_gain}",
    minutes=4,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Compare the two forms, run far, change the gradients' size, and train digits."""
    import_optional("torch", extra="train")
    count = {"smoke": 2_000, "small": 1_000_000, "full": 1_000_000}[budget]
    gap = _form_gap(seed, {"smoke": 1_000, "small": 10_000, "full": 10_000}[budget])
    overflow = _overflow()
    finite, mean_gap, tail = _far(seed, count)
    seen = {name: [_seen(name, t)[-1] for t in _CHANGES] for name in _LABELS}
    figures = {
        "form_gap": Figure(gap, unit="relative"),
        "raw_overflow_float32": Figure(overflow, unit="steps", expected=887_273, source="computed"),
        "steps_run": Figure(count),
        "finite_share": Figure(finite, expected=1.0, source="computed"),
        "weighted_mean_gap": Figure(mean_gap, unit="relative"),
        "move_of_the_last_tenth": Figure(tail, unit="relative"),
    }
    for name, shares in seen.items():
        figures |= {f"seen_{name}_{t}": Figure(share) for t, share in zip(_CHANGES, shares, strict=True)}
    claims = [
        Claim.check(
            "The published recurrence and the normalised one are the same algorithm.",
            gap < 1e-8,
            rule="largest relative distance of parameters in float64, over all steps, below 1e-8",
            figures=["form_gap"],
        ),
        Claim.check(
            "As it is written the second moment leaves float32; normalised, it is finite and the weighted mean it "
            "should be (an addition of ours).",
            overflow < 1_000_000 and finite == 1 and mean_gap < 1e-2,
            rule="overflow before a million steps of gradients of size 1; after as many steps of the class, parameters "
            "finite and v within 1 % of the mean of g^2 with weights (1 + beta2)^-t",
            figures=["raw_overflow_float32", "steps_run", "finite_share", "weighted_mean_gap"],
        ),
        Claim.check(
            "Late in training the second moment stands still: a change of the gradients' size is seen less the later "
            "it comes, in the end not at all, while Adam sees it at any time.",
            min(seen["adam"]) > 0.5 and sorted(seen["adax"], reverse=True) == seen["adax"] and seen["adax"][-1] < 0.01,
            rule="share of the way that v has gone 1,000 steps after the gradients have grown tenfold: Adam's always "
            "above a half, AdaX's falling, at last below 1 %",
            figures=[f"seen_{name}_{t}" for name in _LABELS for t in _CHANGES],
        ),
    ]
    seeds = tuple(range(seed, seed + {"smoke": 1, "small": 10, "full": 20}[budget]))
    notes, curves = [], {}
    try:
        epochs = {"smoke": 2, "small": 15, "full": 30}[budget]
        curves = {name: _digits(name, seeds, epochs, budget) for name in _LABELS}
    except MissingDependencyError as missing:
        notes.append(f"the digits are left out: {missing}")
    else:
        claims += _digit_claims(curves, figures)
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        draw=lambda figure: _draw(figure, curves),
    )


def _maker(name: str, rate: float) -> Make:
    torch = import_optional("torch", extra="train")
    kind = {"adam": torch.optim.Adam, "adax": optim.AdaX}[name]
    return lambda params: kind(params, rate)


def _form_gap(seed: int, steps: int) -> float:
    """Largest relative distance, over `steps` steps in float64, to the recurrence as it is published."""
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


def _overflow() -> int:
    """The step at which v as it is published leaves float32, for gradients of size 1."""
    growth, added = np.float32(1 + _BETA2), np.float32(_BETA2)
    v, step = np.float32(0), 0
    with np.errstate(over="ignore"):
        while np.isfinite(v):
            v, step = growth * v + added, step + 1
    return step


def _far(seed: int, steps: int) -> tuple[float, float, float]:
    """After `steps` steps in float32 on a noisy quadratic: share of finite parameters, distance of v to the weighted
    mean of g^2, and how far v moved in the last tenth."""
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


def _seen(name: str, change: int, steps: int = 1_000) -> list[float]:
    """Share of the way from 1 to 100 that v has gone in each of `steps` steps after gradients of 1 became 10."""
    torch = import_optional("torch", extra="train")
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = _maker(name, 1e-3)([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    state, beta2 = optimizer.state[p], optimizer.param_groups[0]["betas"][1]
    state["step"].fill_(change)  # what that many gradients of 1 leave behind
    state["exp_avg_sq"].fill_(1 - beta2**change if name == "adam" else 1)
    p.grad = torch.full_like(p, 10.0)
    shares = []
    for t in range(change + 1, change + steps + 1):
        optimizer.step()
        v = state["exp_avg_sq"].item() / (1 - beta2**t if name == "adam" else 1)
        shares.append((v - 1) / 99)
    return shares


def _digits(name: str, seeds: tuple[int, ...], epochs: int, budget: Budget) -> Any:
    rates = _RATES[name][1:2] if budget == "smoke" else _RATES[name]
    return best_digits(lambda rate: _maker(name, rate), rates, seeds, epochs)


def _digit_claims(curves: dict[str, Any], figures: dict[str, Figure]) -> list[Claim]:
    last = {name: curves[name][:, -1] for name in curves}
    for name, values in last.items():
        figures[f"digits_accuracy_{name}"] = Figure(
            float(values.mean()), low=float(values.min()), high=float(values.max()), n=len(values)
        )
    gains = last["adax"] - last["adam"]
    error = float(gains.std() / max(1, len(gains) - 1) ** 0.5)
    figures["digits_gain"] = Figure(
        float(gains.mean()), low=float(gains.mean()) - 2 * error, high=float(gains.mean()) + 2 * error, n=len(gains)
    )
    names = [f"digits_accuracy_{name}" for name in curves]
    return [
        Claim.check(
            "It classifies digits as well as Adam.",
            gains.mean() > -0.01,
            rule="mean accuracy on 597 test digits at the best of three rates each: at most 0.01 below Adam's",
            figures=names,
        ),
        Claim.check(
            "It does better than Adam (the paper, on images and text).",
            gains.mean() > 2 * error > 0,
            rule="mean gain in accuracy over the seeds above twice its standard error",
            figures=[*names, "digits_gain"],
        ),
    ]


def _draw(figure: Any, curves: dict[str, Any]) -> None:
    figure.set_size_inches(4.5 * (2 + bool(curves)), 4)
    axes = figure.subplots(1, 2 + bool(curves))
    steps = np.unique(np.logspace(0, 6, 200).astype(int))
    fresh = _BETA2 / np.expm1(steps * np.log1p(_BETA2))
    axes[0].loglog(steps, fresh, color="C1", label=r"AdaX, $\beta_2 = 10^{-4}$")
    axes[0].loglog(steps, 0.001 / -np.expm1(steps * np.log(0.999)), color="C0", label=r"Adam, $\beta_2 = 0.999$")
    axes[0].loglog(steps, 1 / steps, "--", color="gray", label="plain mean")
    axes[0].set(title="weight of the newest gradient", xlabel="step t", ylabel="weight in v", ylim=(1e-12, 2))
    axes[1].plot(
        range(1, 1001), [100 * x for x in _seen("adam", _CHANGES[-1])], "C0", label=f"Adam, at {_CHANGES[-1]:,}"
    )
    for change, style in zip(_CHANGES, ("-", "--", ":"), strict=True):
        share = [100 * x for x in _seen("adax", change)]
        axes[1].plot(range(1, 1001), share, "C1" + style, label=f"AdaX, at {change:,}")
    axes[1].set(title="gradients grow tenfold at a step", xlabel="steps since", ylabel="share of the way v has gone, %")
    if curves:
        for index, (name, found) in enumerate(curves.items()):
            mean = 100 * found.mean(0)
            axes[2].plot(range(1, len(mean) + 1), mean, "o-", ms=3, color=f"C{index}", label=_LABELS[name])
        axes[2].set(title="digits", xlabel="epoch", ylabel="test accuracy, %")
    for panel in axes:
        panel.legend()
