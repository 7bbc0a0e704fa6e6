"""Divergence of a velocity, exact or by random probes, and its integral along a trajectory: what a likelihood needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import outside_inference_mode
from kexue.generative.diffusion.ode import odeint
from kexue.generative.noise import Noise

Velocity = Callable[[Tensor, Tensor], Tensor]
Trace = Literal["exact", "hutchinson"]
Probe = Literal["rademacher", "gaussian"]
_MOST_EXACT = 100  # values of an event up to which the exact trace is affordable
_SCALE = 100.0  # the integral is carried divided by this, so that the steps are chosen by the error of x


class Pushed(NamedTuple):
    """Events moved along an ODE, with the integral of the divergence on their way.

    Attributes:
        x: events (B, *event) at the last time.
        integral: of the divergence over time, from the first time to the last, (B, K) for K probes; (B, 1) exact.
        n_evals: calls of the velocity.
    """

    x: Tensor
    integral: Tensor
    n_evals: int


def choose_probes(
    x: Tensor,
    trace: Trace | None,
    generator: torch.Generator | Sequence[torch.Generator] | int | Noise | None,
    probes: int = 1,
    *,
    kind: Probe = "rademacher",
) -> Tensor | None:
    """Return the probes of a divergence at events: None for the exact trace, otherwise those of `draw_probes`.

    Args:
        x: events (B, *event).
        trace: ``"exact"``, ``"hutchinson"``, or None: exact up to 100 values an event.
        generator: of the probes, as of `Noise`.
        probes, kind: as of `draw_probes`.
    """
    if trace not in ("exact", "hutchinson", None):
        raise ValueError(f"trace must be 'exact', 'hutchinson' or None, got {trace!r}")
    if trace == "exact" or (trace is None and x[:1].numel() <= _MOST_EXACT):
        return None
    noise = generator if isinstance(generator, Noise) else Noise(generator, len(x), x.device)
    return draw_probes(noise, x.shape[1:], probes, kind=kind, dtype=x.dtype)


def draw_probes(
    noise: Noise,
    event_shape: Sequence[int],
    probes: int = 1,
    *,
    kind: Probe = "rademacher",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return random vectors (K, B, *event_shape) of mean 0 and covariance I, for K estimates of each divergence.

    Args:
        noise: of the B items.
        event_shape: shape of an event.
        probes: their number K, >= 1.
        kind: ``"rademacher"``, signs, which are exact for a diagonal Jacobian; or ``"gaussian"``.
        dtype: of the vectors.

    Example:
        >>> draw_probes(Noise(0, 2), (3,)).abs()
        tensor([[[1., 1., 1.],
                 [1., 1., 1.]]])
    """
    check_count(probes, "probes", 1)
    shape = (probes, *event_shape)
    if kind == "gaussian":
        return noise.normal(shape, dtype).movedim(1, 0)
    if kind != "rademacher":
        raise ValueError(f"kind must be 'rademacher' or 'gaussian', got {kind!r}")
    return torch.where(noise.uniform(shape, dtype) < 0.5, -1.0, 1.0).to(dtype).movedim(1, 0)


def value_and_divergence(
    velocity: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a velocity (B, *event) at events and its divergence, the trace of its Jacobian J, without gradients.

    - exact, (B, 1): one pass backwards for each of the d values of an event.
    - estimated, (B, K): v.J v for each of K probes v, one pass backwards each; its mean over probes is the trace.

    Args:
        velocity: from events (B, *event) to (B, *event); an item does not depend on the others.
        x: (B, *event).
        probes: (K, B, *event), as of `draw_probes`; None is exact.

    Example:
        >>> value_and_divergence(lambda x: x**2, torch.tensor([[1.0, 2.0]]))[1]
        tensor([[6.]])
    """
    with outside_inference_mode(), torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        value = velocity(at)
    if probes is None:
        trace = x.new_zeros(len(x))
        for i in range(value[:1].numel()):
            unit = torch.zeros_like(value)
            unit.flatten(1)[:, i] = 1.0
            trace = trace + _pull(value, at, unit).flatten(1)[:, i]
        return value.detach(), trace[:, None]
    products = [(_pull(value, at, v) * v).flatten(1).sum(1) for v in probes.to(value)]
    return value.detach(), torch.stack(products, 1)


def _pull(value: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Return v J (B, *event) for the Jacobian J of a value at x; the graph is kept for the next v."""
    if not value.requires_grad:  # the velocity does not depend on x
        return torch.zeros_like(x)
    return torch.autograd.grad(value, x, v, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def odeint_with_divergence(
    velocity: Velocity, x: Tensor, grid: Sequence[float] | Tensor, *, probes: Tensor | None = None, **options: Any
) -> Pushed:
    """Return events moved by dx/dt = velocity(t, x), and the integral of the divergence on their way.

    Densities obey log p(x at the first time) = log p(x at the last time) + integral. The tolerances hold for the
    events; those of the integral are 100 times as large.

    Args:
        velocity: of times (B,) and events.
        x: events (B, *event) at the first time.
        grid: times, as of `odeint`.
        probes: (K, B, *event), the same on the whole way, as of `draw_probes`; None is the exact divergence.
        options: of `odeint`.

    Source: kexue.fm/archives/9228, the change of variables of an ODE.

    Example:
        >>> pushed = odeint_with_divergence(lambda t, x: -x, torch.ones(1, 2), [0.0, 1.0])
        >>> pushed.integral  # the trace of -I, for a unit of time
        tensor([[-2.]])
    """

    def rhs(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value, traces = value_and_divergence(lambda at: velocity(t, at), state[0], probes)
        return value, traces / _SCALE

    count = 1 if probes is None else len(probes)
    with torch.no_grad():
        result = odeint(rhs, (x.detach(), x.new_zeros(len(x), count)), grid, **options)
    end, integral = result.x
    return Pushed(end, integral * _SCALE, result.n_evals)
