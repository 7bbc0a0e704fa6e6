"""`kexue demo`: index and search Python's docstrings, and measure the quality."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    from kexue.demo import DemoReport


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "demo", examples=("kexue demo", "kexue demo --out /tmp/demo --limit 2000"), seeded=True)(demo)


def demo(
    out: Output,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the index and the report.")] = Path("demo-out"),
    limit: Annotated[int | None, typer.Option(help="Number of docstrings to index; default: all.", min=100)] = None,
    model: opt.Model = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Index the docstrings of the standard library, measure the index, answer questions, write a report."""
    from kexue.demo import run_demo
    from kexue.text.recommended import RECOMMENDED_MULTILINGUAL as MULTILINGUAL, find_place

    encoder = opt.load_encoder(model, device, dtype, batch_tokens)
    multilingual = None
    if find_place(MULTILINGUAL) is not None:
        multilingual = opt.load_encoder(MULTILINGUAL.name, device, dtype, batch_tokens)
    else:
        out.remark(f"kexue: the question in Chinese is left out; it needs {MULTILINGUAL.name}: {MULTILINGUAL.get}")
    with out.progress("encoding docstrings") as progress:
        options: Any = {"limit": limit, "seed": out.seed, "multilingual": multilingual}
        report = run_demo(folder, encoder=encoder, progress=progress, **options)
    out.emit(dataclasses.asdict(report), lambda: _render(report))


def _render(report: DemoReport) -> Any:
    """Return the report for the terminal."""
    from rich.console import Group
    from rich.table import Table

    heads = ("vectors", "dims", "MRR@10 (95 %)", "recall@10", "memory", "one search (quartiles)")
    rows = Table(*heads, box=None, pad_edge=False)
    for row in report.rows:
        memory = f"{row.memory_bytes / 1e6:.1f} MB"
        time = f"{row.latency_ms:.2f} ms ({row.latency_low_ms:.2f}-{row.latency_high_ms:.2f})"
        mrr = f"{row.mrr:.3f} ({row.mrr_low:.3f}-{row.mrr_high:.3f})"
        rows.add_row(row.setting, str(row.dims), mrr, f"{row.recall:.3f}", memory, time)
    answers = []
    for answer in report.answers:
        answers.append(f"\n{answer['question']}")
        answers += [f"  {hit['score']:.3f}  {hit['text'][:110]}" for hit in answer["results"]]
    head = f"{report.documents:,} docstrings indexed and evaluated in {report.seconds:.0f} s"
    tail = (
        f"\nReport: {report.report}\nIndex:  {report.index}\n"
        f"Next:   kexue serve {report.index}   and open http://127.0.0.1:8000\n"
        f'        kexue search {report.index} "your question"\n'
        "        kexue index build your-texts.csv --text COLUMN --out yours.kx"
    )
    note = f"one search: median of {report.rows[0].timed}, without encoding; the indexes take turns"
    return Group(head, "", rows, note, *answers, tail)
