"""Work that is told step by step, as server-sent events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from fastapi.responses import StreamingResponse

from kexue.serve.errors import error_body, to_api_error
from kexue.serve.service import Service

Report = Callable[[dict[str, Any]], None]


async def stream_events(
    service: Service, work: Callable[[Report], None], *, warnings: Sequence[str] = ()
) -> StreamingResponse:
    """Run work in a thread and return what it reports as a stream of events ``data: {...}``.

    A client that leaves ends the work at its next report.

    Args:
        service: has the threads.
        work: called with a function that takes events; the last one has the field `done`.
        warnings: put into the last event.

    Raises:
        Exception: of the work, before its first event: the answer has a status then. Later ones are an event `error`.
    """
    events: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue()
    loop, left = asyncio.get_running_loop(), threading.Event()

    def report(event: dict[str, Any]) -> None:
        if left.is_set():
            raise asyncio.CancelledError
        loop.call_soon_threadsafe(events.put_nowait, event)

    task = asyncio.ensure_future(service.work(work, report))
    task.add_done_callback(lambda done: events.put_nowait(None if done.cancelled() else done.exception()))
    first = await events.get()
    if isinstance(first, BaseException):
        raise first  # nothing has been sent: an answer with a status

    async def stream() -> AsyncIterator[bytes]:
        event: dict[str, Any] | BaseException | None = first
        try:
            while event is not None:
                if isinstance(event, Exception):
                    told = to_api_error(event)
                    event = error_body(told.status, told.message, tei=False, param=told.param)
                elif isinstance(event, dict) and "done" in event and warnings:
                    event = {**event, "warnings": list(warnings)}
                yield b"data: " + orjson.dumps(event) + b"\n\n"
                event = None if isinstance(event, dict) and "error" in event else await events.get()
        finally:
            left.set()

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})
