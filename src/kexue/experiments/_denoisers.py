"""Denoisers of a ring of Gaussians and of digits on the schedule VP, which experiments on diffusion share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kexue import generative
from kexue._optional import import_optional
from kexue.experiments._training import fit, torch_seed
from kexue.generative import diffusion

_WARMUP = 100  # steps


def train_ring(steps: int, seed: int) -> Any:
    """A `Diffusion` of the ring of eight Gaussians, trained on fresh points, with times even in the log of SNR."""
    ring = generative.eight_gaussians()
    with torch_seed(seed):
        model = diffusion.Diffusion(generative.MLPDenoiser(2, hidden=128), diffusion.VP())

    def loss(generator: Any) -> Any:
        x = ring.sample(256, generator=generator)
        return diffusion.score_matching_loss(
            model.denoiser, x, weighting="likelihood", importance=True, generator=generator
        ).loss

    return _train(model, loss, steps, 2e-3, seed)


def train_digits(images: Any, steps: int, seed: int) -> Any:
    """A `Diffusion` of digits (n, 1, 8, 8), without classes."""
    torch = import_optional("torch", extra="train")
    with torch_seed(seed):
        model = diffusion.Diffusion(generative.MLPDenoiser((1, 8, 8)), diffusion.VP())

    def loss(generator: Any) -> Any:
        rows = torch.randint(len(images), (256,), generator=generator)
        return model.loss(images[rows], generator=generator).loss

    return _train(model, loss, steps, 1e-3, seed)


def _train(model: Any, loss: Callable[[Any], Any], steps: int, rate: float, seed: int) -> Any:
    """Train with Adam, whose rate rises in the first steps and falls as a cosine to 0."""
    torch = import_optional("torch", extra="train")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / _WARMUP) * (1 + math.cos(math.pi * i / steps)) / 2
    )
    fit(model, lambda _step: loss(generator), range(steps), optimizer, scheduler=scheduler)
    return model.eval()
