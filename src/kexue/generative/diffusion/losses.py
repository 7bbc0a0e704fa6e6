"""Losses of denoisers: the errors of their predictions, weighted by time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from kexue._tensors import at_least_float32
from kexue.errors import NotSupported
from kexue.generative.diffusion.denoiser import Denoiser, Prediction
from kexue.generative.diffusion.discrete import DiscreteSchedule
from kexue.generative.diffusion.schedule import Schedule, expand_dims
from kexue.generative.model import LossOutput, check_not_empty
from kexue.generative.noise import Noise

Weighting = Literal["simple", "likelihood", "min_snr"]
_MOST_SNR = 5.0  # of the weighting min_snr


def score_matching_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    weighting: Weighting = "simple",
    importance: bool = False,
    condition: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | int | Noise | None = None,
) -> LossOutput:
    """Return the mean squared error of a denoiser on noisy events, over times, events and values.

    - ``simple``: of what the network predicts; of a score multiplied by sigma, of EDM divided by its scale.
    - ``likelihood``: of eps times g^2/sigma^2 = -d log_snr/dt, which bounds the log density.
    - ``min_snr``: of eps times min(SNR, 5)/SNR.

    Times are spread evenly over the batch, (i + u)/B.

    Args:
        denoiser: the network on its schedule.
        x0: clean events (B, *event).
        weighting: of the times.
        importance: of ``likelihood``: times are drawn in proportion to the weight, evenly in log_snr, which gives the
            same mean with less variance; then the loss is multiplied by the mean weight.
        condition: of the denoiser, one for each event.
        generator: as of `GenerativeModel.sample`.

    Raises:
        ValueError: an unknown weighting, importance with another weighting than likelihood, or on a schedule whose
            log_snr is infinite; a batch of no event.
        NotSupported: the likelihood weighting on a discrete schedule.

    Source: kexue.fm/archives/9209.

    Example:
        >>> from kexue.generative import MLPDenoiser
        >>> from kexue.generative.diffusion import VP
        >>> out = score_matching_loss(Denoiser(MLPDenoiser(2), VP()), torch.randn(8, 2), generator=0)
        >>> out.loss.shape
        torch.Size([])
    """
    schedule = denoiser.schedule
    check_weighting(schedule, weighting, importance)
    check_not_empty(x0)
    noise = generator if isinstance(generator, Noise) else Noise(generator, len(x0), x0.device)
    t = draw_times(schedule, noise, by_log_snr=importance)
    eps = noise.normal(x0.shape[1:], x0.dtype)
    x = expand_dims(schedule.alpha(t), x0) * x0 + expand_dims(schedule.sigma(t), x0) * eps
    told = denoiser.predict(x, t, condition=condition)
    eps_errors = at_least_float32(told.eps - eps).square()
    errors = eps_errors if weighting != "simple" else _own_errors(denoiser, told, x0, eps)
    weight = _weights(schedule, t, weighting, importance)
    loss = (errors.flatten(1).mean(1) * weight.to(errors)).mean()
    return LossOutput(loss, {"eps_error": eps_errors.detach().mean()})


def check_weighting(schedule: Schedule, weighting: str, importance: bool) -> None:
    """Raise for a weighting that there is not, or that does not go with the schedule; as of `score_matching_loss`."""
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}")
    if importance and weighting != "likelihood":
        raise ValueError(f"importance goes with the weighting likelihood, got {weighting!r}")
    if weighting == "likelihood" and schedule.discrete:
        raise NotSupported("the likelihood weighting needs a continuous schedule, such as VP.")
    if importance:
        _log_snr_range(schedule)


def draw_times(schedule: Schedule, noise: Noise, *, by_log_snr: bool = False) -> Tensor:
    """Return a time for each item, (B,): (i + u)/B of the range of times, or of log_snr, in random order.

    Integers in [0, num_steps) of a discrete schedule.
    """
    u = noise.uniform((2,), torch.float64)
    place = (u[:, 0].argsort().argsort() + u[:, 1]) / max(len(u), 1)
    if isinstance(schedule, DiscreteSchedule):
        return (place * schedule.num_steps).long().clamp(max=schedule.num_steps - 1)
    if not by_log_snr:
        return schedule.t_min + (schedule.t_max - schedule.t_min) * place
    low, high = _log_snr_range(schedule)
    return schedule.time_of_log_snr(high + (low - high) * place)


def _log_snr_range(schedule: Schedule) -> tuple[float, float]:
    """Return log_snr at t_max and at t_min."""
    low, high = (float(schedule.log_snr(t)) for t in (schedule.t_max, schedule.t_min))
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("importance needs a finite log_snr at both ends of the schedule; take VP, or importance=False")
    return low, high


def _weights(schedule: Schedule, t: Tensor, weighting: Weighting, importance: bool) -> Tensor:
    """Return the weight of each time, (B,)."""
    if importance:
        low, high = _log_snr_range(schedule)
        return torch.full_like(t, (high - low) / (schedule.t_max - schedule.t_min))
    if weighting == "likelihood":
        return schedule.diffusion_squared(t) / schedule.sigma(t).square()  # 9209: weight g^2 of the score
    if weighting == "min_snr":
        return (_MOST_SNR * (-schedule.log_snr(t)).exp()).clamp(max=1)
    return torch.ones((), device=t.device)


def _own_errors(denoiser: Denoiser, told: Prediction, x0: Tensor, eps: Tensor) -> Tensor:
    """Return the squared errors of what the network predicts."""
    true = Prediction(x0, eps, told.schedule, told.t)
    kind = denoiser.prediction
    if kind in ("eps", "score"):  # sigma times the error of the score is that of eps
        return at_least_float32(told.eps - eps).square()
    if kind == "edm":
        return at_least_float32(told.x0 - x0).square() / expand_dims(denoiser.edm_scale(told.t), x0).square()
    name = "x0" if kind == "x0" else "v" if kind == "v" else "velocity"
    error: Tensor = getattr(told, name) - getattr(true, name)
    return at_least_float32(error).square()


class ConditionDropout:
    """Random replacement of conditions by "no condition", each event by itself, as guidance without classifier needs.

    Args:
        p: probability of each, in [0, 1].

    Source: kexue.fm/archives/9257.

    Example:
        >>> ConditionDropout(1.0)(torch.tensor([3, 4]), 10, generator=0)
        tensor([10, 10])
    """

    def __init__(self, p: float) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.p = p

    def __call__(
        self,
        condition: Tensor,
        null: int | Tensor,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | int | Noise | None = None,
    ) -> Tensor:
        """Return conditions (B, ...) of which some are `null`, a class number or the shape of one condition."""
        noise = generator if isinstance(generator, Noise) else Noise(generator, len(condition), condition.device)
        if len(noise) != len(condition):
            raise ValueError(f"a condition for each of {len(noise)} events is expected, got {len(condition)}")
        drop = noise.uniform(()) < self.p
        drop = drop.reshape(-1, *[1] * (condition.ndim - 1))
        return torch.where(drop, torch.as_tensor(null).to(condition), condition)
