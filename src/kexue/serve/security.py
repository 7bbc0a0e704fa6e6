"""The door: who may come in, how much they may bring, and what a browser may do with what it gets."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kexue.serve import errors
from kexue.serve.errors import ApiError
from kexue.serve.settings import Settings

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


class Door:
    """ASGI middleware: keys and scopes, the size of bodies, headers for browsers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.keys = settings.keys
        self.max_body = settings.max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer 401, 403 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request = Request(scope)
        refused = self._refused(request)
        left = self.max_body

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}  # who reads on gives up

        async def guarded(message: Message) -> None:
            if left < 0:
                return  # what the application says to half a body is of no interest
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                ours = ((k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in there)
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        if refused is None:
            await self.app(scope, limited, guarded)
            if left >= 0:
                return
            left, refused = 0, _too_large(self.max_body)
        await errors.response(request, refused)(scope, receive, guarded)

    def _refused(self, request: Request) -> ApiError | None:
        length = request.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > self.max_body:
            return _too_large(self.max_body)
        path = request.url.path
        if not self.keys or path in OPEN or path.startswith("/web/") or request.method == "OPTIONS":
            return None
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        scope = _scope_of(key.strip(), self.keys) if scheme.lower() == "bearer" else None
        if scope is None:
            return ApiError(401, "A valid API key is needed: Authorization: Bearer KEY.")
        if path.startswith("/v1/indexes") and request.method not in ("GET", "HEAD") and scope != "write":
            return ApiError(403, "This key may read, not write.")
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is larger than {limit:,} bytes.")


def _scope_of(key: str, keys: Mapping[str, str]) -> str | None:
    """The scope of a key; every known key is compared, each in constant time."""
    found = None
    for known, scope in keys.items():
        if hmac.compare_digest(known.encode(), key.encode()):
            found = scope
    return found
