"""`kexue cluster`: long jobs on a Ray cluster, or on all cores of this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from kexue._text import say_count
from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb

app = typer.Typer(
    help="Encode, index and shuffle on a Ray cluster, with the same results as on one machine.",
    no_args_is_help=True,
)

_Ray = Annotated[str, typer.Option("--ray", help="local (start Ray on this machine), or an address such as host:6379.")]
_Shards = Annotated[
    int | None, typer.Option("--shards", help="Largest number of shards; default: 512 to 8,192 texts in each.", min=1)
]


@verb(
    app,
    "embed",
    examples=(
        "kexue cluster embed faq.jsonl --text question --out vectors/",
        "kexue cluster embed texts/*.parquet --text body --out vectors/ --ray head:6379 --shards 512",
    ),
)
def embed(
    out: Output,
    inputs: opt.Inputs,
    target: Annotated[Path, typer.Option("--out", help="Folder for the shards, Parquet files with a column `vector`.")],
    ray: _Ray = "local",
    shards: _Shards = None,
    resume: Annotated[bool, typer.Option(help="Keep finished shards; --no-resume encodes everything again.")] = True,
    text: opt.TextColumn = None,
    id_column: opt.IdColumn = None,
    metadata: opt.MetadataColumns = None,
    file_format: opt.Format = "auto",
    encoding: opt.Encoding = "auto",
    delimiter: opt.Delimiter = None,
    sheet: opt.Sheet = None,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    model: opt.Model = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Encode files into a folder of vectors. After an interruption the same command continues."""
    from kexue.cluster import embed_files

    with out.progress("encoding") as progress:
        report = embed_files(
            inputs,
            target,
            encoder=opt.load_encoder(model, "auto", dtype, batch_tokens),
            ray=ray,
            shards=shards,
            resume=resume,
            text=text,
            id=id_column,
            metadata=opt.split_names(metadata),
            format=file_format,
            errors=encoding_errors,
            encoding=encoding,
            delimiter=opt.parse_delimiter(delimiter),
            sheet=sheet,
            max_bytes=opt.parse_size(max_bytes),
            progress=progress,
        )
    _warn(out, report)
    out.emit(dataclasses.asdict(report), lambda: _summarize(report, f"{say_count(report.n, 'vector')} in {report.out}"))


@verb(
    app,
    "index",
    examples=(
        "kexue cluster index faq.jsonl --text question --out faq.kx",
        "kexue cluster index texts/*.parquet --text body --out texts.kx --whiten pca --dims 128 --ray head:6379",
    ),
)
def index(
    out: Output,
    inputs: opt.Inputs,
    target: Annotated[Path, typer.Option("--out", help="Index file to write.")],
    ray: _Ray = "local",
    shards: _Shards = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted build; --no-resume discards it.")] = True,
    text: opt.TextColumn = None,
    id_column: opt.IdColumn = None,
    metadata: opt.MetadataColumns = None,
    file_format: opt.Format = "auto",
    encoding: opt.Encoding = "auto",
    delimiter: opt.Delimiter = None,
    sheet: opt.Sheet = None,
    whiten: Annotated[
        str, typer.Option(help="none, pca, rotate, whiten, a saved file, or beta=1,gamma=0.5,k=128.")
    ] = "none",
    dims: opt.Dims = None,
    dehub: opt.Dehub = "none",
    approx: opt.Approx = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    model: opt.Model = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Build an index as `kexue index build` does, with the encoding on a cluster."""
    from kexue.cluster import build_index

    with out.progress("indexing") as progress:
        report = build_index(
            inputs,
            target,
            encoder=opt.load_encoder(model, "auto", dtype, batch_tokens),
            ray=ray,
            shards=shards,
            whitening=opt.parse_whitening(whiten, dims),
            dehub=None if dehub == "none" else dehub,
            text=text,
            id=id_column,
            metadata=opt.split_names(metadata),
            format=file_format,
            approx=approx,
            errors=encoding_errors,
            encoding=encoding,
            delimiter=opt.parse_delimiter(delimiter),
            sheet=sheet,
            max_bytes=opt.parse_size(max_bytes),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    _warn(out, report)
    head = f"{say_count(report.documents, 'document')} in {report.index} ({report.bytes / 1e6:.1f} MB)"
    out.emit(
        dataclasses.asdict(report),
        lambda: f'{_summarize(report, head)}\nNext: kexue search {report.index} "your question"',
    )


@verb(
    app,
    "shuffle",
    examples=(
        "kexue cluster shuffle corpus/part-*.txt --out shuffled.txt --seed 7",
        "kexue cluster shuffle /shared/corpus.jsonl --out /shared/shuffled --shards 64 --seed 7 --ray head:6379",
    ),
    seeded=True,
)
def shuffle(
    out: Output,
    inputs: Annotated[
        list[str],
        typer.Argument(help="Uncompressed files, read in this order; every machine must see them at the same path."),
    ],
    target: Annotated[str, typer.Option("--out", "--output", "-o", help="File, or folder for shards.")],
    ray: _Ray = "local",
    shards: Annotated[
        int | None, typer.Option("--shards", help="Number of output files, with equal numbers of lines.", min=1)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted run; --no-resume discards it.")] = True,
    verify: Annotated[bool, typer.Option(help="Read the output again and compare checksums.")] = True,
    zero: Annotated[
        bool, typer.Option("-z", "--zero-terminated", help="Lines end with NUL, not with newline.")
    ] = False,
) -> None:
    """Shuffle lines on a cluster; the output is that of `kexue shuffle` with the same seed."""
    from kexue.cluster import shuffle_files

    with out.progress("shuffling") as progress:
        report = shuffle_files(
            inputs,
            target,
            seed=out.seed,
            ray=ray,
            shards=shards,
            separator=b"\0" if zero else b"\n",
            resume=resume,
            verify=verify,
            progress=progress,
        )
    out.emit(
        dataclasses.asdict(report),
        lambda: (
            f"{report.records:,} lines, {report.bytes / 1e6:,.1f} MB in {target}, {report.shards:,} pieces, "
            f"retried {report.retried:,}\n{report.seconds:.1f} s; seed {report.seed}, checksum {report.digest}"
        ),
    )


def _warn(out: Output, report: Any) -> None:
    """Print the warnings of a report."""
    for warning in report.warnings:
        out.remark(f"kexue: warning: {warning}")


def _summarize(report: Any, head: str) -> str:
    """Return a report as two lines of text."""
    names = ("resumed", "retried", "skipped", "replaced", "truncated")
    parts = [head, say_count(report.shards, "shard")]
    parts += [f"{name} {value:,}" for name in names if (value := getattr(report, name, 0))]
    return f"{', '.join(parts)}\n{report.dims} dimensions from {report.model['id']}, {report.seconds:.1f} s"
