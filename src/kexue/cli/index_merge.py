"""`kexue index merge`: one index from several."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import typer

from kexue._text import say_count
from kexue.cli._verb import Output, verb

_EXAMPLES = (
    "kexue index merge all.kx january.kx february.kx",
    "kexue index merge all.kx old.kx new.kx --prefer last --overwrite",
)


def register(app: typer.Typer) -> None:
    """Add the verb to `kexue index`."""
    verb(app, "merge", examples=_EXAMPLES)(merge)


def merge(
    out: Output,
    target: Annotated[str, typer.Argument(help="Index file to write.", metavar="OUT")],
    sources: Annotated[list[str], typer.Argument(help="Indexes to merge, two or more.", metavar="INDEX...")],
    prefer: Annotated[
        Literal["first", "last"] | None,
        typer.Option(help="Index that counts where an id has different contents; without it this is an error."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """Merge indexes of the same model into a new one; vectors are copied, nothing is encoded again."""
    from kexue.search import merge_indexes

    if len(sources) < 2:
        raise typer.BadParameter("give two indexes or more after OUT, as in: kexue index merge all.kx a.kx b.kx")
    with out.progress("merging") as progress:
        report = merge_indexes(target, sources, prefer=prefer, overwrite=overwrite, progress=progress)
    for warning in report.warnings:
        out.remark(f"kexue: warning: {warning}")
    out.emit(dataclasses.asdict(report), lambda: _describe(report))


def _describe(report: Any) -> str:
    lines = [f"{say_count(report.documents, 'document')} in {report.out} ({report.bytes / 1e6:.1f} MB)"]
    lines += [f"  {source['documents']:,} from {source['index']}" for source in report.sources]
    if report.same:
        lines.append(f"  {report.same:,} were the same in two indexes")
    if report.replaced:
        lines.append(f"  {report.replaced:,} left out: another index holds their id with other contents")
    return "\n".join(lines)
