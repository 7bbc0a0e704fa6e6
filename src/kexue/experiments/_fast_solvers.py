"""DPM-Solver++ with 10 calls of a network beside DDIM with 50, each on the grid that another network chose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kexue.experiments._digit_diffusion import Digits
from kexue.experiments.report import Claim, Figure

WAYS = ("free", "class")  # without classes, and with each equally often
_GRIDS = ("leading", "trailing", "quadratic", "karras", "lambda")
_SOLVERS = {"ddim": ("ddim", 50), "dpmpp": ("dpmpp_2m", 10)}
_ALLOWED = 1.10

Sampler = Callable[..., Any]  # (way, steps, **options) -> samples


def choose_grids(digits: Digits, sample: Sampler) -> dict[tuple[str, str], str]:
    """The grid on which each solver is nearest to the images, by solver and way."""

    def distance(solver: str, way: str, n: int, grid: str) -> float:
        return digits.distance(sample(way, n, solver=solver, grid=grid))

    return {
        (name, way): min(_GRIDS, key=lambda grid: distance(solver, way, n, grid))
        for (name, (solver, n)), way in itertools.product(_SOLVERS.items(), WAYS)
    }


def compare_solvers(digits: Digits, grids: Mapping[tuple[str, str], str], sample: Sampler) -> dict[str, float]:
    """Fréchet distances of both solvers on every grid, and on the chosen one."""
    values = {}
    for way, (name, (solver, n)) in itertools.product(WAYS, _SOLVERS.items()):
        for grid in _GRIDS:
            values[f"fd_{way}_{name}_{n}_{grid}"] = digits.distance(sample(way, n, solver=solver, grid=grid))
        values[f"fd_{way}_{name}_{n}"] = values[f"fd_{way}_{name}_{n}_{grids[name, way]}"]
    return values


def decide_solvers(figures: Mapping[str, Figure]) -> Claim:
    """The claim on both solvers."""
    return Claim.check_parts(
        "DPM-Solver++ (2M) in 10 calls is as good as DDIM in 50.",
        (figures[f"fd_{w}_dpmpp_10"].value <= _ALLOWED * figures[f"fd_{w}_ddim_50"].value for w in WAYS),
        rule=(
            f"Fréchet distance, mean over seeds, at most {_ALLOWED} times DDIM's, with classes and without; each "
            f"solver on the one of {', '.join(_GRIDS)} that was best with a network of another seed"
        ),
        figures=[f"fd_{w}_{name}" for w in WAYS for name in ("dpmpp_10", "ddim_50")],
    )


def draw_solvers(panel: Any, figures: Mapping[str, Figure]) -> None:
    """Draw the distances on every grid."""
    places = np.arange(len(_GRIDS))
    for at, (name, label) in enumerate((("ddim_50", "DDIM, 50 calls"), ("dpmpp_10", "DPM-Solver++ 2M, 10 calls"))):
        heights = [figures[f"fd_free_{name}_{grid}"].value for grid in _GRIDS]
        panel.bar_label(panel.bar(places + 0.4 * at - 0.2, heights, 0.38, label=label), fmt="%.1f")
    panel.set_xticks(places, _GRIDS)
    panel.set(title="digits without classes", xlabel="grid", ylabel="Fréchet distance")
    panel.margins(y=0.3)
    panel.legend()
