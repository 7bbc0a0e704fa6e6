"""Routes of text-embeddings-inference (TEI): /embed, /similarity, /info."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

import kexue
from kexue.serve import examples
from kexue.serve.checks import check_text, check_texts
from kexue.serve.fields import Fields, check_fields
from kexue.serve.limits import MAX_INPUTS
from kexue.serve.wire import Here, Route, Warnings, reply, timing_headers
from kexue.similarity import pair_cosine

router = APIRouter(tags=["text-embeddings-inference"], route_class=Route)


class EmbedRequest(Fields):
    """Texts to encode."""

    inputs: str | list[str] = Field(examples=["how long does a refund take"])
    truncate: bool = True
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = Field(None, ge=1)


class Sentences(Fields):
    """A sentence, and the sentences to compare it with."""

    source_sentence: str = Field(examples=["refund"])
    sentences: list[str] = Field(examples=[["money back", "opening hours"]])


class Parameters(Fields):
    """Settings for reading the texts."""

    truncate: bool = True
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    prompt_name: str | None = None


class SimilarityRequest(Fields):
    """Sentences to compare, and settings."""

    inputs: Sentences
    parameters: Parameters | None = None


def _may_truncate(how: EmbedRequest | Parameters) -> bool:
    """Return whether long texts may be truncated at the end; else they are refused."""
    return how.truncate and how.truncation_direction.lower() == "right"


@router.post("/embed", responses=examples.EMBED)
async def embed(body: EmbedRequest, service: Here, warnings: Warnings) -> Response:
    """Encode texts, in their order."""
    warnings += check_fields(body, strict=service.settings.strict)
    model = service.find_model(None)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_texts(texts, "inputs")
    encoded = await model.embed(
        texts,
        prompt=body.prompt_name,
        normalize=body.normalize,
        dimensions=body.dimensions,
        truncate=_may_truncate(body),
    )
    return reply(encoded.vectors, timing_headers(model, encoded, sum(map(len, texts))), warnings + encoded.warnings)


@router.post("/similarity", responses=examples.SIMILARITY)
async def similarity(body: SimilarityRequest, service: Here, warnings: Warnings) -> Response:
    """Compute the cosine of one sentence with each of several."""
    warnings += check_fields(body, strict=service.settings.strict)
    model = service.find_model(None)
    source, others = body.inputs.source_sentence, body.inputs.sentences
    check_text(source, "inputs.source_sentence")
    check_texts(others, "inputs.sentences")
    how = body.parameters or Parameters()
    encoded = await model.embed([source, *others], prompt=how.prompt_name, truncate=_may_truncate(how))
    first = np.broadcast_to(encoded.vectors[0], encoded.vectors[1:].shape)
    cosines: Any = pair_cosine(first, encoded.vectors[1:])
    characters = len(source) + sum(map(len, others))
    return reply(cosines.tolist(), timing_headers(model, encoded, characters), warnings + encoded.warnings)


@router.get("/info", responses=examples.INFO)
async def info(service: Here, warnings: Warnings) -> Response:
    """Describe the first model and the limits in TEI's fields."""
    model, settings = service.find_model(None), service.settings
    encoder = model.encoder
    return reply(
        {
            "model_id": model.id,
            "model_sha": encoder.fingerprint,
            "model_dtype": encoder.dtype,
            "served_model_name": model.name,
            "model_type": {"embedding": {"pooling": encoder.pooling}},
            "max_concurrent_requests": settings.max_queue,
            "max_input_length": encoder.max_length,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": MAX_INPUTS,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": kexue.__version__,
            "sha": None,
            "docker_label": None,
        },
        warnings=warnings,
    )
