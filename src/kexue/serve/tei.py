"""The dialect of text-embeddings-inference: /embed, /similarity, /info."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

import kexue
from kexue.serve import examples
from kexue.serve.wire import (
    MAX_INPUTS,
    Fields,
    Here,
    Route,
    Warnings,
    check,
    check_text,
    check_texts,
    reply,
    timing_headers,
)
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
    """One sentence and those it is compared with."""

    source_sentence: str = Field(examples=["refund"])
    sentences: list[str] = Field(examples=[["money back", "opening hours"]])


class Parameters(Fields):
    """How to read the texts."""

    truncate: bool = True
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"
    prompt_name: str | None = None


class SimilarityRequest(Fields):
    """A comparison."""

    inputs: Sentences
    parameters: Parameters | None = None


def _may_cut(how: EmbedRequest | Parameters) -> bool:
    """Whether long texts are cut, which is done on the right; asked to cut on the left, they are refused instead."""
    return how.truncate and how.truncation_direction.lower() == "right"


@router.post("/embed", responses=examples.EMBED)
async def embed(body: EmbedRequest, service: Here, warnings: Warnings) -> Response:
    """Vectors of texts, in their order."""
    warnings += check(service, body)
    model = service.model(None)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_texts(texts, "inputs")
    found = await model.embed(
        texts, prompt=body.prompt_name, normalize=body.normalize, dimensions=body.dimensions, truncate=_may_cut(body)
    )
    return reply(found.vectors, timing_headers(model, found, sum(map(len, texts))), warnings + found.warnings)


@router.post("/similarity", responses=examples.SIMILARITY)
async def similarity(body: SimilarityRequest, service: Here, warnings: Warnings) -> Response:
    """Cosine of one sentence with each of several."""
    warnings += check(service, body)
    model = service.model(None)
    asked, given = body.inputs.source_sentence, body.inputs.sentences
    check_text(asked, "inputs.source_sentence")
    check_texts(given, "inputs.sentences")
    how = body.parameters or Parameters()
    found = await model.embed([asked, *given], prompt=how.prompt_name, truncate=_may_cut(how))
    first = np.broadcast_to(found.vectors[0], found.vectors[1:].shape)
    cosines: Any = pair_cosine(first, found.vectors[1:])
    characters = len(asked) + sum(map(len, given))
    return reply(cosines.tolist(), timing_headers(model, found, characters), warnings + found.warnings)


@router.get("/info", responses=examples.INFO)
async def info(service: Here, warnings: Warnings) -> Response:
    """What is served, in TEI's words."""
    model, settings = service.model(None), service.settings
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
