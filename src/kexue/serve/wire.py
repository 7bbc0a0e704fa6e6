"""Requests and answers of all routes: content type, JSON, the service behind a request, timing headers."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from kexue.serve.errors import ApiError
from kexue.serve.fields import warn_unknown
from kexue.serve.models import EmbeddingResult, ServedModel, Timing
from kexue.serve.service import Service

_MAX_SHOWN = 60  # characters of a wrong header in an error


class Route(APIRoute):
    """Route that refuses a body whose header does not declare JSON, before the body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler after a check of the header."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if self.body_field is not None:
                _check_content_type(request.headers.get("content-type"))
            return await handle(request)

        return handler


def _check_content_type(given: str | None) -> None:
    """Refuse a content type other than JSON."""
    main, _, sub = (given or "").partition(";")[0].strip().lower().partition("/")
    if main != "application" or not (sub == "json" or sub.endswith("+json")):
        got = repr(given[:_MAX_SHOWN]) if given else "none"
        raise ApiError(400, f"the header Content-Type must be application/json, got {got}.")


class _FastRequest(Request):
    """Request whose JSON is read by orjson."""

    async def json(self) -> Any:
        try:
            return orjson.loads(await self.body())
        except orjson.JSONDecodeError:
            return await super().json()  # its message names the place of the error


class VectorRoute(Route):
    """Route that reads a body with orjson: vectors in a quarter of the time, integers beyond 64 bits as floats."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler for a request that orjson reads."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_FastRequest(request.scope, request.receive))

        return handler


async def get_service(request: Request) -> Service:
    """Return the service of a request; 503 while it starts or stops."""
    service: Service | None = getattr(request.app.state, "service", None)
    if service is None or not service.ready:
        raise ApiError(503, "The server is not ready.", retry_after=1)
    return service


Here = Annotated[Service, Depends(get_service)]


async def get_warnings(request: Request) -> list[str]:
    """Return warnings that name unknown parameters of the address.

    Raises:
        ApiError: there is one, and the server is strict.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    service = getattr(request.app.state, "service", None)
    return warn_unknown(unknown, "parameter", strict=service is not None and service.settings.strict)


Warnings = Annotated[list[str], Depends(get_warnings)]


def timing_headers(model: ServedModel, encoded: EmbeddingResult, characters: int) -> dict[str, str]:
    """Return TEI's headers on an encoding; times in milliseconds."""
    return compute_headers(str(model.encoder.device.type), encoded.timing, sum(encoded.tokens), characters)


def compute_headers(device: str, timing: Timing, tokens: int, characters: int) -> dict[str, str]:
    """Return TEI's headers on device, times (milliseconds), tokens and characters of a request."""
    spent = {
        "x-compute-time": timing.inference + timing.tokenize,
        "x-tokenization-time": timing.tokenize,
        "x-queue-time": timing.queue,
        "x-inference-time": timing.inference,
    }
    return {
        "x-compute-type": "cpu" if device == "cpu" else "gpu",
        "x-compute-tokens": str(tokens),
        "x-compute-characters": str(characters),
        **{name: f"{1000 * seconds:.3f}" for name, seconds in spent.items()},
    }


def shorten(text: str, most: int = 300) -> str:
    """Return a text of a long list: whole, or its beginning and its number of characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def reply(content: Any, headers: Mapping[str, str] | None = None, warnings: Sequence[str] = ()) -> Response:
    """Return a JSON answer: numpy arrays as lists, NaN as null; warnings in a header and, of an object, in a field."""
    headers = dict(headers or {})
    if warnings:
        headers["x-kexue-warnings"] = json.dumps(list(warnings))  # ASCII, no line breaks
        if isinstance(content, dict):
            content = {**content, "warnings": list(warnings)}
    try:
        data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # metadata written by other programs, which `check_metadata` would refuse
        data = json.dumps(content, default=lambda array: array.tolist()).encode()
    return Response(data, media_type="application/json", headers=headers)
