"""Flows from several priors to the ring of eight Gaussians and to digits, trained by matching their velocity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._training import fit, shuffled_rows, torch_seed
from kexue.generative import diffusion

_POOL, _BATCH, _PAIRS, _HIDDEN = 20_000, 256, 10_000, 64


def train_ring_flows(steps: int, seed: int) -> dict[str, Any]:
    """A flow from each prior; from the normal one also with coupled batches, and on the pairs of the first."""
    torch = import_optional("torch", extra="train")
    pool = generative.eight_gaussians().sample(_POOL, generator=seed)
    straight = diffusion.LinearPath(diffusion.NormalPrior(2))
    square = diffusion.LinearPath(diffusion.UniformPrior([-1.0, -1.0], [1.0, 1.0]))
    models = {
        "normal": fit_flow(straight, pool, steps, seed),
        "uniform": fit_flow(square, pool, steps, seed),
        "coupled": fit_flow(straight, pool, steps, seed, coupling="ot"),
        "poisson": _fit_poisson(pool, steps, seed),
    }
    pairs = models["normal"].reflow(_PAIRS, generator=torch.Generator().manual_seed(seed), method="heun")
    models["reflow"] = fit_flow(straight, pairs, steps, seed)
    return models


def fit_flow(path: Any, data: Any, steps: int, seed: int, **options: Any) -> Any:
    """A flow trained on events, or on pairs of events and points of the prior."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        net = generative.MLPDenoiser(path.event_shape, hidden=_HIDDEN if path.event_shape == (2,) else 128)
    model = diffusion.FlowMatching(net, path, **options)
    generator = torch.Generator().manual_seed(seed)
    parts = [part for part in data if part is not None] if isinstance(data, tuple) else [data]

    def loss(rows: Any) -> Any:
        return model.loss(tuple(part[rows] for part in parts), generator=generator).loss

    _fit(model, loss, len(parts[0]), steps, generator)
    return model


def _fit(model: Any, loss: Callable[[Any], Any], n: int, steps: int, generator: Any) -> None:
    """Adam with a learning rate that falls to 0."""
    torch = import_optional("torch", extra="train")
    batches = shuffled_rows(n, _BATCH, math.ceil(steps * _BATCH / n) + 1, generator)[:steps]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    fit(model, loss, batches, optimizer, scheduler=schedule)


def _fit_poisson(pool: Any, steps: int, seed: int) -> Any:
    """A Poisson flow: a network estimates x_0 from bounded inputs, times log-uniform; the velocity is (x - x_0)/t."""
    torch = import_optional("torch", extra="train")
    path = diffusion.pfgm_path(2)
    generator = torch.Generator().manual_seed(seed)
    low, high = math.log(path.t_min), math.log(path.t_max)

    class Charges(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = generative.MLPDenoiser(2, hidden=_HIDDEN)

        def estimate(self, x: Any, t: Any) -> Any:
            inside = x / (1 + x.square().sum(1, keepdim=True) / 16).sqrt()
            return self.net(inside, (t.log() - low) / (high - low)).sample

        def forward(self, sample: Any, timestep: Any) -> Any:
            return (sample - self.estimate(sample, timestep)) / timestep[:, None]

    with torch_seed(seed):
        net = Charges()

    def loss(rows: Any) -> Any:
        t = torch.exp(low + (high - low) * torch.rand(len(rows), generator=generator))
        x_t = path.sample(pool[rows], t, generator=generator).x_t
        return (net.estimate(x_t, t) - pool[rows]).square().mean()

    _fit(net, loss, len(pool), steps, generator)
    return diffusion.FlowMatching(net, path)
