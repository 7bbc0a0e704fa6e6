"""`kexue shuffle`: shuffle the lines of files of any size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kexue.cli._verb import Output, verb
from kexue.errors import KexueError

_EXAMPLES = (
    "kexue shuffle corpus.txt -o shuffled.txt --memory 2G",
    "kexue shuffle part-*.jsonl.gz -o shuffled/ --shards 16 --seed 7",
    "kexue shuffle news.zh news.en -o both/ --aligned",
    "zcat logs.gz | kexue shuffle - -n 1000 -o -",
    "kexue shuffle huge.txt -o shuffled.txt --tmp /scratch --dry-run",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "shuffle", examples=_EXAMPLES)(shuffle)


Inputs = Annotated[list[str], typer.Argument(help="Files of lines, also compressed, read in this order; - is stdin.")]
Memory = Annotated[str, typer.Option(help="Limit of memory, such as 512M, plus 60 MB for Python.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Random seed; default: a random one, which is printed.", min=0)
]


def shuffle(
    out: Output,
    inputs: Inputs,
    output: Annotated[
        str,
        typer.Option(
            "--out", "--output", "-o", help="File (.gz, .bz2, .xz, .zst, .lz4 compress), folder, or - for stdout."
        ),
    ],
    memory: Memory = "4G",
    tmp: Annotated[Path | None, typer.Option(help="Folder for temporary files; default: that of the output.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; default: one per core, 4 at most.", min=1)] = None,
    seed: Seed = None,
    zero: Annotated[
        bool, typer.Option("-z", "--zero-terminated", help="Lines end with NUL, not with newline.")
    ] = False,
    sample: Annotated[int | None, typer.Option("-n", "--head-count", help="Number of lines to write.", min=0)] = None,
    algorithm: Annotated[
        Literal["keyed", "rowwise"],
        typer.Option(help="keyed: uniform; rowwise: the method of article 8662, not uniform."),
    ] = "keyed",
    shards: Annotated[
        int | None, typer.Option(help="Number of output files, with equal numbers of lines.", min=1)
    ] = None,
    shard_lines: Annotated[int | None, typer.Option(help="Maximum number of lines in an output file.", min=1)] = None,
    shard_bytes: Annotated[str | None, typer.Option(help="Maximum size of an output file, such as 1G.")] = None,
    aligned: Annotated[
        bool,
        typer.Option(
            "--aligned", help="Shuffle all files in the same order (parallel corpora); the output is a folder."
        ),
    ] = False,
    header: Annotated[
        int,
        typer.Option(
            help="Lines at the start of the first file that stay on top; those of other files are dropped.", min=0
        ),
    ] = 0,
    lines_per_record: Annotated[int, typer.Option(help="Lines that stay together, such as 4 in FASTQ.", min=1)] = 1,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run; --no-resume discards it.")] = True,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify", help="Read the output again and compare checksums; default: on, except for stdout."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan (memory, passes, disk) and stop.")] = False,
    strip_bom: Annotated[
        bool, typer.Option("--strip-bom", help="Drop a byte order mark at the start of each file.")
    ] = False,
    allow_tmpfs: Annotated[
        bool, typer.Option("--allow-tmpfs", help="Accept a folder for temporary files in memory (tmpfs).")
    ] = False,
) -> None:
    """Shuffle the lines of files uniformly, in little memory. The same seed gives the same bytes on any machine."""
    from kexue.corpus import plan_shuffle, shuffle_files
    from kexue.corpus.shuffle.options import check_options, parse_size
    from kexue.corpus.shuffle.plan import in_memory

    if output == "-" and out.json and not dry_run:
        raise typer.BadParameter("lines and --json cannot both go to stdout; name a file with --out")
    if output == "-" and verify:
        raise typer.BadParameter("stdout cannot be read again; remove --verify, or name a file with --out")
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
        "verify": verify is not False,
    }
    plan = plan_shuffle(inputs, output, **options)
    if dry_run:
        out.emit(dataclasses.asdict(plan), lambda: _render_plan(plan))
        return
    parts = check_options(inputs, output, **options).split_aligned()
    folder = next(filter(in_memory, (part.folder().parent for part in parts)), None)
    if plan.passes > 1 and not allow_tmpfs and folder is not None:
        raise KexueError(
            f"{folder} is in memory (tmpfs), which temporary files would fill.",
            remedy="Name a folder on a disk with --tmp, or pass --allow-tmpfs.",
        )
    with out.progress("shuffling, MB") as progress:
        report = shuffle_files(
            inputs,
            output,
            **options,
            progress=lambda done, total: progress(done // 10**6, None if total is None else total // 10**6),
        )
    if output == "-":
        out.remark(_render_report(report))
    else:
        out.emit(dataclasses.asdict(report), lambda: _render_report(report))


def _render_plan(plan: Any) -> str:
    """Return a plan as text for a person."""

    def size(value: int | None) -> str:
        """Return a number of bytes as text."""
        return "unknown" if value is None else f"about {value / 1e9:,.2f} GB"

    lines = "unknown" if plan.records is None else f"about {plan.records:,}"
    return "\n".join(
        [
            f"records          {lines}, {size(plan.bytes)}",
            f"passes           {plan.passes}, through {plan.buckets:,} buckets",
            f"memory           {plan.memory / 1e9:,.2f} GB at most, plus 60 MB for Python",
            f"temporary files  {size(plan.disk_tmp)}",
            f"output           {size(plan.disk_out)}",
        ]
    )


def _render_report(report: Any) -> str:
    """Return a report as text for a person."""
    where = report.outputs[0] if len(report.outputs) == 1 else f"{len(report.outputs)} files, {report.outputs[0]} ..."
    rate = report.bytes / 1e6 / max(report.seconds, 1e-9)
    return (
        f"{report.records:,} records, {report.bytes / 1e6:,.1f} MB in {where}\n"
        f"{report.seconds:.1f} s{' (resumed)' * report.resumed}, {rate:,.0f} MB/s, "
        f"peak {report.peak_rss / 1e6:,.0f} MB; seed {report.seed}, checksum {report.digest}"
    )
