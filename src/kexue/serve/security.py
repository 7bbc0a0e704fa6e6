"""Access control: keys, hosts and origins, size limits of requests, and security headers for browsers."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kexue.serve import errors
from kexue.serve.errors import ApiError
from kexue.serve.limits import JsonMeter, check_head
from kexue.serve.settings import Settings
from kexue.serve.target import SAFE, HostNames, find_other_origin, parse_host, routed_path

# With the files of the page, the only paths that need no key where keys are set.
OPEN = ("/", "/health", "/ready", "/openapi.json")
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
_MAX_TOTAL = 512 * 2**20  # bytes of all bodies in memory, with the estimated size of their values


class AccessControl:
    """ASGI middleware: checks hosts, origins, keys and sizes of requests; adds security headers to answers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.keys = settings.keys
        self.max_body = settings.max_body
        self.readonly = settings.readonly
        self.cors = settings.cors
        self.hosts = HostNames(settings.host, settings.allow_hosts)
        self._weight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route uses web sockets
            await send({"type": "websocket.close", "code": 1008})
            return

        request = Request(scope)
        refusal = self._check(scope)
        failure: ApiError | None = None  # found while the body is read
        meter = JsonMeter()
        size = weight = 0

        async def receive_within_limits() -> Message:
            nonlocal failure, size, weight
            message = await receive()
            chunk = message.get("body", b"")
            if failure is None and chunk:
                before = weight
                size += len(chunk)
                failure = _too_large(self.max_body) if size > self.max_body else meter.add(chunk)
                weight = size + meter.weight
                self._weight += weight - before
                if failure is None and self._weight > _MAX_TOTAL and self._weight > weight:
                    failure = ApiError(429, "The server reads too many large requests; try again.", retry_after=1)
            return {"type": "http.disconnect"} if failure else message  # makes the application stop reading

        async def send_with_headers(message: Message) -> None:
            if failure is not None:
                return  # drop the application's answer to half a body
            await _send_with_headers(message, send)

        if refusal is None:
            try:
                await self.app(scope, receive_within_limits, send_with_headers)
            finally:
                self._weight -= weight
            refusal, failure = failure, None
        if refusal is not None:
            await errors.error_response(request, refusal)(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> ApiError | None:
        """Return why a request is refused before its body is read; None where it is not."""
        checks = (check_head, self._check_site, self._check_key, self._check_length)
        return next((error for check in checks if (error := check(scope)) is not None), None)

    def _check_site(self, scope: Scope) -> ApiError | None:
        """Refuse a request to another host, and one from a page of another site."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = parse_host(hosts[0]) if len(hosts) == 1 else None
        if host is None and (hosts or scope.get("http_version") != "1.0"):
            return ApiError(400, "The request must have exactly one header Host: NAME or NAME:PORT.")
        if not self.keys and host is not None and not self.hosts.contains(host[0], scope):
            return ApiError(421, f"The host name {host[0]} is not accepted; --allow-host {host[0]} allows it.")
        site = find_other_origin(scope, self.cors) if not self.keys or self._writes(scope) else None
        if site is not None:
            return ApiError(403, f"Requests from {site} are not accepted; --cors ORIGIN allows them.")
        return None

    def _check_length(self, scope: Scope) -> ApiError | None:
        """Refuse a body whose declared length is over the limit or not a number."""
        length = Request(scope).headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > self.max_body:
            return _too_large(self.max_body)
        return None

    def _check_key(self, scope: Scope) -> ApiError | None:
        """Refuse a request without the key it needs, and writes to a read-only server."""
        path, method = routed_path(scope), scope["method"]
        if not path.startswith("/"):
            return ApiError(400, "The path of a request must begin with a slash.")
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
        """Return whether a request changes an index."""
        return routed_path(scope).startswith("/v1/indexes") and scope["method"] not in (*SAFE, "OPTIONS")


async def _send_with_headers(message: Message, send: Send) -> None:
    """Send a message, with the security headers that it lacks."""
    if message["type"] == "http.response.start":
        there = {name for name, _ in message["headers"]}
        ours = ((k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in there)
        message["headers"] = [*message["headers"], *ours]
    await send(message)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit:,} bytes.")


def _scope_of(key: str, keys: Mapping[str, str]) -> str | None:
    """Return the scope of a key, None for an unknown one; every key is compared, each in constant time."""
    allowed = None
    for known, scope in keys.items():
        if hmac.compare_digest(known.encode(), key.encode()):
            allowed = scope
    return allowed
