"""Continuous noise schedules: how much signal and how much noise an event has at each time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kexue._tensors import may_read, outside_inference_mode
from kexue.generative.noise import Noise

Time = Tensor | float | int
_BISECTIONS = 80  # halvings of [t_min, t_max]: below the rounding of float64
_ROUNDING = 1e-6  # share of t_max by which a time in float32 may be off


def expand_dims(c: Tensor, x: Tensor) -> Tensor:
    """Return coefficients, one or (B,), in a form that multiplies events `x` (B, *event), in its dtype."""
    c = c.to(device=x.device, dtype=x.dtype)
    return c if c.ndim == 0 else c.reshape(-1, *[1] * (x.ndim - 1))


def place_times(schedule: Schedule, t: Time, x: Tensor) -> Tensor:
    """Return times, one or one for each of the events `x` (B, *event), on their device: floats, or numbers of a table.

    Raises:
        TypeError: events that are not floats.
        ValueError: as many times as there are events are expected; times outside of [0, t_max].
    """
    if not x.is_floating_point():
        raise TypeError(f"events must be a tensor of floats, got {x.dtype}; use x.float()")
    if not isinstance(t, Tensor):
        t = torch.as_tensor(t, dtype=None if schedule.discrete else torch.float64)
    if t.ndim > 1 or (t.ndim and len(t) not in (1, len(x))):
        raise ValueError(f"times must be one, or one for each of {len(x)} events, got shape {tuple(t.shape)}")
    if not schedule.discrete:
        check_times(t, schedule.t_max)
    floats = schedule.discrete or t.is_floating_point()  # a network takes integers for numbers of a table
    return t.to(x.device) if floats else t.to(x.device, torch.float64)


def check_times(t: Tensor, t_max: float) -> None:
    """Raise a ValueError for times, one or several, that are not in [0, t_max], where values can be read."""
    if not t.numel() or not may_read(t):
        return
    low, high = (float(t),) * 2 if t.ndim == 0 else (float(t.min()), float(t.max()))
    slack = _ROUNDING * t_max
    if not (low >= -slack and high <= t_max + slack):  # also NaN
        raise ValueError(f"times must be in [0, {t_max:g}], got {low if not low >= -slack else high:g}")


class IsotropicNormal:
    """Normal distribution N(0, std^2 I) of events of any shape: where a diffusion ends, and where sampling starts.

    Args:
        std: standard deviation, > 0.

    Example:
        >>> IsotropicNormal(2.0).sample((3, 2), generator=0).shape
        torch.Size([3, 2])
    """

    def __init__(self, std: float) -> None:
        self.std = float(std)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return events of this shape, the first axis of which counts them; with a seed, each has its own noise."""
        count, *event_shape = shape
        return self.draw(Noise(generator, count), event_shape, dtype)

    def draw(self, noise: Noise, event_shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Return len(noise) events, each made of the noise of its item."""
        return self.std * noise.normal(tuple(event_shape), dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density (B,) of events (B, *event), in nats."""
        d = math.prod(x.shape[1:])
        return -0.5 * (x / self.std).square().flatten(1).sum(1) - d * (math.log(self.std) + 0.5 * math.log(2 * math.pi))


class Schedule(ABC):
    """Signal alpha(t) and noise sigma(t) of a diffusion x_t = alpha x_0 + sigma eps; time 0 is data.

    Both are standard deviations, as the barred letters of the articles; `alphas_cumprod` of the DDPM paper is alpha^2.
    A subclass states `log_alpha`, `sigma`, and their derivatives; everything else follows. Numbers are float64.

    Attributes:
        t_min, t_max: times between which the schedule is used; sampling starts at t_max and ends at t_min.
        discrete: whether times are the integers of a table.

    Source: kexue.fm/archives/9209.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    discrete = False

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha(t)."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Return the standard deviation of the noise."""

    @abstractmethod
    def drift_coefficient(self, t: Time) -> Tensor:
        """Return d log alpha / dt: the drift of the forward equation is this times x."""

    @abstractmethod
    def sigma_dot(self, t: Time) -> Tensor:
        """Return d sigma / dt."""

    def alpha(self, t: Time) -> Tensor:
        """Return the coefficient of the signal."""
        return self.log_alpha(t).exp()

    def alpha_dot(self, t: Time) -> Tensor:
        """Return d alpha / dt."""
        return self.alpha(t) * self.drift_coefficient(t)

    def diffusion_squared(self, t: Time) -> Tensor:
        """Return g^2 = alpha^2 d(sigma^2 / alpha^2)/dt = 2 sigma (sigma' - sigma d log alpha / dt)."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.sigma_dot(t) - sigma * self.drift_coefficient(t))  # 9209: f and g from alpha, sigma

    def log_snr(self, t: Time) -> Tensor:
        """Return the logarithm of the signal-to-noise ratio, 2 log(alpha / sigma)."""
        return 2 * (self.log_alpha(t) - self.sigma(t).log())

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time at which `log_snr` is v, by bisection; t_min or t_max where v is beyond theirs."""
        v = as_time(v)
        low, high = torch.full_like(v, self.t_min), torch.full_like(v, self.t_max)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            earlier = self.log_snr(middle) < v  # less signal than wanted: the time is earlier
            low, high = torch.where(earlier, low, middle), torch.where(earlier, middle, high)
        return (low + high) / 2

    @property
    def prior(self) -> IsotropicNormal:
        """Distribution of x at t_max, once the signal is negligible."""
        return IsotropicNormal(float(self.sigma(self.t_max)))

    def marginal(
        self,
        x0: Tensor,
        t: Time,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return noisy events x_t = alpha x0 + sigma eps (B, *event), and their noise eps.

        Args:
            x0: (B, *event).
            t: one time, or one for each event (B,).
            generator: as of `kexue.generative.Noise`.
        """
        t = place_times(self, t, x0)
        eps = Noise(generator, len(x0), x0.device).normal(x0.shape[1:], x0.dtype)
        return expand_dims(self.alpha(t), x0) * x0 + expand_dims(self.sigma(t), x0) * eps, eps

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the drift f(x, t) = (d log alpha / dt) x of the forward equation dx = f dt + g dw."""
        return expand_dims(self.drift_coefficient(t), x) * x

    def diffusion(self, t: Time) -> Tensor:
        """Return g(t) of the forward equation dx = f dt + g dw."""
        return self.diffusion_squared(t).sqrt()


def as_time(t: Time) -> Tensor:
    """Return a time, or times, as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


class VP(Schedule):
    """Variance-preserving schedule: alpha = exp(-t^2 (b1 - b0)/4 - t b0/2), sigma^2 = 1 - alpha^2.

    The forward equation is dx = -b(t)/2 x dt + sqrt(b(t)) dw with b(t) = b0 + t (b1 - b0).

    Args:
        beta_min: b0, >= 0.
        beta_max: b1, > b0.

    Source: kexue.fm/archives/9209.

    Example:
        >>> schedule = VP()
        >>> round(float(schedule.alpha(1.0)), 4)
        0.0066
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 <= beta_min < beta_max < math.inf:
            raise ValueError(f"0 <= beta_min < beta_max is expected, got beta_min {beta_min}, beta_max {beta_max}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def _beta(self, t: Time) -> Tensor:
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha(t)."""
        t = as_time(t)
        return -t.square() * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def sigma(self, t: Time) -> Tensor:
        """Return sqrt(1 - alpha^2), exact near time 0."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def drift_coefficient(self, t: Time) -> Tensor:
        """Return -b(t)/2."""
        return -self._beta(t) / 2

    def sigma_dot(self, t: Time) -> Tensor:
        """Return alpha^2 b(t) / (2 sigma), infinite at time 0."""
        return self.alpha(t).square() * self._beta(t) / (2 * self.sigma(t))

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time at which `log_snr` is v."""
        return self._time_of_log_alpha(-0.5 * torch.nn.functional.softplus(-as_time(v)))

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        a, b = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
        return -2 * log_alpha / (b + (b**2 - 4 * a * log_alpha).sqrt()).clamp(min=torch.finfo(torch.float64).tiny)


class SubVP(VP):
    """Schedule with the signal of `VP` and less noise: sigma = 1 - alpha^2.

    Args:
        beta_min: b0, >= 0.
        beta_max: b1, > b0.

    Example:
        >>> bool(SubVP().sigma(0.3) < VP().sigma(0.3))
        True
    """

    def sigma(self, t: Time) -> Tensor:
        """Return 1 - alpha^2."""
        return -torch.expm1(2 * self.log_alpha(t))

    def sigma_dot(self, t: Time) -> Tensor:
        """Return alpha^2 b(t)."""
        return self.alpha(t).square() * self._beta(t)

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time at which `log_snr` is v; it solves alpha = r (1 - alpha^2) for r = exp(v/2)."""
        ratio = (as_time(v) / 2).clamp(max=300).exp()  # its square must be finite
        return self._time_of_log_alpha((2 * ratio / (1 + (1 + 4 * ratio.square()).sqrt())).log())


class QuadraticExp(VP):
    """Schedule alpha = exp(-5 t^2), sigma^2 = 1 - alpha^2: the limit of DDPM's default, `VP` with b0 = 0, b1 = 20.

    Source: kexue.fm/archives/9181.

    Example:
        >>> round(float(QuadraticExp().log_alpha(0.5)), 6)
        -1.25
    """

    def __init__(self) -> None:
        super().__init__(0.0, 20.0)


class VE(Schedule):
    """Variance-exploding schedule: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t.

    Args:
        sigma_min: noise at time 0, > 0.
        sigma_max: noise at time 1, > sigma_min and far above the spread of the data.

    Source: kexue.fm/archives/9209.

    Example:
        >>> float(VE().prior.std)
        50.0
    """

    t_min = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max is expected, got sigma_min {sigma_min}, sigma_max {sigma_max}")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._rate = math.log(sigma_max / sigma_min)

    def log_alpha(self, t: Time) -> Tensor:
        """Return 0."""
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        """Return sigma_min (sigma_max / sigma_min)^t."""
        return self.sigma_max * ((as_time(t) - 1) * self._rate).exp()

    def drift_coefficient(self, t: Time) -> Tensor:
        """Return 0."""
        return torch.zeros_like(as_time(t))

    def sigma_dot(self, t: Time) -> Tensor:
        """Return sigma log(sigma_max / sigma_min)."""
        return self.sigma(t) * self._rate

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time at which `log_snr` is v."""
        return 1 + (-as_time(v) / 2 - math.log(self.sigma_max)) / self._rate


class CosineSchedule(Schedule):
    """Schedule of an angle: alpha = cos(pi t/2), sigma = sin(pi t/2).

    It ends at t_max = 0.999: at time 1 nothing of the signal is left, and the noise alone would not tell the data.

    Example:
        >>> schedule = CosineSchedule()
        >>> round(float(schedule.alpha(0.5) ** 2 + schedule.sigma(0.5) ** 2), 6)
        1.0
    """

    t_max = 0.999

    def log_alpha(self, t: Time) -> Tensor:
        """Return log cos(pi t/2)."""
        return (as_time(t) * (math.pi / 2)).cos().log()

    def sigma(self, t: Time) -> Tensor:
        """Return sin(pi t/2)."""
        return (as_time(t) * (math.pi / 2)).sin()

    def drift_coefficient(self, t: Time) -> Tensor:
        """Return -pi/2 tan(pi t/2)."""
        return -math.pi / 2 * (as_time(t) * (math.pi / 2)).tan()

    def sigma_dot(self, t: Time) -> Tensor:
        """Return pi/2 cos(pi t/2)."""
        return math.pi / 2 * (as_time(t) * (math.pi / 2)).cos()

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time at which `log_snr` is v."""
        return (-as_time(v) / 2).exp().atan() * (2 / math.pi)


class FlowSchedule(Schedule):
    """Straight schedule of flow matching: alpha = 1 - t, sigma = t.

    Networks on it predict the velocity eps - x0, which is finite at both ends.

    Example:
        >>> float(FlowSchedule().alpha(0.25)), float(FlowSchedule().sigma_dot(0.25))
        (0.75, 1.0)
    """

    t_min = 0.0

    def alpha(self, t: Time) -> Tensor:
        """Return 1 - t."""
        return 1 - as_time(t)

    def log_alpha(self, t: Time) -> Tensor:
        """Return log(1 - t)."""
        return torch.log1p(-as_time(t))

    def sigma(self, t: Time) -> Tensor:
        """Return t."""
        return as_time(t)

    def alpha_dot(self, t: Time) -> Tensor:
        """Return -1."""
        return -torch.ones_like(as_time(t))

    def drift_coefficient(self, t: Time) -> Tensor:
        """Return -1/(1 - t), infinite at time 1."""
        return -1 / (1 - as_time(t))

    def sigma_dot(self, t: Time) -> Tensor:
        """Return 1."""
        return torch.ones_like(as_time(t))

    def time_of_log_snr(self, v: Time) -> Tensor:
        """Return the time at which `log_snr` is v."""
        return torch.sigmoid(-as_time(v) / 2)


Curve = Callable[[Tensor], Tensor]


class FromAlphaSigma(Schedule):
    """Schedule of your own functions alpha(t) and sigma(t).

    Args:
        alpha: function of a float64 tensor of times, or a pair of it and its derivative; without it autograd derives.
            alpha > 0, and alpha / sigma falls with time.
        sigma: likewise; sigma >= 0.
        t_min, t_max: times between which it is used.

    Example:
        >>> schedule = FromAlphaSigma(lambda t: torch.ones_like(t), lambda t: t)
        >>> float(schedule.sigma_dot(0.3)), float(schedule.diffusion_squared(2.0))
        (1.0, 4.0)
    """

    def __init__(
        self,
        alpha: Curve | tuple[Curve, Curve],
        sigma: Curve | tuple[Curve, Curve],
        *,
        t_min: float = 1e-3,
        t_max: float = 1.0,
    ) -> None:
        if not 0 <= t_min < t_max < math.inf:
            raise ValueError(f"0 <= t_min < t_max is expected, got t_min {t_min}, t_max {t_max}")
        self.t_min, self.t_max = float(t_min), float(t_max)
        self._alpha, self._alpha_dot = _with_derivative(alpha)
        self._sigma, self._sigma_dot = _with_derivative(sigma)
        times = torch.linspace(self.t_min, self.t_max, 33, dtype=torch.float64)[1:-1]
        ratio = self.sigma(times) / self.alpha(times)
        if not bool((ratio > 0).all()) or not bool((ratio.diff() > 0).all()):
            raise ValueError(
                f"sigma / alpha must be positive and grow with time, between t_min and t_max it is {ratio.tolist()}"
            )

    def alpha(self, t: Time) -> Tensor:
        """Return the given alpha(t)."""
        return self._alpha(as_time(t))

    def log_alpha(self, t: Time) -> Tensor:
        """Return the logarithm of the given alpha(t)."""
        return self.alpha(t).log()

    def sigma(self, t: Time) -> Tensor:
        """Return the given sigma(t)."""
        return self._sigma(as_time(t))

    def alpha_dot(self, t: Time) -> Tensor:
        """Return d alpha / dt."""
        return self._alpha_dot(as_time(t))

    def drift_coefficient(self, t: Time) -> Tensor:
        """Return d log alpha / dt."""
        return self.alpha_dot(t) / self.alpha(t)

    def sigma_dot(self, t: Time) -> Tensor:
        """Return d sigma / dt."""
        return self._sigma_dot(as_time(t))


def _with_derivative(curve: Curve | tuple[Curve, Curve]) -> tuple[Curve, Curve]:
    """Return a function of time and its derivative, by autograd where it is not given."""
    if isinstance(curve, tuple):
        return curve

    def derivative(t: Tensor) -> Tensor:
        with outside_inference_mode():  # within it a derivative would be 0
            slope: Tensor = torch.func.grad(lambda at: curve(at).sum())(t.clone())
            return slope

    return curve, derivative
