"""What a client is told when something is wrong: one exception, and its two shapes, OpenAI's and TEI's."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kexue.errors import DataError, DiskFullError, KexueError, NotSupported, SpaceMismatchError
from kexue.search import IndexBusyError
from kexue.serve.batching import Draining, Overloaded

TEI_ROUTES = ("/embed", "/similarity", "/info")
_TYPES = {
    400: ("invalid_request_error", "validation"),
    401: ("authentication_error", "authentication"),
    403: ("permission_error", "permission"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "validation"),
    413: ("invalid_request_error", "validation"),
    422: ("invalid_request_error", "tokenizer"),
    424: ("server_error", "backend"),
    429: ("rate_limit_error", "overloaded"),
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
    tei = request.url.path in TEI_ROUTES or getattr(request.state, "tei", False)
    content = body(error.status, error.message, tei=tei, param=error.param)
    return JSONResponse(content, status_code=error.status, headers=headers)


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
            if os.sep in served.path:  # where files lie is nobody's business
                found.message = found.message.replace(served.path, name)
        return response(request, found)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first: Mapping[str, Any] = error.errors()[0]
        if first["type"] == "json_invalid":
            where = f"the body is no JSON: {first['ctx']['error']}, at character {first['loc'][-1]}."
            return response(request, ApiError(400, where))
        where = ".".join(str(part) for part in first["loc"][1:])
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return response(request, ApiError(400, message, param=where or None))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        found = response(request, ApiError(error.status_code, str(error.detail)))
        found.headers.update(error.headers or {})
        return found

    for kind in (ApiError, Overloaded, Draining, KexueError, ValueError, TypeError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)
