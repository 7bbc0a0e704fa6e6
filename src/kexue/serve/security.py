"""The door: who may come in, how much they may bring, and what a browser may do with what it gets."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kexue.serve import errors
from kexue.serve.errors import ApiError
from kexue.serve.settings import Settings
from kexue.serve.target import SAFE, Names, other_site, parse_host, routed_path
from kexue.serve.weight import JsonMeter, check_head

OPEN = (
    "/",
    "/health",
    "/ready",
    "/openapi.json",
)  # and the page's files; everything else wants a key where keys are set
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
_BODIES = 512 * 2**20  # bytes of all requests being read and answered, with what their JSON becomes


class Door:
    """ASGI middleware: hosts and origins, keys and scopes, the size of requests, headers for browsers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.keys = settings.keys
        self.max_body = settings.max_body
        self.readonly = settings.readonly
        self.cors = settings.cors
        self.names = Names(settings.host, settings.allow_hosts)
        self._weight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over web sockets
            await send({"type": "websocket.close", "code": 1008})
            return

        request = Request(scope)
        refused = self._refused(scope)
        stopped: ApiError | None = None
        meter = JsonMeter()
        size = weight = 0

        async def limited() -> Message:
            nonlocal stopped, size, weight
            message = await receive()
            chunk = message.get("body", b"")
            if stopped is None and chunk:
                before = weight
                size += len(chunk)
                stopped = _too_large(self.max_body) if size > self.max_body else meter.add(chunk)
                weight = size + meter.weight
                self._weight += weight - before
                if stopped is None and self._weight > _BODIES and self._weight > weight:
                    stopped = ApiError(429, "The server reads too many large requests; try again.", retry_after=1)
            return {"type": "http.disconnect"} if stopped else message  # who reads on gives up

        async def guarded(message: Message) -> None:
            if stopped is not None:
                return  # what the application says to half a body is of no interest
            await _send_with_headers(message, send)

        if refused is None:
            try:
                await self.app(scope, limited, guarded)
            finally:
                self._weight -= weight
            refused, stopped = stopped, None
        if refused is not None:
            await errors.response(request, refused)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> ApiError | None:
        return check_head(scope) or self._misdirected(scope) or self._locked(scope) or self._oversized(scope)

    def _misdirected(self, scope: Scope) -> ApiError | None:
        """Who sends a request to this server, and is it meant for it?"""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None and (hosts or scope.get("http_version") != "1.0"):
            return ApiError(400, "A request names one host: Host: NAME or NAME:PORT.")
        if not self.keys and host is not None and not self.names.holds(host[0], scope):
            return ApiError(421, f"This server is not {host[0]}; --allow-host would let it answer to that name.")
        site = other_site(scope, self.cors) if not self.keys or self._writes(scope) else None
        if site is not None:
            return ApiError(403, f"This server takes no requests from {site}; --cors ORIGIN would let them in.")
        return None

    def _oversized(self, scope: Scope) -> ApiError | None:
        length = Request(scope).headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > self.max_body:
            return _too_large(self.max_body)
        return None

    def _locked(self, scope: Scope) -> ApiError | None:
        path, method = routed_path(scope), scope["method"]
        if not path.startswith("/"):
            return ApiError(400, "The path of a request begins with a slash.")
        if self.keys and not (path in OPEN or path.startswith("/web/") or method == "OPTIONS"):
            scheme, _, key = Request(scope).headers.get("authorization", "").partition(" ")
            allowed = _scope_of(key.strip(), self.keys) if scheme.lower() == "bearer" else None
            if allowed is None:
                return ApiError(401, "A valid API key is needed: Authorization: Bearer KEY.")
            if allowed != "write" and self._writes(scope):
                return ApiError(403, "This key may read, not write.")
        if self.readonly and self._writes(scope):
            return ApiError(403, "This server was started with --readonly: it changes no index.")
        return None

    def _writes(self, scope: Scope) -> bool:
        """Whether a request is one to change an index."""
        return routed_path(scope).startswith("/v1/indexes") and scope["method"] not in (*SAFE, "OPTIONS")


async def _send_with_headers(message: Message, send: Send) -> None:
    if message["type"] == "http.response.start":
        there = {name for name, _ in message["headers"]}
        ours = ((k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in there)
        message["headers"] = [*message["headers"], *ours]
    await send(message)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit:,} bytes.")


def _scope_of(key: str, keys: Mapping[str, str]) -> str | None:
    """The scope of a key; every known key is compared, each in constant time."""
    found = None
    for known, scope in keys.items():
        if hmac.compare_digest(known.encode(), key.encode()):
            found = scope
    return found
