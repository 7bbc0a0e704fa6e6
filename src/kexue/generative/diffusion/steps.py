"""Steps of samplers, as pure functions: events at time t become events at an earlier time s.

All have the form ``step(denoiser, x, t, s, *, z=None, state=None, condition=None, **options) -> Step``. `z` is the
noise of a stochastic step, (B, *event), and None adds none; `state` is what a step that looks back got from the one
before. Times are tensors, one or one for each event.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import may_read
from kexue.generative.diffusion.denoiser import ClippedDenoiser, Prediction, Predictor, refuse_zero, reverse_drift
from kexue.generative.diffusion.schedule import Schedule, expand_dims

Clip = Literal["static", "dynamic"] | None
Norm = Literal["sample", "batch", "noise"]
_MOST_LENGTH = 2.0  # r of a Langevin step by the lengths of each event, in units of the noise


class Step(NamedTuple):
    """Result of one step.

    Attributes:
        x: events at time s, (B, *event).
        state: what the next step of a method that looks back needs; None of others.
        prediction: what the denoiser told at time t.
    """

    x: Tensor
    state: Any
    prediction: Prediction


# ---- given alpha and sigma: DDIM and its family ----------------------------------------------------------------------


def ddim_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
    eta: float = 0.0,
    noise: Literal["posterior", "forward"] = "posterior",
    clip: Clip = None,
) -> Step:
    """Make one step of DDIM: x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z.

    tau = eta sigma_s/sigma_t sqrt(sigma_t^2 - a^2 sigma_s^2), a = alpha_t/alpha_s: eta 0 is DDIM, 1 is DDPM, and every
    value keeps the distribution at each time.

    Args:
        denoiser, x, t, s, z, state, condition: as of all steps.
        eta: share of the noise, in [0, 1]; a warning above.
        noise: ``"forward"`` adds the noise of the forward step, sqrt(sigma_t^2 - a^2 sigma_s^2), and keeps the
            coefficient of eps of eta 1, as the DDIM paper does; then eta is 0 (not said) or 1.
        clip: as of `solve`.

    Raises:
        ValueError: a negative eta, or one whose tau^2 is above sigma_s^2.

    Source: kexue.fm/archives/9181.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    _check_noise(noise)
    if noise == "forward":
        if eta not in (0, 1):
            raise ValueError(f"eta is 1 with the noise of the forward step, got {eta}")
        eta = 1.0
    told = (denoiser if clip is None else ClippedDenoiser(denoiser, clip)).predict(x, t, condition=condition)
    schedule = told.schedule
    if eta == 0:
        return Step(_mean(told, x, s, schedule.sigma(s), None), None, told)
    variances = _variances(told, t, s)
    tau2 = eta**2 * variances.posterior  # 9181, section "One family of steps"
    rest = variances.sigma2 - tau2
    if eta > 1:
        _warn_above_one(eta, rest)
    added = expand_dims(tau2 if noise == "posterior" else variances.added_forward, x)
    mean = _mean(told, x, s, rest.clamp(min=0).sqrt(), added)
    return Step(mean if z is None else mean + added.sqrt() * z, None, told)


def _check_noise(noise: str) -> None:
    """Raise for a noise that there is not."""
    if noise not in ("posterior", "forward"):
        raise ValueError(f"noise must be 'posterior' or 'forward', got {noise!r}")


def _mean(told: Prediction, x: Tensor, s: Tensor, rest: Tensor, added: Tensor | None) -> Tensor:
    """Return alpha_s x0 + rest eps, shifted by guidance, if any, in proportion to the variance that the step adds."""
    mean = expand_dims(told.schedule.alpha(s), x) * told.x0 + expand_dims(rest, x) * told.eps
    if told.tilt is None:
        return mean
    if added is None:
        raise ValueError("guidance of the form 'mean' needs a step with noise: take eta > 0, or the form 'score'")
    return mean + added * told.tilt  # 9257, section "Two forms"


class _Variances(NamedTuple):
    """Variances of a step from t to s.

    Attributes:
        forward: sigma_t^2 - a^2 sigma_s^2, a = alpha_t/alpha_s, which the forward process adds from s to t.
        posterior: that of x_s given x_t and x0, forward times sigma_s^2/sigma_t^2.
        sigma2: sigma_s^2.
    """

    forward: Tensor
    posterior: Tensor
    sigma2: Tensor

    @property
    def added_forward(self) -> Tensor:
        """The variance `forward`, of which a step to clean data adds none."""
        return torch.where(self.sigma2 > 0, self.forward, 0)


def _variances(told: Prediction, t: Tensor, s: Tensor) -> _Variances:
    schedule = told.schedule
    sigma2_t, sigma2 = schedule.sigma(t).square(), schedule.sigma(s).square()
    forward = sigma2_t - (schedule.alpha(t) / schedule.alpha(s)).square() * sigma2
    return _Variances(forward, forward * sigma2 / sigma2_t, sigma2)


def _warn_above_one(eta: float, rest: Tensor) -> None:
    """Warn of an eta above 1; raise where more noise would be added than there is."""
    if may_read(rest) and bool((rest < 0).any()):
        raise ValueError(f"eta {eta} would add more noise than there is at the next time; take eta <= 1")
    warnings.warn(f"eta is in [0, 1] by its meaning, got {eta}: samples get more noise than DDPM's", stacklevel=4)


def ddpm_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
    noise: Literal["posterior", "forward"] = "posterior",
    clip: Clip = None,
) -> Step:
    """Make one step of DDPM: the mean of x_s given x_t and x0, and noise.

    A network with learned variance decides between the two sorts of noise, value by value: their logarithms are mixed
    by its fraction.

    Args:
        denoiser, x, t, s, z, state, condition, clip: as of all steps.
        noise: ``"posterior"``: of x_s given x_t and x0; ``"forward"``: of the forward step.
    """
    _check_noise(noise)
    told = (denoiser if clip is None else ClippedDenoiser(denoiser, clip)).predict(x, t, condition=condition)
    variances = _variances(told, t, s)
    if told.fraction is None:
        added = expand_dims(variances.posterior if noise == "posterior" else variances.added_forward, x)
    else:
        weight = (told.fraction + 1) / 2
        log_high, log_low = (expand_dims(v.clamp(min=1e-20).log(), x) for v in (variances.forward, variances.posterior))
        mixed = (weight * log_high + (1 - weight) * log_low).exp()
        added = torch.where(expand_dims(variances.sigma2, x) > 0, mixed, 0)
    mean = _mean(told, x, s, (variances.sigma2 - variances.posterior).clamp(min=0).sqrt(), added)
    return Step(mean if z is None else mean + added.sqrt() * z, None, told)


def dpm1_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one step of first order in h = log(alpha/sigma): x_s = sigma_s/sigma_t x - alpha_s (e^-h - 1) x0.

    It equals `ddim_step` with eta 0.
    """
    told = denoiser.predict(x, t, condition=condition)
    return Step(_exponential_step(told, x, t, s, told.x0), None, told)


def _exponential_step(told: Prediction, x: Tensor, t: Tensor, s: Tensor, x0: Tensor) -> Tensor:
    """Return sigma_s/sigma_t x - alpha_s (e^-h - 1) x0; e^-h is a ratio, finite where the noise ends."""
    schedule = told.schedule
    ratio = schedule.sigma(s) / schedule.sigma(t)
    decay = schedule.alpha(t) / schedule.alpha(s) * ratio  # e^-h
    return expand_dims(ratio, x) * x - expand_dims(schedule.alpha(s) * (decay - 1), x) * x0


def dpmpp_2m_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one step of DPM-Solver++ (2M), of second order with one call of the network.

    x0 is extrapolated from this and the last estimate: (1 + h/(2h')) x0 - h/(2h') x0', with h' the step before. The
    first step is of first order, and a last one to clean data returns x0.
    """
    told = denoiser.predict(x, t, condition=condition)
    log_ratio = told.schedule.log_snr(t) / 2
    if state is None:
        return Step(_exponential_step(told, x, t, s, told.x0), (told.x0, log_ratio), told)
    before, log_before = state
    h, h_before = told.schedule.log_snr(s) / 2 - log_ratio, log_ratio - log_before
    share = expand_dims(torch.where(h.isinf(), 0, h / (2 * h_before)), x)
    x0 = told.x0 + share * (told.x0 - before)
    return Step(_exponential_step(told, x, t, s, x0), (told.x0, log_ratio), told)


# ---- stochastic ------------------------------------------------------------------------------------------------------


def ancestral_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
) -> Step:
    """Make one ancestral step of score-based models: x_s = (x + b score)/a + noise, b = sigma_t^2 - a^2 sigma_s^2.

    The noise is sqrt(b), or sigma_s/sigma_t sqrt(b) on a schedule whose signal is constant, such as `VE`.
    """
    told = denoiser.predict(x, t, condition=condition)
    schedule = told.schedule
    refuse_zero(schedule.alpha(t), t, "an ancestral step divides by alpha, which is 0; take the solver ddpm or ddim")
    ratio = schedule.alpha(t) / schedule.alpha(s)
    b = _variances(told, t, s).forward
    mean = (x + expand_dims(b, x) * told.score) / expand_dims(ratio, x)
    if z is None:
        return Step(mean, None, told)
    sigma_s = schedule.sigma(s)
    std = torch.where(ratio == 1, sigma_s / schedule.sigma(t), 1) * b.sqrt()
    return Step(mean + expand_dims(torch.where(sigma_s > 0, std, 0), x) * z, None, told)


def euler_maruyama_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
    noise_level: float = 1.0,
) -> Step:
    """Make one Euler-Maruyama step of the reverse equation: x_s = x - drift (t - s) + c g sqrt(t - s) z.

    Args:
        denoiser, x, t, s, z, state, condition: as of all steps; the schedule is continuous.
        noise_level: c of `ReverseSDE`, in [0, 1].

    Source: kexue.fm/archives/9209.
    """
    if not 0 <= noise_level <= 1:
        raise ValueError(f"noise_level must be in [0, 1], got {noise_level}")
    told = denoiser.predict(x, t, condition=condition)
    h = t - s
    out = x - reverse_drift(told, x, noise_level) * expand_dims(h, x)  # 9209: minus, since time runs backwards
    if z is not None:
        out = out + noise_level * expand_dims(told.schedule.diffusion(t) * h.sqrt(), x) * z
    return Step(out, None, told)


def predictor_corrector_step(
    denoiser: Predictor,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    z: Tensor | None = None,
    state: Any = None,
    condition: Tensor | None = None,
    snr: float = 0.16,
    n_corrector: int = 1,
    norm: Norm = "sample",
    first: Literal["predictor", "corrector"] = "predictor",
) -> Step:
    """Make a step of `ancestral_step`, then Langevin steps at the new time: x + e score + sqrt(2 e) z.

    e = 2 k (snr r)^2, k = (alpha_t/alpha_s)^2, r = |z| / |score|.

    Args:
        denoiser, x, t, s, state, condition: as of all steps.
        z: (1 + n_corrector, B, *event): the noise of the ancestral step, then of each Langevin step; (B, *event) for no
            Langevin step. None adds none, and makes no Langevin steps.
        snr: length of a Langevin step, > 0.
        n_corrector: Langevin steps, >= 0.
        norm: ``"sample"``: the lengths of each event, with r at most twice the noise: where a score vanishes, a step
            would have no bound. ``"batch"``: their means over the batch, as score_sde; an event depends on the others.
            ``"noise"``: r is the noise sigma, about what both are of many values, and more exact of few.
        first: ``"corrector"``: the Langevin steps come before the ancestral one, at time t, as in score_sde.
    """
    if not snr > 0:
        raise ValueError(f"snr must be > 0, got {snr}")
    check_count(n_corrector, "n_corrector")
    if norm not in ("sample", "batch", "noise"):
        raise ValueError(f"norm must be 'sample', 'batch' or 'noise', got {norm!r}")
    if first not in ("predictor", "corrector"):
        raise ValueError(f"first must be 'predictor' or 'corrector', got {first!r}")
    pile = z if z is None or z.ndim > x.ndim else z[None]
    if pile is not None and len(pile) not in (1, 1 + n_corrector):
        raise ValueError(f"z must have 1 or {1 + n_corrector} noises, got {len(pile)}")
    added, draws = (None, x[:0]) if pile is None else (pile[0], pile[1 : 1 + n_corrector])
    schedule = denoiser.schedule
    share = snr * schedule.alpha(t) / schedule.alpha(s)
    if first == "corrector":
        x = _langevin(denoiser, x, t, draws, share, norm, condition)
        return ancestral_step(denoiser, x, t, s, z=added, condition=condition)
    step = ancestral_step(denoiser, x, t, s, z=added, condition=condition)
    if not len(draws) or reads_zero(schedule.sigma(s)):
        return step
    x = _langevin(denoiser, step.x, noisy_time(schedule, t, s), draws, share, norm, condition)
    return Step(unless_clean(schedule, s, x, step.x), None, step.prediction)


def _langevin(
    denoiser: Predictor, x: Tensor, t: Tensor, draws: Tensor, share: Tensor, norm: Norm, condition: Tensor | None
) -> Tensor:
    """Return events after Langevin steps at time t, one with each noise (B, *event), with e = 2 (share r)^2."""
    noise = denoiser.schedule.sigma(t)
    for draw in draws:
        score, length = denoiser.predict(x, t, condition=condition).score, noise
        if norm != "noise":
            sizes = [y.flatten(1).norm(dim=1) for y in (draw, score)]
            size_z, size_score = sizes if norm == "sample" else [size.mean() for size in sizes]
            length = size_z / size_score.clamp(min=1e-12)
            length = torch.minimum(length, _MOST_LENGTH * noise.to(length)) if norm == "sample" else length
        e = expand_dims(2 * (share * length).square(), x)
        x = x + e * score + (2 * e).sqrt() * draw
    return x


def reads_zero(value: Tensor) -> bool:
    """Return whether all of a coefficient can be read, and is 0."""
    return may_read(value) and bool((value == 0).all())


def noisy_time(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Return s, or t where s is clean data, of which a network tells nothing."""
    return torch.where(schedule.sigma(s) > 0, s, t)


def unless_clean(schedule: Schedule, s: Tensor, x: Tensor, clean: Tensor) -> Tensor:
    """Return x, or `clean` for the events that are clean data at time s."""
    return torch.where(expand_dims(schedule.sigma(s), x) > 0, x, clean)
