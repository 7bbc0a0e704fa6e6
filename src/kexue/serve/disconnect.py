"""Cancel the work of a request whose client has closed the connection."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """ASGI middleware: cancels a request when its client closes the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request while listening for the end of its connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)  # reads the client no faster than the application

        async def listen() -> None:
            """Pass on messages until the client disconnects."""
            message: Message = {"type": "http.request"}
            while message["type"] != "http.disconnect":
                message = await receive()
                await messages.put(message)

        answer = asyncio.ensure_future(self.app(scope, messages.get, send))
        listener = asyncio.ensure_future(listen())
        try:
            await asyncio.wait({answer, listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnected = not answer.done()
            listener.cancel()
            answer.cancel()
            await asyncio.gather(answer, listener, return_exceptions=True)
        if not disconnected:
            answer.result()
