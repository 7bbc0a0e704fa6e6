"""For those who run the server: is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kexue.serve import examples
from kexue.serve.metrics import Metrics

router = APIRouter(tags=["operations"])


@router.get("/health", responses=examples.HEALTH)
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready", responses=examples.READY)
async def ready(request: Request) -> JSONResponse:
    """Models and indexes are loaded, and the server is not going away."""
    service = getattr(request.app.state, "service", None)
    good = service is not None and service.ready
    return JSONResponse({"status": "ready" if good else "not ready"}, status_code=200 if good else 503)


@router.get("/metrics", response_class=Response, responses=examples.METRICS)
async def metrics(request: Request) -> Response:
    """Prometheus text."""
    found: Metrics = request.app.state.metrics
    return Response(found.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
