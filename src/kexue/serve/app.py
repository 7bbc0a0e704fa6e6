"""The application: dialects, door, metrics and page put together."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

import kexue
from kexue.serve import errors, examples, native, openai, operations, overview, rerank, tei
from kexue.serve.connection import Connection
from kexue.serve.hangup import Hangup
from kexue.serve.head import Head
from kexue.serve.metrics import Measure, Metrics
from kexue.serve.security import Door
from kexue.serve.settings import Settings
from kexue.serve.state import Service

WEB = Path(__file__).parent / "web"
# torch keeps a compiled kernel for each of the last 1,024 shapes it has multiplied, a megabyte and more for each shape
# of a batch; batches of a server rarely have the same shape twice, so its memory would grow for minutes.
_KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def create_app(settings: Settings) -> FastAPI:
    """The server as an ASGI application; models and indexes are loaded when it starts.

    Args:
        settings: what to serve, and how.

    Example:
        >>> app = create_app(Settings(indexes=["faq.kx"]))  # doctest: +SKIP
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                service = await stack.enter_async_context(Service(settings, metrics))
            except Exception as error:
                app.state.failure = error
                raise
            for name, served in service.indexes.items():
                metrics.vectors.labels(name).set(len(served.index))
            app.state.service = service
            app.state.started()
            yield

    app = FastAPI(
        title="kexue",
        version=kexue.__version__,
        summary="Embeddings, reranking, and search that explains itself.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.metrics = metrics
    app.state.failure = None
    app.state.started = lambda: None
    errors.install(app)
    for dialect in (openai, rerank, native, overview):
        app.include_router(dialect.router, responses=examples.refusals())
    app.include_router(tei.router, responses=examples.refusals(tei=True, openai=False))
    app.include_router(operations.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    app.add_middleware(Head)
    app.add_middleware(Hangup)
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Door, settings=settings)
    app.add_middleware(Measure, metrics=metrics)
    return app


def serving_options(settings: Settings) -> dict[str, Any]:
    """How uvicorn serves the application: with limits and time-outs, and believing no header about who asks."""
    return {
        "host": settings.host,
        "port": settings.port,
        "http": Connection,
        "ws": "none",
        "proxy_headers": False,
        "log_level": os.environ.get("KEXUE_LOG", "warning").lower(),
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 30,
    }


def run(settings: Settings, *, started: Callable[[], object] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are finished first, for up to half a minute.

    Args:
        settings: what to serve, and where.
        started: called when every index and model is loaded.

    Raises:
        Exception: what kept a model or index from being loaded.
    """
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, "64")
    app = create_app(settings)
    app.state.started = started or app.state.started
    logging.getLogger("uvicorn.error").addFilter(lambda record: app.state.failure is None)  # it would add a traceback
    try:
        with _stopping_is_no_failure():
            uvicorn.run(app, **serving_options(settings))
    except SystemExit:
        if app.state.failure is None:
            raise
        raise app.state.failure from None


@contextmanager
def _stopping_is_no_failure() -> Iterator[None]:
    """Ignore the SIGTERM that uvicorn raises once more after it has stopped for the first."""
    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
