"""What a client is told when something is wrong: one exception, and its two shapes, OpenAI's and TEI's."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kexue.errors import DataError, DiskFullError, IndexFormatError, KexueError, NotSupported, SpaceMismatchError
from kexue.search import IndexBusyError, IndexReadOnlyError, IndexReplacedError
from kexue.serve.batching import Draining, Overloaded
from kexue.serve.target import routed_path

# Served and not: whoever asks for one of them reads TEI's shape of an error.
_TEI = ("/embed", "/similarity", "/info", "/embed_all", "/embed_sparse", "/predict", "/tokenize", "/decode")
# What a value must be, by the kind of pydantic's complaint.
_WANTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_LOG = logging.getLogger("kexue.serve")
_SHOWN = 40  # characters of a wrong value
_TYPES = {
    400: ("invalid_request_error", "validation"),
    401: ("authentication_error", "authentication"),
    403: ("permission_error", "permission"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "validation"),
    413: ("invalid_request_error", "validation"),
    414: ("invalid_request_error", "validation"),
    421: ("invalid_request_error", "validation"),
    422: ("invalid_request_error", "tokenizer"),
    424: ("server_error", "backend"),
    429: ("rate_limit_error", "overloaded"),
    431: ("invalid_request_error", "validation"),
    500: ("server_error", "backend"),
    503: ("server_error", "unhealthy"),
    507: ("server_error", "backend"),
}


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: of HTTP. message: for the client. param: the field that is wrong. retry_after: seconds.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after = retry_after


def body(status: int, message: str, *, tei: bool, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    openai, short = _TYPES.get(status, ("server_error", "backend"))
    if tei:
        return {"error": message, "error_type": short}
    return {"error": {"message": message, "type": openai, "param": param, "code": short}}


def response(request: Request, error: ApiError) -> JSONResponse:
    """An error in the dialect of the route it was asked on."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = body(error.status, error.message, tei=_speaks_tei(request), param=error.param)
    return JSONResponse(content, status_code=error.status, headers=headers)


def _speaks_tei(request: Request) -> bool:
    """Whether the answer is for a client of TEI; /rerank without a version is TEI's until its body says otherwise."""
    path = routed_path(request.scope)
    return path in _TEI or (path == "/rerank" and getattr(request.state, "tei", True))


def rerank_speaks_tei(texts: object, documents: object) -> bool:
    """Whether the fields of a request to /rerank are those of TEI."""
    return texts is not None or documents is None


def translated(error: Exception) -> ApiError:
    """The library's errors as answers."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Overloaded):
        return ApiError(429, "The server is busy; try again later.", retry_after=error.retry_after)
    if isinstance(error, Draining):
        return ApiError(503, "The server is shutting down.", retry_after=1)
    if isinstance(error, IndexBusyError):
        return ApiError(429, str(error), retry_after=1)
    if isinstance(error, DiskFullError):
        return ApiError(507, "The disk of the server is full; nothing was written.")
    if isinstance(error, IndexReadOnlyError):
        return ApiError(403, str(error))
    if isinstance(error, IndexReplacedError):
        return ApiError(503, f"{error.message} Restart the server to serve what is there now.")
    if isinstance(error, IndexFormatError):
        return ApiError(500, str(error))
    if isinstance(error, sqlite3.Error | json.JSONDecodeError | UnicodeDecodeError):  # no body gets as far as here
        _LOG.error("what is stored cannot be read.", exc_info=error)
        return ApiError(500, "What the server has stored cannot be read; its log says why.")
    if isinstance(error, DataError | SpaceMismatchError | NotSupported | ValueError | TypeError):
        return ApiError(400, str(error))
    if isinstance(error, KexueError):
        return ApiError(424, str(error))
    return ApiError(424, "The model or index failed on this request; the server's log says why.")  # uvicorn writes it


def install(app: FastAPI) -> None:
    """Answer every error of the app in its dialect."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        found = translated(error)
        service = getattr(request.app.state, "service", None)
        for name, served in service.indexes.items() if service else ():
            for path in (os.path.realpath(served.path), served.path):
                if os.sep in path:  # where files lie is nobody's business
                    found.message = found.message.replace(path, name)
        return response(request, found)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, dict):
            request.state.tei = rerank_speaks_tei(error.body.get("texts"), error.body.get("documents"))
        return response(request, _complaint(error.errors(), error.body))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:_SHOWN]
        message = {
            404: f"there is nothing at {path}; /openapi.json describes what there is.",
            405: f"{request.method} is not for {path}; /openapi.json describes what is.",
        }.get(error.status_code, str(error.detail))
        if error.detail == "There was an error parsing the body":  # FastAPI's, for what `json` refuses without a place
            message = "the body is no JSON in UTF-8, or holds a whole number of thousands of digits."
        found = response(request, ApiError(error.status_code, message))
        found.headers.update(error.headers or {})
        return found

    for kind in (ApiError, KexueError, sqlite3.Error, ValueError, TypeError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)


def _complaint(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """One of the things that are wrong with a request: where, what was wanted and what came instead."""
    if errors[0]["type"] == "json_invalid":
        said, at = errors[0]["ctx"]["error"], errors[0]["loc"][-1]
        return ApiError(400, f"the body is no JSON: {said}, at character {at}.")
    # pydantic tells of every way to read a field: the best is the one that reads most of it before it fails.
    ways: dict[tuple[Any, ...], list[tuple[tuple[str | int, ...], Mapping[str, Any]]]] = {}
    for one in errors:
        if one["loc"][:2] == errors[0]["loc"][:2]:
            path, way = _path(one, body)
            ways.setdefault(way, []).append((path, one))

    def reach(failures: list[tuple[tuple[str | int, ...], Mapping[str, Any]]]) -> tuple[Any, ...]:
        path, one = failures[0]
        places = [part for part in path if isinstance(part, int)]
        return len(path), -len(failures), places, one["type"] not in _WANTED

    most = max(map(reach, ways.values()))
    best = [failures[0] for failures in ways.values() if reach(failures) == most]
    path, first = best[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:] or "the body"
    param = str(path[0]) if path else None
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing.", param=param)
    if first["type"] in _WANTED:
        wanted = list(dict.fromkeys(_WANTED[one["type"]] for _, one in best))
        return ApiError(400, f"{where} must be {' or '.join(wanted)}, got {_sent(first['input'])}.", param=param)
    said = str(first["msg"])
    told = f"{where} must be {said.removeprefix('Input should be ')}" if said.startswith("Input should be ") else None
    return ApiError(400, f"{told or f'{where}: {said}'}, got {_sent(first['input'])}.", param=param)


def _path(error: Mapping[str, Any], body: Any) -> tuple[tuple[str | int, ...], tuple[Any, ...]]:
    """Keys and positions of a complaint; and pydantic's names for the way in which it read the field."""
    kind, *places = error["loc"]
    if kind != "body":
        return tuple(places[:1]), ()
    path: list[str | int] = []
    way = []
    for place in places:
        inside = place in body if isinstance(body, dict) else isinstance(body, list) and isinstance(place, int)
        if inside:
            body = body[place]
        if inside or (error["type"] == "missing" and place == places[-1]):
            path.append(place)
        else:
            way.append(place)
    return tuple(path), tuple(way)


def _sent(value: Any) -> str:
    """A JSON value in a few characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value if not isinstance(value, str) else value[:_SHOWN], ensure_ascii=False, default=repr)
    shown = shown.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
