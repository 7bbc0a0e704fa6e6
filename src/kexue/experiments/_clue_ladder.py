"""Ladder side-tuning of the encoder that is a part of kexue, on the few-shot TNEWS of CLUE: score, memory and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from kexue.experiments._clue_runs import CHINESE, ClueRun, Tune, has_data, measure_run, measure_saved
from kexue.experiments.registry import Budget
from kexue.experiments.report import Figure

_TASK = "tnews"
_WAYS: dict[str, Tune] = {"full": "full", "ladder": "ladder", "probe": "linear"}  # names of lst -> of kexue.clue


class Tuned(NamedTuple):
    """Runs of each way over the seeds, and bytes that each keeps for the backward pass of a batch."""

    runs: Mapping[str, Sequence[ClueRun]]
    saved: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """Mean accuracy of each way."""
        return {name: fmean(run.scores["accuracy"] for run in runs) for name, runs in self.runs.items()}

    def figures(self) -> dict[str, Figure]:
        """Accuracy over the seeds, seconds of the processor, and bytes kept, of each way."""
        figures: dict[str, Figure] = {}
        for name, runs in self.runs.items():
            accuracies = [run.scores["accuracy"] for run in runs]
            figures |= {
                f"clue_accuracy_{name}": Figure.over_runs(accuracies),
                f"clue_seconds_{name}": Figure.over_runs([run.seconds for run in runs], "CPU s of the training"),
                f"clue_saved_{name}": Figure(self.saved[name] / 2**20, unit="MiB kept for backward"),
            }
        figures["clue_saved_share"] = Figure(self.saved["ladder"] / self.saved["full"], unit="of full tuning")
        return figures


def tune_shipped(budget: Budget, seeds: Sequence[int], data: Path | None) -> Tuned | None:
    """Return what each way reaches and costs; None without the data."""
    if data is None or not has_data(_TASK, data):
        return None
    return Tuned(
        {name: [measure_run(_TASK, CHINESE, way, s, budget=budget, data=data) for s in seeds]
         for name, way in _WAYS.items()},
        {name: measure_saved(_TASK, CHINESE, way, budget=budget, data=data) for name, way in _WAYS.items()},
    )  # fmt: skip
