"""`kexue shuffle`: all lines of files in uniformly random order, however large the files."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kexue.cli._verb import Output, verb
from kexue.errors import KexueError

_EXAMPLES = (
    "kexue shuffle corpus.txt -o shuffled.txt --memory 2G",
    "kexue shuffle part-*.jsonl.gz -o shuffled/ --shards 16 --seed 7 --verify",
    "kexue shuffle news.zh news.en -o both/ --aligned",
    "zcat logs.gz | kexue shuffle - -n 1000 -o -",
    "kexue shuffle huge.txt -o shuffled.txt --tmp /scratch --dry-run",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "shuffle", examples=_EXAMPLES)(shuffle)


Inputs = Annotated[list[str], typer.Argument(help="Files of lines, also compressed, in this order; or - for stdin.")]
Memory = Annotated[str, typer.Option(help="Memory it may take, beside 60 MB for Python.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Decides the order; without it one is drawn and told.", min=0)]


def shuffle(
    out: Output,
    inputs: Inputs,
    output: Annotated[
        str, typer.Option("--output", "-o", help="File (.gz, .bz2, .xz, .zst, .lz4 compress), folder, or - for stdout.")
    ],
    memory: Memory = "4G",
    tmp: Annotated[Path | None, typer.Option(help="Folder for temporary files; default: that of the output.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one a core, 4 at most.", min=1)] = None,
    seed: Seed = None,
    zero: Annotated[bool, typer.Option("-z", "--zero-terminated", help="Records end in NUL, not in newline.")] = False,
    sample: Annotated[int | None, typer.Option("-n", "--head-count", help="At most so many lines.", min=0)] = None,
    algorithm: Annotated[
        Literal["keyed", "rowwise"], typer.Option(help="keyed is exact; rowwise is the article's, and not uniform.")
    ] = "keyed",
    shards: Annotated[int | None, typer.Option(help="So many files, of as many lines.", min=1)] = None,
    shard_lines: Annotated[int | None, typer.Option(help="Files of at most so many lines.", min=1)] = None,
    shard_bytes: Annotated[str | None, typer.Option(help="Files of at most this size, such as 1G.")] = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Parallel files: the same order for each; the output is a folder.")
    ] = False,
    header: Annotated[int, typer.Option(help="Lines that stay on top; the other files' are dropped.", min=0)] = 0,
    lines_per_record: Annotated[int, typer.Option(help="So many lines stay together, as 4 in FASTQ.", min=1)] = 1,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run; --no-resume begins anew.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Read the output again and compare checksums.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
    strip_bom: Annotated[
        bool, typer.Option("--strip-bom", help="Drop byte order marks at the start of files.")
    ] = False,
    allow_tmpfs: Annotated[
        bool, typer.Option("--allow-tmpfs", help="Let temporary files lie in memory (tmpfs).")
    ] = False,
) -> None:
    """Shuffle the lines of files exactly, in little memory. The same seed gives the same bytes on any machine."""
    from kexue.corpus import plan_shuffle, shuffle_files
    from kexue.corpus.shuffle.options import parse_size
    from kexue.corpus.shuffle.plan import in_memory

    if output == "-" and out.json and not dry_run:
        raise typer.BadParameter("the lines and --json would both go to stdout; name a file with -o")
    if output == "-" and verify:
        raise typer.BadParameter("what went to stdout cannot be read again; leave --verify out, or name a file with -o")
    options: dict[str, Any] = {
        "memory": memory,
        "tmp": tmp,
        "seed": seed,
        "workers": workers,
        "separator": b"\0" if zero else b"\n",
        "algorithm": algorithm,
        "header": header,
        "lines_per_record": lines_per_record,
        "aligned": aligned,
        "shards": shards,
        "shard_lines": shard_lines,
        "shard_bytes": None if shard_bytes is None else parse_size(shard_bytes, "shard_bytes"),
        "sample": sample,
        "strip_bom": strip_bom,
        "resume": resume,
        "verify": verify,
    }
    plan = plan_shuffle(inputs, output, **options)
    if dry_run:
        out.emit(dataclasses.asdict(plan), lambda: _planned(plan))
        return
    folder = tmp or (Path(tempfile.gettempdir()) if output == "-" else Path(output).absolute().parent)
    if plan.passes > 1 and not allow_tmpfs and in_memory(folder):
        raise KexueError(
            f"{folder} is in memory (tmpfs), which temporary files would fill.",
            remedy="Name a folder on a disk with --tmp, or insist with --allow-tmpfs.",
        )
    with out.progress("shuffling, MB") as progress:
        report = shuffle_files(
            inputs,
            output,
            **options,
            progress=lambda done, total: progress(done // 10**6, None if total is None else total // 10**6),
        )
    if output == "-":
        out.remark(_told(report))
    else:
        out.emit(dataclasses.asdict(report), lambda: _told(report))


def _planned(plan: Any) -> str:
    def size(value: int | None) -> str:
        return "not known beforehand" if value is None else f"about {value / 1e9:,.2f} GB"

    lines = "not known beforehand" if plan.records is None else f"about {plan.records:,}"
    return "\n".join(
        [
            f"records          {lines}, {size(plan.bytes)}",
            f"passes           {plan.passes}, through {plan.buckets:,} buckets",
            f"memory           {plan.memory / 1e9:,.2f} GB at most, beside 60 MB for Python",
            f"temporary files  {size(plan.disk_tmp)}",
            f"output           {size(plan.disk_out)}",
        ]
    )


def _told(report: Any) -> str:
    where = report.outputs[0] if len(report.outputs) == 1 else f"{len(report.outputs)} files, {report.outputs[0]} ..."
    rate = report.bytes / 1e6 / max(report.seconds, 1e-9)
    return (
        f"{report.records:,} records, {report.bytes / 1e6:,.1f} MB in {where}\n"
        f"{report.seconds:.1f} s{' (resumed)' * report.resumed}, {rate:,.0f} MB/s, "
        f"peak {report.peak_rss / 1e6:,.0f} MB; seed {report.seed}, checksum {report.digest}"
    )
