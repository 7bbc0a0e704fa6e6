"""`kexue index`: build, change, check, copy and calibrate an index."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kexue._text import say_count
from kexue.cli import _options as opt, index_files
from kexue.cli._calibration import describe_calibration
from kexue.cli._verb import EXIT_FAILED, Output, json_line, verb

app = typer.Typer(help="Build, change, check, copy and calibrate an index.", no_args_is_help=True)

index_files.register(app)


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
        lambda: f"{deleted:,} deleted, {len(missing):,} not found; {say_count(documents, 'document')} left in {index}",
    )


@verb(app, "info", examples=("kexue index info faq.kx", "kexue index info faq.kx --json"))
def info(out: Output, index: opt.IndexPath) -> None:
    """Show the contents of an index: documents, model, whitening, size, and the fields of the metadata.

    All documents are read once to count the values of the fields.
    """
    from kexue.search import Index

    with Index.open(index, readonly=True) as opened:
        record = dataclasses.asdict(opened.info())
        record["schema"] = opened.schema

    def lines() -> str:
        schema = record["schema"]
        columns = {"text": schema["text"], "id": schema["id"], "metadata": ", ".join(schema["metadata"])}
        record["columns"] = {name: column for name, column in columns.items() if column} or None
        shown = {
            key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            for key, value in record.items()
            if value is not None and key != "schema"
        }
        listed = [f"{key:<16}{f'{v:,}' if isinstance(v, int) else v}" for key, v in shown.items()]
        return "\n".join(
            listed + [f"field {name}: {_describe_field(field)}" for name, field in schema["fields"].items()]
        )

    out.emit(record, lines)


def _describe_field(field: dict[str, Any]) -> str:
    """Return type, count, range and common values of a field in words."""
    words = [f"{field['type']} in {say_count(field['count'], 'document')}"]
    words += [f"{field['low']} to {field['high']}"] if field["low"] is not None else []
    words.append(_describe_values(field))
    words += [
        f"{' '.join(str(value)[:30].split())} ({count:,})"
        for value, count in field["common"]
        if field["distinct"] < field["count"]
    ]
    return ", ".join(words)


def _describe_values(field: dict[str, Any]) -> str:
    """Return the number of values of a field in words; lists, objects and long texts are not counted."""
    if field["distinct"] is not None:
        return say_count(field["distinct"], "value")
    if field["type"] in ("number", "date"):
        return "more than 1,000 values"
    if field["type"] == "text" and field["count"] > 1_000:
        return "more than 1,000 values, or long ones"
    return "values not counted"


@verb(
    app,
    "list",
    examples=("kexue index list faq.kx --limit 20", "kexue index list faq.kx --filter 'lang=zh|en' --after 17 --json"),
)
def list_documents(
    out: Output,
    index: opt.IndexPath,
    filters: opt.Filters = None,
    limit: Annotated[int, typer.Option(help="Documents to list.", min=1)] = 100,
    after: Annotated[str | None, typer.Option(help="Id of the last document of the list before.")] = None,
) -> None:
    """List documents in the order of their ids, page by page."""
    from kexue.search import Index, parse_filter

    with Index.open(index, readonly=True) as opened:
        found = opened.list(filter=parse_filter(filters or ()), limit=limit + 1, after=after)
    page = found[:limit]
    following = page[-1].id if len(found) > limit else None
    record = {"index": index, "documents": [document._asdict() for document in page], "next": following}

    def lines() -> str:
        listed = [
            "\t".join([one.id, " ".join(one.text.split()), json_line(one.metadata) if one.metadata else ""]).rstrip()
            for one in page
        ]
        return "\n".join(listed) if listed else "no documents"

    out.emit(record, lines)
    if following is not None and not out.json:
        out.remark(f"Next: the same command with --after '{following}'")


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
        return f"{say_count(report.documents, 'document')} in {report.index}, no damage found"
    lines = [f"{report.index} is damaged:", *(f"  {problem}" for problem in report.problems)]
    return "\n".join([*lines, f"Next: kexue index restore BACKUP --out {report.index} --overwrite, or build it again"])


def _describe_copy(documents: int, source: object, target: object) -> str:
    return f"{say_count(documents, 'document')} of {source} {'is' if documents == 1 else 'are'} in {target}"


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
    out.emit(dataclasses.asdict(report), lambda: _describe_copy(report.documents, index, report.out))


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
    out.emit(dataclasses.asdict(report), lambda: _describe_copy(report.documents, source, report.out))


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
    out.emit(record, lambda: _describe_copy(documents, index, target))


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
    """Calibrate scores: how often an unrelated query finds a hit as good, a percentile, and a probability.

    The probability needs judged pairs. Unrelated queries are everyday sentences that come with kexue, in the language
    of the documents; in a language without any they are mixed words of the documents.
    """
    from kexue.search import Index
    from kexue.similarity import load_pairs

    start = time.perf_counter()
    size = opt.parse_size(max_bytes)
    judged = load_pairs(pairs, errors=encoding_errors, max_bytes=size) if pairs is not None else None
    texts = None if judged is None else list(zip(judged.texts_a, judged.texts_b, strict=True))
    with Index.open(index) as opened:
        labels = None if judged is None else judged.labels.tolist()
        with out.progress("calibrating") as progress:
            options: dict[str, Any] = {"n": sample, "method": method, "generator": out.seed, "progress": progress}
            calibrator = opened.calibrate(pairs=texts, labels=labels, **options)
        threshold = None if judged is None else calibrator.threshold(precision)
        made = opened.info().calibration
    assert made is not None
    given = None if threshold is None else threshold._asdict()
    record = {"index": index, **made, "threshold": given, "seconds": time.perf_counter() - start}
    out.emit(record, lambda: describe_calibration(record, calibrator))
