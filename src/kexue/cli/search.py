"""`kexue search`: search an index, here or through a running server; one query, many, or a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kexue.cli import _options as opt
from kexue.cli._answers import AnswerPrinter
from kexue.cli._prompt import answer_lines
from kexue.cli._remote import ask_server, check_url
from kexue.cli._verb import Output, verb
from kexue.corpus.decoding import read_lines

Ask = Callable[[list[str], int], list[dict[str, Any]]]  # queries and k -> one record for each query

_EXAMPLES = (
    'kexue search faq.kx "how long does a refund take"',
    "kexue search faq.kx AB-1234 --mode lexical",
    'kexue search faq.kx "退货要多久" -k 5 --filter lang=zh --show lang --json',
    "kexue search faq.kx -i",
    "kexue search faq.kx --queries questions.txt > answers.tsv",
    'kexue search faq "how long does a refund take" --server http://127.0.0.1:8000',
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
    mode: Annotated[
        Literal["auto", "dense", "lexical", "hybrid"],
        typer.Option(help="Search by meaning (dense), by words (lexical), or by both; auto is both where possible."),
    ] = "auto",
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
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Ask at a prompt; the model is loaded once.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(help="Address of a running `kexue serve` to ask; INDEX is then a name there.", metavar="URL"),
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(help="Metadata fields to show as columns; separated by commas, or repeated.", metavar="FIELD"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="New folder or hub id of the index's encoder, if it was moved.")
    ] = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> None:
    """Search an index by meaning and by words; scores are cosines of the stored vectors.

    With `--mode lexical`, scores are BM25 and the model is not loaded.

    In a calibrated index each hit also shows its chance: how often an unrelated query finds a hit as good; after
    `kexue index calibrate --pairs` also the probability that it belongs to the query. A terminal shows a table, a
    pipe gets TSV with all of the text.
    """
    from kexue.search import CrossEncoderReranker, Index, parse_filter
    from kexue.search.answers import answer_queries

    if server is None and (rerank == "cross") != (cross_encoder is not None):
        raise typer.BadParameter(
            "--rerank cross needs --cross-encoder FOLDER, and --cross-encoder needs --rerank cross"
        )
    if interactive and (queries or queries_file):
        raise typer.BadParameter("-i asks for queries itself; leave out QUERY and --queries")
    try:
        condition = parse_filter(filters) if filters else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    options: dict[str, Any] = {
        "filter": condition,
        "mode": mode,
        "dehub": dehub,
        "candidates": candidates,
        "explain": explain,
    }
    printer = AnswerPrinter(out, opt.split_names(show))
    if server is not None:
        here = {"--exact": exact, "--cross-encoder": cross_encoder, "--model": model}
        here |= {"--device": device != "auto", "--dtype": dtype != "auto"}
        ask = _ask_remotely(server, index, here, {**options, "rerank": rerank})
        _answer(out, printer, ask, k, _read_queries(queries, queries_file, interactive))
        return
    with Index.open(index, readonly=True) as opened:
        texts = _read_queries(queries, queries_file, interactive)
        if mode != "lexical" or explain or rerank != "none":
            opened.load_encoder(model, device=device, dtype=dtype)
        chosen: Any = None if rerank == "none" else rerank
        if cross_encoder is not None:
            chosen = CrossEncoderReranker(cross_encoder, device=device)
        options |= {"rerank": chosen, "exact": exact}
        _answer(out, printer, lambda some, k: answer_queries(opened, some, k, **options), k, texts)


def _ask_remotely(server: str, index: str, here: dict[str, Any], body: dict[str, Any]) -> Ask:
    """Return the function that asks a server; `here` holds the options that it decides itself."""
    if given := [name for name, value in here.items() if value]:
        raise typer.BadParameter(f"{', '.join(given)}: the server decides this; leave it out with --server")
    try:
        url = check_url(server)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    fields = {name: value for name, value in body.items() if value is not None}
    return lambda queries, k: ask_server(url, index, queries, {**fields, "top_k": k})


def _answer(out: Output, printer: AnswerPrinter, ask: Ask, k: int, texts: list[str] | None) -> None:
    """Answer queries, or what is typed if there are none, and say how long it took."""

    def answer(queries: list[str], k: int) -> None:
        start = time.perf_counter()
        for record in ask(queries, k):
            printer.print(record, title=record["query"] if len(queries) > 1 else None)
        seconds = time.perf_counter() - start
        out.remark(f"{len(queries)} {'query' if len(queries) == 1 else 'queries'} in {1000 * seconds:.0f} ms")

    if texts is None:
        answer_lines(out, k, lambda query, k: answer([query], k))
    else:
        answer(texts, k)


def _read_queries(given: list[str] | None, file: Path | None, interactive: bool) -> list[str] | None:
    """Return the queries of the command line and of a file; None where they are asked for at a prompt."""
    if interactive:
        return None
    texts = [text for text in given or () if text != "-"]
    if "-" in (given or ()):
        texts += read_lines("-")
    if file is not None:
        texts += read_lines(file)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise typer.BadParameter('no query: give one, as in: kexue search faq.kx "how long does a refund take"')
    return texts
