"""Denoisers: a network on a schedule, whatever it predicts, as an estimate of the data and of the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from kexue._tensors import at_least_float32, explaining_precision, may_read
from kexue.generative.diffusion.schedule import Schedule, Time, expand_dims, place_times

Target = Literal["eps", "x0", "v", "score", "velocity", "edm"]
_EDM_STD = 0.5  # spread of the data that the scaling of EDM supposes
LEAST_SIGNAL = 1e-8  # alpha below it is no signal: float64 noise of a cosine at its end


@dataclass(frozen=True)
class Prediction:
    """What a denoiser tells of noisy events x_t = alpha x0 + sigma eps, at one time or at one for each event.

    Attributes:
        x0: estimate of the data, the mean of x0 given x_t, (B, *event).
        eps: estimate of the noise, (B, *event).
        fraction: second half of the output of a network with learned variance, in [-1, 1]; None without.
        tilt: gradient that shifts the mean of a step with noise, times its variance; None without such guidance.
    """

    x0: Tensor
    eps: Tensor
    schedule: Schedule
    t: Tensor
    fraction: Tensor | None = None
    tilt: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """Gradient of log p_t(x), -eps / sigma; ValueError where there is no noise."""
        sigma = self.schedule.sigma(self.t)
        refuse_zero(sigma, self.t, "the score is undefined where sigma is 0")
        return -self.eps / expand_dims(sigma, self.eps)

    @property
    def v(self) -> Tensor:
        """Estimate of alpha eps - sigma x0."""
        alpha, sigma = self.schedule.alpha(self.t), self.schedule.sigma(self.t)
        return expand_dims(alpha, self.eps) * self.eps - expand_dims(sigma, self.x0) * self.x0

    @property
    def velocity(self) -> Tensor:
        """Right-hand side alpha' x0 + sigma' eps of the probability-flow equation."""
        alpha_dot, sigma_dot = self.schedule.alpha_dot(self.t), self.schedule.sigma_dot(self.t)
        return expand_dims(alpha_dot, self.x0) * self.x0 + expand_dims(sigma_dot, self.eps) * self.eps  # 9228


class Predictor(Protocol):
    """Anything that predicts on a schedule: a `Denoiser`, a guided one, an exact one."""

    @property
    def schedule(self) -> Schedule:
        """The schedule of the events."""
        ...

    def predict(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Prediction:
        """Return what is known of events x (B, *event) at time t, which is one or (B,)."""
        ...


class Denoiser:
    """A network on a schedule, as estimates of data, noise, score and velocity.

    The network is called as those of diffusers, ``net(sample, timestep, class_labels=...)``: integers of a discrete
    schedule are passed as they are, times of a continuous one as floats. It may return a tensor, a tuple or an object
    with `sample`. Integer conditions are given as `class_labels`, others as `encoder_hidden_states`.

    Args:
        net: the network.
        schedule: a `Schedule`.
        prediction: what the network predicts: ``"eps"``, ``"x0"``, ``"v"`` = alpha eps - sigma x0, ``"score"`` =
            -eps/sigma, ``"velocity"`` = alpha' x0 + sigma' eps, or ``"edm"``: the network between the scalings of EDM
            for data of standard deviation 0.5, which gets log(sigma/alpha)/4 as time.
        learned_variance: whether the second half of the channels is a variance, used by `ddpm_step`.

    Raises:
        ValueError: an unknown prediction; on a call, an output of another shape, or "eps" and "score" at a time without
            signal, which tell nothing of the data.

    Example:
        >>> from kexue.generative import MLPDenoiser
        >>> from kexue.generative.diffusion import VP
        >>> denoiser = Denoiser(MLPDenoiser(2), VP())
        >>> denoiser.predict(torch.zeros(5, 2), torch.tensor(0.5)).x0.shape
        torch.Size([5, 2])
    """

    def __init__(
        self, net: Any, schedule: Schedule, *, prediction: Target = "eps", learned_variance: bool = False
    ) -> None:
        if prediction not in get_args(Target):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Target))}, got {prediction!r}")
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.learned_variance = learned_variance

    def predict(self, x: Tensor, t: Time, *, condition: Tensor | None = None) -> Prediction:
        """Return what the network knows of events x (B, *event) at time t, which is one or (B,)."""
        t = place_times(self.schedule, t, x)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction in ("eps", "score"):
            refuse_zero(
                alpha,
                t,
                f"a network that predicts {self.prediction} tells nothing of the data where alpha is 0; train one that "
                "predicts v or x0, or begin at an earlier time",
            )
        if self.prediction == "edm":
            x0, fraction = self._predict_edm(x, alpha, sigma, condition)
            return Prediction(x0, _noise_of(x, x0, alpha, sigma, t), self.schedule, t, fraction)
        out, fraction = self._split(x, call_network(self.net, x, t, condition))
        x0, eps = self._read(x, t, alpha, sigma, out)
        return Prediction(x0, eps, self.schedule, t, fraction)

    def _split(self, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the prediction and the fraction of a learned variance, None without."""
        if self.learned_variance and out.ndim == x.ndim and out.shape[1] == 2 * x.shape[1]:
            return out[:, : x.shape[1]], out[:, x.shape[1] :]
        if self.learned_variance or out.shape != x.shape:
            expected = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if self.learned_variance else tuple(x.shape)
            hint = ""
            if not self.learned_variance and out.ndim == x.ndim and out.shape[1] == 2 * x.shape[1]:
                hint = "; if its second half is a variance, set learned_variance=True"
            raise ValueError(f"the network must return {expected}, got {tuple(out.shape)}{hint}")
        return out, None

    def _read(self, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and the noise that an output means; no division by an alpha or a sigma that may be 0."""
        a, s = expand_dims(alpha, x), expand_dims(sigma, x)
        if self.prediction == "x0":
            return out, _noise_of(x, out, alpha, sigma, t)
        if self.prediction == "v":  # x = alpha x0 + sigma eps and v = alpha eps - sigma x0, solved
            norm = expand_dims(alpha.square() + sigma.square(), x)
            return (a * x - s * out) / norm, (s * x + a * out) / norm
        if self.prediction == "velocity":
            alpha_dot, sigma_dot = self.schedule.alpha_dot(t), self.schedule.sigma_dot(t)
            norm = expand_dims(alpha * sigma_dot - sigma * alpha_dot, x)
            x0 = (expand_dims(sigma_dot, x) * x - s * out) / norm
            return x0, (a * out - expand_dims(alpha_dot, x) * x) / norm
        eps = -s * out if self.prediction == "score" else out
        return (x - s * eps) / a, eps

    def _predict_edm(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return D(x) = c_skip x/alpha + c_out F(c_in x/alpha), without a division by alpha; and the fraction."""
        norm = sigma.square() + (alpha * _EDM_STD).square()
        noise = (sigma.clamp(min=LEAST_SIGNAL) / alpha.clamp(min=LEAST_SIGNAL)).log() / 4
        inside, fraction = self._split(x, call_network(self.net, x * expand_dims(norm.rsqrt(), x), noise, condition))
        skip = alpha * _EDM_STD**2 / norm
        return expand_dims(skip, x) * x + expand_dims(sigma * _EDM_STD * norm.rsqrt(), x) * inside, fraction

    def edm_scale(self, t: Tensor) -> Tensor:
        """Return c_out of EDM: the standard deviation of x0 that the network's output accounts for."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return sigma * _EDM_STD * (sigma.square() + (alpha * _EDM_STD).square()).rsqrt()


def call_network(net: Any, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """Return the output of a network called as those of diffusers: a tensor, a tuple, or an object with `sample`.

    It has the dtype of `x`, whatever autocast makes of the network. Conditions are checked as in `name_condition`.
    """
    named = {} if condition is None else {name_condition(condition, len(x)): condition}
    with explaining_precision(net, x, "events"):
        out = net(x, t.to(x.dtype) if t.is_floating_point() else t, **named)
    if not isinstance(out, Tensor):
        out = cast(Tensor, out[0] if isinstance(out, tuple) else out.sample)
    return out.to(x.dtype)


def name_condition(condition: Tensor, n: int) -> str:
    """Return the name of the argument by which a network gets the conditions of n events.

    Raises:
        TypeError: a condition that is neither class numbers nor vectors of floats.
        ValueError: conditions of another number than the events.
    """
    if not isinstance(condition, Tensor) or condition.dtype == torch.bool:
        got = getattr(condition, "dtype", type(condition).__name__)
        raise TypeError(f"condition must be a tensor of class numbers, or of floats, got {got}")
    if not condition.ndim or len(condition) != n:
        raise ValueError(f"condition must have one row for each of {n} events, got shape {tuple(condition.shape)}")
    if not condition.is_floating_point():
        return "class_labels"
    if condition.ndim == 1:
        raise TypeError(f"class numbers must be integers, got {condition.dtype}; use condition.long()")
    return "encoder_hidden_states"


def _noise_of(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
    """Return eps = (x - alpha x0) / sigma."""
    refuse_zero(sigma, t, "the noise of clean data is undefined; end one step earlier")
    return (x - expand_dims(alpha, x) * x0) / expand_dims(sigma, x)


def _all_above(value: Tensor, bound: float) -> bool:
    """Return whether a number, or all of several, are above a bound; a number alone is read at once, faster."""
    return bool((value > bound).all()) if value.ndim else float(value) > bound


def refuse_zero(value: Tensor, t: Tensor, why: str) -> None:
    """Raise where a divisor is 0, and values can be read."""
    if may_read(value) and not _all_above(value, LEAST_SIGNAL):
        worst = t.reshape(-1)[int(value.reshape(-1).argmin())] if t.ndim else t
        raise ValueError(f"{why} (time {worst.item():g})")


class ClippedDenoiser:
    """A denoiser whose estimate of the data is kept in bounds, and whose noise follows from it.

    Args:
        denoiser: a `Denoiser`, guided or not.
        clip: ``"static"``: to [-1, 1]. ``"dynamic"``: to [-s, s] and divided by s, where s is the 0.995 quantile of
            |x0| of each event, at least 1.
    """

    def __init__(self, denoiser: Predictor, clip: Literal["static", "dynamic"]) -> None:
        if clip not in ("static", "dynamic"):
            raise ValueError(f"clip must be 'static', 'dynamic' or None, got {clip!r}")
        self._denoiser, self._dynamic = denoiser, clip == "dynamic"
        self.schedule = denoiser.schedule

    def predict(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Prediction:
        """Return the prediction with x0 in bounds."""
        told = self._denoiser.predict(x, t, condition=condition)
        if self._dynamic and len(x):
            size = at_least_float32(told.x0).abs().flatten(1).quantile(0.995, dim=1).clamp(min=1)
            bound = expand_dims(size, told.x0)
            x0 = told.x0.clamp(-bound, bound) / bound
        else:
            x0 = told.x0.clamp(-1, 1)
        eps = _noise_of(x, x0, self.schedule.alpha(told.t), self.schedule.sigma(told.t), told.t)
        return Prediction(x0, eps, told.schedule, told.t, told.fraction, told.tilt)


def reverse_drift(prediction: Prediction, x: Tensor, noise_level: float = 1.0) -> Tensor:
    """Return the drift f - (1 + c^2) g^2/2 score of the reverse equation, c = noise_level."""
    schedule, t = prediction.schedule, prediction.t
    why = "the drift of the reverse equation is infinite where alpha is 0; take the solver ddim, or begin earlier"
    refuse_zero(schedule.alpha(t), t, why)
    g2 = expand_dims(schedule.diffusion_squared(t), x)
    return schedule.drift(x, t) - (1 + noise_level**2) / 2 * g2 * prediction.score  # 9228: (g^2 + c^2)/2


class ReverseSDE:
    """Stochastic equation whose solution runs from noise to data, with any share of the noise.

    dx = [f - (1 + c^2) g^2/2 score] dt + c g dw, with time running backwards; every c has the same densities at every
    time. c = 1 is the reverse of the forward equation, c = 0 the probability-flow equation.

    Args:
        denoiser: on a continuous schedule.
        noise_level: c, in [0, 1].

    Source: kexue.fm/archives/9209 and 9228.
    """

    def __init__(self, denoiser: Predictor, *, noise_level: float = 1.0) -> None:
        if not 0 <= noise_level <= 1:
            raise ValueError(f"noise_level must be in [0, 1], got {noise_level}")
        self._denoiser, self.noise_level = denoiser, noise_level

    def drift(self, x: Tensor, t: Time, *, condition: Tensor | None = None) -> Tensor:
        """Return the drift (B, *event)."""
        told = self._denoiser.predict(x, place_times(self._denoiser.schedule, t, x), condition=condition)
        return reverse_drift(told, x, self.noise_level)

    def diffusion(self, t: Time) -> Tensor:
        """Return c g(t)."""
        return self.noise_level * self._denoiser.schedule.diffusion(t)
