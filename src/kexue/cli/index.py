"""`kexue index`: build, change, check, copy and calibrate an index."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kexue.cli import _options as opt
from kexue.cli._verb import EXIT_FAILED, Output, verb

app = typer.Typer(help="Build, change, check, copy and calibrate an index.", no_args_is_help=True)

FEW_PAIRS = 1000  # random pairs below which percentiles are rough

_BUILD = (
    "kexue index build faq.jsonl --text question --out faq.kx",
    "kexue index build notes/ --out notes.kx --whiten pca --dims 128 --dehub csls",
    "kexue index build manuals/ --out manuals.kx --passages 128:16",
    "cat lines.txt | kexue index build - --out lines.kx",
)


@verb(app, "build", examples=_BUILD)
def build(
    out: Output,
    inputs: opt.Inputs,
    target: Annotated[Path, typer.Option("--out", help="Index file to write.")],
    text: opt.TextColumn = None,
    id_column: opt.IdColumn = None,
    metadata: opt.MetadataColumns = None,
    file_format: opt.Format = "auto",
    whiten: Annotated[
        str, typer.Option(help="none, pca, rotate, whiten, a saved file, or beta=1,gamma=0.5,k=128.")
    ] = "none",
    dims: opt.Dims = None,
    dehub: opt.Dehub = "none",
    approx: opt.Approx = "auto",
    passages: opt.Passages = "auto",
    truncate: opt.Truncate = "allow",
    resume: Annotated[bool, typer.Option(help="Continue an interrupted build; --no-resume discards it.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
    model: opt.Model = "auto",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch_tokens: opt.BatchTokens = 8192,
) -> None:
    """Build an index from files of texts. After an interruption, the same command continues."""
    from kexue.search import build_index

    with out.progress("indexing") as progress:
        report = build_index(
            inputs,
            target,
            encoder=opt.load_encoder(model, device, dtype, batch_tokens),
            whitening=opt.parse_whitening(whiten, dims),
            dehub=None if dehub == "none" else dehub,
            text=text,
            id=id_column,
            metadata=opt.split_columns(metadata),
            format=file_format,
            approx=approx,
            passages=opt.parse_passages(passages),
            truncate=truncate,
            errors=encoding_errors,
            max_bytes=opt.parse_size(max_bytes),
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    for warning in report.warnings:
        out.remark(f"kexue: warning: {warning}")
    out.emit(dataclasses.asdict(report), lambda: _describe_build(report))


def _describe_build(report: Any) -> str:
    noun = "document" if report.documents == 1 else "documents"
    parts = [f"{report.documents:,} {noun} in {report.index} ({report.bytes / 1e6:.1f} MB)"]
    parts += [f"{name} {value:,}" for name in ("skipped", "replaced") if (value := getattr(report, name))]
    shape = f"{report.dims} dimensions from {report.model['id']}, {report.seconds:.1f} s"
    next_step = f'Next: kexue search {report.index} "your question"'
    return f"{', '.join(parts)}\n{shape}{_describe_cut(report.truncated)}\n{next_step}"


@verb(app, "add", examples=("kexue index add faq.kx more.jsonl --text question --id id",))
def add(
    out: Output,
    index: opt.IndexPath,
    inputs: opt.Inputs,
    text: opt.TextColumn = None,
    id_column: opt.IdColumn = None,
    metadata: opt.MetadataColumns = None,
    file_format: opt.Format = "auto",
    truncate: opt.Truncate = "allow",
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
) -> None:
    """Add documents, or replace those whose id exists; all inputs are checked before the first is added.

    Without --text, --id or --metadata the columns of the first build are used; --id '' and --metadata '' use none.
    """
    from kexue.search import Index, add_files

    start = time.perf_counter()
    with Index.open(index) as opened, out.progress("adding") as progress:
        report = add_files(
            opened,
            inputs,
            text=text,
            id=id_column,
            metadata=None if metadata is None else opt.split_columns(metadata),
            format=file_format,
            truncate=truncate,
            errors=encoding_errors,
            max_bytes=opt.parse_size(max_bytes),
            progress=progress,
        )
        documents = len(opened)
    record = {
        "index": index,
        "added": report.added,
        "updated": report.updated,
        "skipped": report.skipped,
        "truncated": report.truncated,
        "documents": documents,
        "seconds": time.perf_counter() - start,
    }
    out.emit(
        record,
        lambda: (
            f"{report.added:,} added, {report.updated:,} updated, {report.skipped:,} unchanged; "
            f"{documents:,} documents in {index}{_describe_cut(report.truncated)}"
        ),
    )


def _describe_cut(texts: int) -> str:
    """Return a line on texts of which the encoder did not read the end; empty for none."""
    return f"\n{texts:,} longer than the encoder reads: their ends cannot be found" if texts else ""


@verb(
    app,
    "delete",
    examples=("kexue index delete faq.kx --id 17 --id 18", "kexue index delete faq.kx --filter 'year<2020' --yes"),
)
def delete(
    out: Output,
    index: opt.IndexPath,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Id to delete; may be repeated.")] = None,
    ids_file: Annotated[Path | None, typer.Option(help="File with one id per line; - for stdin.")] = None,
    filters: opt.Filters = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete by filter without asking.")] = False,
) -> None:
    """Delete documents by id or by filter."""
    from kexue.corpus.decoding import read_lines
    from kexue.search import Index, parse_filter

    wanted = list(ids or [])
    if ids_file is not None:
        wanted += [line for line in read_lines(ids_file) if line]
    if bool(wanted) == bool(filters):
        raise typer.BadParameter("give either --id or --ids-file, or --filter")
    with Index.open(index) as opened:
        if filters:
            missing: list[str] = []
            condition = parse_filter(filters)
            if not yes and not out.json:
                out.confirm(f"Delete every document of {index} where {' and '.join(filters)}?", "--yes")
            deleted = opened.delete(filter=condition)
        else:
            existing = {document.id for document in opened.get(wanted)}
            missing = [name for name in dict.fromkeys(wanted) if name not in existing]
            deleted = opened.delete(list(existing))
        documents = len(opened)
    out.emit(
        {"index": index, "deleted": deleted, "missing": missing, "documents": documents},
        lambda: f"{deleted:,} deleted, {len(missing):,} not found; {documents:,} documents left in {index}",
    )


@verb(app, "info", examples=("kexue index info faq.kx", "kexue index info faq.kx --json"))
def info(out: Output, index: opt.IndexPath) -> None:
    """Show the contents of an index: documents, model, whitening, size."""
    from kexue.search import Index

    with Index.open(index, readonly=True) as opened:
        record = dataclasses.asdict(opened.info())

    def lines() -> str:
        shown = {
            key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            for key, value in record.items()
            if value is not None
        }
        return "\n".join(f"{key:<16}{f'{v:,}' if isinstance(v, int) else v}" for key, v in shown.items())

    out.emit(record, lines)


@verb(app, "compact", examples=("kexue index compact faq.kx",))
def compact(out: Output, index: opt.IndexPath) -> None:
    """Free the disk space of deleted and replaced documents."""
    from kexue.search import Index

    start = time.perf_counter()
    with Index.open(index) as opened:
        report = opened.compact()
        documents = len(opened)
    record = {
        "index": index,
        "documents": documents,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "seconds": time.perf_counter() - start,
    }
    out.emit(record, lambda: f"{report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, {index}")


@verb(app, "check", examples=("kexue index check faq.kx", "kexue index check faq.kx --json"))
def check(out: Output, index: opt.IndexPath) -> None:
    """Check for damage: structure, the checksum of every row, whitening, calibration; exit code 1 if there is any."""
    from kexue.search import check_index

    with out.progress("checking") as progress:
        report = check_index(index, progress=progress)
    out.emit(dataclasses.asdict(report), lambda: _describe_check(report))
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def _describe_check(report: Any) -> str:
    if report.ok:
        return f"{report.documents:,} documents in {report.index}, no damage found"
    lines = [f"{report.index} is damaged:", *(f"  {problem}" for problem in report.problems)]
    return "\n".join([*lines, f"Next: kexue index restore BACKUP --out {report.index} --overwrite, or build it again"])


@verb(app, "backup", examples=("kexue index backup faq.kx --out faq-monday.kx",))
def backup(
    out: Output,
    index: opt.IndexPath,
    target: Annotated[Path, typer.Option("--out", help="File to write; it is an index itself.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older backup.")] = False,
) -> None:
    """Back up an index to one file, even while it is in use. The copy is checked; a failed backup leaves no file."""
    from kexue.search import backup_index

    with out.progress("copying") as progress:
        report = backup_index(index, target, overwrite=overwrite, progress=progress)
    out.emit(dataclasses.asdict(report), lambda: f"{report.documents:,} documents of {index} are in {report.out}")


@verb(app, "restore", examples=("kexue index restore faq-monday.kx --out faq.kx --overwrite",))
def restore(
    out: Output,
    source: Annotated[Path, typer.Argument(help="File written by kexue index backup.", metavar="BACKUP")],
    target: Annotated[Path, typer.Option("--out", help="Index file to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing index; its last changes are lost.")
    ] = False,
) -> None:
    """Restore an index from a backup, which is checked first; log and snapshot of the old index are deleted."""
    from kexue.search import restore_index

    with out.progress("copying") as progress:
        report = restore_index(source, target, overwrite=overwrite, progress=progress)
    out.emit(dataclasses.asdict(report), lambda: f"{report.documents:,} documents of {source} are in {report.out}")


@verb(
    app,
    "copy",
    examples=("kexue index copy faq.kx copy.kx", "kexue index copy faq.kx milvus://127.0.0.1:19530/faq"),
)
def copy(
    out: Output,
    index: opt.IndexPath,
    target: Annotated[str, typer.Argument(help="Target: a file, or milvus://HOST:PORT/NAME.", metavar="TARGET")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """Copy an index to another place, such as Milvus; nothing is encoded again."""
    from kexue.search import copy_index

    start = time.perf_counter()
    with out.progress("copying") as progress:
        documents = copy_index(index, target, overwrite=overwrite, progress=progress)
    record = {"index": index, "target": target, "documents": documents, "seconds": time.perf_counter() - start}
    out.emit(record, lambda: f"{documents:,} documents of {index} are in {target}")


@verb(
    app,
    "calibrate",
    examples=("kexue index calibrate faq.kx", "kexue index calibrate faq.kx --pairs judged.tsv --precision 0.95"),
    seeded=True,
)
def calibrate(
    out: Output,
    index: opt.IndexPath,
    pairs: Annotated[
        str | None, typer.Option(help="Judged pairs: lines of two texts and 0 or 1; or a set in KEXUE_DATA.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Random pairs of documents for the percentiles.", min=1)] = 100_000,
    method: Annotated[
        Literal["isotonic", "platt"], typer.Option(help="isotonic: any increasing curve; platt: for few labels.")
    ] = "isotonic",
    precision: Annotated[
        float, typer.Option(help="Wanted precision; the score with the largest recall at it is printed.")
    ] = 0.9,
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
) -> None:
    """Calibrate scores: give each hit a percentile among random pairs and, with judged pairs, a probability."""
    from kexue.search import Index
    from kexue.similarity import load_pairs

    start = time.perf_counter()
    size = opt.parse_size(max_bytes)
    judged = load_pairs(pairs, errors=encoding_errors, max_bytes=size) if pairs is not None else None
    texts = None if judged is None else list(zip(judged.texts_a, judged.texts_b, strict=True))
    with Index.open(index) as opened:
        labels = None if judged is None else judged.labels.tolist()
        calibrator = opened.calibrate(pairs=texts, labels=labels, n=sample, method=method, generator=out.seed)
        threshold = None if judged is None else calibrator.threshold(precision)
    assert calibrator.null_ is not None
    drawn = len(calibrator.null_)
    record = {
        "index": index,
        "null_pairs": drawn,
        "labelled_pairs": 0 if texts is None else len(texts),
        "method": method,
        "threshold": None if threshold is None else threshold._asdict(),
        "seconds": time.perf_counter() - start,
    }

    def text() -> str:
        assert calibrator.null_ is not None
        median, high = (float(calibrator.null_[int(q * (drawn - 1))]) for q in (0.5, 0.99))
        lines = [
            f"{drawn:,} random pairs of {index}: median score {median:.3f}, one in a hundred above {high:.3f}; "
            f"no percentile can be above {100 * drawn / (drawn + 1):.{max(2, len(str(drawn)) - 1)}f}"
        ]
        if drawn < FEW_PAIRS:
            lines.append("Percentiles of so few pairs are rough: add documents before relying on them.")
        if threshold is not None:
            lines.append(
                f"on {record['labelled_pairs']:,} judged pairs a score of {threshold.value:.3f} or more is right "
                f"{threshold.precision:.0%} of the time [{threshold.low:.0%}, {threshold.high:.0%}] and finds "
                f"{threshold.recall:.0%} of what belongs together"
            )
        return "\n".join(lines)

    out.emit(record, text)
