"""Experiments by slug: registration with `@experiment`, running with `run_experiment`."""

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
from kexue._cores import count_cores
from kexue._counts import check_count
from kexue.errors import DataError, UnknownArticleError
from kexue.experiments.report import Report
from kexue.methods import Method, get_method, list_methods

Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "small", "full")
_LAST_SEED = 2**31 - 1  # every library takes it, and the few after it


class Run(Protocol):
    """The body of an experiment: ``run(budget, seed, data) -> Report``; `data` is a folder or None."""

    def __call__(self, budget: Budget, seed: int, data: Path | None) -> Report:
        """Run it."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A registered experiment: its claim, the data sets it can use, minutes at budget `small` on two cores.

    `effect` is the template that `fill_effect` completes.
    """

    slug: str
    claim: str
    run: Run
    data: tuple[str, ...]
    minutes: float
    effect: str = ""


@dataclass(frozen=True)
class Table:
    """A table of several methods, which belongs to no article; `kexue reproduce` makes it, too.

    `page` is the page of the docs that shows it; the other attributes are as of `Method`.
    """

    slug: str
    title: str
    title_zh: str
    page: str
    archive: int = 0
    also: tuple[int, ...] = ()
    status: str = "working"


TABLES = (
    Table(
        "generative-table", "All generative models of images on the same digits", "同一组手写数字上的全部图像生成模型",
        "howto/compare-generative-models.md",
    ),
)  # fmt: skip
_NAMES = re.compile(r"\{([^{}]+)\}")
_REGISTRY: dict[str, Experiment] = {}


def experiment(
    slug: str, *, claim: str, effect: str = "", data: tuple[str, ...] = (), minutes: float
) -> Callable[[Run], Run]:
    """Register the decorated `run(budget, seed, data) -> Report` under `slug`.

    Args:
        slug: a slug of `kexue.methods` or of a table; the experiment lives in the module named after it, `-` turned
            into `_`.
        claim: the article's claim in one sentence.
        effect: size of the effect, in parts separated by ``"; "``, with names of figures in braces.
        data: names of optional data sets, used where the data folder has them.
        minutes: duration of the budget ``"small"`` on two cores.
    """
    find_subject(slug)

    def register(run: Run) -> Run:
        _REGISTRY[slug] = Experiment(slug, claim, run, data, minutes, effect)
        return run

    return register


def find_subject(name: str) -> Method | Table:
    """Return the article, or the table, of a name; UnknownArticleError, a KeyError, where there is none."""
    return next((table for table in TABLES if table.slug == name), None) or get_method(name)


def list_experiments() -> list[Experiment]:
    """All experiments of articles, in the order of the catalogue."""
    return [get_experiment(method.slug) for method in list_methods(status="working")]


def get_experiment(slug: str) -> Experiment:
    """The experiment of one article, or the one that makes a table.

    Raises:
        UnknownArticleError: a KeyError: the article is unknown, or has no experiment yet.
    """
    method = find_subject(slug)
    if method.status == "planned":
        working = ", ".join(m.slug for m in list_methods(status="working"))
        raise UnknownArticleError(f"{slug!r} is planned and has no experiment yet.", remedy=f"Choose one of {working}.")
    importlib.import_module(f"kexue.experiments.{method.slug.replace('-', '_')}")
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
        slug: slug, archive number or address of the article; or the slug of a table.
        budget: ``"smoke"`` (seconds), ``"small"`` (minutes, the recorded one) or ``"full"``.
        seed: random seed, 0 <= seed < 2^31.
        data: folder with the optional data sets; None reads the environment variable KEXUE_DATA.
        out: folder for `report.json` and `figure.png`.

    Raises:
        UnknownArticleError: a KeyError: the article is unknown, or has no experiment yet.
        DataError: the data for every one of the claims are missing.
        ValueError: an unknown budget, a seed out of range.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {BUDGETS}, got {budget!r}")
    if check_count(seed, "seed") > _LAST_SEED:
        raise ValueError(f"seed must be at most {_LAST_SEED}, got {seed}")
    method, entry = find_subject(slug), get_experiment(slug)
    slug = method.slug
    start = time.perf_counter()
    result = entry.run(budget, seed, find_data_folder(data))
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
        versions=list_versions(),
        machine=_describe_machine(),
        command=f"kexue reproduce {slug} --seed {seed}" + ("" if budget == "small" else f" --budget {budget}"),
        seconds=round(time.perf_counter() - start, 3),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    _ = report.verdict  # raises where no claim could be tested
    return report.save(out) if out is not None else report


def summary(report: Report) -> dict[str, Any]:
    """The row of a report in a list: verdict, claims, size of the effect, seconds, date."""
    reproduced = sum(claim.verdict == "reproduced" for claim in report.claims)
    return {
        "verdict": report.verdict,
        "reproduced": reproduced,
        "claims": len(report.claims),
        "effect": report.effect,
        "seconds": report.seconds,
        "date": report.date,
    }


def load_recorded() -> dict[str, dict[str, Any]]:
    """Summaries of the reports recorded with this version, by slug."""
    text = importlib.resources.files("kexue.experiments").joinpath("recorded.json").read_text(encoding="utf-8")
    summaries: dict[str, dict[str, Any]] = json.loads(text)
    return summaries


def fill_effect(effect: str, report: Report) -> str:
    """Replace names in braces by the report's figures; leave out parts of the text whose figures the report lacks."""
    parts = [part for part in effect.split("; ") if all(n in report.figures for n in _NAMES.findall(part))]
    return "; ".join(_NAMES.sub(lambda name: str(report.figures[name[1]]), part) for part in parts)


def find_data_folder(data: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of optional data sets: `data`, else the environment variable KEXUE_DATA, else None.

    Raises:
        DataError: the folder does not exist.
    """
    named = data if data is not None else os.environ.get("KEXUE_DATA") or None
    if named is None:
        return None
    folder = Path(named)
    if not folder.is_dir():
        remedy = "Unset KEXUE_DATA, or correct it." if data is None else "Name an existing folder, or none."
        raise DataError("no such data folder.", path=folder, remedy=remedy)
    return folder


def list_versions() -> dict[str, str]:
    """The versions that a report is recorded with, by package."""
    versions = {"kexue": kexue.__version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "transformers", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _describe_machine() -> dict[str, str | int]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"cpu": _read_cpu_name(), "cores": count_cores(), "memory_bytes": memory, "device": "cpu"}


def _read_cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
