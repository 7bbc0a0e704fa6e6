"""`kexue clue`: the tasks of the CLUE benchmark, scores of predictions, and checks of what goes to its site."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import EXIT_FAILED, Output, verb

if TYPE_CHECKING:
    from kexue.clue import SubmissionReport

_SHOWN = 20  # problems that are printed for a person

app = typer.Typer(help="Train, score and submit baselines of the CLUE benchmark.", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of predictions, named as the site wants them.")]


@verb(app, "list", examples=("kexue clue list", "kexue clue list --json"))
def list_(out: Output) -> None:
    """List the tasks, their metrics and the sizes of their files."""
    from kexue.clue import list_tasks

    fields = ("name", "framing", "metric", "train", "dev", "test")
    tasks = [{field: getattr(info, field) for field in fields} for info in list_tasks()]

    def render() -> Any:
        from rich.table import Table

        table = Table("task", "what is asked", "framing", "metric", "file of predictions")
        for column in ("train", "dev", "test"):
            table.add_column(column, justify="right")
        for info in list_tasks():
            sizes = (f"{size:,}" if size else "?" for size in (info.train, info.dev, info.test))
            table.add_row(info.name, info.title, info.framing, info.metric, "\n".join(info.submissions), *sizes)
        return table

    out.emit({"tasks": tasks}, render)


@verb(app, "eval", examples=("kexue clue eval tnews --pred tnews_dev.json --gold tnews_public/dev.json",))
def eval_(
    out: Output,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of the task, as kexue clue list has it.")],
    pred: Annotated[Path, typer.Option("--pred", help="Predictions, as kexue clue predict writes them.")],
    gold: Annotated[Path, typer.Option("--gold", help="File of the task that has answers, such as dev.json.")],
) -> None:
    """Score predictions as the benchmark does."""
    from kexue.clue import get_task
    from kexue.clue.submission import read_predictions

    chosen = get_task(task)
    examples = chosen.read(gold)
    predictions = read_predictions(chosen.info, pred, examples)
    if missing := sum(one is None for one in predictions):
        out.remark(f"{missing} of {len(examples)} questions have no prediction and score 0")
    scores, intervals = chosen.metric(predictions, examples), chosen.intervals(predictions, examples)
    record = {"task": task, "n": len(examples), **scores, "intervals": intervals}
    out.emit(record, lambda: _render_scores(record))


def _render_scores(scores: dict[str, Any]) -> Any:
    """Return the scores as lines, with a table of the types of entities."""
    n, bounds = scores["n"], scores["intervals"].items()
    lines = "".join(
        f"{name} {scores[name]:.4f} (95 % interval {low:.4f} to {high:.4f})\n" for name, (low, high) in bounds
    )
    if "per_type" not in scores:
        return f"{lines}of {n:,} examples"
    from rich.console import Group
    from rich.table import Table

    table = Table("type", *(f"{name}" for name in ("precision", "recall", "f1", "predicted", "gold")))
    for type_, row in scores["per_type"].items():
        rates = (f"{row[name]:.4f}" for name in ("precision", "recall", "f1"))
        table.add_row(type_, *rates, f"{row['n_pred']:,}", f"{row['n_gold']:,}")
    return Group(f"{lines}of {n:,} texts", table)


@verb(
    app,
    "check-submission",
    examples=(
        "kexue clue check-submission predictions/ --data CLUE/",
        "kexue clue check-submission predictions/ --json",
    ),
)
def check(
    out: Output,
    folder: _Folder,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Test files, as afqmc_public/test.json in it; also one task's folder."),
    ] = None,
) -> None:
    """Check a folder of predictions: names, ids, labels, spans; with --data also against the test files."""
    from kexue.clue import check_submission

    report = check_submission(folder, data=data)
    record = {"ok": report.ok, "files": list(map(dataclasses.asdict, report.files))}
    record["problems"] = list(map(dataclasses.asdict, report.problems))
    out.emit(record, lambda: _render_report(report))
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def _render_report(report: SubmissionReport) -> str:
    """Return the files and the first problems as lines."""
    lines = [f"{file.name}: {file.lines:,} predictions{', ok' * file.ok}" for file in report.files]
    for problem in report.problems[:_SHOWN]:
        where = f"{problem.file}: " if problem.file else ""
        lines.append(f"{where}{f'line {problem.line}: ' if problem.line else ''}{problem.message}")
    if (more := len(report.problems) - _SHOWN) > 0:
        lines.append(f"and {more:,} more problems; --json has all")
    return "\n".join(lines)


@verb(app, "bundle", examples=("kexue clue bundle predictions/ --out submit_myteam_20240501.zip",))
def bundle(
    out: Output,
    folder: _Folder,
    zip_file: Annotated[Path, typer.Option("--out", "-o", help="Zip file to write.")],
) -> None:
    """Zip a folder of predictions for the site, after a check of its files."""
    from zipfile import ZipFile

    from kexue.clue import bundle_submission

    path = bundle_submission(folder, zip_file)
    with ZipFile(path) as archive:
        names = archive.namelist()
    out.emit({"out": str(path), "files": names}, lambda: f"{path}: {', '.join(names)}")
