"""Errors as HTTP answers: one exception, and its JSON in the formats of OpenAI and of TEI."""

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
from kexue.serve.batching import QueueFullError, ServerStoppingError
from kexue.serve.target import routed_path

# TEI's routes, offered here or not: their clients read errors in TEI's format.
_TEI = ("/embed", "/similarity", "/info", "/embed_all", "/embed_sparse", "/predict", "/tokenize", "/decode")
# Expected kind of value, by pydantic's type of error.
_EXPECTED = {
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
_MAX_SHOWN = 40  # characters of a wrong value
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
    """Answer other than success.

    Args:
        status: HTTP status.
        message: text for the client.
        param: name of the wrong field; None = no single field.
        retry_after: seconds after which the client may try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after = retry_after


def error_body(status: int, message: str, *, tei: bool, param: str | None = None) -> dict[str, Any]:
    """Return the JSON of an error, in TEI's format or in OpenAI's."""
    openai, short = _TYPES.get(status, ("server_error", "backend"))
    if tei:
        return {"error": message, "error_type": short}
    return {"error": {"message": message, "type": openai, "param": param, "code": short}}


def error_response(request: Request, error: ApiError) -> JSONResponse:
    """Return an error in the format of the request's route."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = error_body(error.status, error.message, tei=_speaks_tei(request), param=error.param)
    return JSONResponse(content, status_code=error.status, headers=headers)


def _speaks_tei(request: Request) -> bool:
    """Return whether the client expects TEI's format. /rerank without a version is TEI's unless its body is not."""
    path = routed_path(request.scope)
    return path in _TEI or (path == "/rerank" and getattr(request.state, "tei", True))


def rerank_speaks_tei(texts: object, documents: object) -> bool:
    """Return whether a request to /rerank has the fields of TEI."""
    return texts is not None or documents is None


def to_api_error(error: Exception) -> ApiError:
    """Translate any exception into an `ApiError`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, "The server is busy; try again later.", retry_after=error.retry_after)
    if isinstance(error, ServerStoppingError):
        return ApiError(503, "The server is shutting down.", retry_after=1)
    if isinstance(error, IndexBusyError):
        return ApiError(429, str(error), retry_after=1)
    if isinstance(error, DiskFullError):
        return ApiError(507, "The disk of the server is full; nothing was written.")
    if isinstance(error, IndexReadOnlyError):
        return ApiError(403, str(error))
    if isinstance(error, IndexReplacedError):
        return ApiError(503, f"{error.message} Restart the server to use the new file.")
    if isinstance(error, IndexFormatError):
        return ApiError(500, str(error))
    if isinstance(error, sqlite3.Error | json.JSONDecodeError | UnicodeDecodeError):  # stored data
        _LOG.error("stored data cannot be read.", exc_info=error)
        return ApiError(500, "What the server has stored cannot be read; its log says why.")
    if isinstance(error, DataError | SpaceMismatchError | NotSupported | ValueError | TypeError):
        return ApiError(400, str(error))
    if isinstance(error, KexueError):
        return ApiError(424, str(error))
    return ApiError(424, "The model or index failed on this request; the server's log says why.")  # uvicorn logs it


def install_handlers(app: FastAPI) -> None:
    """Make the application answer every error in the format of its route."""

    async def answer_error(request: Request, error: Exception) -> JSONResponse:
        answer = to_api_error(error)
        service = getattr(request.app.state, "service", None)
        for name, served in service.indexes.items() if service else ():
            for path in (os.path.realpath(served.path), served.path):
                if os.sep in path:  # clients must not learn where files are
                    answer.message = answer.message.replace(path, name)
        return error_response(request, answer)

    async def answer_invalid_body(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, dict):
            request.state.tei = rerank_speaks_tei(error.body.get("texts"), error.body.get("documents"))
        return error_response(request, _describe_invalid(error.errors(), error.body))

    async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:_MAX_SHOWN]
        message = {
            404: f"there is no route {path}; /openapi.json lists the routes.",
            405: f"{request.method} is not allowed for {path}; /openapi.json lists what is.",
        }.get(error.status_code, str(error.detail))
        if error.detail == "There was an error parsing the body":  # FastAPI's, where `json` gives no place
            message = "the body is not JSON in UTF-8, or holds a whole number of thousands of digits."
        answer = error_response(request, ApiError(error.status_code, message))
        answer.headers.update(error.headers or {})
        return answer

    for kind in (ApiError, KexueError, sqlite3.Error, ValueError, TypeError, Exception):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid_body)
    app.add_exception_handler(HTTPException, answer_http_error)


def _describe_invalid(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """Return one error of an invalid request: its place, the expected value and the received one."""
    if errors[0]["type"] == "json_invalid":
        reason, at = errors[0]["ctx"]["error"], errors[0]["loc"][-1]
        return ApiError(400, f"the body is not JSON: {reason}, at character {at}.")
    # pydantic lists an error for every type that a field may have: the best type is the one that reads most of it.
    by_type: dict[tuple[Any, ...], list[tuple[tuple[str | int, ...], Mapping[str, Any]]]] = {}
    for one in errors:
        if one["loc"][:2] == errors[0]["loc"][:2]:
            path, way = _path(one, body)
            by_type.setdefault(way, []).append((path, one))

    def reach(failures: list[tuple[tuple[str | int, ...], Mapping[str, Any]]]) -> tuple[Any, ...]:
        path, one = failures[0]
        places = [part for part in path if isinstance(part, int)]
        return len(path), -len(failures), places, one["type"] not in _EXPECTED

    most = max(map(reach, by_type.values()))
    best = [failures[0] for failures in by_type.values() if reach(failures) == most]
    path, first = best[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:] or "the body"
    param = str(path[0]) if path else None
    if first["type"] == "missing":
        return ApiError(400, f"{where} is missing.", param=param)
    if first["type"] in _EXPECTED:
        expected = list(dict.fromkeys(_EXPECTED[one["type"]] for _, one in best))
        return ApiError(400, f"{where} must be {' or '.join(expected)}, got {_render(first['input'])}.", param=param)
    reason = str(first["msg"])
    start = "Input should be "
    claim = f"{where} must be {reason.removeprefix(start)}" if reason.startswith(start) else f"{where}: {reason}"
    return ApiError(400, f"{claim}, got {_render(first['input'])}.", param=param)


def _path(error: Mapping[str, Any], body: Any) -> tuple[tuple[str | int, ...], tuple[Any, ...]]:
    """Return keys and positions of an error in the body, and pydantic's names for the type it tried."""
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


def _render(value: Any) -> str:
    """Return a JSON value in at most 43 characters."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    shown = json.dumps(value if not isinstance(value, str) else value[:_MAX_SHOWN], ensure_ascii=False, default=repr)
    shown = shown.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
