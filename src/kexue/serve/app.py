"""The application: dialects, door, metrics and page put together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

import kexue
from kexue.serve import errors, native, openai, operations, overview, rerank, tei
from kexue.serve.metrics import Measure, Metrics
from kexue.serve.security import Door
from kexue.serve.settings import Settings
from kexue.serve.state import Service

WEB = Path(__file__).parent / "web"
_ERROR: dict[str, Any] = {"content": {"application/json": {"schema": {"type": "object"}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, **_ERROR}
    for status, text in {
        400: "Empty or malformed.",
        401: "No valid key.",
        403: "The key may not do this.",
        404: "No model or index of this name.",
        413: "Too large.",
        422: "Cannot be tokenised.",
        424: "The model failed.",
        429: "Busy; see Retry-After.",
        503: "Not ready.",
        507: "No room on the disk.",
    }.items()
}


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
        async with Service(settings, metrics) as service:
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
        responses=_REFUSALS,
    )
    app.state.metrics = metrics
    errors.install(app)
    for dialect in (openai, rerank, tei, native, overview, operations):
        app.include_router(dialect.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    app.mount("/web", StaticFiles(directory=WEB), name="web")
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Door, settings=settings)
    app.add_middleware(Measure, metrics=metrics)
    return app


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are finished first, for up to half a minute."""
    level = os.environ.get("KEXUE_LOG", "warning").lower()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=level,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
