"""`kexue reproduce`: run the experiment of an article and print the verdict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import Output, print_failure, verb
from kexue.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kexue.experiments import Report
    from kexue.experiments.registry import Table
    from kexue.methods import Method

_EXAMPLES = (
    "kexue reproduce --list",
    "kexue reproduce whitening --seed 0",
    "kexue reproduce 8453",
    "kexue reproduce --all --budget smoke --out results --resume",
    "kexue reproduce generative-table",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "reproduce", examples=_EXAMPLES, seeded=True)(reproduce)


def reproduce(
    out: Output,
    slugs: Annotated[
        list[str] | None,
        typer.Argument(help="Articles: names or numbers as in `--list`, or URLs. Or a table: generative-table."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All articles that have an experiment.")] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="List the named articles, or all, with recorded verdicts; run nothing.")
    ] = False,
    budget: Annotated[str, typer.Option(help="smoke (seconds), small (minutes) or full.")] = "small",
    data: Annotated[Path | None, typer.Option(help="Folder of optional data sets.", envvar="KEXUE_DATA")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder with a subfolder for each report and figure.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip an experiment if --out has its report for this budget and seed.")
    ] = False,
) -> None:
    """Run the experiments of articles: test the claims, print the verdicts, save numbers and figures.

    The exit code is 0 whatever the verdict, 1 if a run failed.
    """
    from kexue.experiments import list_experiments, run_experiment
    from kexue.experiments.registry import BUDGETS, find_subject
    from kexue.methods import METHODS

    named = [find_subject(name) for name in slugs or []]  # an unknown name fails before anything runs
    if listing:
        _list(out, named or METHODS, folder)
        return
    wanted = list(dict.fromkeys(entry.slug for entry in (list_experiments() if every else named)))
    if not wanted:
        raise typer.BadParameter("name an article, or give --all; `kexue reproduce --list` shows them")
    if budget not in BUDGETS:
        raise typer.BadParameter(f"--budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    failed = 0
    for slug in wanted:
        report = _load_report(folder / slug, budget, out.seed) if resume else None
        try:
            report = report or run_experiment(slug, budget=budget, seed=out.seed, data=data, out=folder / slug)
        except DataError as error:
            if not every:
                raise
            failed += 1
            print_failure(error)
            continue
        out.emit(report.to_json() | {"verdict": report.verdict}, partial(_render, report, folder))
    if failed:
        raise typer.Exit(1)


def _load_report(folder: Path, budget: str, seed: int) -> Report | None:
    """Return the report in `folder` if it has this budget and seed."""
    from kexue.experiments import Report

    if not (folder / "report.json").is_file():
        return None
    report = Report.load(folder)
    return report if (report.budget, report.seed) == (budget, seed) else None


def _list(out: Output, methods: Iterable[Method | Table], folder: Path) -> None:
    """Print articles with the verdicts of reports in `folder`, else of those recorded with this version."""
    from rich.table import Table

    from kexue.experiments import Report
    from kexue.experiments.registry import load_recorded, summary

    rows: list[dict[str, Any]] = []
    recorded = load_recorded()
    for method in methods:
        own = folder / method.slug
        entry = summary(Report.load(own)) if (own / "report.json").is_file() else recorded.get(method.slug, {})
        rows.append(
            {
                "slug": method.slug,
                "title": method.title,
                "archive": method.archive,
                "also": list(method.also),
                "status": method.status,
                **{key: entry.get(key) for key in ("verdict", "reproduced", "claims", "effect", "seconds", "date")},
            }
        )
    if out.json:
        for row in rows:
            out.emit(row, str)
        return
    table = Table("slug", "title", "archive", "verdict", "claims", "seconds", box=None, pad_edge=False)
    for row in rows:
        claims = "" if row["claims"] is None else f"{row['reproduced']} of {row['claims']}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        numbers = ", ".join(map(str, [row["archive"], *row["also"]]))
        table.add_row(row["slug"], row["title"], numbers, row["verdict"] or row["status"], claims, seconds)
    out.emit({}, lambda: table)


def _describe(report: Report, folder: Path) -> str:
    """Return a report as text."""
    address = f", https://kexue.fm/archives/{report.archive}" if report.archive else ""
    lines = [f"{report.slug} ({report.title_zh}{address})", f"  {report.claim}"]
    for claim in report.claims:
        lines.append(f"  [{claim.verdict}] {claim.text}")
        for name in claim.figures:
            figure = report.figures[name]
            number = f", n = {figure.n:,}" if figure.n is not None else ""
            expected = f" (expected {figure.expected:.4g}, {figure.source})" if figure.expected is not None else ""
            lines.append(f"      {name} = {figure}{number}{expected}")
    lines += [f"  note: {note}" for note in report.notes]
    lines += [f"  size of the effect: {report.effect}"] if report.effect else []
    lines.append(
        f"  verdict: {report.verdict} ({report.seconds:.0f} s, seed {report.seed}); files in {folder / report.slug}"
    )
    return "\n".join(lines)


def _render(report: Report, folder: Path) -> Any:
    """Return a report as text, below its table where it has one."""
    from rich.console import Group
    from rich.table import Table

    text = _describe(report, folder)
    if not report.rows:
        return text
    table = Table(*report.rows[0], box=None, pad_edge=False)
    for row in report.rows:
        table.add_row(*row.values())
    return Group(table, text)
