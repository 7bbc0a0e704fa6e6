"""Exact log density of a diffusion model, by the change of variables along the probability-flow equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kexue.errors import NotSupported
from kexue.generative.diffusion.denoiser import Predictor
from kexue.generative.diffusion.divergence import Probe, Trace, choose_probes, odeint_with_divergence
from kexue.generative.diffusion.ode import Method
from kexue.generative.noise import Noise

_FIXED_STEPS = 100  # of methods without error control


class LogProb(NamedTuple):
    """Log density of events.

    Attributes:
        value: (B,), in nats.
        stderr: standard error (B,) of the random probes; 0 for the exact trace, NaN for a single probe, whose error is
            not known. Errors of the solver and of the network are not in it.
        latent: the events at t_max, (B, *event).
        n_evals: calls of the right-hand side, each with a backward pass for each value or probe.
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor
    n_evals: int


def flow_ode(denoiser: Predictor, *, condition: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the right-hand side (t, x) -> dx/dt = alpha' x0 + sigma' eps of the probability-flow equation.

    It is the same as f - g^2/2 score. `odeint` solves it, from t_max to t_min for samples, from t_min to t_max for
    latents.

    Args:
        denoiser: on a continuous schedule.
        condition: of the denoiser.

    Raises:
        NotSupported: a discrete schedule.

    Source: kexue.fm/archives/9228.

    Example:
        >>> from kexue.generative import GaussianMixture
        >>> from kexue.generative.diffusion import VP, MixtureDenoiser, odeint
        >>> denoiser = MixtureDenoiser(GaussianMixture(torch.zeros(1, 1), 1.0), VP())
        >>> odeint(flow_ode(denoiser), torch.ones(1, 1), [1.0, 0.001]).x  # N(0, 1) stays as it is
        tensor([[1.0000]])
    """
    if denoiser.schedule.discrete:
        raise NotSupported(
            "the probability-flow equation needs a continuous schedule; train on one, such as VP, or sample with ddim."
        )
    return lambda t, x: denoiser.predict(x, t, condition=condition).velocity  # 9228: dx/dt


def log_likelihood(
    denoiser: Predictor,
    x: Tensor,
    *,
    trace: Trace | None = "exact",
    probes: int = 1,
    probe: Probe = "rademacher",
    method: Method = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    start: float | None = None,
    condition: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | int | Noise | None = None,
) -> LogProb:
    """Return the log density of events, and how sure it is.

    log p(x) = log p(x at t_max) + integral of the divergence of the velocity from t_min to t_max, with the prior in
    place of the density at t_max: of ``VP()`` it is off by some thousandths of a nat. The density is that of x at
    t_min, data with that little noise.

    Args:
        denoiser: on a continuous schedule.
        x: events (B, *event).
        trace: ``"exact"``: of the Jacobian, a backward pass for each value of an event, affordable up to about 100 of
            them. ``"hutchinson"``: an unbiased estimate by random probes, each the same on the whole way. None: exact
            up to 100 values an event.
        probes: number of probes, >= 1; from two on their standard error is known.
        probe: ``"rademacher"``: signs; or ``"gaussian"``.
        method, rtol, atol: as of `odeint`; a method without error control makes 100 steps.
        start: time of x, in [t_min, t_max); None is t_min.
        condition: of the denoiser.
        generator: of the probes; as of `GenerativeModel.sample`.

    Source: kexue.fm/archives/9228.
    """
    velocity, schedule = flow_ode(denoiser, condition=condition), denoiser.schedule
    vectors = choose_probes(x, trace, generator, probes, kind=probe)
    steps = 1 if method == "rk45" else _FIXED_STEPS
    first = schedule.t_min if start is None else start
    if not schedule.t_min <= first < schedule.t_max:
        raise ValueError(f"start must be in [{schedule.t_min:g}, {schedule.t_max:g}), got {start}")
    grid = torch.linspace(first, schedule.t_max, steps + 1, dtype=torch.float64)
    pushed = odeint_with_divergence(velocity, x, grid, probes=vectors, method=method, rtol=rtol, atol=atol)
    value = schedule.prior.log_prob(pushed.x) + pushed.integral.mean(1)  # 9228: change of variables
    return LogProb(value, _standard_error(pushed.integral, exact=vectors is None), pushed.x, pushed.n_evals)


def _standard_error(estimates: Tensor, *, exact: bool) -> Tensor:
    """Return the standard error (B,) of the mean of estimates (B, K): 0 of exact ones, NaN of a single one."""
    count = estimates.shape[1]
    if exact or count == 1 or not len(estimates):
        return torch.full_like(estimates[:, 0], 0.0 if exact else torch.nan)
    return estimates.std(1) / math.sqrt(count)
