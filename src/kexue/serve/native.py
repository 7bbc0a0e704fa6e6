"""What no other service has a shape for: search that explains itself, changing an index, comparing two texts."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from kexue._text import visible
from kexue.search import Hit, Index, TransportReranker
from kexue.search.encoding import choose_prompt
from kexue.search.engine import wants_approximate
from kexue.search.ranking import count_candidates
from kexue.serve import examples
from kexue.serve.errors import ApiError
from kexue.serve.state import Served, Timing, cut_warnings
from kexue.serve.wire import (
    MAX_INPUTS,
    Fields,
    Here,
    Route,
    VectorRoute,
    Warnings,
    check,
    check_filter,
    check_metadata,
    check_text,
    check_texts,
    headers_of,
    reply,
    shortened,
    usage,
)
from kexue.similarity import Explanation, hubness_report, pair_cosine

router = APIRouter(tags=["kexue"], route_class=Route)
_LOG = logging.getLogger("kexue.serve")
_MOST_HITS = 1000
_Number = Annotated[float, Field(ge=-1e15, le=1e15)]  # their squares are within float32
_Count = Annotated[int, Query(ge=1, le=_MOST_HITS)]


class SearchRequest(Fields):
    """A question as text, or as a vector of the index's encoder."""

    query: str | None = Field(None, examples=["how long does a refund take"])
    vector: list[_Number] | None = None
    index: str | None = Field(None, description="Name of an index; the first one when left out.")
    top_k: int | None = Field(None, ge=1, le=_MOST_HITS, description="Hits, 10 when left out.")
    k: int | None = Field(None, ge=1, le=_MOST_HITS, description="Another name for top_k.")
    filter: dict[str, Any] | None = Field(None, examples=[{"lang": "en", "year": {"ge": 2020}}])
    rerank: Literal["none", "wrd", "wmd", "cross"] | None = None
    dehub: Literal["none", "csls", "center"] | None = None
    explain: bool = False
    candidates: int | None = Field(None, ge=1, le=10 * _MOST_HITS)


class Document(Fields):
    """A text to index; without an id it is named by a hash of the text."""

    id: str | None = Field(None, min_length=1)
    text: str
    metadata: dict[str, Any] | None = None


class UpsertRequest(Fields):
    """Documents to add, or to replace by id."""

    documents: list[Document] = Field(examples=[[{"id": "17", "text": "Refunds take five days."}]])


class DeleteRequest(Fields):
    """Which documents to remove: by id, or those a filter matches."""

    ids: list[str] | None = Field(None, examples=[["17", "18"]])
    filter: dict[str, Any] | None = None


class CompareRequest(Fields):
    """Two texts."""

    texts: list[str] = Field(min_length=2, max_length=2, examples=[["refund", "money back"]])
    explain: bool = False
    kind: Literal["wrd", "wmd"] = "wrd"
    index: str | None = None


async def search(body: SearchRequest, service: Here, warnings: Warnings) -> Response:
    """The documents nearest in meaning, each with what its score means."""
    start = time.perf_counter()
    warnings += check(service, body)
    check_filter(body.filter)
    served = service.served(body.index)
    top_k, rerank = _asked(body)
    timing, tokens = Timing(), [0]
    queries: Any
    if body.query is not None:
        check_text(body.query, "query")
        if service.settings.log_texts:
            _LOG.info("search %s: %s", served.name, visible(" ".join(body.query.split())))
        found = await served.model.embed([body.query], prompt=choose_prompt(served.model.encoder, "query"))
        queries, timing, tokens = found.vectors, found.timing, found.tokens
        warnings += found.warnings
    else:
        queries = np.array([body.vector], np.float32)
    encoded = time.perf_counter()
    wanted = top_k if rerank is None else count_candidates(top_k, body.candidates)
    options: dict[str, Any] = {"filter": body.filter, "dehub": body.dehub, "candidates": body.candidates}
    if body.candidates is not None and rerank is None and body.dehub != "csls" and not _is_approximate(served.index):
        warnings.append("candidates changes nothing: every document is compared, and none ranked again.")
    [hits] = await service.work(served.index.search, queries, wanted, **options)
    searched = time.perf_counter()
    if rerank is not None or body.explain:
        reranker = None if rerank is None else service.reranker(rerank, served.model)
        again = service.work(served.index.rerank, [body.query], [hits], top_k, rerank=reranker, explain=body.explain)
        [hits] = await again
    reranked = time.perf_counter()
    if body.explain:  # of what was cut only the beginning is explained
        warnings += await service.work(_cut, [hit.text for hit in hits], served.model.encoder)
    results = [_hit(hit, served) for hit in hits]
    seconds = {"encode": encoded - start, "search": searched - encoded, "rerank": reranked - searched}
    seconds["total"] = time.perf_counter() - start
    content = {"results": results, "warnings": [], "usage": usage(tokens), "timings": seconds}
    device = served.model.encoder.device.type
    return reply(content, headers_of(device, timing, sum(tokens), len(body.query or "")), warnings)


def _is_approximate(index: Index) -> bool:
    return wants_approximate(len(index), index.info().approx)


def _asked(body: SearchRequest) -> tuple[int, str | None]:
    """How many hits are wanted, and by what they are reranked; what contradicts itself is refused."""
    if body.query is None and body.vector is None:
        raise ApiError(400, "query or vector is missing.", param="query")
    if body.query is not None and body.vector is not None:
        raise ApiError(400, "give query or vector, not both.", param="vector")
    rerank = None if body.rerank in (None, "none") else body.rerank
    if body.query is None and (rerank is not None or body.explain):
        raise ApiError(400, "rerank and explain look at words: give query, not vector.", param="vector")
    if body.k is not None and body.top_k is not None and body.k != body.top_k:
        raise ApiError(400, f"k is another name for top_k; got {body.k} and {body.top_k}.", param="k")
    return body.top_k or body.k or 10, rerank


router.add_api_route(
    "/v1/search", search, methods=["POST"], responses=examples.SEARCH, route_class_override=VectorRoute
)


def _hit(hit: Hit, served: Served) -> dict[str, Any]:
    record = {
        "id": hit.id,
        "index": served.name,
        "score": hit.score,
        "percentile": hit.percentile,
        "document": {"text": hit.text, "metadata": hit.metadata},
    }
    if hit.probability is not None:
        record["probability"] = hit.probability._asdict()
    if hit.explanation is not None:
        record["explanation"] = explanation_record(hit.explanation)
    return record


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON values."""
    return explanation._asdict() | {"pairs": [pair._asdict() for pair in explanation.pairs]}


@router.get("/v1/indexes", responses=examples.INDEXES)
async def indexes(service: Here, warnings: Warnings) -> Response:
    """The indexes that are served."""
    names = [{"name": name, "documents": len(served.index)} for name, served in service.indexes.items()]
    return reply({"indexes": names}, warnings=warnings)


@router.get("/v1/indexes/{name}", responses=examples.INDEX)
async def index(name: str, service: Here, warnings: Warnings) -> Response:
    """What an index holds."""
    served = service.served(name)
    record = asdict(await service.work(served.index.info))
    record |= {"index": name, "model": {**record["model"], "reference": None, "id": served.model.id}}
    return reply(record, warnings=warnings)


@router.post("/v1/indexes/{name}/documents", responses=examples.UPSERT)
async def upsert(name: str, body: UpsertRequest, service: Here, warnings: Warnings) -> Response:
    """Add or replace documents; the answer comes when they are durable."""
    warnings += check(service, body)
    served = service.served(name, to_write=True)
    documents = body.documents
    texts = [document.text for document in documents]
    check_texts(texts, "documents")
    ids = [document.id for document in documents]
    if any(one is None for one in ids) != all(one is None for one in ids):
        raise ApiError(400, "give every document an id, or none of them.", param="documents")
    found = await served.model.embed(texts, prompt=choose_prompt(served.model.encoder, "document"))
    metadata = [check_metadata(document.metadata, f"documents[{n}].metadata") for n, document in enumerate(documents)]
    async with served.writing:
        report, named, total = await service.work(_add, served, texts, ids, metadata, found.vectors)
    service.metrics.vectors.labels(name).set(total)
    return reply({**asdict(report), "ids": named, "documents": total}, warnings=warnings + found.warnings)


def _add(served: Served, texts: list[str], ids: list[Any], metadata: list[Any], vectors: Any) -> tuple[Any, Any, int]:
    from kexue.search.documents import check_documents

    given = None if ids[0] is None else ids
    rows, _, _ = check_documents(texts, given, metadata)
    report = served.index.add(texts, ids=given, metadata=metadata, vectors=vectors)
    return report, [row.id for row in rows], len(served.index)


@router.delete("/v1/indexes/{name}/documents", responses=examples.DELETE)
async def delete(name: str, body: DeleteRequest, service: Here, warnings: Warnings) -> Response:
    """Remove documents by id or by filter."""
    warnings += check(service, body)
    served = service.served(name, to_write=True)
    if (body.ids is None) == (body.filter is None):
        raise ApiError(400, "give either ids or filter; an empty filter {} removes everything.", param="ids")
    if body.ids is not None and len(body.ids) > 10 * MAX_INPUTS:
        raise ApiError(413, f"at most {10 * MAX_INPUTS:,} ids are taken at a time.", param="ids")
    check_filter(body.filter)

    def work() -> dict[str, Any]:
        missing: list[str] = []
        if body.ids is not None:
            there = {document.id for document in served.index.get(body.ids)}
            missing = [one for one in dict.fromkeys(body.ids) if one not in there]
        deleted = served.index.delete(body.ids, filter=body.filter)
        return {"deleted": deleted, "missing": missing, "documents": len(served.index)}

    async with served.writing:
        record = await service.work(work)
    service.metrics.vectors.labels(name).set(record["documents"])
    return reply(record, warnings=warnings)


@router.post("/v1/compare", responses=examples.COMPARE)
async def compare(body: CompareRequest, service: Here, warnings: Warnings) -> Response:
    """How alike two texts are, and which word was matched with which."""
    warnings += check(service, body)
    served = service.served(body.index) if body.index is not None or service.indexes else None
    model = served.model if served is not None else service.model(None)
    for place, text in enumerate(body.texts):
        check_text(text, "texts", f"texts[{place}]")
    content, cut = await service.work(_compare, body, served, model.encoder)
    return reply(content, warnings=warnings + cut)


def _compare(body: CompareRequest, served: Served | None, encoder: Any) -> tuple[dict[str, Any], list[str]]:
    a, b = body.texts
    percentile = None
    if served is None:
        cosine = float(pair_cosine(*(encoder.encode([text]) for text in (a, b)))[0])
    else:
        cosine = served.index.compare(a, b)
        if served.index.calibrator is not None:
            percentile = float(served.index.calibrator.percentile(cosine))
    scores, [reason] = TransportReranker(encoder, body.kind).rerank(a, [b])
    content = {
        "texts": body.texts,
        "cosine": cosine,
        "distance": None if reason is None else reason.distance,
        "similarity": float(scores[0]),
        "kind": body.kind,
        "percentile": percentile,
        "explanation": explanation_record(reason) if body.explain and reason is not None else None,
        "figure": None,
    }
    return content, _cut(body.texts, encoder)


def _cut(texts: list[str], encoder: Any) -> list[str]:
    return cut_warnings(encoder.tokenize(texts).truncated, encoder.max_length)


@router.get("/v1/hubness", responses=examples.HUBNESS)
async def hubness(
    service: Here, warnings: Warnings, index: str | None = None, k: _Count = 10, top: _Count = 20
) -> Response:
    """How unevenly documents are found, and which are found too often."""
    served = service.served(index)
    content = await service.cached(served, ("hubness", k, top), lambda: _hubness(served, k, top))
    return reply(content, warnings=warnings)


def _hubness(served: Served, k: int, top: int) -> dict[str, Any]:
    counts, ids = served.index.k_occurrence(k)
    report = hubness_report(counts, k, top=top)
    texts = {document.id: document.text for document in served.index.get([ids[row] for row, _ in report.top])}
    occurrences, documents = np.unique(counts, return_counts=True)
    return report._asdict() | {
        "documents": len(served.index),
        "metric": "cosine",
        "top": [{"id": ids[row], "count": n, "text": shortened(texts.get(ids[row], ""))} for row, n in report.top],
        "histogram": [list(pair) for pair in zip(occurrences.tolist(), documents.tolist(), strict=True)],
    }
