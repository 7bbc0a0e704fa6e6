"""Triples of texts by a served extraction model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from kexue.extract.extractor import Extractor
from kexue.search.records import Stopwatch, usage_record
from kexue.serve import examples
from kexue.serve.checks import check_texts
from kexue.serve.fields import Fields, check_fields
from kexue.serve.wire import Here, Route, Warnings, reply

router = APIRouter(tags=["kexue"], route_class=Route)


class ExtractRequest(Fields):
    """Texts to find triples in."""

    texts: list[str] = Field(examples=[["《边城》的作者是沈从文。"]])
    model: str | None = Field(None, description="Name of an extraction model; default: the first one.")
    head_threshold: float | None = Field(None, ge=0, lt=1, description="Least probability of a first character.")
    tail_threshold: float | None = Field(None, ge=0, lt=1, description="Least probability of a last character.")


@router.post("/v1/extract", responses=examples.EXTRACT)
async def extract(body: ExtractRequest, service: Here, warnings: Warnings) -> Response:
    """Find triples of subject, predicate and object in each text; spans count characters, the end excluded."""
    watch = Stopwatch()
    warnings += check_fields(body, strict=service.settings.strict)
    check_texts(body.texts, "texts")
    extractor = service.find_extractor(body.model)
    thresholds = {"head_threshold": body.head_threshold, "tail_threshold": body.tail_threshold}
    triples, notes = await service.work(extractor.extract_with_warnings, body.texts, **thresholds)
    watch.lap("extract")
    content = {
        "results": [[triple._asdict() for triple in found] for found in triples],
        "usage": usage_record(sum(map(len, body.texts))),
        "timings": watch.seconds(),
    }
    return reply(content, warnings=[*warnings, *notes])


def describe_extractor(name: str, extractor: Extractor) -> dict[str, Any]:
    """Return what a client needs to know of an extraction model."""
    return {
        "name": name,
        "model": extractor.kind,
        "predicates": list(extractor.schema.predicates if extractor.schema else ()),
        "head_threshold": extractor.head_threshold,
        "tail_threshold": extractor.tail_threshold,
    }
