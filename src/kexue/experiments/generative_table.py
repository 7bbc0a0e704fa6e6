"""A table of all generative models of images on the same digits: what they cost, and what their samples are worth.

Each model is trained as ``kexue model train NAME --data digits`` trains it, once for each seed, into a folder of the
cache; a run that is there already, with the same settings and versions, is not trained again. New models of
`kexue.generative.list_models` appear by themselves.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kexue import generative
from kexue._files import cache_folder, replacing
from kexue._optional import import_optional
from kexue._text import parse_json
from kexue.errors import CheckpointError, DataError
from kexue.experiments._panels import draw_tiles
from kexue.experiments._training import train_by_name
from kexue.experiments.registry import Budget, experiment, list_versions
from kexue.experiments.report import Claim, Figure, Report

_STEPS: dict[Budget, int | None] = {"smoke": 10, "small": None, "full": None}  # None: as many as the recipe has
_SEEDS: dict[Budget, int] = {"smoke": 1, "small": 3, "full": 5}
_SAMPLES: dict[Budget, int] = {"smoke": 100, "small": 1000, "full": 1000}  # as far as there are so many test digits
_BATCH, _REPEATS = 64, 5  # of the measurement of sampling
_STEPWISE = ("diffusion", "flow-matching")  # models that take noise away step by step
_COPIES = 0.7  # a ratio of median distances below which samples repeat training images
_NUMBERS = {
    "parameters": "", "training": "CPU s", "sampling": "CPU ms an image", "frechet_distance": "", "precision": "",
    "recall": "", "coverage": "", "nearest_train_ratio": "", "bits_per_dim": "bits/dim",
}  # fmt: skip
_FILE, _SHOWN = "measured.json", 12
Runs = Mapping[str, Sequence[Mapping[str, Any]]]  # the numbers of each run, by model


@experiment(
    "generative-table",
    claim="On the same digits no model is best in everything: the best likelihood does not make the best samples.",
    effect="Fréchet distance of the nearest model {nearest}, of the farthest {farthest}, of test digits {test_digits}",
    minutes=30,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Train every model for each seed, unless that was done before, and measure it."""
    import_optional("torch", extra="generative")
    from kexue.generative.recipes import find_recipe
    from kexue.generative.run.images import Images

    names = [name for name in generative.list_models() if find_recipe(name).medium is Images]
    seeds = tuple(range(seed, seed + _SEEDS[budget]))
    folder = cache_folder() / "generative-table" / budget
    with tempfile.TemporaryDirectory() as warm:  # so that imports are in nobody's time
        train_by_name(generative.ModelConfig(names[0], "digits", warm, steps=1, device="cpu"))
    reused = 0
    runs: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    for name in names:
        for s in seeds:
            config = generative.ModelConfig(
                name, "digits", folder / f"{name}-{s}", steps=_STEPS[budget], seed=s, device="cpu"
            )
            known = _read(config)
            reused += known is not None
            runs[name].append(known or _measure(config, _SAMPLES[budget]))
    figures = {
        f"{number}_{name}": Figure.over_runs([one[number] for one in ones], unit)
        for name, ones in runs.items()
        for number, unit in _NUMBERS.items()
        if ones[0][number] is not None
    }
    ranked = sorted((figures[f"frechet_distance_{name}"] for name in names), key=lambda one: one.value)
    first = runs[names[0]][0]
    figures |= {"test_digits": Figure(first["reference"]["test"]), "nearest": ranked[0], "farthest": ranked[-1]}
    return Report(
        tuple(_decide(runs, figures)),
        figures,
        rows=tuple(_write_row(name, ones[0]["bits_per_dim_kind"], figures) for name, ones in runs.items()),
        notes=(
            f"{reused} of {len(names) * len(seeds)} runs were in the cache.",
            f"Times are of the processor, over all threads; samples are drawn in batches of {_BATCH}.",
            "Means over the seeds; in brackets the smallest and the largest value, of all numbers under figures.",
            f"Fréchet distance from the training digits, of {first['n']} samples in the features of a classifier.",
        ),
        seeds=seeds,
        data=({"name": "digits", "split": "test", "n": first["n"]},),
        draw=lambda figure: _draw(figure, runs, folder, seed),
    )


# ---- measure -------------------------------------------------------------------------------------------------------


def _read(config: generative.ModelConfig) -> dict[str, Any] | None:
    """The numbers in the folder of a run; None unless the same run would be trained and measured today."""
    folder = Path(config.out)
    path = folder / _FILE
    if not path.is_file():
        return None
    with suppress(CheckpointError, DataError):  # other settings of the training, a file that is not JSON
        known: dict[str, Any] = parse_json(path.read_bytes(), path, kind=dict)
        if known.get("versions") == list_versions() and known.keys() >= _NUMBERS.keys():
            train_by_name(config)  # it has ended: this writes what it would be trained with today
            if known.get("settings") == _read_settings(folder):
                return known
    path.unlink()
    return None


def _measure(config: generative.ModelConfig, n: int) -> dict[str, Any]:
    """Train a model from the start, and return its numbers, which are written to its folder; n samples."""
    folder, start = Path(config.out), time.process_time()
    train_by_name(dataclasses.replace(config, resume=False))
    seconds = time.process_time() - start
    opened = generative.open_run(folder, device="cpu")
    numbers = {
        "settings": _read_settings(folder),
        "versions": list_versions(),
        **dataclasses.asdict(generative.evaluate_run(opened, n, seed=config.seed)),
        "training": seconds,
        "sampling": _time_samples(opened.model, config.seed),
    }
    with replacing(folder / _FILE) as temporary:
        temporary.write_text(json.dumps(numbers), encoding="utf-8")
    return numbers


def _read_settings(folder: Path) -> Any:
    """Settings, data and sizes of a run."""
    from kexue.train.settings import SETTINGS

    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))


def _time_samples(model: Any, seed: int) -> float:
    """Milliseconds of a sample: the median of several batches, after one that is not counted."""
    seconds = []
    for repeat in range(_REPEATS + 1):
        start = time.process_time()
        model.sample(_BATCH, generator=seed + repeat)
        seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds[1:]) / _BATCH


def _write_row(name: str, kind: str | None, figures: Mapping[str, Figure]) -> dict[str, str]:
    """Return the line of a model, for a person to read."""

    def mean(number: str, form: str) -> str:
        return format(figures[f"{number}_{name}"].value, form)

    return {
        "model": name,
        "weights": mean("parameters", ",.0f"),
        "training, CPU s": mean("training", ".0f"),
        "sample, CPU ms": mean("sampling", ".2g"),
        "Fréchet distance": str(figures[f"frechet_distance_{name}"]),
        **{number: mean(number, ".2f") for number in ("precision", "recall", "coverage")},
        "bits/dim": mean("bits_per_dim", ".2f") if kind else "none",
        "kind": kind or "",
    }


# ---- claims --------------------------------------------------------------------------------------------------------


def _decide(runs: Runs, figures: Mapping[str, Figure]) -> list[Claim]:
    likely = [name for name, ones in runs.items() if ones[0]["bits_per_dim"] is not None]
    rounds = [{name: ones[i] for name, ones in runs.items()} for i in range(len(next(iter(runs.values()))))]

    def near(one: Mapping[str, Mapping[str, Any]], name: str) -> float:
        return float(one[name]["frechet_distance"])

    def every(number: str) -> list[str]:
        return [f"{number}_{name}" for name in runs]

    return [
        Claim.check(
            "No model makes digits that are as near to the training digits as real ones are.",
            all(near(one, name) > figures["test_digits"].value for one in rounds for name in runs),
            rule="Fréchet distance of every model above that of test digits, in every seed",
            figures=["test_digits", *every("frechet_distance")],
        ),
        Claim.check(
            "The best likelihood, as far as its bounds tell, does not make the best samples.",
            all(
                min(likely, key=lambda name: one[name]["bits_per_dim"]) != min(likely, key=lambda name: near(one, name))
                for one in rounds
            ),
            rule="among those with a likelihood, fewest bits and smallest distance are of different models, every seed",
            figures=[f"{number}_{name}" for number in ("bits_per_dim", "frechet_distance") for name in likely],
        ),
        Claim.check(
            "The models that take noise away step by step make the nearest samples.",
            all(
                max(near(one, name) for name in _STEPWISE)
                < min(near(one, name) for name in runs if name not in _STEPWISE)
                for one in rounds
            ),
            rule="Fréchet distances of diffusion and of flow matching below those of all others, in every seed",
            figures=every("frechet_distance"),
        ),
        Claim.check(
            "No model's samples are for the most part training digits repeated.",
            all(one[name]["nearest_train_ratio"] >= _COPIES for one in rounds for name in runs),
            rule=f"median distance to the nearest training digit at least {_COPIES} of that of test digits, every seed",
            figures=every("nearest_train_ratio"),
        ),
    ]


# ---- figure --------------------------------------------------------------------------------------------------------


def _draw(figure: Any, runs: Runs, folder: Path, seed: int) -> None:
    """Samples of every model, and on the same line its distance, its variety and its time."""
    torch = import_optional("torch", extra="generative")
    figure.set_size_inches(15, 0.5 * len(runs) + 1.3)
    tiles, *panels = figure.subplots(1, 4, width_ratios=[0.5 * _SHOWN, 2.5, 2.5, 2.5])
    folders = [folder / f"{name}-{seed}" for name in runs]
    models = [generative.open_run(one, device="cpu").model for one in folders]
    draw_tiles(tiles, torch.stack([model.sample(_SHOWN, generator=seed) for model in models]), list(runs))
    tiles.set(title="samples, none chosen", xlabel=f"seed {seed}", ylabel="model", aspect="auto")
    for panel, number, label in (
        (panels[0], "frechet_distance", "Fréchet distance of each seed"),
        (panels[1], "recall", "recall of each seed"),
        (panels[2], "sampling", "CPU ms of a sample"),
    ):
        panel.set_xscale("linear" if number == "recall" else "log")
        for at, ones in enumerate(runs.values()):
            panel.plot([one[number] for one in ones], [at] * len(ones), "o", color="C0", alpha=0.6)
        panel.sharey(panels[0])
        panel.tick_params(labelleft=False)
        panel.set_xlabel(label)
    panels[0].set(ylabel="model, as on the left", ylim=(len(runs) - 0.5, -0.5), yticks=range(len(runs)))
    reference = next(iter(runs.values()))[0]["reference"]
    for name, style, label in (("test", ":", "test digits"), ("gaussian", "--", "Gaussian of pixels")):
        panels[0].axvline(reference[name], color="gray", linestyle=style, label=label)
    panels[0].legend(fontsize="small")
    panels[1].set_xlim(-0.02, 1.02)
