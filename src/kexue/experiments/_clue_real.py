"""What the shipped encoder reaches on files of CLUE; `_clue_runs` has the courses of the trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue.clue import Entity, TextExample, get_task
from kexue.clue.examples import Mentions, mentions_of
from kexue.experiments._clue_runs import CHINESE, ClueRun, find_run, has_data, measure_run, read_examples
from kexue.experiments.registry import Budget
from kexue.experiments.report import Claim, Figure

_TASKS = ("tnews", "cluener", "c3")  # a framing each
_RUNS = 3
_LONGEST = 30  # characters of a name


def measure_real(
    budget: Budget, seed: int, data: Path | None, notes: list[str]
) -> tuple[dict[str, Figure], list[Claim], tuple[dict[str, Any], ...]]:
    """Return figures, claims and data of three trainings for each task.

    Only the full budget trains; the others read trainings that are in the cache, and note what is not there.
    """
    figures: dict[str, Figure] = {}
    used: list[dict[str, Any]] = []
    measured: dict[str, Sequence[float]] = {}
    for task in _TASKS:
        metric = get_task(task).info.metric
        runs = _find_runs(task, budget, seed, data)
        if not runs or data is None:
            notes.append(f"{task} is left out: its trainings are not in the cache, and only the full budget makes them")
            continue
        measured[task] = [run.scores[metric] for run in runs]
        figures[f"{task}_{metric}"] = Figure.over_runs(measured[task], metric)
        figures[f"{task}_plain"] = Figure(_score_plain(task, budget, data), metric, n=runs[0].scored)
        used.append({"name": task, "split": "not trained on", "n": runs[0].scored})
    return figures, _decide(measured, figures), tuple(used)


def _find_runs(task: str, budget: Budget, seed: int, data: Path | None) -> list[ClueRun]:
    """Return the trainings of a task with three seeds; nothing where one is missing."""
    seeds = range(seed, seed + _RUNS)
    if data is None or not has_data(task, data):
        return []
    if budget == "full":
        return [measure_run(task, CHINESE, "full", s, budget=budget, data=data) for s in seeds]
    runs = [find_run(task, CHINESE, "full", s, budget=budget) for s in seeds]
    return [run for run in runs if run is not None] if all(runs) else []


def _score_plain(task: str, budget: Budget, data: Path) -> float:
    """Return the score of the most frequent answer; for CLUENER of the names of the training texts."""
    train, _, scored = read_examples(task, budget, data)
    if task == "cluener":
        types = Counter((one.text[e.start : e.end + 1], e.type) for one in train for e in one.entities)
        type_of = {mention: type_ for (mention, type_), _ in reversed(types.most_common())}
        return float(get_task(task).metric([_look_up(one.text, type_of) for one in scored], scored)["macro_f1"])
    answers = [one.label if isinstance(one, TextExample) else one.answer for one in train]
    common = Counter(answers).most_common(1)[0][0]
    return float(get_task(task).metric([common] * len(scored), scored)["accuracy"])


def _look_up(text: str, type_of: Mapping[str, str]) -> Mentions:
    """Return the names in a text, from left to right the longest that is known, with their types."""
    entities, start = [], 0
    while start < len(text):
        ends = range(min(len(text), start + _LONGEST), start, -1)
        end = next((end for end in ends if text[start:end] in type_of), None)
        if end is not None:
            entities.append(Entity(type_of[text[start:end]], start, end - 1))
        start = start + 1 if end is None else end
    return mentions_of(text, entities)


def _decide(measured: Mapping[str, Sequence[float]], figures: Mapping[str, Figure]) -> list[Claim]:
    if not measured:
        return []
    return [
        Claim.check_parts(
            f"On {', '.join(measured)} a small encoder, trained by the recipe, beats answers without a model.",
            [min(values) > figures[f"{task}_plain"].value for task, values in measured.items()],
            rule="examples that took no part in the training, in every run: above the most frequent answer, for "
            "CLUENER above the names of the training texts wherever they occur",
            figures=[name for name in figures if name.split("_")[0] in measured],
        )
    ]
