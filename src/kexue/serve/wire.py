"""What the wire dialects share: request bodies, the service of a request, headers of timing."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from kexue.search.filters import conditions
from kexue.serve.errors import ApiError
from kexue.serve.state import Embedded, Model, Service, Timing

MAX_INPUTS = 2048  # texts of one request
_MAX_CONDITIONS = 100  # of a filter; SQL gives up at some hundreds
Body = TypeVar("Body", bound="Fields")


class Fields(BaseModel):
    """A request body; fields a route does not know are ignored, or refused by a strict server."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _Read(Request):
    async def json(self) -> Any:
        try:
            return orjson.loads(await self.body())
        except orjson.JSONDecodeError:
            return await super().json()  # it says better what is wrong


class VectorRoute(APIRoute):
    """Reads its body with orjson: a vector in a quarter of the time, whole numbers beyond 64 bits as floats."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that reads faster."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_Read(request.scope, request.receive))

        return handler


async def get_service(request: Request) -> Service:
    """The service behind a request; 503 while it starts or stops."""
    service: Service | None = getattr(request.app.state, "service", None)
    if service is None or not service.ready:
        raise ApiError(503, "The server is not ready.", retry_after=1)
    return service


Here = Annotated[Service, Depends(get_service)]


def check(service: Service, body: Fields) -> None:
    """Refuse unknown fields where the server is strict."""
    if service.settings.strict and body.model_extra:
        name = next(iter(body.model_extra))
        raise ApiError(400, f"unknown field {name!r}; this server is strict.", param=name)


def check_texts(texts: list[str], field: str) -> None:
    """Refuse none, too many, and blank ones."""
    if not texts:
        raise ApiError(400, f"{field} must hold at least one text.", param=field)
    if len(texts) > MAX_INPUTS:
        raise ApiError(413, f"{field} holds {len(texts):,} texts, at most {MAX_INPUTS:,} are taken.", param=field)
    for place, text in enumerate(texts):
        check_text(text, f"{field}[{place}]" if len(texts) > 1 else field)


def check_text(text: str, field: str) -> None:
    """Refuse a blank text and one that is no Unicode."""
    if not text.strip():
        raise ApiError(400, f"{field} is empty.", param=field)
    if not text.isascii() and any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ApiError(422, f"{field} is no valid Unicode: it holds half a surrogate pair.", param=field)


def check_filter(filter: Mapping[str, Any] | None) -> None:
    """Refuse a filter that is not legal, has too many conditions, or names a field and asks nothing of it."""
    try:
        found = conditions(filter or {})
    except (ValueError, OverflowError) as error:
        raise ApiError(400, str(error), param="filter") from None
    if idle := next((field for field, wanted in (filter or {}).items() if wanted == []), None):
        raise ApiError(400, f"the filter on {idle!r} is an empty list, which everything passes.", param="filter")
    if len(found) > _MAX_CONDITIONS:
        raise ApiError(400, f"filter has {len(found)} conditions, at most {_MAX_CONDITIONS}.", param="filter")


def check_metadata(metadata: dict[str, Any] | None, field: str) -> dict[str, Any] | None:
    """Refuse what many a client could not read back: whole numbers beyond 64 bits, and nesting beyond 254."""
    try:
        orjson.dumps(metadata)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"{field} cannot be written as JSON: {error}.", param=field) from None
    return metadata


def timing_headers(model: Model, found: Embedded, characters: int) -> dict[str, str]:
    """What TEI tells of a request, times in milliseconds."""
    return headers_of(str(model.encoder.device.type), found.timing, sum(found.tokens), characters)


def headers_of(device: str, timing: Timing, tokens: int, characters: int) -> dict[str, str]:
    """The same from its parts."""
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


def usage(tokens: list[int]) -> dict[str, int]:
    """OpenAI's account of tokens."""
    return {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}


def reply(content: Any, headers: dict[str, str] | None = None) -> Response:
    """JSON, also of numpy arrays; NaN becomes null."""
    try:
        data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # metadata from elsewhere that `check_metadata` would refuse
        data = json.dumps(content, default=lambda array: array.tolist()).encode()
    return Response(data, media_type="application/json", headers=headers)
