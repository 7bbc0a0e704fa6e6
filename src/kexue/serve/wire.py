"""What the wire dialects share: request bodies, the service of a request, headers of timing."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator

from kexue.search.filters import conditions
from kexue.serve.errors import ApiError
from kexue.serve.state import Embedded, Model, Service, Timing

MAX_INPUTS = 2048  # texts of one request
_MAX_CONDITIONS = 100  # of a filter: each is looked up in every document
_MOST_NAMED = 8  # unknown fields; a body may hold a million
_LONGEST_NAME = 60


def _fail_fast(schema: Any) -> Any:
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ():
        _fail_fast(part)
    if isinstance(schema, dict) and schema.get("type") == "list":
        schema["fail_fast"] = True
    return schema


class Fields(BaseModel):
    """A request body; null for an optional field means that it is not given.

    Fields a route does not know are named in the answer's warnings, or refused by a strict server.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """The schema, in which every list stops at its first wrong item: a million of them say no more than one."""
        return _fail_fast(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name in required}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema, in which every optional field may be null."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        for name, field in own["properties"].items():
            if name not in own.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                shape = {key: field.pop(key) for key in list(field) if key not in _ABOUT}
                field["anyOf"] = [*shape.get("anyOf", [shape]), {"type": "null"}]
        return schema


_ABOUT = ("title", "description", "default", "examples")


class Route(APIRoute):
    """Says what is wrong with a body that is not declared as JSON, before anyone tries to read it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind a look at the header."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if self.body_field is not None:
                _check_content_type(request.headers.get("content-type"))
            return await handle(request)

        return handler


def _check_content_type(given: str | None) -> None:
    main, _, sub = (given or "").partition(";")[0].strip().lower().partition("/")
    if main != "application" or not (sub == "json" or sub.endswith("+json")):
        got = repr(given[:_LONGEST_NAME]) if given else "none"
        raise ApiError(400, f"the header Content-Type must be application/json, got {got}.")


class _Read(Request):
    async def json(self) -> Any:
        try:
            return orjson.loads(await self.body())
        except orjson.JSONDecodeError:
            return await super().json()  # it says better what is wrong


class VectorRoute(Route):
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


async def get_warnings(request: Request) -> list[str]:
    """What of the address the route does not take: the start of the answer's warnings.

    Raises:
        ApiError: there is something, and the server is strict.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    service = getattr(request.app.state, "service", None)
    return _told(unknown, "parameter", strict=service is not None and service.settings.strict)


Warnings = Annotated[list[str], Depends(get_warnings)]


def check(service: Service, body: Fields) -> list[str]:
    """Warnings that name the fields nobody knows, also those of what the body holds; a strict server refuses them."""
    return _told(islice(_unknown(body), _MOST_NAMED + 1), "field", strict=service.settings.strict)


def _unknown(body: Fields, before: str = "") -> Iterator[str]:
    yield from (before + name for name in body.model_extra or ())
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, Fields):
            yield from _unknown(value, f"{before}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Fields):
            for place, one in enumerate(value):
                yield from _unknown(one, f"{before}{name}[{place}].")


def _told(unknown: Iterable[str], what: str, *, strict: bool) -> list[str]:
    names = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in unknown]
    if strict and names:
        raise ApiError(400, f"unknown {what} {names[0]!r}; this server is strict.", param=names[0])
    told = [f"unknown {what} {name!r} was ignored." for name in names[:_MOST_NAMED]]
    return [*told, f"more unknown {what}s were ignored."] if len(names) > _MOST_NAMED else told


def check_texts(texts: Sequence[str], field: str) -> None:
    """Refuse none, too many, and blank ones."""
    check_number(len(texts), field)
    for place, text in enumerate(texts):
        check_text(text, field, f"{field}[{place}]" if len(texts) > 1 else field)


def check_number(texts: int, field: str) -> None:
    """Refuse no text, and too many."""
    if not texts:
        raise ApiError(400, f"{field} must hold at least one text.", param=_root(field))
    if texts > MAX_INPUTS:
        raise ApiError(413, f"{field} holds {texts:,} texts, at most {MAX_INPUTS:,} are taken.", param=_root(field))


def check_text(text: str, field: str, place: str | None = None) -> None:
    """Refuse a blank text and one that is no Unicode; `place` says where in the field it stands."""
    if not text.strip():
        raise ApiError(400, f"{place or field} is empty.", param=_root(field))
    try:
        text.encode()  # some thousand times as fast as to look at the characters of thirty megabytes
    except UnicodeEncodeError:
        said = f"{place or field} is no valid Unicode: it holds half a surrogate pair."
        raise ApiError(422, said, param=_root(field)) from None


def _root(field: str) -> str:
    return field.partition(".")[0]


def check_filter(filter: Mapping[str, Any] | None) -> None:
    """Refuse a filter that is not legal, has too many conditions, or names a field and asks nothing of it."""
    if (values := _leaves(filter)) > 10 * MAX_INPUTS:
        raise ApiError(413, f"filter holds {values:,} values, at most {10 * MAX_INPUTS:,} are taken.", param="filter")
    try:
        found = conditions(filter or {})
    except (ValueError, OverflowError) as error:
        raise ApiError(400, str(error), param="filter") from None
    if idle := next((field for field, wanted in (filter or {}).items() if wanted == []), None):
        raise ApiError(400, f"the filter on {idle!r} is an empty list, which everything passes.", param="filter")
    if len(found) > _MAX_CONDITIONS:
        raise ApiError(400, f"filter has {len(found)} conditions, at most {_MAX_CONDITIONS}.", param="filter")


def _leaves(part: Any) -> int:
    """How many plain values a JSON value holds."""
    if isinstance(part, Mapping):
        part = list(part.values())
    return sum(map(_leaves, part)) if isinstance(part, list) else 1


def check_metadata(metadata: dict[str, Any] | None, place: str) -> dict[str, Any] | None:
    """Refuse what many a client could not read back: whole numbers beyond 64 bits, and nesting beyond 254."""
    try:
        orjson.dumps(metadata)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, f"{place} cannot be written as JSON: {error}.", param=place.partition("[")[0]) from None
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


def shortened(text: str, most: int = 300) -> str:
    """A text of a list of many: its beginning, and how long it is where that is not all."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def usage(tokens: list[int]) -> dict[str, int]:
    """OpenAI's account of tokens."""
    return {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}


def reply(content: Any, headers: Mapping[str, str] | None = None, warnings: Sequence[str] = ()) -> Response:
    """JSON, also of numpy arrays; NaN becomes null. Warnings go into a header, and into an answer that is an object."""
    headers = dict(headers or {})
    if warnings:
        headers["x-kexue-warnings"] = json.dumps(list(warnings))  # ASCII, without line ends
        if isinstance(content, dict):
            content = {**content, "warnings": list(warnings)}
    try:
        data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # metadata from elsewhere that `check_metadata` would refuse
        data = json.dumps(content, default=lambda array: array.tolist()).encode()
    return Response(data, media_type="application/json", headers=headers)
