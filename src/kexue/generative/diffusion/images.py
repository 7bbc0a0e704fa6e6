"""Diffusion of images with levels: classes drawn as often as they occur, and the probability of levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kexue._counts import check_count
from kexue.errors import NotSupported
from kexue.generative.diffusion.denoiser import Target
from kexue.generative.diffusion.guidance import find_no_condition
from kexue.generative.diffusion.likelihood import log_likelihood
from kexue.generative.diffusion.model import Diffusion
from kexue.generative.diffusion.schedule import Schedule, expand_dims
from kexue.generative.flow.dequantization import from_levels, to_levels
from kexue.generative.model import GenerativeModel, LossOutput
from kexue.generative.noise import Noise

_NOISE = 0.5  # of the bound, in steps between two levels: less of it asks the network for sharper densities
_MOST_EXACT = 16  # values of an image up to which the exact trace is cheaper than probes


class ImageDiffusion(GenerativeModel):
    """Diffusion model of images with levels: floats in [-1, 1], x = 2 k / (n - 1) - 1 for k = 0, ..., n - 1.

    Samples are moved to the nearest levels. The probability of an image has a bound from the density p of the diffusion
    at the time when its noise q is half a step between two levels, which dequantises the images:
    log P(k) >= E [log p(x) + log P(k | x) - log q(x | k)], where P(k | x) takes all levels for equally frequent.

    Args:
        net: as of `Diffusion`; its `num_classes` is the number of classes, its `condition_dim` the width of vectors.
        schedule: continuous, such as `VP` and `FlowSchedule`.
        levels: n of the images, >= 2: 256 for 8 bits, 17 for scikit-learn's digits.
        prediction: as of `Diffusion`; with `FlowSchedule` and ``"velocity"`` it is flow matching on straight paths from
            normal noise.
        condition_dropout: as of `Diffusion`.
        class_shares: how often each class is drawn where `sample` is given none; None: all equally.

    Raises:
        NotSupported: a discrete schedule.

    Example:
        >>> from kexue.generative import MLPDenoiser
        >>> from kexue.generative.diffusion import VP
        >>> model = ImageDiffusion(MLPDenoiser((1, 8, 8), num_classes=10), VP(), 17, condition_dropout=0.15)
        >>> model.sample(3, steps=5, scale=2.0, condition=4, generator=0).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        levels: int,
        *,
        prediction: Target = "eps",
        condition_dropout: float = 0.0,
        class_shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.levels = check_count(levels, "levels", 2)
        if schedule.discrete:
            raise NotSupported("images with levels need a continuous schedule, such as VP.")
        self.diffusion = Diffusion(net, schedule, prediction=prediction, condition_dropout=condition_dropout)
        self.event_shape = self.diffusion.event_shape
        self.num_classes: int | None = getattr(net, "num_classes", None)
        self._shares = _check_shares(class_shares, self.num_classes)

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the loss of `Diffusion`."""
        return self.diffusion.loss(batch, generator=generator)

    def draw(  # type: ignore[override]
        self,
        noise: Noise,
        *,
        condition: Tensor | None,
        steps: int = 50,
        solver: str = "ddim",
        eta: float | None = None,
        scale: float | None = None,
        callback: Callable[..., object] | None = None,
    ) -> Tensor:
        """Return len(noise) images.

        Args:
            noise: of the images.
            condition: classes (B,), the number `num_classes` being "any", which None draws; or vectors (B, d), which
                None leaves out.
            steps, solver, callback: as of `solve`; estimates of the image are kept in [-1, 1].
            eta: of the solver ``"ddim"``: 0 adds no noise, 1 is DDPM.
            scale: of `ClassifierFreeGuidance`: 0 disregards the class, 1 or None obeys it, above 1 exaggerates it.
        """
        if self._shares is not None and condition is None:
            u = noise.uniform((), torch.float64)
            condition = torch.bucketize(u, self._shares.to(u.device).cumsum(0)[:-1], right=True)
        if scale is not None and find_no_condition(self.diffusion.net) is None:
            raise NotSupported("guidance needs a model that was trained with classes or captions, this one has none.")
        if scale is not None and condition is None:
            raise NotSupported("guidance by captions needs one: give a text (--prompt), or leave the scale out.")
        options: dict[str, Any] = {} if eta is None else {"eta": eta}
        if eta is not None and solver != "ddim":
            raise NotSupported(f"eta goes with the solver ddim, not with {solver}.")
        x = self.diffusion.draw(
            noise, condition=condition, steps=steps, solver=solver, scale=scale, clip="static", callback=callback,
            **options,
        )  # fmt: skip
        return from_levels(((x + 1) * ((self.levels - 1) / 2)).round(), self.levels)

    def encode(self, x: Tensor, **options: Any) -> Tensor:
        """Return the noise (B, *event_shape) from which `decode` makes these images; as of `Diffusion`."""
        return self.diffusion.encode(x, **options)

    def decode(self, z: Tensor, **options: Any) -> Tensor:
        """Return the images (B, *event_shape) of noise, in [-1, 1] but between levels; as of `Diffusion`."""
        return self.diffusion.decode(z, **options).clamp(-1, 1)

    def log_prob_bound(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        draws: int = 1,
        probes: int = 4,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
    ) -> Tensor:
        """Return an unbiased estimate (B,) of a lower bound of log P of images with levels, in nats.

        Args:
            x: images (B, *event_shape).
            condition: classes (B,); None is the model that disregards classes.
            draws: of the noise, >= 1.
            probes: of the divergence, >= 1, as of `log_likelihood`; up to 16 values an image it is exact.
            generator: of both; a seed gives each image its own.
        """
        draws = check_count(draws, "draws", 1)
        self.check_events(x)
        k = to_levels(x, self.levels)
        noise = Noise(generator, len(x), x.device)
        return torch.stack([self._bound_once(k, condition, probes, noise) for _ in range(draws)]).mean(0)

    def _bound_once(self, k: Tensor, condition: Tensor | None, probes: int, noise: Noise) -> Tensor:
        schedule = self.diffusion.schedule
        t = schedule.time_of_log_snr(-2 * math.log(_NOISE * 2 / (self.levels - 1))).clamp(min=schedule.t_min)
        t = t.to(k.device)
        alpha, sigma = (expand_dims(c, k) for c in (schedule.alpha(t), schedule.sigma(t)))
        eps = noise.normal(k.shape[1:], k.dtype)
        x = alpha * from_levels(k, self.levels) + sigma * eps
        log_q = -(eps.square() / 2 + math.log(math.sqrt(2 * math.pi)) + sigma.log())
        centres = alpha * from_levels(torch.arange(self.levels, device=k.device, dtype=k.dtype), self.levels)
        log_levels = (-((x[..., None] - centres) / sigma).square() / 2).log_softmax(-1)
        log_k = log_levels.gather(-1, k.long()[..., None])[..., 0]
        exact = k[:1].numel() <= _MOST_EXACT
        density = log_likelihood(
            self.diffusion.denoiser, x, condition=condition, generator=noise,
            trace="exact" if exact else "hutchinson", probes=probes, start=float(t),
        ).value  # fmt: skip
        return density + (log_k - log_q).flatten(1).sum(1)


def _check_shares(shares: Sequence[float] | None, num_classes: int | None) -> Tensor | None:
    """Return how often each class is drawn, a sum of 1; None without classes."""
    if num_classes is None:
        if shares is not None:
            raise ValueError("class_shares are given, but the network was built without classes: set num_classes")
        return None
    weights = torch.ones(num_classes) if shares is None else torch.as_tensor(shares)
    weights = weights.to(torch.float64)
    if weights.shape != (num_classes,) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
        raise ValueError(f"class_shares must be {num_classes} numbers >= 0, not all 0, got {shares}")
    return weights / weights.sum()
