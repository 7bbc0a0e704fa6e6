"""`kexue index build` and `kexue index add`: users' files into an index, with words about how they were read."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue._text import say_count
from kexue.cli import _options as opt
from kexue.cli._calibration import calibrate_built
from kexue.cli._verb import EXIT_FAILED, Output, verb

if TYPE_CHECKING:
    from kexue.search.inputs import InputReport

_SHOWN = 10  # files that are described
_BUILD = (
    "kexue index build faq.jsonl --text question --out faq.kx",
    "kexue index build faq.xlsx --text 问题 --id 编号 --metadata 类别,日期 --out faq.kx --check",
    "kexue index build notes/ --out notes.kx --whiten pca --dims 128 --dehub csls",
    "kexue index build manuals/ --out manuals.kx --passages 128:16",
    "cat lines.txt | kexue index build - --out lines.kx",
)
_ADD = ("kexue index add faq.kx more.csv", "kexue index add faq.kx more.xlsx --on-error skip")


def register(app: typer.Typer) -> None:
    """Add the verbs to `kexue index`."""
    verb(app, "build", examples=_BUILD)(build)
    verb(app, "add", examples=_ADD)(add)


def build(
    out: Output,
    inputs: opt.Inputs,
    target: Annotated[Path, typer.Option("--out", help="Index file to write.")],
    text: opt.TextColumn = None,
    id_column: opt.IdColumn = None,
    metadata: opt.MetadataColumns = None,
    file_format: opt.Format = "auto",
    encoding: opt.Encoding = "auto",
    delimiter: opt.Delimiter = None,
    sheet: opt.Sheet = None,
    check: opt.Check = False,
    on_error: opt.OnError = "stop",
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
    """Build an index from files of texts, and calibrate it. After an interruption, the same command continues.

    Calibration tells good scores from common ones. It needs 50 documents; a smaller index is built without.
    """
    from kexue.search import build_index
    from kexue.search.inputs import check_files

    reading: dict[str, Any] = {
        "text": text,
        "id": id_column,
        "metadata": opt.split_names(metadata),
        "format": file_format,
        "errors": encoding_errors,
        "encoding": encoding,
        "delimiter": opt.parse_delimiter(delimiter),
        "sheet": sheet,
        "max_bytes": opt.parse_size(max_bytes),
    }
    if check:
        _emit_check(out, str(target), check_files(inputs, **reading))
        return
    encoder = opt.load_encoder(model, device, dtype, batch_tokens)
    with out.progress("indexing") as progress:
        report = build_index(
            inputs,
            target,
            encoder=encoder,
            whitening=opt.parse_whitening(whiten, dims),
            dehub=None if dehub == "none" else dehub,
            **reading,
            approx=approx,
            passages=opt.parse_passages(passages),
            truncate=truncate,
            on_error=on_error,
            resume=resume,
            overwrite=overwrite,
            notice=lambda read: _describe_input(out, read),
            progress=progress,
        )
    for warning in report.warnings:
        out.remark(f"kexue: warning: {warning}")
    calibration, line = calibrate_built(out, target, report.documents, encoder)
    out.emit({**dataclasses.asdict(report), "calibration": calibration}, lambda: _describe_build(report, line))


def _describe_build(report: Any, calibration: str) -> str:
    parts = [f"{say_count(report.documents, 'document')} in {report.index} ({report.bytes / 1e6:.1f} MB)"]
    counts = {"left_out": "left out", "skipped": "skipped", "replaced": "replaced"}
    parts += [f"{words} {value:,}" for name, words in counts.items() if (value := getattr(report, name))]
    shape = f"{report.dims} dimensions from {report.model['id']}, {report.seconds:.1f} s"
    next_step = f'Next: kexue search {report.index} "your question"'
    return f"{', '.join(parts)}\n{shape}{_describe_cut(report.truncated)}\n{calibration}\n{next_step}"


def _describe_cut(texts: int) -> str:
    """Return a line on texts of which the encoder did not read the end; empty for none."""
    return f"\n{texts:,} longer than the encoder reads: their ends cannot be found" if texts else ""


def add(
    out: Output,
    index: opt.IndexPath,
    inputs: opt.Inputs,
    text: opt.TextColumn = None,
    id_column: opt.IdColumn = None,
    metadata: opt.MetadataColumns = None,
    file_format: opt.Format = "auto",
    encoding: opt.Encoding = "auto",
    delimiter: opt.Delimiter = None,
    sheet: opt.Sheet = None,
    check: opt.Check = False,
    on_error: opt.OnError = "stop",
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop metadata fields that the new row of a document does not have.")
    ] = False,
    truncate: opt.Truncate = "allow",
    encoding_errors: opt.EncodingErrors = "strict",
    max_bytes: opt.MaxBytes = "16M",
) -> None:
    """Add documents, or replace those whose id exists; all inputs are checked before the first is added.

    Without --text, --id or --metadata the columns of the first build are used; --id '' and --metadata '' use none.
    """
    from kexue.search import Index, add_files
    from kexue.search.adding import check_additions

    start = time.perf_counter()
    reading: dict[str, Any] = {
        "text": text,
        "id": id_column,
        "metadata": None if metadata is None else opt.split_names(metadata),
        "format": file_format,
        "errors": encoding_errors,
        "encoding": encoding,
        "delimiter": opt.parse_delimiter(delimiter),
        "sheet": sheet,
        "max_bytes": opt.parse_size(max_bytes),
    }
    found: list[InputReport] = []

    def notice(read: InputReport) -> None:
        """Keep and describe what was read."""
        found.append(read)
        _describe_input(out, read)

    with Index.open(index, readonly=check) as opened, out.progress("adding") as progress:
        if check:
            _emit_check(out, index, check_additions(opened, inputs, **reading))
            return
        options: dict[str, Any] = {"on_error": on_error, "replace": replace, "truncate": truncate}
        report = add_files(opened, inputs, **reading, **options, notice=notice, progress=progress)
        documents = len(opened)
    [read] = found
    for warning in read.warnings:
        out.remark(f"kexue: warning: {warning}")
    record = {
        "index": index,
        "added": report.added,
        "updated": report.updated,
        "skipped": report.skipped,
        "left_out": read.left_out,
        "truncated": report.truncated,
        "documents": documents,
        "seconds": time.perf_counter() - start,
        "faults": read.faults,
        "files": read.files,
        "warnings": read.warnings,
    }
    left_out = f", {read.left_out:,} left out" if read.left_out else ""
    out.emit(
        record,
        lambda: (
            f"{report.added:,} added, {report.updated:,} updated, {report.skipped:,} unchanged{left_out}; "
            f"{say_count(documents, 'document')} in {index}{_describe_cut(report.truncated)}"
        ),
    )


def _describe_input(out: Output, read: InputReport) -> None:
    """Print on stderr how the files were read, and what was left out."""
    lines = _describe_files(read)
    for line in lines[:_SHOWN]:
        out.remark(line)
    if len(lines) > _SHOWN:
        out.remark(f"and {say_count(len(lines) - _SHOWN, 'more file')}")
    if read.left_out:
        out.remark(f"left out: {_describe_faults(read)}")


def _describe_files(read: InputReport) -> list[str]:
    """Return what was decided about each file in words, if anything was to be decided."""
    lines = [(file, _describe_file(file)) for file in read.files]
    several = len(read.files) > 1
    return [f"{line}; {say_count(file['records'], 'record')}" if several else line for file, line in lines if line]


def _describe_file(file: dict[str, Any]) -> str:
    """Return what was decided about a file in words; empty where nothing was to be decided."""
    from kexue.corpus.encodings import show_encoding

    parts = [show_encoding(file["encoding"])] if file["encoding"] else []
    if file["delimiter"]:
        mark = "tabs" if file["delimiter"] == "\t" else f"'{file['delimiter']}'"
        parts.append(f"fields separated by {mark}")
    elif file["sheet"]:
        parts.append(f"sheet '{file['sheet']}'")
    elif parts in ([], ["UTF-8"]):
        return ""
    if file["text"]:
        parts.append(f"texts in column '{file['text']}'")
    return f"{file['path']}: {', '.join(parts)}"


def _describe_faults(read: InputReport) -> str:
    """Return the counts of records that cannot be used, and the first places, in words."""
    from kexue.corpus.faults import summarize_faults

    return summarize_faults(read.faults)


def _emit_check(out: Output, index: str, read: InputReport) -> None:
    """Print what `--check` has found; exit code 1 if there are faults."""

    def lines() -> str:
        shown = _describe_files(read)[:_SHOWN]
        total = read.records + read.left_out
        shown.append(f"{read.records:,} of {total:,} records can be indexed")
        if read.duplicates:
            shown[-1] += f"; {read.duplicates:,} repeat a text, which counts once"
        if read.left_out:
            shown[-1] += f"; {_describe_faults(read)}"
        return "\n".join([*shown, *(f"  {fault['message']}" for fault in read.faults)])

    for warning in read.warnings:
        out.remark(f"kexue: warning: {warning}")
    out.emit({"index": index, **dataclasses.asdict(read)}, lines)
    if read.left_out:
        raise typer.Exit(EXIT_FAILED)
