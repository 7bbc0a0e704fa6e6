"""Latents from elsewhere than a model's own prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class LatentSampler(Protocol):
    """What draws latents, such as `kexue.similarity.HubSampler` and the priors of `kexue.generative.diffusion`."""

    def sample(self, size: int, /, *, generator: Any = None) -> Any:
        """Return latents (size, ...), or an object with them as its attribute `latents`; `generator` is a seed."""


def draw_latents(
    sampler: LatentSampler, n: int, generator: torch.Generator | Sequence[torch.Generator] | int | None
) -> Tensor:
    """Return n latents of a sampler.

    Args:
        sampler: draws all of them at once, so that a latent may depend on n.
        n: >= 0.
        generator: a seed; a `torch.Generator`, from which one is drawn; None: another one every time.

    Raises:
        ValueError: a list of generators, one for each latent; another number of latents.
    """
    if isinstance(generator, Sequence):
        raise ValueError("a latent sampler draws all latents at once: give one generator or a seed, not a list")
    if isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    answer = sampler.sample(n, generator=generator)
    latents = getattr(answer, "latents", answer)
    if not isinstance(latents, Tensor):
        latents = torch.from_numpy(np.array(latents, order="C"))  # a copy: not every array can be shared
    if latents.shape[:1] != (n,):
        raise ValueError(f"the sampler must return {n} latents, got an array of shape {tuple(latents.shape)}")
    return latents
