"""`kexue index duplicates`: groups of near-duplicates in an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue._text import say_count
from kexue.cli import _options as opt
from kexue.cli._answers import tsv_line
from kexue.cli._verb import Output, json_line, verb

if TYPE_CHECKING:
    from kexue.search import DuplicateReport

_EXAMPLES = (
    "kexue index duplicates faq.kx",
    "kexue index duplicates faq.kx --threshold 0.98 --top 5",
    "kexue index duplicates faq.kx --out duplicates.tsv",
)
_ORIGINS = {
    "given": "as given",
    "calibration": "from the calibration: a tenth of the way from 1 to what one random pair in ten exceeds",
    "random pairs": "from random pairs: a tenth of the way from 1 to what one pair in ten exceeds",
}
_SHOWN = 3  # documents of a group that a terminal shows
_LONGEST = 200  # characters of a text that a terminal shows


def register(app: typer.Typer) -> None:
    """Add the verb to `kexue index`."""
    verb(app, "duplicates", examples=_EXAMPLES)(duplicates)


def duplicates(
    out: Output,
    index: opt.IndexPath,
    threshold: Annotated[
        float | None, typer.Option(help="Least cosine of a pair, up to 1; default: from the scores of random pairs.")
    ] = None,
    top: Annotated[int, typer.Option(help="Groups to print, the largest first; 0 prints all.", min=0)] = 20,
    listing: Annotated[
        Path | None, typer.Option("--out", help="File for all groups: TSV, or JSON Lines if it ends in .jsonl.")
    ] = None,
) -> None:
    """Find near-duplicates: groups of documents whose vectors are almost equal."""
    from kexue.search import Index, find_duplicates
    from kexue.search.copying import check_places_differ

    if threshold is not None and not 0 < threshold <= 1:
        raise typer.BadParameter(f"--threshold must be above 0 and at most 1, got {threshold}")
    if listing is not None:
        check_places_differ(index, listing)
    with Index.open(index, readonly=True) as opened, out.progress("comparing") as progress:
        report = find_duplicates(opened, threshold, progress=progress)
    if listing is not None:
        _write_listing(report, listing)
    if not report.exact:
        out.remark("kexue: warning: each document was compared with those found nearest, not with all; pairs may miss.")
    out.emit(_record(report, top, listing), lambda: _describe(report, top))


def _record(report: DuplicateReport, top: int, listing: Path | None) -> dict[str, Any]:
    """Return a report as JSON values, with the `top` largest groups (0: all)."""
    groups = [
        {
            "size": len(group.documents),
            "documents": [
                {"id": document.id, "score": score, "text": document.text}
                for document, score in zip(group.documents, group.scores, strict=True)
            ],
        }
        for group in report.groups[: top or None]
    ]
    return {
        "index": report.index,
        "documents": report.documents,
        "threshold": report.threshold,
        "origin": report.origin,
        "exact": report.exact,
        "groups_total": len(report.groups),
        "duplicates": report.duplicates,
        "groups": groups,
        "out": None if listing is None else str(listing),
    }


def _write_listing(report: DuplicateReport, path: Path) -> None:
    """Write every document of every group to a file, one a line."""
    from kexue._files import replacing

    names = ("group", "size", "score", "id", "text")
    as_json = path.suffix == ".jsonl"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        if not as_json:
            file.write(tsv_line(names) + "\n")
        for number, group in enumerate(report.groups, start=1):
            for document, score in zip(group.documents, group.scores, strict=True):
                fields = (number, len(group.documents), score, document.id, document.text)
                line = json_line(dict(zip(names, fields, strict=True))) if as_json else tsv_line(fields)
                file.write(line + "\n")


def _describe(report: DuplicateReport, top: int) -> str:
    """Return the summary, and the largest groups with their first documents."""
    number = len(report.groups)
    lines = [
        f"{say_count(report.documents, 'document')} in {report.index}: {say_count(number, 'group')} of "
        f"near-duplicates; without repetition {report.documents - report.duplicates:,} would be left",
        f"threshold {report.threshold:.4g} ({_ORIGINS[report.origin]})",
    ]
    for group in report.groups[: top or None]:
        lines.append(f"\n{len(group.documents):,} documents")
        for document, score in list(zip(group.documents, group.scores, strict=True))[:_SHOWN]:
            text = " ".join(document.text.split())
            short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text):,} characters)"
            lines.append(f"  {score:.3f}  {document.id}  {short}")
        if len(group.documents) > _SHOWN:
            lines.append(f"  and {len(group.documents) - _SHOWN:,} more")
    if top and number > top:
        hidden = "1 smaller group is" if number - top == 1 else f"{number - top:,} smaller groups are"
        lines.append(f"\n{hidden} not shown: --top 0, or --out FILE for all documents")
    return "\n".join(lines)
