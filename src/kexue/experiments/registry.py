"""Experiments by slug: register with `@experiment`, run with `run_experiment`."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import importlib.resources
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import kexue
from kexue.errors import DataError
from kexue.experiments.report import Report
from kexue.methods import get_method, list_methods

Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "small", "full")


class Run(Protocol):
    """The body of an experiment: ``run(budget, seed, data) -> Report``; `data` is a folder or None."""

    def __call__(self, budget: Budget, seed: int, data: Path | None) -> Report:
        """Run it."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A registered experiment: what it claims, the data sets it can use, minutes at budget `small` on two cores."""

    slug: str
    claim: str
    run: Run
    data: tuple[str, ...]
    minutes: float
    effect: str = ""


_NAMES = re.compile(r"\{([^{}]+)\}")
_REGISTRY: dict[str, Experiment] = {}


def experiment(
    slug: str, *, claim: str, effect: str = "", data: tuple[str, ...] = (), minutes: float
) -> Callable[[Run], Run]:
    """Register the decorated `run(budget, seed, data) -> Report` under `slug`.

    Args:
        slug: a slug of `kexue.methods`; the experiment lives in the module named after it, `-` turned into `_`.
        claim: the article's claim in one sentence.
        effect: how large what is found is, in parts separated by ``"; "``, with names of figures in braces.
        data: names of the optional data sets it uses when they are there.
        minutes: how long the budget ``"small"`` takes on two cores.
    """
    get_method(slug)

    def register(run: Run) -> Run:
        _REGISTRY[slug] = Experiment(slug, claim, run, data, minutes, effect)
        return run

    return register


def list_experiments() -> list[Experiment]:
    """Every experiment there is, in the order of the catalogue."""
    return [get_experiment(method.slug) for method in list_methods(status="working")]


def get_experiment(slug: str) -> Experiment:
    """The experiment of one article; KeyError for a slug that is unknown or only planned."""
    method = get_method(slug)
    if method.status == "planned":
        working = ", ".join(m.slug for m in list_methods(status="working"))
        raise KeyError(f"{slug!r} is planned: no experiment yet. Working ones: {working}")
    importlib.import_module(f"kexue.experiments.{method.experiment.replace('-', '_')}")
    return _REGISTRY[method.slug]


def run_experiment(
    slug: str,
    *,
    budget: Budget = "small",
    seed: int = 0,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Report:
    """Run one experiment and return its report, saved into `out` when a folder is given.

    Args:
        slug: which article: its slug, archive number or address.
        budget: ``"smoke"`` (seconds), ``"small"`` (minutes, the recorded one) or ``"full"``.
        seed: everything random derives from it.
        data: folder with the optional data sets; None reads the environment variable KEXUE_DATA.
        out: folder for `report.json` and `figure.png`.

    Raises:
        KeyError: unknown slug, or an article without an experiment yet.
        DataError: not one claim could be tested, for want of data.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {BUDGETS}, got {budget!r}")
    method, entry = get_method(slug), get_experiment(slug)
    slug = method.slug
    start = time.perf_counter()
    result = entry.run(budget, seed, data_folder(data))
    report = dataclasses.replace(
        result,
        slug=slug,
        title=method.title,
        title_zh=method.title_zh,
        archive=method.archive,
        claim=entry.claim,
        effect=fill_effect(entry.effect, result),
        seed=seed,
        seeds=result.seeds or (seed,),
        budget=budget,
        versions=_versions(),
        machine=_machine(),
        command=f"kexue reproduce {slug} --seed {seed}" + ("" if budget == "small" else f" --budget {budget}"),
        seconds=round(time.perf_counter() - start, 3),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    _ = report.verdict  # raises when no claim was left to test
    return report.save(out) if out is not None else report


def summary(report: Report) -> dict[str, Any]:
    """What a list says of a report: verdict, claims, size of the effect, seconds, date."""
    right = sum(claim.verdict == "reproduced" for claim in report.claims)
    return {
        "verdict": report.verdict,
        "reproduced": right,
        "claims": len(report.claims),
        "effect": report.effect,
        "seconds": report.seconds,
        "date": report.date,
    }


def recorded() -> dict[str, dict[str, Any]]:
    """`summary` of the reports that were recorded with this version, by slug."""
    text = importlib.resources.files("kexue.experiments").joinpath("recorded.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def fill_effect(effect: str, report: Report) -> str:
    """A text with the report's figures for their names, without the parts whose figures it lacks for want of data."""
    parts = [part for part in effect.split("; ") if all(n in report.figures for n in _NAMES.findall(part))]
    return "; ".join(_NAMES.sub(lambda name: str(report.figures[name[1]]), part) for part in parts)


def data_folder(data: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of optional data sets: the argument, else KEXUE_DATA, else None; it must exist when it is named."""
    named = data if data is not None else os.environ.get("KEXUE_DATA") or None
    if named is None:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise DataError("no such data folder.", path=folder, remedy="Unset KEXUE_DATA, or correct it.")
    return folder


def _versions() -> dict[str, str]:
    versions = {"kexue": kexue.__version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "transformers", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> dict[str, str | int]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"cpu": _cpu_name(), "cores": cores, "memory_bytes": memory, "device": "cpu"}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
