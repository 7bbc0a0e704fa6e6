"""`kexue hubness`: find hubs, documents that are near very many others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue.cli._verb import Output, verb

if TYPE_CHECKING:
    import numpy as np

    from kexue.search.records import MeasuredHubness

_EXAMPLES = (
    "kexue hubness faq.kx",
    "kexue hubness faq.kx -k 5 --top 10 --figure hubs.png",
    "kexue hubness vectors.npy --json",
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "hubness", examples=_EXAMPLES, seeded=True)(hubness)


def hubness(
    out: Output,
    source: Annotated[
        Path, typer.Argument(help="An index, or a .npy file of vectors (n, d).", metavar="INDEX|VECTORS")
    ],
    k: Annotated[int, typer.Option("-k", help="Number of neighbours.", min=1)] = 10,
    top: Annotated[int, typer.Option(help="Number of the largest hubs to list.", min=1)] = 20,
    figure: Annotated[Path | None, typer.Option(help="Figure to write (needs the figures extra).")] = None,
) -> None:
    """Find hubs: count how often each document is among the nearest neighbours of another, and list the largest."""
    from kexue.search.records import hubness_record

    measured = _measure(source, k, top, out.seed)
    report, documents, hubs = measured.report, measured.documents, measured.hubs
    if figure is not None:
        _draw(measured.counts, k, figure)
    record = hubness_record(measured) | {"figure": None if figure is None else str(figure)}

    def text() -> str:
        sample = "" if report.n == documents else f" (a sample of {documents:,} documents)"
        lines = [
            f"{report.n:,} vectors{sample}, k = {k}: skewness {report.k_skewness:.2f}, the top 20 % are "
            f"{report.top20_share:.0%} of all nearest neighbours, {report.antihub_occurrence:.1%} are never one",
            "times  document",
            *(f"{hub['count']:>5}  {hub['id']}  {' '.join(hub['text'].split())[:90]}".rstrip() for hub in hubs),
        ]
        return "\n".join(lines)

    out.emit(record, text)


def _measure(source: Path, k: int, top: int, seed: int) -> MeasuredHubness:
    """Measure the hubness of an index or of a file of vectors."""
    import numpy as np

    from kexue.corpus.vectors import read_vectors, vector_chunks
    from kexue.search import Index
    from kexue.search.records import measure_hubness, measure_vector_hubness

    if source.suffix == ".npy":
        vectors = np.concatenate(list(vector_chunks(read_vectors(source), source)))
        return measure_vector_hubness(vectors, k, top=top, generator=seed)
    with Index.open(source, readonly=True) as index:
        return measure_hubness(index, k, top=top, generator=seed)


def _draw(counts: np.ndarray[Any, Any], k: int, path: Path) -> None:
    """Draw the histogram of the counts."""
    import numpy as np

    from kexue._figures import save_figure

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.hist(counts, bins=np.arange(counts.max() + 2) - 0.5)
        axes.axvline(k, color="0.3", linestyle="--", label=f"mean, {k}")
        axes.set_yscale("log")
        axes.set_xlabel(f"times among the {k} nearest of another document")
        axes.set_ylabel("documents")
        axes.legend()

    save_figure(draw, path)
