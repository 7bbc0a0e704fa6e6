"""kexue.fm/archives/7094: six tricks that turn any optimizer into another one.

Measures: distance of the parameters, after each step, between a composition and its explicit form: decay and layer
adaptation around Adam against AdamW and LAMB; a schedule inside the optimizer against one beside it; small batches
accumulated against the large one.

The two optimizers take turns and are compared after every step, and some steps take a weight as their argument, so this
loop is here, not in `kexue.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from kexue._optional import import_optional
from kexue.experiments._training import torch_seed
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_EXACT = 1e-9  # tolerance in float64: rounding errors grow during the steps of Adam
_SCHEDULE = {20: 1.0, 40: 0.1}
_LABELS = {
    "adamw": "AdamW by composition",
    "lamb": "LAMB by composition",
    "schedule": "schedule inside, LambdaLR beside",
    "accumulated": "4 x 8 accumulated, 32 at once",
    "weighted": "uneven parts with weights",
    "mean_of_means": "uneven parts, mean of means",
    "l2": "decay in the gradient (L2), AdamW",
}


@experiment(
    "derived-optim",
    claim="Six extensions, each a few lines around an update, turn any optimizer into a derived one such as LAMB.",
    effect=(
        "distance to the reference optimizers at most {gap_lamb}; mean of means instead of weights {gap_mean_of_means}"
    ),
    minutes=0.2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train each composition beside its explicit form and record the distance of the parameters."""
    import_optional("torch", extra="train")
    steps = {"smoke": 12, "small": 60, "full": 400}[budget]
    curves = _gap_curves(steps, seed)
    gaps = {f"gap_{name}": max(curve) for name, curve in curves.items()}
    return Report(
        _claims(gaps, steps),
        {name: Figure(gap, unit="relative", source="computed") for name, gap in gaps.items()},
        notes=(
            "That LAMB allows much larger batches is its paper's claim about pretraining, and out of reach here.",
            "Lookahead and lazy updates, the other two of the six, are in another experiment: lookahead-lazy.",
        ),
        draw=lambda figure: _draw(figure, curves),
    )


# ---- claims --------------------------------------------------------------------------------------------------------


def _claims(gaps: Mapping[str, float], steps: int) -> tuple[Claim, ...]:
    def equal(text: str, name: str) -> Claim:
        rule = f"parameters of both runs within {_EXACT:.0e}, relative, at each of {steps} steps in float64"
        return Claim.check(text, gaps[name] < _EXACT, rule=rule, figures=[name])

    return (
        equal("Decoupled weight decay around Adam is AdamW.", "gap_adamw"),
        equal("Layer adaptation around weight decay around Adam is LAMB.", "gap_lamb"),
        equal("A piecewise-linear schedule inside the optimizer is the same as a scheduler beside it.", "gap_schedule"),
        equal("4 x 8 accumulated is a batch of 32.", "gap_accumulated"),
        equal("Parts of 1, 3, 8 and 20, weighted by their sizes, are a batch of 32.", "gap_weighted"),
        Claim.check(
            "Without weights, uneven parts give another optimizer; so does decay within the gradient.",
            min(gaps["gap_mean_of_means"], gaps["gap_l2"]) > 1e-3,
            rule="parameters further apart than 1e-3 at some step",
            figures=["gap_mean_of_means", "gap_l2"],
        ),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _gap_curves(steps: int, seed: int) -> dict[str, list[float]]:
    """Relative distance of the parameters of each pair of optimizers, after each step."""
    torch = import_optional("torch", extra="train")
    from kexue import optim

    race = partial(_race, steps, seed)

    def adam(p: Any) -> Any:
        return torch.optim.Adam(p, lr=0.01)

    def adamw(p: Any) -> Any:
        return torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)

    def accumulate(p: Any) -> Any:
        return optim.GradientAccumulation(adam(p), 4)

    decay = ("weight_decay", {"rate": 0.1})
    uneven = (1, 3, 8, 20)
    return {
        "adamw": race(lambda p: optim.extend(adam(p), decay), adamw),
        "lamb": race(
            lambda p: optim.extend(adam(p), decay, "layer_adaptation"), lambda p: _lamb()(p, lr=0.01, decay=0.1)
        ),
        "schedule": race(lambda p: optim.PiecewiseLinear(adam(p), _SCHEDULE), adam, schedule=True),
        "accumulated": race(accumulate, adam, parts=(8, 8, 8, 8)),
        "weighted": race(accumulate, adam, parts=uneven, weighted=True),
        "mean_of_means": race(accumulate, adam, parts=uneven),
        "l2": race(lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1), adamw),
    }


def _race(
    steps: int,
    seed: int,
    ours: Callable[[Any], Any],
    theirs: Callable[[Any], Any],
    *,
    parts: tuple[int, ...] = (32,),
    weighted: bool = False,
    schedule: bool = False,
) -> list[float]:
    """Relative distance of the parameters after each step; `ours` sees a batch in parts, `theirs` whole."""
    torch = import_optional("torch", extra="train")

    def build() -> Any:
        nn = torch.nn
        with torch_seed(seed):
            return nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 4)).double()

    model, other = build(), build()
    optimizer, explicit = ours(model.parameters()), theirs(other.parameters())
    knots = sorted({0: 0.0, **_SCHEDULE}.items())
    scheduler = torch.optim.lr_scheduler.LambdaLR(explicit, lambda t: _interpolate(knots, t)) if schedule else None
    generator = torch.Generator().manual_seed(seed)
    gaps = []
    for _ in range(steps):
        x = torch.randn(32, 20, generator=generator, dtype=torch.float64)
        y = (x[:, :4] + x[:, 4:8].abs()).argmax(1)
        for xs, ys in zip(x.split(parts), y.split(parts), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(xs), ys).backward()
            if weighted:
                optimizer.step(weight=len(xs))
            else:
                optimizer.step()
        explicit.zero_grad()
        torch.nn.functional.cross_entropy(other(x), y).backward()
        explicit.step()
        if scheduler is not None:
            scheduler.step()
        a, b = (torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (model, other))
        gaps.append(float((a - b).norm() / b.norm()))
    return gaps


def _interpolate(knots: list[tuple[int, float]], t: int) -> float:
    """The piecewise-linear function through knots (step, factor), constant after the last one."""
    for (start, low), (end, high) in pairwise(knots):
        if t < end:
            return low + (high - low) * (t - start) / (end - start)
    return knots[-1][1]


def _lamb() -> Any:
    """LAMB written out: algorithm 2 of arXiv:1904.00962 with bias correction and phi the identity."""
    torch = import_optional("torch", extra="train")

    class Lamb:
        def __init__(self, params: Any, lr: float, decay: float) -> None:
            self.params = list(params)
            self.lr, self.decay, self.t = lr, decay, 0
            self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in range(2))

        def zero_grad(self) -> None:
            for p in self.params:
                p.grad = None

        def step(self) -> None:
            self.t += 1
            with torch.no_grad():
                for p, m, v in zip(self.params, self.m, self.v, strict=True):
                    m.mul_(0.9).add_(0.1 * p.grad)
                    v.mul_(0.999).add_(0.001 * p.grad**2)
                    r = m / (1 - 0.9**self.t) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8) + self.decay * p
                    size, change = float(p.norm()), float(r.norm())
                    p.sub_(self.lr * (size / change if size > 0 and change > 0 else 1.0) * r)

    return Lamb


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, curves: Mapping[str, list[float]]) -> None:
    figure.set_size_inches(9, 4.5)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        apart = max(curve) > _EXACT
        steps = range(1, len(curve) + 1)
        equal = max(curve) == 0
        label = f"{_LABELS[name]}: no difference" if equal else _LABELS[name]
        heights = [3e-18 * 2**number if equal else gap for gap in curve]
        axes.semilogy(steps, heights, "--" if apart else ":" if equal else "-", label=label)
    axes.axhline(_EXACT, color="0.6", lw=0.8)
    axes.set(xlabel="step", ylabel="relative distance of the parameters", ylim=(1e-18, 10))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
