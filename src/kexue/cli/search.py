"""`kexue search`: search an index."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from kexue._text import visible
from kexue.cli import _options as opt
from kexue.cli._verb import Output, verb
from kexue.corpus.decoding import read_lines

if TYPE_CHECKING:
    from rich.table import Table

    from kexue.search import Hit
    from kexue.similarity import Explanation
    from kexue.text import Encoder

_WIDEST = 1000  # characters of a text that any terminal shows in one line
_EXAMPLES = (
    'kexue search faq.kx "how long does a refund take"',
    'kexue search faq.kx "退货要多久" -k 5 --filter lang=zh --json',
    "kexue search faq.kx --queries questions.txt --json",
    'kexue search faq.kx "money back" -k 3 --rerank wrd --dehub csls --explain',
    'kexue search faq.kx "money back" --rerank cross --cross-encoder models/reranker',
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    verb(app, "search", examples=_EXAMPLES)(search)


def search(
    out: Output,
    index: opt.IndexPath,
    queries: Annotated[
        list[str] | None, typer.Argument(help="Queries as text; - reads one per line from stdin.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits per query.", min=1)] = 10,
    filters: opt.Filters = None,
    rerank: Annotated[
        Literal["none", "wrd", "wmd", "cross"],
        typer.Option(help="Rerank candidates by word-level optimal transport or a cross-encoder."),
    ] = "none",
    cross_encoder: Annotated[str | None, typer.Option(help="Folder or hub id for --rerank cross.")] = None,
    dehub: Annotated[
        Literal["none", "csls", "center"] | None,
        typer.Option(
            help="Correction for hubs (documents that are near very many others); default: that of the index."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which words matched, by the word distance of --rerank (else WRD).")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every document, even if the index is large.")
    ] = False,
    candidates: Annotated[
        int | None,
        typer.Option(help="Number of candidates to rerank, or to score exactly in an approximate search.", min=1),
    ] = None,
    queries_file: Annotated[Path | None, typer.Option("--queries", help="File with one query per line, or -.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="New folder or hub id of the index's encoder, if it was moved.")
    ] = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> None:
    """Search an index by meaning; scores are cosines of the stored vectors.

    After `kexue index calibrate` each hit also shows its percentile among random pairs of documents, and with judged
    pairs the probability that it belongs to the query.
    """
    from kexue.search import CrossEncoderReranker, Index, parse_filter
    from kexue.search.records import Stopwatch
    from kexue.search.rerank import search_and_rerank

    if (rerank == "cross") != (cross_encoder is not None):
        raise typer.BadParameter(
            "--rerank cross needs --cross-encoder FOLDER, and --cross-encoder needs --rerank cross"
        )
    try:
        condition = parse_filter(filters) if filters else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with Index.open(index, readonly=True) as opened:
        texts = _read_queries(queries or [], queries_file)
        encoder = cast("Encoder", opened.load_encoder(model, device=device, dtype=dtype))
        chosen: Any = None if rerank == "none" else rerank
        if cross_encoder is not None:
            chosen = CrossEncoderReranker(cross_encoder, device=device)
        options: dict[str, Any] = {"filter": condition, "exact": exact, "candidates": candidates, "dehub": dehub}
        watch = Stopwatch()
        vectors = opened.encode_queries(texts)
        watch.lap("encode")
        answers = search_and_rerank(
            lambda wanted: opened.search(vectors, wanted, **options),
            texts,
            k,
            rerank=chosen,
            explain=explain,
            candidates=candidates,
            load_encoder=opened.load_encoder,
            lap=watch.lap,
        )
    seconds = watch.seconds()
    _emit_answers(out, index, texts, answers, encoder, seconds)
    out.remark(f"{len(texts)} {'query' if len(texts) == 1 else 'queries'} in {1000 * seconds['total']:.0f} ms")


def _emit_answers(
    out: Output, index: str, texts: list[str], answers: list[list[Hit]], encoder: Encoder, seconds: dict[str, float]
) -> None:
    """Print the hits of each query; the seconds of a step are divided equally among the queries."""
    from kexue.search.records import index_name, search_record

    each = {step: total / len(texts) for step, total in seconds.items()}
    tokens = encoder.count_tokens(texts)
    cut = [bool(encoder.tokenize([text]).truncated) for text in texts]
    for query, hits, used, short in zip(texts, answers, tokens, cut, strict=True):
        warnings = [f"the query was cut: at most {encoder.max_length} tokens are read."] if short else []
        found = search_record(hits, index_name(index), tokens=used, seconds=each, warnings=warnings)
        title = query if len(texts) > 1 else None
        out.emit({"query": query, "index": index} | found, partial(_render_answer, hits, title))
    if any(cut) and not out.json:
        out.remark(f"kexue: warning: {sum(cut)} of the queries cut: at most {encoder.max_length} tokens are read")


def _read_queries(given: list[str], file: Path | None) -> list[str]:
    texts = [text for text in given if text != "-"]
    if "-" in given:
        texts += read_lines("-")
    if file is not None:
        texts += read_lines(file)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise typer.BadParameter('no query: give one, as in: kexue search faq.kx "how long does a refund take"')
    return texts


def explanation_lines(explanation: Explanation, most: int = 12) -> str:
    """Return the pairs of words with the largest weight, one per line, and the distance."""
    lines = [
        f"    {pair.source:>14} -> {pair.target:<14} {pair.mass:6.1%} of the weight at cost {pair.cost:.3f}"
        for pair in explanation.pairs[:most]
    ]
    more = len(explanation.pairs) - most
    rest = f", {more} smaller pairs not shown" if more > 0 else ""
    return "\n".join([*lines, f"    {explanation.kind.upper()} distance {explanation.distance:.3f}{rest}"])


def format_percentile(percentile: float) -> str:
    """Return a percentile with as many digits as its distance from 100 needs, never rounded up to 100."""
    left = max(100 - percentile, 1e-3)
    digits = max(2, min(4, math.ceil(-math.log10(left) - 1e-6) + 1))
    scale = 10**digits
    return f"{math.floor(percentile * scale + 1e-6) / scale:.{digits}f}"


def _format_probability(probability: Any) -> str:
    return f"{probability.value:.2f} ({probability.low:.2f}-{probability.high:.2f})"


def _render_answer(hits: list[Any], title: str | None) -> Any:
    from rich.console import Group

    reasons = [
        f"{visible(hit.id)}\n{visible(explanation_lines(hit.explanation))}"
        for hit in hits
        if hit.explanation is not None
    ]
    table = _make_table(hits, title)
    return Group(table, "", *reasons) if reasons else table


def _make_table(hits: list[Any], title: str | None) -> Table | str:
    from rich.markup import escape
    from rich.table import Table

    if not hits:
        return f"{title + ': ' if title else ''}no document matches"
    table = Table(title=escape(visible(title)) if title else None, title_justify="left", box=None, pad_edge=False)
    columns = [("score", [f"{hit.score:.3f}" for hit in hits])]
    if hits[0].percentile is not None:
        columns.append(("percentile", [format_percentile(hit.percentile) for hit in hits]))
    if hits[0].probability is not None:
        columns.append(("probability", [_format_probability(hit.probability) for hit in hits]))
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("id", overflow="ellipsis", no_wrap=True, max_width=32)
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    for row, hit in enumerate(hits):
        texts = (escape(visible(hit.id)), escape(visible(" ".join(hit.text.split())[:_WIDEST])))
        table.add_row(*(column[row] for _, column in columns), *texts)
    return table
