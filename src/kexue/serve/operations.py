"""Routes for operators: /health, /ready, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kexue.serve import examples
from kexue.serve.metrics import Metrics

router = APIRouter(tags=["operations"])


@router.get("/health", responses=examples.HEALTH)
async def health() -> dict[str, str]:
    """Answer as long as the process runs."""
    return {"status": "ok"}


@router.get("/ready", responses=examples.READY)
async def ready(request: Request) -> JSONResponse:
    """Answer 200 while models and indexes are loaded, and 503 while the server starts or stops."""
    service = getattr(request.app.state, "service", None)
    is_ready = service is not None and service.ready
    return JSONResponse({"status": "ready" if is_ready else "not ready"}, status_code=200 if is_ready else 503)


@router.get("/metrics", response_class=Response, responses=examples.METRICS)
async def read_metrics(request: Request) -> Response:
    """Return metrics in the text format of Prometheus."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
