"""Reranking in the shapes of Cohere, Jina and text-embeddings-inference, from one handler."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from kexue.search import CrossEncoderReranker
from kexue.serve import examples
from kexue.serve.errors import ApiError, rerank_speaks_tei
from kexue.serve.state import Model, Service, cut_warnings
from kexue.serve.wire import Fields, Here, Route, Warnings, check, check_number, check_text, check_texts, reply, usage

router = APIRouter(tags=["rerank"], route_class=Route)


class Named(BaseModel):
    """A document as an object: its text, or the fields that `rank_fields` names."""

    model_config = ConfigDict(extra="allow")
    text: str | None = None


class RerankRequest(Fields):
    """Cohere's and Jina's fields; TEI's request is told by `texts`."""

    query: str = Field(examples=["how long does a refund take"])
    documents: list[str | Named] | None = Field(None, examples=[["refunds take five days", "opening hours"]])
    texts: list[str] | None = Field(None, description="TEI's name for documents; at /rerank the answer is TEI's, too.")
    model: str | None = Field(None, description="wrd, wmd, cosine, or a cross-encoder that is served.")
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    return_text: bool = Field(False, description="TEI's name for return_documents.")
    raw_scores: bool = Field(False, description="Log odds instead of probabilities; of cross-encoders only.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Of a document no more is read.")
    max_chunks_per_doc: int | None = Field(None, description="Refused: a long document is cut, not read in chunks.")
    rank_fields: list[str] | None = Field(
        None, min_length=1, max_length=64, description="Fields of documents that are objects, read in this order."
    )
    truncate: bool = Field(True, description="Cut what is longer than the model reads; otherwise refuse it.")
    truncation_direction: Literal["left", "right", "Left", "Right"] = Field(
        "right", description="Cutting on the left is not offered: with it, what is too long is refused."
    )


@router.post("/v1/rerank", responses=examples.RERANK)
@router.post("/v2/rerank", responses=examples.RERANK)
@router.post("/rerank", responses=examples.RERANK_OR_TEI | examples.refusals(tei=True))
async def rerank(body: RerankRequest, service: Here, request: Request, warnings: Warnings) -> Response:
    """Documents by how well they answer the query, best first."""
    unversioned = request.scope["path"] == "/rerank"
    request.state.tei = unversioned and rerank_speaks_tei(body.texts, body.documents)
    warnings += check(service, body)
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
        "usage": usage(tokens),
    }
    return reply(content, warnings=warnings)


def _texts(body: RerankRequest, field: str) -> list[str]:
    """What is ranked, one text a document."""
    if body.max_chunks_per_doc is not None:
        raise ApiError(
            400,
            "max_chunks_per_doc is not offered: a long document is cut, not read in chunks. Leave it out, or split "
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
    texts = [_text(one, body.rank_fields, f"{field}[{place}]", field) for place, one in enumerate(given)]
    check_texts(texts, field)
    return texts


def _text(document: str | Named, rank_fields: list[str] | None, place: str, field: str) -> str:
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
    """Name of the reranker, its scores, the tokens it read, and a warning where it did not read all."""
    model = next(iter(service.models.values()), None)
    name = body.model
    if name is None:
        name = next(iter(service.rerankers), "wrd")
    if name not in service.rerankers:
        if model is None:
            raise ApiError(404, f"no reranker {name!r}.", param="model")
        if body.raw_scores:
            raise ApiError(
                400, f"raw_scores is of cross-encoders; scores of {name!r} are as they come.", param="raw_scores"
            )
    reranker = service.reranker(name, model) if model is not None else service.rerankers[name]
    may_cut = body.truncate and body.truncation_direction.lower() == "right"

    def work() -> tuple[str, np.ndarray[Any, Any], list[int], list[str]]:
        reader = reranker if isinstance(reranker, CrossEncoderReranker) else _model(model).encoder
        given = texts if body.max_tokens_per_doc is None else reader.cut(texts, body.max_tokens_per_doc)
        if isinstance(reader, CrossEncoderReranker):
            whole = reader.count_tokens(body.query, given)
            long = sum(n > reader.max_length for n in whole)
            tokens = [min(n, reader.max_length) for n in whole]
        else:
            sequences = reader.tokenize([body.query, *given])
            long, tokens = sequences.truncated, list(map(len, sequences))
        if long and not may_cut:
            raise ApiError(413, f"{long} of the texts have more than {reader.max_length} tokens; allow truncate.")
        scores = np.asarray(reranker.rerank(body.query, given).scores, np.float64)
        if body.raw_scores:
            scores = np.log(scores) - np.log1p(-scores)
        return name, scores, tokens, cut_warnings(long, reader.max_length)

    return await service.work(work)


def _model(model: Model | None) -> Model:
    assert model is not None  # only cross-encoders work without
    return model
