"""Diffusion models in the vocabulary of all generative models."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kexue._tensors import evaluating
from kexue.errors import NotSupported
from kexue.generative.diffusion.denoiser import Denoiser, Predictor, Target
from kexue.generative.diffusion.grid import Kind, make_grid
from kexue.generative.diffusion.guidance import ClassifierFreeGuidance, find_no_condition
from kexue.generative.diffusion.inversion import ddim_encode
from kexue.generative.diffusion.likelihood import log_likelihood
from kexue.generative.diffusion.losses import ConditionDropout, Weighting, check_weighting, score_matching_loss
from kexue.generative.diffusion.schedule import Schedule
from kexue.generative.diffusion.solver import solve
from kexue.generative.model import GenerativeModel, LossOutput, check_batch, unpack_batch
from kexue.generative.noise import Noise

_MOST_ITERATIONS = 100  # of a step of `encode`
_TOLERANCE = 1e-6
_LARGE_RESIDUAL = 1e-4


class Diffusion(GenerativeModel):
    """Diffusion model: a network learns to denoise, and samples are denoised from noise.

    Args:
        net: network with the call of diffusers, such as `TinyUNet`, `MLPDenoiser`, or a UNet of diffusers.
        schedule: of the noise, discrete (`DiscreteSchedule`) or continuous (`VP`).
        prediction: what the network predicts, as of `Denoiser`.
        weighting, importance: of the loss, as of `score_matching_loss`.
        condition_dropout: probability, in [0, 1], that a condition is left out in training, which guidance needs;
            0.1 to 0.2 is usual.
        event_shape: shape of an event; None is that of the network, where it tells.

    Raises:
        ValueError: an event shape that is not known, dropout without classes, a weighting that does not fit.

    Example:
        >>> from kexue.generative import MLPDenoiser
        >>> from kexue.generative.diffusion import DiscreteSchedule
        >>> model = Diffusion(MLPDenoiser(2), DiscreteSchedule.linear())
        >>> model.sample(3, steps=5, generator=0).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        *,
        prediction: Target = "eps",
        weighting: Weighting = "simple",
        importance: bool = False,
        condition_dropout: float = 0.0,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.weighting, self.importance = weighting, importance
        Denoiser(net, schedule, prediction=prediction)  # refuses an unknown prediction
        check_weighting(schedule, weighting, importance)
        self.event_shape = find_event_shape(net, event_shape)
        self._dropout = ConditionDropout(condition_dropout)
        self._null = find_no_condition(net)
        if condition_dropout and self._null is None:
            raise ValueError(
                "condition_dropout needs a network with a class for 'no condition': set its num_classes, or its "
                "condition_dim"
            )

    @property
    def denoiser(self) -> Denoiser:
        """The network on the schedule, for `solve`, guidance and `log_likelihood`."""
        return Denoiser(self.net, self.schedule, prediction=self.prediction)

    def loss(self, batch: Any, *, generator: torch.Generator | int | None = None) -> LossOutput:
        """Return the loss of `score_matching_loss`, a scalar.

        Args:
            batch: events (B, *event_shape), or a pair of them and their conditions: classes (B,), which a network
                without classes does not get, or vectors (B, d).
            generator: of the times, the noise and the conditions left out.
        """
        x, condition = unpack_batch(batch, 0)
        self.check_events(x)
        if condition is not None and getattr(self.net, "num_classes", 0) is None and not condition.is_floating_point():
            condition = None
        noise = Noise(generator, len(x), x.device)
        if condition is not None and self._dropout.p:
            condition = self._dropout(condition, self._null or 0, generator=noise)
        return score_matching_loss(
            self.denoiser, x,
            weighting=self.weighting, importance=self.importance, condition=condition, generator=noise,
        )  # fmt: skip

    def draw(
        self,
        noise: Noise,
        /,
        *,
        condition: Tensor | None,
        steps: int = 50,
        solver: str = "ddim",
        eta: float = 0.0,
        grid: Kind = "trailing",
        scale: float | None = None,
        clip: Any = None,
        **options: Any,
    ) -> Tensor:
        """Return len(noise) events.

        Args:
            noise: of the events.
            condition: classes (B,).
            steps: S of `make_grid`.
            solver: as of `solve`.
            eta: share of the noise of ``"ddim"``, in [0, 1].
            grid: rule of the times, as of `make_grid`.
            scale: of `ClassifierFreeGuidance`; None is no guidance: the conditional model where classes are given.
            clip: as of `solve`.
            options: of the solver, such as noise of ``"ddim"``; and callback.
        """
        denoiser = self.denoiser if scale is None else ClassifierFreeGuidance(self.denoiser, scale)
        if eta:
            options["eta"] = eta
        dtype = next((p.dtype for p in self.net.parameters()), None)
        x = self.schedule.prior.draw(noise, self.event_shape, dtype)
        times = make_grid(self.schedule, steps, kind=grid)
        return _solve(denoiser, x, times, solver=solver, condition=condition, generator=noise, clip=clip, **options)

    def encode(self, x: Tensor, *, condition: Tensor | None = None, steps: int = 50, **options: Any) -> Tensor:
        """Return the noise (B, *event_shape) from which `decode` with as many steps makes these events.

        It warns where the steps are too few for this, so that `decode` makes other events: a residual above 1e-4.

        Args:
            x: events.
            condition: classes (B,).
            steps: S of `make_grid`.
            options: of `ddim_encode`.
        """
        self.check_events(x)
        options = {"tol": _TOLERANCE, "max_iter": _MOST_ITERATIONS, **options}
        with torch.no_grad(), evaluating(self):
            times = make_grid(self.schedule, steps, kind="trailing")
            inverted = ddim_encode(self.denoiser, x, times, condition=condition, **options)
        if inverted.residual > _LARGE_RESIDUAL:
            warnings.warn(
                f"{steps} steps were inverted up to a residual of {inverted.residual:.1g} only, and decode makes other "
                "events; take more steps",
                stacklevel=2,
            )
        return inverted.z

    def decode(self, z: Tensor, *, condition: Tensor | None = None, steps: int = 50, **options: Any) -> Tensor:
        """Return the events (B, *event_shape) of noise, by DDIM or another solver without noise."""
        check_batch(z, self.event_shape, "z")
        with torch.no_grad(), evaluating(self):
            times = make_grid(self.schedule, steps, kind="trailing")
            return _solve(self.denoiser, z, times, condition=condition, **options)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | int | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the log density (B,) of events at t_min, in nats: exact up to 100 values an event, else unbiased.

        Args:
            x: events (B, *event_shape).
            condition: classes (B,).
            generator: of the probes.
            options: of `log_likelihood`, which also tells the standard error.

        Raises:
            NotSupported: the schedule is discrete.
        """
        self.check_events(x)
        if self.schedule.discrete:
            raise NotSupported(
                "Diffusion on a discrete schedule does not support log_prob; train on a continuous one, such as VP."
            )
        options = {"trace": None, **options}
        with evaluating(self):
            return log_likelihood(self.denoiser, x, condition=condition, generator=generator, **options).value


def _solve(denoiser: Predictor, x: Tensor, times: Tensor, **options: Any) -> Tensor:
    """Return the events of `solve`."""
    if options.get("return_trajectory"):
        raise TypeError("a model returns events alone; take `solve` with its denoiser for a trajectory, or a callback")
    out = solve(denoiser, x, times, **options)
    assert isinstance(out, Tensor)
    return out


def find_event_shape(net: nn.Module, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of the events of a network: the given one, or what the network tells.

    Raises:
        ValueError: it is not given, and the network does not tell.
    """
    if given is not None:
        return tuple(given)
    shape = getattr(net, "event_shape", None)
    if shape is not None:
        return tuple(shape)
    config = getattr(net, "config", None)  # of diffusers
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    if size is None or channels is None:
        raise ValueError("the network does not tell the shape of its events: give event_shape, such as (1, 28, 28)")
    height, width = (size, size) if isinstance(size, int) else size
    return (channels, height, width)
