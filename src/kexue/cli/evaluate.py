"""`kexue evaluate`: agreement of cosines with the labels of sentence pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    from kexue.similarity import Evaluation

_EXAMPLES = (
    "kexue evaluate pairs.tsv",
    "kexue evaluate stsb_en sick --whiten none --whiten pca --dims 128",
    "kexue evaluate lcqmc --split valid --pooling mean --pooling first-last-avg --json",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "evaluate", examples=_EXAMPLES, seeded=True)(evaluate)


def evaluate(
    out: Output,
    pairs: Annotated[
        list[str], typer.Argument(help="tsv, csv or jsonl files of pairs, or names of sets in KEXUE_DATA.")
    ],
    model: opt.Model = "auto",
    whiten: Annotated[
        list[str] | None,
        typer.Option(help="none, pca, rotate, whiten, a saved file, or beta=1,gamma=0.5,k=128; repeat to compare."),
    ] = None,
    dims: opt.Dims = None,
    pooling: Annotated[
        list[str] | None,
        typer.Option(help="cls, pooler, mean (or last-avg), first-last-avg or max; repeat to compare."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of a named set, such as test.")] = None,
    bootstrap: Annotated[
        int, typer.Option(help="Number of bootstrap samples for the 95 % intervals; 0: no intervals.", min=0)
    ] = 1000,
    figure: Annotated[Path | None, typer.Option(help="Figure to write (needs the figures extra).")] = None,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Score an encoder on labelled pairs: Spearman x100, its interval, the maximum that ties allow, paired tests.

    Named whitenings (pca, rotate, whiten) are fitted to the texts of each data set, without its labels.
    """
    from kexue.similarity import evaluate_pairs, load_pairs

    encoder = opt.load_encoder(model, device, dtype, batch_tokens)
    sets = [load_pairs(name, split, errors=encoding_errors, max_bytes=opt.parse_size(max_bytes)) for name in pairs]
    for dataset in sets:
        if dataset.skipped:
            out.remark(f"{dataset.name}: {dataset.skipped} lines without three fields were skipped")
    post = {spec: opt.parse_whitening(spec, None if spec == "none" else dims) for spec in whiten or ["none"]}
    result = evaluate_pairs(encoder, sets, post=post, poolings=pooling, bootstrap=bootstrap, generator=out.seed)
    if figure is not None:
        _draw(result, figure)
    record = {
        "rows": [dataclasses.asdict(row) for row in result.rows],
        "tests": [dataclasses.asdict(test) for test in result.tests],
    }
    out.emit(record, lambda: _tables(result))


def _tables(result: Evaluation) -> Any:
    """Return the rows, and the tests if any, as tables."""
    from rich.console import Group
    from rich.table import Table

    rows = Table(
        "dataset", "split", "pooling", "post", "k", "n", "spearman", "95 %", "ceiling", box=None, pad_edge=False
    )
    for row in result.rows:
        rows.add_row(
            row.dataset,
            row.split or "",
            row.pooling or "",
            row.post or "none",
            str(row.k),
            f"{row.n:,}",
            f"{row.spearman:.2f}",
            f"{row.low:.2f} – {row.high:.2f}",
            f"{row.ceiling:.1f}",
        )
    if not result.tests:
        return rows
    tests = Table("dataset", "a", "b", "a - b", "95 %", "p", box=None, pad_edge=False)
    for test in result.tests:
        interval = f"{test.low:+.2f} – {test.high:+.2f}"
        tests.add_row(test.dataset, test.a, test.b, f"{test.difference:+.2f}", interval, f"{test.p_value:.3f}")
    return Group(rows, "", tests)


def _draw(result: Evaluation, path: Path) -> None:
    """Draw the scores with their intervals and ceilings."""
    from kexue._figures import save_figure

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        names = [f"{row.dataset} {row.post or ''} {row.pooling or ''} {row.k}".strip() for row in result.rows]
        middle = [row.spearman for row in result.rows]
        spread = [
            [row.spearman - row.low for row in result.rows],
            [row.high - row.spearman for row in result.rows],
        ]
        axes.errorbar(middle, range(len(names)), xerr=spread, fmt="o", capsize=3)
        axes.scatter(
            [row.ceiling for row in result.rows], range(len(names)), marker="|", s=200, color="0.6", label="ceiling"
        )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("Spearman x100, 95 % interval")
        axes.legend()

    save_figure(draw, path)
