"""Reranking in the shapes of Cohere, Jina and text-embeddings-inference, from one handler."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from kexue.serve import examples
from kexue.serve.errors import ApiError
from kexue.serve.state import Service
from kexue.serve.wire import Fields, Here, check, check_text, check_texts, reply, usage

router = APIRouter(tags=["rerank"])


class Named(Fields):
    """A document as an object."""

    text: str


class RerankRequest(Fields):
    """Cohere's and Jina's fields; TEI's request is told by `texts`."""

    query: str = Field(examples=["how long does a refund take"])
    documents: list[str | Named] | None = Field(None, examples=[["refunds take five days", "opening hours"]])
    texts: list[str] | None = Field(None, description="TEI's name for documents; the answer is then TEI's, too.")
    model: str | None = Field(None, description="wrd, wmd, cosine, or a cross-encoder that is served.")
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    return_text: bool = False
    raw_scores: bool = False
    max_tokens_per_doc: int | None = Field(None, ge=1)
    max_chunks_per_doc: int | None = Field(None, ge=1)
    rank_fields: list[str] | None = None
    truncate: bool = True
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"


@router.post("/v1/rerank", responses=examples.RERANK)
@router.post("/v2/rerank", responses=examples.RERANK)
@router.post("/rerank", responses=examples.RERANK_OR_TEI | examples.refusals(tei=True))
async def rerank(body: RerankRequest, service: Here, request: Request) -> Response:
    """Documents by how well they answer the query, best first."""
    tei = request.state.tei = body.texts is not None and request.url.path == "/rerank"
    check(service, body)
    given = body.texts if tei else body.documents
    if given is None:
        raise ApiError(400, "documents is missing.", param="documents")
    texts = [one if isinstance(one, str) else one.text for one in given]
    check_text(body.query, "query")
    check_texts(texts, "texts" if tei else "documents")
    name, scores = await _scores(service, body, texts)
    order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
    if tei:
        return reply(
            [
                {"index": at, "score": float(scores[at]), **({"text": texts[at]} if body.return_text else {})}
                for at in order
            ]
        )
    tokens = service.model(None).encoder.count_tokens([body.query, *texts]) if service.models else []
    results: list[dict[str, Any]] = [{"index": at, "relevance_score": float(scores[at])} for at in order]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    return reply(
        {
            "id": uuid.uuid4().hex,
            "model": name,
            "results": results,
            "meta": {
                "api_version": {"version": "2" if request.url.path == "/v2/rerank" else "1"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": sum(tokens)},
            },
            "usage": usage(tokens),
        }
    )


async def _scores(service: Service, body: RerankRequest, texts: list[str]) -> tuple[str, Any]:
    """Name of the reranker and its scores."""
    model = next(iter(service.models.values()), None)
    name = body.model
    if name is None:
        name = next(iter(service.rerankers), "wrd")
    if model is None and name not in service.rerankers:
        raise ApiError(404, f"no reranker {name!r}.", param="model")
    reranker = service.reranker(name, model) if model is not None else service.rerankers[name]
    scores, _ = await service.work(reranker.rerank, body.query, texts)
    scores = np.asarray(scores, np.float64)
    if body.raw_scores and name in service.rerankers:
        scores = np.log(scores) - np.log1p(-scores)
    return name, scores
