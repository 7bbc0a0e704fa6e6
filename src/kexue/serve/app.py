"""ASGI application and server: routes, access control, metrics and the page."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

import kexue
from kexue.serve import (
    diffusion,
    errors,
    examples,
    extract,
    native,
    openai,
    operations,
    overview,
    rerank,
    sampling,
    tei,
)
from kexue.serve.connection import Connection
from kexue.serve.disconnect import CancelOnDisconnect
from kexue.serve.head import AnswerHead
from kexue.serve.metrics import MeasureRequests, Metrics
from kexue.serve.security import AccessControl
from kexue.serve.service import Service
from kexue.serve.settings import Settings

WEB = Path(__file__).parent / "web"
# torch caches compiled kernels for the last 1,024 shapes, over a megabyte for each shape of a batch. Batches of a
# server rarely have the same shape twice, so its memory would grow for minutes.
_KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def create_app(settings: Settings) -> FastAPI:
    """Return the server as an ASGI application; it loads models and indexes when it starts.

    Args:
        settings: server settings.

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
    errors.install_handlers(app)
    for dialect in (openai, rerank, native, extract, overview):
        app.include_router(dialect.router, responses=examples.refusals())
    if settings.runs:
        for work in (diffusion, sampling):
            app.include_router(work.router, responses=examples.refusals())
    app.include_router(tei.router, responses=examples.refusals(tei=True, openai=False))
    app.include_router(operations.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    app.add_middleware(AnswerHead)
    app.add_middleware(CancelOnDisconnect)
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(AccessControl, settings=settings)
    app.add_middleware(MeasureRequests, metrics=metrics)
    return app


def serving_options(settings: Settings) -> dict[str, Any]:
    """Return the options of uvicorn: time limits; headers of proxies about the client's address are ignored."""
    return {
        "host": settings.host,
        "port": settings.port,
        "http": Connection,
        "ws": "none",
        "proxy_headers": False,
        "log_config": None,  # the caller decides where messages go; uvicorn would reconfigure all of `logging`
        "log_level": os.environ.get("KEXUE_LOG", "warning").lower(),
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 30,
    }


def run(settings: Settings, *, started: Callable[[int], object] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running requests for at most 30 seconds.

    Args:
        settings: server settings.
        started: called with the port once every index and model is loaded and the server listens.

    Raises:
        Exception: a model or index could not be loaded.
    """
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, "64")
    app = create_app(settings)
    logging.getLogger("uvicorn.error").addFilter(lambda record: app.state.failure is None)  # it would add a traceback
    try:
        run_app(app, settings, started=started)
    except SystemExit:
        if app.state.failure is None:
            raise
        raise app.state.failure from None


def run_app(app: ASGIApp, settings: Settings, *, started: Callable[[int], object] | None = None) -> None:
    """Serve any ASGI application as `run` does; SystemExit where it does not start.

    Args:
        app: checks access itself, for example by `kexue.serve.security.AccessControl`.
        settings: address, and limits of a connection.
        started: see `run`.
    """
    server = _Server(uvicorn.Config(app, **serving_options(settings)), started)
    with _ignore_second_sigterm(), suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(1)  # uvicorn has logged why


class _Server(uvicorn.Server):
    """Server of uvicorn that reports the port it listens on.

    Args:
        config: configuration of uvicorn.
        report: called with the port.
    """

    def __init__(self, config: uvicorn.Config, report: Callable[[int], object] | None) -> None:
        super().__init__(config)
        self._report = report

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the application, listen, and report the port."""
        await super().startup(sockets)
        if self.started and self._report is not None:
            self._report(self.servers[0].sockets[0].getsockname()[1])


@contextmanager
def _ignore_second_sigterm() -> Iterator[None]:
    """Ignore the SIGTERM that uvicorn raises again after it has stopped for the first."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
