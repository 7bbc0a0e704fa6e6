"""kexue.fm/archives/6612: an energy as a generative model, learned from data and from Langevin chains.

Closed forms: moments of chains in known energies of the plane, with the bias of their steps. A ring of eight Gaussians,
learned with three regularisers, and without the buffer. Digits: samples of nearly cold chains and of warm ones, what
has more energy than a digit, and how many trainings diverge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments import _digit_energies as energies
from kexue.experiments._digit_diffusion import Digits
from kexue.experiments._digit_energies import Energies, diverges, measure_digits, train_digits
from kexue.experiments._panels import draw_runs, draw_tiles
from kexue.experiments._plane import draw_density
from kexue.experiments._ring_energies import LATER, SETTINGS, Ring, ring_claims, ring_figures, train_ring
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_EPSILONS = (0.5, 1.0, 1.5)
_RELEASED = (0.005, 10.0)  # noise and step of the paper's code, as the article has them
_TRAININGS: dict[str, dict[str, Any]] = {  # whose divergences are counted
    "sum": {},
    "none": {"regulariser": "none"},
    "difference": {"regulariser": "difference"},
    "difference_spectral": {"regulariser": "difference", "spectral": True},
}


class Size(NamedTuple):
    """What a budget allows.

    Attributes:
        chains: of a known energy.
        ring, digits, warm, short: training steps; of digits at temperature 1, and of those counted for divergences.
        seeds: number of runs.
        trials, many: trainings counted for divergences in each setting, and in the one that is used.
    """

    chains: int
    ring: int
    digits: int
    warm: int
    short: int
    seeds: int
    trials: int
    many: int


_SIZES: dict[Budget, Size] = {
    "smoke": Size(2000, 20, 20, 5, 5, 1, 1, 2),
    "small": Size(20_000, 1000, 1500, 300, 200, 3, 5, 20),
    "full": Size(100_000, 4000, 6000, 1500, 1000, 5, 20, 20),
}
_Trials = Mapping[str, Sequence[bool]]  # by setting, whether each training diverged


@experiment(
    "energy-gan",
    claim="A generative model is an energy: learned from its own Langevin samples, which a buffer makes long.",
    effect=(
        "total variation to a ring of Gaussians {ring_tv_sum}, without the buffer {ring_tv_fresh}; Fréchet distance of "
        "digits {fd}, at temperature 1 {fd_warm}, of Gaussian pixels {fd_reference_gaussian}; mirrored digits have "
        "more energy in {auc_mirrored}; trainings that diverged: {diverged_sum} with the sum of squares, "
        "{diverged_difference} with their difference"
    ),
    minutes=8,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Run chains in known energies, learn energies of the ring and of digits, count trainings that diverge."""
    import_optional("torch", extra="generative")
    size, digits = _SIZES[budget], Digits.load()
    seeds = tuple(range(seed, seed + size.seeds))
    chains = _measure_chains(size.chains, seed)
    rings = {name: [train_ring(name, size.ring, s) for s in seeds] for name in SETTINGS}
    cold = [measure_digits(digits, train_digits(digits, size.digits, s), s) for s in seeds]
    warm = [measure_digits(digits, train_digits(digits, size.warm, s, warm=True), s) for s in seeds]
    trials = {
        name: [
            diverges(digits, size.short, s, **options)
            for s in range(seed, seed + (size.many if name == "sum" else size.trials))
        ]
        for name, options in _TRAININGS.items()
    }
    figures = chains | ring_figures(rings) | digits.reference_figures()
    figures |= {name: Figure.over_runs([one.numbers[name] for one in cold], _unit(name)) for name in cold[0].numbers}
    figures["fd_warm"] = Figure.over_runs([one.numbers["fd"] for one in warm])
    figures["temperature"] = Figure(energies.NOISE**2 / 2 / energies.STEP)
    figures["temperature_released"] = Figure(_RELEASED[0] ** 2 / 2 / _RELEASED[1])
    for name, fates in trials.items():
        figures[f"diverged_{name}"] = Figure(sum(fates), f"of {len(fates)}", n=len(fates))
    return Report(
        (
            _decide_chains(figures),
            *ring_claims(rings),
            *_decide_digits(figures, cold, warm),
            _decide_length(rings, cold),
            _decide_trials(trials),
        ),
        figures,
        notes=(
            f"Fréchet distances are of {digits.count} samples; fd and fd_warm are the mean of {energies.DRAWS} draws.",
            f"Trainings on digits have {size.digits} steps, those at temperature 1 {size.warm}, and those counted for "
            f"divergences {size.short}.",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "train", "n": len(digits.images.train)},),
        draw=lambda figure: _draw(figure, figures, rings, digits, cold, warm),
    )


def _unit(name: str) -> str:
    return {"auc": "of the pairs", "acceptance": "of the steps"}.get(name.partition("_")[0], "")


# ---- chains in known energies --------------------------------------------------------------------------------------


def _measure_chains(n: int, seed: int) -> dict[str, Figure]:
    """Variances in U = |x|^2/2 by the step, with and without the Metropolis test, and moments in two wells.

    Distances from closed forms are in standard errors of the n chains.
    """
    torch = import_optional("torch", extra="generative")
    draw, start = torch.Generator().manual_seed(seed), torch.zeros(n, 2, dtype=torch.float64)
    figures = {}
    for epsilon in _EPSILONS:
        for kind, tested, expected in (("plain", False, 1 / (1 - epsilon / 4)), ("tested", True, 1.0)):
            options: dict[str, Any] = {"steps": 100, "step_size": epsilon / 2, "metropolis": tested}
            chains = generative.langevin(lambda x: x.square().sum(1) / 2, start, generator=draw, **options)
            squares = chains.x.square().mean(1)
            name = f"{kind}_{epsilon:g}"
            figures[f"variance_{name}"] = Figure(float(squares.mean()), n=n, expected=expected, source="computed")
            figures[f"errors_{name}"] = Figure(_count_errors(squares, expected), "standard errors", n=n)
            if chains.acceptance is not None:
                figures[f"acceptance_{epsilon:g}"] = Figure(float(chains.acceptance.mean()), "of the steps")
            else:
                figures[f"bias_{epsilon:g}"] = Figure(_count_errors(squares, 1.0), "standard errors", n=n)
    moments = _measure_wells(n // 4, draw)
    figures["errors_wells"] = Figure(max(moments.values(), key=abs), "standard errors", n=n // 4)
    return figures


def _measure_wells(n: int, draw: Any) -> dict[str, float]:
    """Distances of moments from quadrature, in standard errors: tested chains in 4 (x^2 - 1)^2 - x/2 + (y - x)^2/2."""
    torch = import_optional("torch", extra="generative")

    def wells(x: Any) -> Any:
        return 4 * (x.square() - 1).square() - x / 2

    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    density = (-wells(grid)).softmax(0)
    chains = generative.langevin(
        lambda p: wells(p[:, 0]) + (p[:, 1] - p[:, 0]).square() / 2,
        torch.zeros(n, 2, dtype=torch.float64),
        steps=1500, step_size=0.04, metropolis=True, generator=draw,
    )  # fmt: skip
    x, y = chains.x.T
    return {
        "right": _count_errors((x > 0).double(), float(density[grid > 0].sum())),
        "x": _count_errors(x, float((density * grid).sum())),
        "xy": _count_errors(x * y, float((density * grid**2).sum())),  # y is x and standard normal noise
        "y^2": _count_errors(y.square(), float((density * grid**2).sum()) + 1),
    }


def _count_errors(values: Any, expected: float) -> float:
    """How many standard errors the mean of independent values lies above the expected one."""
    return (float(values.mean()) - expected) / (float(values.std()) / math.sqrt(len(values)))


# ---- claims --------------------------------------------------------------------------------------------------------


def _decide_chains(figures: Mapping[str, Figure]) -> Claim:
    value = {name: figure.value for name, figure in figures.items()}
    return Claim.check_parts(
        "Langevin chains sample the energy: too wide by the size of their steps, which the Metropolis test mends.",
        (
            all(abs(value[f"errors_plain_{e:g}"]) < 3 for e in _EPSILONS),
            all(value[f"bias_{e:g}"] > 3 for e in _EPSILONS),
            all(abs(value[f"errors_tested_{e:g}"]) < 3 for e in _EPSILONS) and abs(value["errors_wells"]) < 3,
        ),
        rule="variances of steps e within 3 standard errors of 1/(1 - e/4), and more than 3 above 1; with the test all "
        "moments, also in two wells, within 3 of the closed form or the quadrature",
        figures=[
            f"{kind}_{e:g}" for kind in ("variance_plain", "errors_plain", "bias", "errors_tested") for e in _EPSILONS
        ]
        + ["errors_wells"],
    )


def _decide_digits(figures: Mapping[str, Figure], cold: Sequence[Energies], warm: Sequence[Energies]) -> list[Claim]:
    runs = [one.numbers for one in cold]
    gaussian = figures["fd_reference_gaussian"].value
    strange = ("mirrored", "gaussian", "uniform")
    return [
        Claim.check(
            "An energy makes images: its samples are nearer to the digits than a Gaussian of their pixels.",
            all(one["fd"] < gaussian for one in runs),
            rule="Fréchet distance below that of Gaussian pixels in every seed",
            figures=["fd", "fd_reference_gaussian", "fd_reference_test", "precision", "recall", "nearest_train_ratio"],
        ),
        Claim.check(
            "The recipe is a nearly cold descent: at temperature 1, chains as short do not make digits.",
            all(b.numbers["fd"] > 10 * a["fd"] for a, b in zip(runs, warm, strict=True)),
            rule="Fréchet distance at temperature 1 more than ten times as large, in every seed",
            figures=["fd", "fd_warm", "temperature", "temperature_released", "acceptance"],
        ),
        Claim.check_parts(
            "The energy tells what is not like the data.",
            [all(one[f"auc_{name}"] > 0.75 for one in runs) for name in strange],
            rule="more energy than a test digit in more than 75 % of the pairs, every seed: mirrored digits, Gaussian "
            "pixels, uniform pixels",
            figures=[f"auc_{name}" for name in strange] + ["auc_samples"],
        ),
    ]


def _decide_length(rings: Mapping[str, Sequence[Ring]], cold: Sequence[Energies]) -> Claim:
    runs = [one.numbers for one in cold]
    return Claim.check_parts(
        "What is learned is the law of long chains.",
        (
            all(one.far_later < 2 * one.far for one in rings["sum"]),
            *(all(one[name] < 2 * one["fd"] for one in runs) for name in ("fd_long", "fd_anew")),
        ),
        rule=f"in every seed less than twice as large: the share of samples far from the ring's Gaussians after "
        f"{LATER} more steps; the Fréchet distance of digits with {energies.LONG} steps in place of {energies.CHAIN}, "
        f"and with {10 * energies.CHAIN} that start from uniform noise",
        figures=["ring_far_sum", "ring_far_later_sum", "ring_far_data", "fd", "fd_long", "fd_anew"],
    )


def _decide_trials(trials: _Trials) -> Claim:
    return Claim.check_parts(
        "With the sum of squares no training on digits diverges; with their difference all do, unless spectral norms "
        "help.",
        (not any(trials["sum"]), all(trials["difference"]), not any(trials["difference_spectral"])),
        rule="trainings whose mean energies leave [-1000, 1000], or with a loss that is no number: none with the sum; "
        "all with the difference; none with the difference and spectral norms",
        figures=[f"diverged_{name}" for name in trials],
    )


# ---- figure --------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any,
    figures: Mapping[str, Figure],
    rings: Mapping[str, Sequence[Ring]],
    digits: Digits,
    cold: Sequence[Energies],
    warm: Sequence[Energies],
) -> None:
    figure.set_size_inches(15, 9)
    panels = figure.subplots(2, 3)
    _draw_variances(panels[0, 0], figures)
    for panel, name, title in ((panels[0, 1], "sum", "with the buffer"), (panels[0, 2], "fresh", "without the buffer")):
        draw_density(panel, rings[name][0].log_prob, (-3, 3, -3, 3))
        panel.set(title=f"learned density {title}, first seed", xlabel="$x_1$", ylabel="$x_2$")
    panel = panels[1, 0]
    draw_runs(panel, {name: [one.offset for one in rings[name]] for name in ("sum", "difference", "none")})
    panel.axhline(0, color="gray", linestyle=":")
    panel.set(title="ring: the constant of the energy", xlabel="regulariser", ylabel="mean energy of data")
    _draw_samples(panels[1, 1], cold[0].model, warm[0].model)
    _draw_energies(panels[1, 2], cold[0].model, digits)


def _draw_variances(panel: Any, figures: Mapping[str, Figure]) -> None:
    steps = [0.02 * i for i in range(91)]
    panel.plot(steps, [1 / (1 - e / 4) for e in steps], label="$1/(1-\\varepsilon/4)$")
    for kind, label in (("plain", "chains"), ("tested", "with the Metropolis test")):
        panel.plot(_EPSILONS, [figures[f"variance_{kind}_{e:g}"].value for e in _EPSILONS], "o", label=label)
    panel.axhline(1, color="gray", linestyle=":")
    panel.set(title="chains in U = |x|²/2", xlabel="step $\\varepsilon$", ylabel="variance")
    panel.legend()


def _draw_samples(panel: Any, cold: Any, warm: Any) -> None:
    torch = import_optional("torch", extra="generative")
    draw = torch.Generator().manual_seed(0)
    rows = {
        f"{energies.CHAIN} steps": cold.sample(10, generator=draw),
        f"{energies.LONG} steps": cold.sample(10, generator=draw, steps=energies.LONG),
        "from noise": cold.sample(10, generator=draw, steps=10 * energies.CHAIN, from_buffer=False),
        "T = 1": warm.sample(10, generator=draw),
    }
    draw_tiles(panel, torch.stack(list(rows.values())), list(rows))
    panel.set(title="digits: samples of the first seed", xlabel="ten samples", ylabel="chains")


def _draw_energies(panel: Any, model: Any, digits: Digits) -> None:
    torch = import_optional("torch", extra="generative")
    test, draw = digits.images.test, torch.Generator().manual_seed(0)
    strange = energies.draw_strange(digits, draw)
    with torch.no_grad():
        shown = {"test digits": test, "mirrored": strange["mirrored"], "Gaussian pixels": strange["gaussian"]}
        for name, x in shown.items():
            panel.hist(model.energy(x).numpy(), bins=40, alpha=0.5, label=name)
    panel.set(title="energies, first seed", xlabel="U", ylabel="images")
    panel.legend()
