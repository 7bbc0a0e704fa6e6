"""kexue's own routes: search with explanations, changes of an index, comparison of two texts, hubness."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from kexue._text import visible
from kexue.search import Index
from kexue.search.documents import check_documents
from kexue.search.engine import wants_approximate
from kexue.search.modes import ChosenMode, Mode, choose_mode, corrects_after
from kexue.search.records import (
    Stopwatch,
    compare_texts,
    comparison_record,
    hubness_record,
    measure_hubness,
    search_record,
)
from kexue.search.rerank import search_and_rerank
from kexue.search.warnings import JudgedSearch, collect_warnings, describe_sample
from kexue.serve import examples
from kexue.serve.checks import check_filter, check_metadata, check_text, check_texts, parse_object
from kexue.serve.diffusion import describe_run
from kexue.serve.errors import ApiError
from kexue.serve.extract import describe_extractor
from kexue.serve.fields import Fields, check_fields
from kexue.serve.limits import MAX_LIST
from kexue.serve.models import Timing, truncation_warnings
from kexue.serve.sampling import describe_writer
from kexue.serve.service import ServedIndex
from kexue.serve.wire import Here, Route, VectorRoute, Warnings, compute_headers, reply, shorten
from kexue.text.roles import Role, choose_prompt

router = APIRouter(tags=["kexue"], route_class=Route)
_LOG = logging.getLogger("kexue.serve")
_MAX_HITS = 1000
_Number = Annotated[float, Field(ge=-1e15, le=1e15, strict=True)]  # its square is within float32
_Count = Annotated[int, Query(ge=1, le=_MAX_HITS)]


class SearchRequest(Fields):
    """A query: a text, or a vector of the index's encoder."""

    query: str | None = Field(None, examples=["how long does a refund take"])
    vector: list[_Number] | None = None
    index: str | None = Field(None, description="Name of an index; default: the first one.")
    top_k: int | None = Field(None, ge=1, le=_MAX_HITS, description="Number of hits; default: 10.")
    k: int | None = Field(None, ge=1, le=_MAX_HITS, description="Another name for top_k.")
    filter: dict[str, Any] | None = Field(None, examples=[{"lang": "en", "year": {"ge": 2020}}])
    mode: Mode = Field("auto", description="By meaning (dense), by words (lexical), or by both.")
    rerank: Literal["none", "wrd", "wmd", "cross"] | None = None
    dehub: Literal["none", "csls", "center"] | None = None
    explain: bool = False
    candidates: int | None = Field(None, ge=1, le=10 * _MAX_HITS)


class NewDocument(Fields):
    """A text to index; without an id its id is a hash of the text."""

    id: str | None = Field(None, min_length=1)
    text: str
    metadata: dict[str, Any] | None = None


class UpsertRequest(Fields):
    """Documents to add or, where the id exists, to replace."""

    documents: list[NewDocument] = Field(examples=[[{"id": "17", "text": "Refunds take five days."}]])
    truncate: bool = Field(True, description="False refuses texts that the model would not read to their end.")


class DeleteRequest(Fields):
    """Documents to remove: by id, or all that a filter matches."""

    ids: list[str] | None = Field(None, examples=[["17", "18"]])
    filter: dict[str, Any] | None = None


class CompareRequest(Fields):
    """Two texts to compare."""

    texts: list[str] = Field(min_length=2, max_length=2, examples=[["refund", "money back"]])
    explain: bool = False
    kind: Literal["wrd", "wmd"] = "wrd"
    index: str | None = None


async def search(body: SearchRequest, service: Here, warnings: Warnings) -> Response:
    """Find the documents nearest in meaning and words; explain and rerank them if wanted."""
    watch = Stopwatch()
    warnings += check_fields(body, strict=service.settings.strict)
    check_filter(body.filter)
    served = service.find_index(body.index)
    top_k, rerank = _check_search(body)
    reranker = None if rerank is None else service.find_reranker(rerank, served.model)
    mode = await service.work(_choose_mode, body, served.index)
    timing, tokens = Timing(), 0
    queries: Any = np.array([body.vector], np.float32) if body.query is None else [body.query]
    vectors = None
    if body.query is not None:
        check_text(body.query, "query")
        if service.settings.log_texts:
            _LOG.info("search %s: %s", served.name, visible(" ".join(body.query.split())))
    if body.query is not None and mode != "lexical":
        encoded = await served.model.embed([body.query], prompt=choose_prompt(served.model.encoder, "query"))
        vectors, timing, tokens = encoded.vectors, encoded.timing, sum(encoded.tokens)
    watch.lap("encode")
    options: dict[str, Any] = {"filter": body.filter, "dehub": body.dehub, "candidates": body.candidates}
    options |= {"mode": mode, "vectors": vectors}
    unused = body.candidates is not None and rerank is None and body.dehub != "csls"
    if unused and not await service.work(_is_approximate, served.index):
        warnings.append("the field candidates has no effect: every document is compared, and none is reranked.")
    judged = JudgedSearch(lambda wanted: served.index.search(queries, wanted, **options))
    [hits] = await service.work(
        search_and_rerank,
        judged,
        [body.query],
        top_k,
        rerank=reranker,
        explain=body.explain,
        candidates=body.candidates,
        load_encoder=served.index.load_encoder,
        lap=watch.lap,
    )
    warnings += (await service.work(collect_warnings, served.index, [body.query], mode))[0]
    if body.explain:  # an explanation covers only the tokens that are read
        warnings += await service.work(_check_truncation, [hit.passage_text for hit in hits], served.model.encoder)
    [match] = judged.matches([body.query])
    content = search_record(
        hits, served.name, mode=mode, tokens=tokens, seconds=watch.seconds(), match=match, sparse=True
    )
    headers = compute_headers(served.model.encoder.device.type, timing, tokens, len(body.query or ""))
    return reply(content, headers, warnings)


router.add_api_route(
    "/v1/search", search, methods=["POST"], responses=examples.SEARCH, route_class_override=VectorRoute
)


def _choose_mode(body: SearchRequest, index: Index) -> ChosenMode:
    """Return the mode of a search; refuse one that the query or the store exclude."""
    try:
        return choose_mode(
            body.mode, index.store, texts=body.query is not None, reorder=corrects_after(body.dehub, index.space)
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="mode") from error


def _is_approximate(index: Index) -> bool:
    """Return whether the index searches approximately, so that the number of candidates matters."""
    return wants_approximate(len(index), str(index.store.metadata()["approx"]))


def _check_search(body: SearchRequest) -> tuple[int, str | None]:
    """Return the number of hits and the reranker; refuse fields that contradict each other."""
    if body.query is None and body.vector is None:
        raise ApiError(400, "query or vector is missing.", param="query")
    if body.query is not None and body.vector is not None:
        raise ApiError(400, "give query or vector, not both.", param="vector")
    rerank = None if body.rerank in (None, "none") else body.rerank
    if body.query is None and (rerank is not None or body.explain):
        raise ApiError(400, "rerank and explain need the query as text: give query, not vector.", param="vector")
    if body.k is not None and body.top_k is not None and body.k != body.top_k:
        raise ApiError(400, f"k is another name for top_k; got {body.k} and {body.top_k}.", param="k")
    return body.top_k or body.k or 10, rerank


@router.get("/v1/indexes", responses=examples.INDEXES)
async def indexes(service: Here, warnings: Warnings) -> Response:
    """List the indexes; and the diffusion runs, extraction models and language models, where there are some."""
    counts = [await service.work(len, served.index) for served in service.indexes.values()]
    names = [{"name": name, "documents": count} for name, count in zip(service.indexes, counts, strict=True)]
    runs = [describe_run(name, run) for name, run in service.runs.items()]
    extractors = [describe_extractor(name, extractor) for name, extractor in service.extractors.items()]
    writers = [describe_writer(name, lm) for name, lm in service.writers.items()]
    more = {"runs": runs, "extractors": extractors, "writers": writers}
    return reply({"indexes": names} | {key: value for key, value in more.items() if value}, warnings=warnings)


@router.get("/v1/indexes/{name}", responses=examples.INDEX)
async def index(name: str, service: Here, warnings: Warnings) -> Response:
    """Describe an index: documents, dimensions, model, whitening, calibration."""
    served = service.find_index(name)
    record = asdict(await service.work(served.index.info))
    record |= {"index": name, "model": {**record["model"], "reference": None, "id": served.model.id}}
    return reply(record, warnings=warnings)


@router.get("/v1/indexes/{name}/documents", responses=examples.DOCUMENTS)
async def documents(
    name: str,
    service: Here,
    warnings: Warnings,
    limit: Annotated[int, Query(ge=1, le=_MAX_HITS)] = 100,
    after: Annotated[str | None, Query(description="The field next of the page before.")] = None,
    filter: Annotated[str | None, Query(description="A filter in JSON.", examples=['{"lang": "en"}'])] = None,
) -> Response:
    """List the documents of an index, in the order of their ids, page by page; next is null on the last page."""
    served = service.find_index(name)
    wanted = None if filter is None else parse_object(filter)
    check_filter(wanted)
    found = await service.work(lambda: served.index.list(filter=wanted, limit=limit + 1, after=after))
    page = [document._asdict() for document in found[:limit]]
    return reply({"documents": page, "next": page[-1]["id"] if len(found) > limit else None}, warnings=warnings)


@router.post("/v1/indexes/{name}/documents", responses=examples.UPSERT)
async def upsert(name: str, body: UpsertRequest, service: Here, warnings: Warnings) -> Response:
    """Add or replace documents; the answer is sent once they are on the disk."""
    warnings += check_fields(body, strict=service.settings.strict)
    served = service.find_index(name, to_write=True)
    documents = body.documents
    texts = [document.text for document in documents]
    check_texts(texts, "documents")
    ids = [document.id for document in documents]
    if any(one is None for one in ids) != all(one is None for one in ids):
        raise ApiError(400, "give every document an id, or none of them.", param="documents")
    spans = await service.work(served.index.ingest.split, texts)
    passages = [text[start:end] for text, some in zip(texts, spans, strict=True) for start, end in some]
    prompt = choose_prompt(served.model.encoder, "document")
    found = await served.model.embed(passages, prompt=prompt, truncate=body.truncate)
    metadata = [check_metadata(document.metadata, f"documents[{n}].metadata") for n, document in enumerate(documents)]
    async with served.writing:
        report, named, total = await service.work(_add, served, texts, ids, metadata, spans, found.vectors)
    service.metrics.vectors.labels(name).set(total)
    record = {**asdict(report), "truncated": found.truncated, "ids": named, "documents": total}
    return reply(record, warnings=warnings + found.warnings)


def _add(
    served: ServedIndex, texts: list[str], ids: list[Any], metadata: list[Any], spans: Any, vectors: Any
) -> tuple[Any, Any, int]:
    """Write documents; return the report, the ids, and the number of documents in the index."""
    given = None if ids[0] is None else ids
    rows, _, _ = check_documents(texts, given, metadata)
    report = served.index.ingest.add_encoded(texts, given, metadata, spans, vectors)
    return report, [row.id for row in rows], len(served.index)


@router.delete("/v1/indexes/{name}/documents", responses=examples.DELETE)
async def delete(name: str, body: DeleteRequest, service: Here, warnings: Warnings) -> Response:
    """Remove documents by id or by filter."""
    warnings += check_fields(body, strict=service.settings.strict)
    served = service.find_index(name, to_write=True)
    if (body.ids is None) == (body.filter is None):
        raise ApiError(400, "give either ids or filter; an empty filter {} removes everything.", param="ids")
    if body.ids is not None and len(body.ids) > MAX_LIST:
        raise ApiError(413, f"at most {MAX_LIST:,} ids are allowed at a time.", param="ids")
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
    """Compare two texts by their vectors and by their words."""
    warnings += check_fields(body, strict=service.settings.strict)
    served = service.find_index(body.index) if body.index is not None or service.indexes else None
    model = served.model if served is not None else service.find_model(None)
    for place, text in enumerate(body.texts):
        check_text(text, "texts", f"texts[{place}]")

    def work() -> tuple[dict[str, Any], list[str]]:
        a, b = body.texts
        index = None if served is None else served.index
        comparison = compare_texts(a, b, model.encoder, kind=body.kind, index=index)
        cut = _check_truncation([a, b], model.encoder, "pair" if index is None else "document")
        return comparison_record(comparison, explain=body.explain), cut

    content, truncation = await service.work(work)
    return reply(content, warnings=warnings + truncation)


def _check_truncation(texts: list[str], encoder: Any, role: Role | None = None) -> list[str]:
    """Return a warning where texts are longer than the encoder reads, with the prompt of their role, if any."""
    prompt = None if role is None else choose_prompt(encoder, role)
    return truncation_warnings(encoder.tokenize(texts, prompt_name=prompt).truncated, encoder.max_length)


@router.get("/v1/hubness", responses=examples.HUBNESS)
async def hubness(
    service: Here, warnings: Warnings, index: str | None = None, k: _Count = 10, top: _Count = 20
) -> Response:
    """Measure how unevenly documents are found, and list those found most often."""
    served = service.find_index(index)
    content = await service.compute_once(served, ("hubness", k, top), lambda: _measure_hubness(served, k, top))
    warnings += describe_sample(content["n"], content["documents"])
    return reply(content, warnings=warnings)


def _measure_hubness(served: ServedIndex, k: int, top: int) -> dict[str, Any]:
    """Return the hubness of an index with the histogram of its counts, each as [count, documents]."""
    measured = measure_hubness(served.index, k, top=top)
    record = hubness_record(measured)
    record["top"] = [{**hub, "text": shorten(hub["text"])} for hub in record["top"]]
    occurrences, documents = np.unique(measured.counts, return_counts=True)
    record["histogram"] = [list(pair) for pair in zip(occurrences.tolist(), documents.tolist(), strict=True)]
    return record
