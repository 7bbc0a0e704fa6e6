"""Reranking routes in the formats of Cohere, Jina and text-embeddings-inference (TEI)."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from kexue.search import CrossEncoderReranker
from kexue.search.records import usage_record
from kexue.serve import examples
from kexue.serve.checks import check_number, check_text, check_texts
from kexue.serve.errors import ApiError, rerank_speaks_tei
from kexue.serve.fields import Fields, check_fields
from kexue.serve.models import ALLOW_TRUNCATION, truncation_warnings
from kexue.serve.service import Service
from kexue.serve.wire import Here, Route, Warnings, reply

router = APIRouter(tags=["rerank"], route_class=Route)


class DocumentObject(BaseModel):
    """A document as an object: with a text, or with the fields that `rank_fields` names."""

    model_config = ConfigDict(extra="allow")
    text: str | None = None


class RerankRequest(Fields):
    """A query and documents, with the fields of Cohere and Jina; `texts` marks a request of TEI."""

    query: str = Field(examples=["how long does a refund take"])
    documents: list[str | DocumentObject] | None = Field(None, examples=[["refunds take five days", "opening hours"]])
    texts: list[str] | None = Field(
        None, description="TEI's name for documents; on /rerank the answer has TEI's format."
    )
    model: str | None = Field(None, description="wrd, wmd, cosine, or the name of a cross-encoder.")
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    return_text: bool = Field(False, description="TEI's name for return_documents.")
    raw_scores: bool = Field(False, description="Return log odds instead of probabilities; for cross-encoders only.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Limit of tokens read of a document.")
    max_chunks_per_doc: int | None = Field(None, description="Refused: a long document is cut, not read in chunks.")
    rank_fields: list[str] | None = Field(
        None, min_length=1, max_length=64, description="Fields to read, in this order, of documents that are objects."
    )
    truncate: bool = Field(True, description="Cut texts that are longer than the model reads; if false, refuse them.")
    truncation_direction: Literal["left", "right", "Left", "Right"] = Field(
        "right", description="Only cutting on the right is offered; with left, texts that are too long are refused."
    )


@router.post("/v1/rerank", responses=examples.RERANK)
@router.post("/v2/rerank", responses=examples.RERANK)
@router.post("/rerank", responses=examples.RERANK_OR_TEI | examples.refusals(tei=True))
async def rerank(body: RerankRequest, service: Here, request: Request, warnings: Warnings) -> Response:
    """Rank documents by how well they answer the query, best first."""
    unversioned = request.scope["path"] == "/rerank"
    request.state.tei = unversioned and rerank_speaks_tei(body.texts, body.documents)
    warnings += check_fields(body, strict=service.settings.strict)
    texts = _texts(body, "texts" if request.state.tei else "documents")
    name, scores, tokens, cut = await _scores(service, body, texts)
    warnings += cut
    order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
    with_text = body.return_documents or body.return_text
    if request.state.tei:
        return reply(
            [{"index": at, "score": float(scores[at]), **({"text": texts[at]} if with_text else {})} for at in order],
            warnings=warnings,
        )
    results: list[dict[str, Any]] = [{"index": at, "relevance_score": float(scores[at])} for at in order]
    if with_text:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    content = {
        "id": uuid.uuid4().hex,
        "model": name,
        "results": results,
        "meta": {
            "api_version": {"version": "2" if request.scope["path"] == "/v2/rerank" else "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": sum(tokens)},
        },
        "usage": usage_record(sum(tokens)),
    }
    return reply(content, warnings=warnings)


def _texts(body: RerankRequest, field: str) -> list[str]:
    """Return one text per document; refuse a request that names none, or two kinds."""
    if body.max_chunks_per_doc is not None:
        raise ApiError(
            400,
            "max_chunks_per_doc is not supported: a long document is cut, not read in chunks. Leave it out, or split "
            "the document.",
            param="max_chunks_per_doc",
        )
    if body.documents is not None and body.texts is not None:
        raise ApiError(400, "give documents or texts, not both.", param=field)
    given = body.documents if body.documents is not None else body.texts
    if given is None:
        raise ApiError(400, f"{field} is missing.", param=field)
    check_text(body.query, "query")
    check_number(len(given), field)
    texts = [_read_text(one, body.rank_fields, f"{field}[{place}]", field) for place, one in enumerate(given)]
    check_texts(texts, field)
    return texts


def _read_text(document: str | DocumentObject, rank_fields: list[str] | None, place: str, field: str) -> str:
    """Return the text of one document."""
    if isinstance(document, str):
        if rank_fields is not None:
            raise ApiError(400, f"rank_fields names fields of objects; {place} is a string.", param="rank_fields")
        return document
    values = document.model_dump()
    names = rank_fields if rank_fields is not None else ["text"]
    for name in names:
        if not isinstance(values.get(name), str):
            raise ApiError(400, f"{place} must be a string, or an object with a string as {name[:60]!r}.", param=field)
    return "\n".join(values[name] for name in names)


async def _scores(
    service: Service, body: RerankRequest, texts: list[str]
) -> tuple[str, np.ndarray[Any, Any], list[int], list[str]]:
    """Return the reranker's name, the scores, the tokens of each text, and a warning where texts were cut."""
    name = next(iter(service.rerankers), "wrd") if body.model is None else body.model
    reranker = service.find_reranker(name, next(iter(service.models.values()), None))
    if body.raw_scores and not isinstance(reranker, CrossEncoderReranker):
        raise ApiError(
            400, f"raw_scores is for cross-encoders only; {name!r} has one kind of score.", param="raw_scores"
        )
    may_cut = body.truncate and body.truncation_direction.lower() == "right"

    def work() -> tuple[str, np.ndarray[Any, Any], list[int], list[str]]:
        reader = reranker if isinstance(reranker, CrossEncoderReranker) else reranker.encoder
        given = texts if body.max_tokens_per_doc is None else reader.cut(texts, body.max_tokens_per_doc)
        if isinstance(reader, CrossEncoderReranker):
            whole = reader.count_tokens(body.query, given)
            long = sum(n > reader.max_length for n in whole)
            tokens = [min(n, reader.max_length) for n in whole]
        else:
            sequences = reader.tokenize([body.query, *given])
            long, tokens = sequences.truncated, list(map(len, sequences))
        if long and not may_cut:
            how = f"shorten them, {ALLOW_TRUNCATION}"
            raise ApiError(413, f"{long} of the texts have more than {reader.max_length} tokens; {how}")
        scores = np.asarray(reranker.rerank(body.query, given).scores, np.float64)
        if body.raw_scores:
            scores = np.log(scores) - np.log1p(-scores)
        return name, scores, tokens, truncation_warnings(long, reader.max_length)

    return await service.work(work)
