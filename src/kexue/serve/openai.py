"""OpenAI's dialect: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from kexue.search.encoding import Role, choose_prompt
from kexue.serve import examples
from kexue.serve.errors import ApiError
from kexue.serve.state import Model
from kexue.serve.wire import (
    Fields,
    Here,
    Route,
    Warnings,
    check,
    check_number,
    check_texts,
    reply,
    timing_headers,
    usage,
)

router = APIRouter(tags=["OpenAI"], route_class=Route)
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class EmbeddingsRequest(Fields):
    """A text, several, or token ids of the model's own vocabulary."""

    input: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(examples=["how long does a refund take"])
    model: str | None = Field(None, description="As /v1/models lists them; the first one when left out.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="By whitening where one is fitted, else cut.")
    user: str | None = Field(None, description="OpenAI's name for who asks; nothing is kept about it.")
    normalize: bool | None = Field(None, description="Vectors of length 1; as the model does when left out.")
    prompt_name: str | None = Field(None, description="A prompt of the model, put before each text.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="The model's prompt for it, where it has one; prompt_name goes first."
    )


@router.post("/v1/embeddings", responses=examples.EMBEDDINGS)
@router.post("/embeddings", include_in_schema=False)
async def embeddings(body: EmbeddingsRequest, service: Here, warnings: Warnings) -> Response:
    """Vectors of texts, in their order."""
    warnings += check(service, body)
    model = service.model(body.model)
    inputs, characters = _inputs(body.input, model)
    prompt, more = _prompt(body, model, ids=not isinstance(inputs[0], str))
    warnings += more
    found = await model.embed(inputs, prompt=prompt, normalize=body.normalize, dimensions=body.dimensions)
    rows: Any = found.vectors
    if body.encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in found.vectors]
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)],
        "model": model.name,
        "usage": usage(found.tokens),
    }
    return reply(content, timing_headers(model, found, characters), warnings + found.warnings)


def _prompt(body: EmbeddingsRequest, model: Model, *, ids: bool) -> tuple[str | None, list[str]]:
    """The prompt to put before the texts, and what of the request it leaves unanswered."""
    if ids and body.prompt_name is not None:
        raise ApiError(400, "prompt_name goes with texts; token ids are read as they are.", param="prompt_name")
    if body.input_type is None:
        return body.prompt_name, []
    if body.prompt_name is not None:
        return body.prompt_name, ["input_type was ignored: prompt_name says what to put before the texts."]
    role: Role = "query" if body.input_type == "query" else "document"
    prompt = None if ids else choose_prompt(model.encoder, role)
    if prompt is None:
        why = "token ids are read as they are" if ids else f"{model.name} reads every text alike"
        return None, [f"input_type changes nothing: {why}."]
    return prompt, []


def _inputs(given: Any, model: Model) -> tuple[list[Any], int]:
    """Texts, or arrays of ids with special tokens around them; and how many characters."""
    if isinstance(given, str):
        given = [given]
    if given and isinstance(given[0], str):
        check_texts(given, "input")
        return given, sum(map(len, given))
    if not given:
        raise ApiError(400, "input must hold at least one text.", param="input")
    rows = [given] if isinstance(given[0], int) else given
    check_number(len(rows), "input")
    return [_framed(row, model, place) for place, row in enumerate(rows)], 0


def _framed(ids: list[int], model: Model, place: int) -> np.ndarray[Any, Any]:
    encoder = model.encoder
    if not ids:
        raise ApiError(400, f"input[{place}] is empty.", param="input")
    [special] = encoder.tokenize([""])
    first, last = (special[:1], special[-1:]) if len(special) > 1 else (special[:0], special)
    row = np.array(ids, np.int64)
    if len(special) and row[-1] == last[-1] and (not len(first) or row[0] == first[0]):
        return row[: encoder.max_length]
    room = encoder.max_length - len(first) - len(last)
    return np.concatenate([first, row[:room], last])


@router.get("/v1/models", responses=examples.MODELS)
async def models(service: Here, warnings: Warnings) -> Response:
    """What is served, and what `dimensions` does to each."""
    return reply({"object": "list", "data": [_record(one) for one in service.models.values()]}, warnings=warnings)


@router.get("/v1/models/{name:path}", responses=examples.MODEL)
async def model(name: str, service: Here, warnings: Warnings) -> Response:
    """One of them; its name may hold slashes."""
    return reply(_record(service.model(name)), warnings=warnings)


def _record(model: Model) -> dict[str, Any]:
    whitening = model.whitening
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "kexue",
        "dimensions": model.encoder.dim,
        "max_length": model.encoder.max_length,
        "whitening": None
        if whitening is None
        else {"beta": whitening.beta, "gamma": whitening.gamma, "rank": whitening.rank_},
        "shortened_by": "truncation" if whitening is None else "whitening",
    }
