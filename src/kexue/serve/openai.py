"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from kexue.search.records import usage_record
from kexue.serve import examples
from kexue.serve.checks import check_number, check_texts
from kexue.serve.errors import ApiError
from kexue.serve.fields import Fields, check_fields
from kexue.serve.models import ServedModel
from kexue.serve.wire import Here, Route, Warnings, reply, timing_headers
from kexue.text.roles import Role, choose_prompt
from kexue.text.tokens import TokenIds

router = APIRouter(tags=["OpenAI"], route_class=Route)
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class EmbeddingsRequest(Fields):
    """One text, several texts, or token ids of the model's vocabulary."""

    input: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(examples=["how long does a refund take"])
    model: str | None = Field(None, description="A name that /v1/models lists; default: the first one.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        None, ge=1, description="Width of a vector: by whitening if fitted, else by cutting."
    )
    user: str | None = Field(None, description="Accepted as in OpenAI's interface; neither used nor stored.")
    normalize: bool | None = Field(None, description="Scale vectors to length 1; default: as the model does.")
    prompt_name: str | None = Field(None, description="Name of a prompt of the model, put before each text.")
    truncate: bool = Field(True, description="False refuses inputs that the model would not read to their end.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="Choose the model's prompt for queries or documents, if it has one; prompt_name has priority."
    )


@router.post("/v1/embeddings", responses=examples.EMBEDDINGS)
@router.post("/embeddings", include_in_schema=False)
async def embeddings(body: EmbeddingsRequest, service: Here, warnings: Warnings) -> Response:
    """Encode texts, in their order."""
    warnings += check_fields(body, strict=service.settings.strict)
    model = service.find_model(body.model)
    inputs, characters = _inputs(body.input, model)
    prompt, more = _prompt(body, model, ids=not isinstance(inputs[0], str))
    warnings += more
    encoded = await model.embed(
        inputs, prompt=prompt, normalize=body.normalize, dimensions=body.dimensions, truncate=body.truncate
    )
    rows: Any = encoded.vectors
    if body.encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in encoded.vectors]
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)],
        "model": model.name,
        "usage": usage_record(sum(encoded.tokens)),
    }
    return reply(content, timing_headers(model, encoded, characters), warnings + encoded.warnings)


def _prompt(body: EmbeddingsRequest, model: ServedModel, *, ids: bool) -> tuple[str | None, list[str]]:
    """Return the prompt to put before the texts, and warnings on fields that have no effect."""
    if ids and body.prompt_name is not None:
        raise ApiError(400, "prompt_name needs texts; token ids are read as they are.", param="prompt_name")
    if body.input_type is None:
        return body.prompt_name, []
    if body.prompt_name is not None:
        return body.prompt_name, ["input_type was ignored: prompt_name names the prompt."]
    role: Role = "query" if body.input_type == "query" else "document"
    prompt = None if ids else choose_prompt(model.encoder, role)
    if prompt is None:
        why = "token ids are read as they are" if ids else f"{model.name} reads every text alike"
        return None, [f"the field input_type has no effect: {why}."]
    return prompt, []


def _inputs(given: Any, model: ServedModel) -> tuple[list[Any], int]:
    """Return texts, or arrays of ids with special tokens, and the number of characters."""
    if isinstance(given, str):
        given = [given]
    if given and isinstance(given[0], str):
        check_texts(given, "input")
        return given, sum(map(len, given))
    if not given:
        raise ApiError(400, "input must hold at least one text.", param="input")
    rows = [given] if isinstance(given[0], int) else given
    check_number(len(rows), "input")
    sequences = TokenIds()
    for place, row in enumerate(rows):
        ids, cut = _add_special_tokens(row, model, place)
        sequences.append(ids)
        sequences.truncated += cut
    return sequences, 0


def _add_special_tokens(ids: list[int], model: ServedModel, place: int) -> tuple[np.ndarray[Any, Any], bool]:
    """Return token ids with the special tokens at both ends, cut to the maximum length, and whether they were cut."""
    encoder = model.encoder
    if not ids:
        raise ApiError(400, f"input[{place}] is empty.", param="input")
    [special] = encoder.tokenize([""])
    first, last = (special[:1], special[-1:]) if len(special) > 1 else (special[:0], special)
    row = np.array(ids, np.int64)
    if len(special) and row[-1] == last[-1] and (not len(first) or row[0] == first[0]):
        return row[: encoder.max_length], len(row) > encoder.max_length
    room = encoder.max_length - len(first) - len(last)
    return np.concatenate([first, row[:room], last]), len(row) > room


@router.get("/v1/models", responses=examples.MODELS)
async def models(service: Here, warnings: Warnings) -> Response:
    """List the encoders, and how `dimensions` shortens the vectors of each."""
    return reply({"object": "list", "data": [_record(one) for one in service.models.values()]}, warnings=warnings)


@router.get("/v1/models/{name:path}", responses=examples.MODEL)
async def model(name: str, service: Here, warnings: Warnings) -> Response:
    """Describe one encoder; its name may hold slashes."""
    return reply(_record(service.find_model(name)), warnings=warnings)


def _record(model: ServedModel) -> dict[str, Any]:
    """Return an encoder as JSON values."""
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
