"""Samples of a served diffusion model, step by step as server-sent events."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field
from torch import Tensor

from kexue.errors import NotSupported
from kexue.generative.diffusion.solver import SOLVERS
from kexue.generative.run.folder import Run
from kexue.generative.run.images import Images
from kexue.serve import examples
from kexue.serve.errors import ApiError
from kexue.serve.events import stream_events
from kexue.serve.fields import Fields, check_fields
from kexue.serve.wire import Here, Route

router = APIRouter(tags=["kexue"], route_class=Route)
_MOST_SAMPLES = 64
_MOST_STEPS = 500


class DiffusionRequest(Fields):
    """Settings of a sampling; the same settings and seed give the same images."""

    run: str | None = Field(None, description="Name of a run; default: the first one.")
    n: int = Field(16, ge=1, le=_MOST_SAMPLES, description="Number of images.")
    steps: int = Field(50, ge=1, le=_MOST_STEPS, description="Steps from noise to image.")
    solver: str = Field("ddim", examples=["dpmpp_2m"], description="ddim, dpmpp_2m, heun, ddpm, ...")
    eta: float | None = Field(None, ge=0, le=1, description="New noise in each step of ddim.")
    scale: float | None = Field(None, ge=0, le=20, description="Guidance: 0 any class, 1 the class, above 1 more.")
    condition: str | None = Field(None, description="Name of a class; default: each as often as in the data.")
    seed: int = Field(0, ge=0, le=2**32 - 1)


@router.post("/v1/diffusion", responses=examples.DIFFUSION)
async def diffusion(body: DiffusionRequest, service: Here) -> StreamingResponse:
    """Draw images of a diffusion model, and show each step.

    The answer is a stream of server-sent events. Each step is `{step, steps, time, image, estimate}`: the sheet of
    noisy images after the step, and that of the finished images as the network then expects them, as PNG in base64.
    The last event is `{done, n, image, seconds}`, or `{error}`.
    """
    warnings = check_fields(body, strict=service.settings.strict)
    run = service.find_run(body.run)
    options = _choose_options(run, body)
    return await stream_events(service, partial(_draw, run, body, options), warnings=warnings)


def _choose_options(run: Run, body: DiffusionRequest) -> dict[str, Any]:
    """Return the options of a sampling; ApiError, with the field, for one that the model does not have."""
    medium, solver = run.medium, body.solver
    assert isinstance(medium, Images)
    if solver not in SOLVERS:
        raise ApiError(400, f"solver must be one of {', '.join(SOLVERS)}, got {solver[:40]!r}", param="solver")
    if body.eta is not None and solver != "ddim":
        raise ApiError(400, f"eta goes with the solver ddim, not with {solver}.", param="eta")
    if body.scale is not None and not medium.classes:
        raise ApiError(400, "scale needs a model with classes, this one has none.", param="scale")
    options: dict[str, Any] = {"steps": body.steps, "solver": solver, "eta": body.eta, "scale": body.scale}
    if body.condition is not None:
        try:
            options["condition"] = medium.find_class(body.condition)
        except (ValueError, NotSupported) as error:
            raise ApiError(400, str(error), param="condition") from error
    return options


def _draw(
    run: Run, body: DiffusionRequest, options: Mapping[str, Any], report: Callable[[dict[str, Any]], None]
) -> None:
    """Draw images, and report each step."""
    medium = run.medium
    assert isinstance(medium, Images)
    started = time.monotonic()

    def show(i: int, t: Tensor, made: Any) -> None:
        pictures = {"image": _picture(medium, made.x), "estimate": _picture(medium, made.prediction.x0)}
        report({"step": i + 1, "steps": body.steps, "time": float(t), **pictures})

    images = run.model.sample(body.n, generator=body.seed, callback=show, **options)
    report({"done": True, "n": body.n, "image": _picture(medium, images), "seconds": time.monotonic() - started})


def _picture(medium: Images, items: Tensor) -> str:
    """Return a sheet of images, PNG in base64."""
    return base64.b64encode(medium.draw(items.detach().cpu()) or b"").decode()


def describe_run(name: str, run: Run) -> dict[str, Any]:
    """Return what a client needs to know of a run."""
    assert isinstance(run.medium, Images)
    return {"name": name, "model": run.name, "classes": list(run.medium.classes)}
