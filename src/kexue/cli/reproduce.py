"""`kexue reproduce`: re-run an article's claim and print an honest verdict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import Output, print_failure, verb
from kexue.errors import DataError

if TYPE_CHECKING:
    from kexue.experiments import Report

_EXAMPLES = (
    "kexue reproduce --list",
    "kexue reproduce whitening --seed 0",
    "kexue reproduce --all --budget smoke --out results --resume",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "reproduce", examples=_EXAMPLES)(reproduce)


def reproduce(
    out: Output,
    slugs: Annotated[list[str] | None, typer.Argument(help="Articles, as `--list` names them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every article that has an experiment.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Show the catalogue and leave.")] = False,
    budget: Annotated[str, typer.Option(help="smoke (seconds), small (minutes) or full.")] = "small",
    data: Annotated[Path | None, typer.Option(help="Folder of data sets.", envvar="KEXUE_DATA")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for report.json and figure.png.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep the reports that are already there.")] = False,
) -> None:
    """Re-run an article's claim on data, print the verdict, and keep the figures and a picture.

    The exit code is 0 whatever the verdict, 1 if a run broke.
    """
    from kexue.experiments import list_experiments, run_experiment
    from kexue.experiments.registry import BUDGETS
    from kexue.methods import get_method

    if listing:
        _list(out, folder)
        return
    wanted = [entry.slug for entry in list_experiments()] if every else list(slugs or [])
    if not wanted:
        raise typer.BadParameter("name an article, or give --all; `kexue reproduce --list` shows them")
    if budget not in BUDGETS:
        raise typer.BadParameter(f"--budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    for slug in wanted:
        get_method(slug)  # an unknown name fails before anything runs
    broken = 0
    for slug in wanted:
        report = _kept(folder / slug, budget, out.seed) if resume else None
        try:
            report = report or run_experiment(slug, budget=budget, seed=out.seed, data=data, out=folder / slug)
        except DataError as error:
            if not every:
                raise
            broken += 1
            print_failure(error)
            continue
        out.emit(report.to_json() | {"verdict": report.verdict}, partial(_shown, report, folder))
    if broken:
        raise typer.Exit(1)


def _kept(folder: Path, budget: str, seed: int) -> Report | None:
    from kexue.experiments import Report

    if not (folder / "report.json").is_file():
        return None
    report = Report.load(folder)
    return report if (report.budget, report.seed) == (budget, seed) else None


def _list(out: Output, folder: Path) -> None:
    from rich.table import Table

    from kexue.experiments import Report
    from kexue.methods import METHODS

    rows = []
    for method in METHODS:
        kept = folder / method.slug
        verdict = Report.load(kept).verdict if (kept / "report.json").is_file() else None
        rows.append(
            {
                "slug": method.slug,
                "title": method.title,
                "archive": method.archive,
                "status": method.status,
                "verdict": verdict,
            }
        )
    if out.json:
        for row in rows:
            out.emit(row, str)
        return
    table = Table("slug", "title", "archive", "status", "verdict", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(value) if value is not None else "" for value in row.values()))
    out.emit({}, lambda: table)


def _shown(report: Report, folder: Path) -> Any:
    lines = [f"{report.slug} ({report.title_zh}, https://kexue.fm/archives/{report.archive})", f"  {report.claim}"]
    for claim in report.claims:
        lines.append(f"  [{claim.verdict}] {claim.text}")
        for name in claim.figures:
            figure = report.figures[name]
            interval = f" [{figure.low:.4g}, {figure.high:.4g}]" if figure.low is not None else ""
            expected = f" (expected {figure.expected:.4g}, {figure.source})" if figure.expected is not None else ""
            lines.append(f"      {name} = {figure.value:.4g}{figure.unit and ' ' + figure.unit}{interval}{expected}")
    lines += [f"  note: {note}" for note in report.notes]
    lines.append(
        f"  verdict: {report.verdict} ({report.seconds:.0f} s, seed {report.seed}); files in {folder / report.slug}"
    )
    return "\n".join(lines)
