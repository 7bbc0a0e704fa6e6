"""Prometheus metrics, with few labels: model, endpoint, outcome, version."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import kexue

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"kexue_{name}", text, labels, registry=self.registry, buckets=buckets)

        self.requests = Counter("kexue_requests_total", "Requests.", ("endpoint", "outcome"), registry=self.registry)
        self.duration = histogram("request_duration_seconds", "Whole request.", ("endpoint",), _SECONDS)
        self.queue_time = histogram("queue_duration_seconds", "Waiting for a forward pass.", ("model",), _SECONDS)
        self.tokenize_time = histogram("tokenize_duration_seconds", "Tokenising.", ("model",), _SECONDS)
        self.inference_time = histogram("inference_duration_seconds", "One forward pass.", ("model",), _SECONDS)
        self.batch_size = histogram("batch_size", "Texts in a forward pass.", ("model",), _SIZES)
        self.batch_tokens = histogram("batch_tokens", "Tokens in a forward pass, with padding.", ("model",), _TOKENS)
        self.queue_size = Gauge("kexue_queue_size", "Texts that wait.", ("model",), registry=self.registry)
        self.tokens = Counter("kexue_tokens_total", "Tokens read.", ("model",), registry=self.registry)
        self.vectors = Gauge("kexue_index_vectors", "Documents in an index.", ("model",), registry=self.registry)
        build = Gauge("kexue_build_info", "Version.", ("version",), registry=self.registry)
        build.labels(kexue.__version__).set(1)

    def page(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class MeasureRequests:
    """ASGI middleware: counts requests by route and outcome, and measures their duration."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request. Its label is the pattern of the route, never a path that a client wrote."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # if no answer is sent: the client disconnected

        async def send_timed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                spent = f"{1000 * (time.perf_counter() - start):.3f}"
                message["headers"] = [*message["headers"], (b"x-total-time", spent.encode())]
            await send(message)

        start = time.perf_counter()
        try:
            await self.app(scope, receive, send_timed)
        finally:
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            outcome = "ok" if status < 400 else str(status)
            self.metrics.requests.labels(endpoint, outcome).inc()
            self.metrics.duration.labels(endpoint).observe(time.perf_counter() - start)
