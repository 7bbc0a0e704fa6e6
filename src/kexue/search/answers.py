"""Answers of an index to questions as JSON records: the path that every way in (terminal, assistant) takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kexue.search.documents import check_text
from kexue.search.encoding import tokenize_queries
from kexue.search.modes import Mode, choose_mode, corrects_after
from kexue.search.records import Stopwatch, index_name, search_record
from kexue.search.rerank import search_and_rerank
from kexue.search.warnings import JudgedSearch, collect_warnings

if TYPE_CHECKING:
    from kexue.search.index import Index


def answer_queries(
    index: Index,
    queries: Sequence[str],
    k: int = 10,
    *,
    mode: Mode = "auto",
    dehub: str | None = None,
    rerank: Any = None,
    explain: bool = False,
    candidates: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Search an index and return one record for each query.

    Args:
        index: open index; its encoder is loaded if necessary, which a search for words alone is not.
        queries: as text.
        k, mode, dehub, rerank, explain, candidates, options: as in `Index.search`.

    Returns:
        Records of `search_record` with ``query`` and ``index`` (the path) in front. The seconds of a step are divided
        equally among the queries.
    """
    for place, query in enumerate(queries):
        check_text(query, f"position {place} of the queries")
    chosen = choose_mode(mode, index.store, reorder=corrects_after(dehub, index.space))
    encoder: Any = None
    if chosen != "lexical" or rerank is not None or explain:
        encoder = index.load_encoder()
    watch = Stopwatch()
    vectors = None if chosen == "lexical" else index.encode_queries(queries)
    watch.lap("encode")
    options |= {"mode": chosen, "dehub": dehub, "candidates": candidates, "vectors": vectors}
    search = JudgedSearch(lambda wanted: index.search(queries, wanted, **options))
    answers = search_and_rerank(
        search,
        queries,
        k,
        rerank=rerank,
        explain=explain,
        candidates=candidates,
        load_encoder=index.load_encoder,
        lap=watch.lap,
    )
    seconds = {step: total / len(queries) for step, total in watch.seconds().items()} if queries else {}
    path = index.encoder.path
    ids = None if chosen == "lexical" else tokenize_queries(encoder, queries)
    tokens = [0] * len(queries) if ids is None else list(map(len, ids))
    doubts = collect_warnings(index, queries, chosen)
    records = []
    rows = zip(queries, answers, tokens, doubts, search.matches(queries), strict=True)
    for query, hits, used, warnings, match in rows:
        found = search_record(
            hits,
            index_name(path),
            mode=chosen,
            tokens=used,
            seconds=seconds,
            match=match,
            warnings=warnings,
        )
        records.append({"query": query, "index": path, **found})
    return records
