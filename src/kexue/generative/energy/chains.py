"""Langevin chains: samples of exp(-U/T) from the gradient of an energy U.

Source: kexue.fm/archives/6612; Roberts and Tweedie 1996, Bernoulli 2(4), for the Metropolis test of a step.
Difference: the article's step is x - (e/2) grad U + sqrt(e) z; here step_size = e/2, and the noise may be chosen apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kexue._counts import check_counts
from kexue._tensors import as_floats, outside_inference_mode, without_autocast
from kexue.generative.noise import Noise

Energy = Callable[[Tensor], Tensor]


class LangevinResult(NamedTuple):
    """Ends of Langevin chains.

    Attributes:
        x: (B, *shape), without a graph.
        acceptance: share (B,) of the steps of each chain that the Metropolis test accepted; None without the test.
        temperature: T of the law exp(-U/T) that chains of small steps have in the end: noise_scale^2 / (2 step_size).
    """

    x: Tensor
    acceptance: Tensor | None
    temperature: float


def langevin(
    energy: Energy,
    x0: Tensor,
    *,
    steps: int,
    step_size: float,
    noise_scale: float | None = None,
    grad_clip: float | None = None,
    bounds: tuple[float, float] | None = None,
    metropolis: bool = False,
    generator: Noise | torch.Generator | Sequence[torch.Generator] | int | None = None,
) -> LangevinResult:
    """Return the ends of chains x <- x - step_size grad U(x) + noise_scale z, z ~ N(0, I), that start from `x0`.

    Small steps sample exp(-U/T), T = noise_scale^2 / (2 step_size). Steps of a finite size s sample something wider:
    for U = x^2/2 a normal distribution of variance T / (1 - s/2). `metropolis` removes this bias. Much less noise than
    sqrt(2 step_size), as many models of images are trained with, is a low temperature: nearly a descent.

    Parameters that the energy has get no gradient, and its modules keep their mode: put them into evaluation mode
    before, so that every step has the same energy. Chains are computed in float32 or wider, without autocast.

    Args:
        energy: U, from (B, *shape), in the dtype of `x0`, to (B,); that of an item may depend on this item only.
        x0: starts (B, *shape), floats.
        steps: >= 1; each costs one call of the energy and its gradient, and the test one more in all.
        step_size: s > 0.
        noise_scale: deviation of the noise, >= 0; None: sqrt(2 step_size), which is T = 1.
        grad_clip: largest absolute value of each number of the gradient, > 0; None: any.
        bounds: interval (low, high) of every number of x: steps beyond are cut off, or with the test rejected.
        metropolis: whether to accept steps by the test of Metropolis and Hastings (MALA), which needs noise.
        generator: as of `GenerativeModel.sample`: with a seed, or a generator for each chain, chain i is the same in a
            batch of any size.

    Raises:
        ValueError: an argument out of range, an energy of another shape, or one that does not depend on x.
        TypeError: starts that are not floats.

    Example:
        >>> noise = torch.Generator().manual_seed(0)
        >>> start = torch.zeros(9000, 1)
        >>> out = langevin(lambda x: x.square().sum(1) / 2, start, steps=40, step_size=0.2, generator=noise)
        >>> round(out.x.var().item(), 1), round(1 / (1 - 0.2 / 2), 1), out.temperature
        (1.1, 1.1, 1.0)
    """
    check_counts(steps=steps)
    if noise_scale is None and step_size > 0:
        noise_scale = math.sqrt(2 * step_size)
    _check_numbers(step_size, noise_scale, grad_clip, bounds, metropolis)
    assert noise_scale is not None
    x = as_floats(x0, "x0").detach()
    noise = generator if isinstance(generator, Noise) else Noise(generator, len(x), x.device)
    if len(noise) != len(x):
        raise ValueError(f"the noise must be of {len(x)} chains, got that of {len(noise)}")

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        u, slope = differentiate(energy, x, x0.dtype)
        return u, slope if grad_clip is None else slope.clamp(-grad_clip, grad_clip)

    temperature = noise_scale**2 / (2 * step_size)
    if metropolis:
        x, acceptance = _test_steps(look, x, steps, step_size, noise_scale, bounds, noise)
        return LangevinResult(x.to(x0.dtype), acceptance, temperature)
    for _ in range(steps):
        # section "Langevin chains"
        x = x - step_size * look(x)[1] + noise_scale * noise.normal(x.shape[1:], x.dtype)
        x = x if bounds is None else x.clamp(*bounds)
    return LangevinResult(x.to(x0.dtype), None, temperature)


def _test_steps(
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    steps: int,
    step_size: float,
    noise_scale: float,
    bounds: tuple[float, float] | None,
    noise: Noise,
) -> tuple[Tensor, Tensor]:
    """Return the ends of chains whose every step passed the test, or was not made, and the share of those that did.

    A step to y passes with probability min(1, p(y) q(x|y) / (p(x) q(y|x))), p = exp(-U/T), q the density of a step.
    """
    u, slope = look(x)
    passes = x.new_zeros(len(x))
    for _ in range(steps):
        new = x - step_size * slope + noise_scale * noise.normal(x.shape[1:], x.dtype)
        new_u, new_slope = look(new)
        log_p = 2 * step_size * (u - new_u) / noise_scale**2
        log_q = _square(new - x + step_size * slope) - _square(x - new + step_size * new_slope)
        passed = noise.uniform((), x.dtype).log() < log_p + log_q / (2 * noise_scale**2)  # False where NaN
        if bounds is not None:
            passed &= ((new >= bounds[0]) & (new <= bounds[1])).unsqueeze(-1).flatten(1).all(1)
        each = passed.reshape(-1, *[1] * (x.ndim - 1))
        x, slope, u = torch.where(each, new, x), torch.where(each, new_slope, slope), torch.where(passed, new_u, u)
        passes += passed
    return x, passes / steps


def differentiate(energy: Energy, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return U (B,) and its gradient in x, without a graph and without gradients of parameters.

    Args:
        energy: U.
        x: (B, *shape), floats.
        dtype: in which the energy gets x; None is that of x.
    """
    with outside_inference_mode(), torch.enable_grad(), without_autocast(x):
        x = x.detach().clone().requires_grad_()
        u = energy(x if dtype is None else x.to(dtype))
        if u.shape != (len(x),):
            raise ValueError(f"the energy must have shape ({len(x)},), one number for each item, got {tuple(u.shape)}")
        [slope] = torch.autograd.grad(u.sum(), x, allow_unused=True) if u.requires_grad else [None]
        if slope is None:
            raise ValueError("the energy must depend on x by differentiable operations, got one without a graph to x")
    return u.detach().to(x.dtype), slope


def _square(x: Tensor) -> Tensor:
    """Return |x|^2 of each item, (B,)."""
    return x.square().unsqueeze(-1).flatten(1).sum(1)


def _check_numbers(
    step_size: float,
    noise_scale: float | None,
    grad_clip: float | None,
    bounds: tuple[float, float] | None,
    metropolis: bool,
) -> None:
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be > 0 and finite, got {step_size}")
    if noise_scale is None or not 0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale must be >= 0 and finite, got {noise_scale}")
    if metropolis and not noise_scale:
        raise ValueError("the Metropolis test needs noise, got noise_scale=0")
    if grad_clip is not None and not grad_clip > 0:
        raise ValueError(f"grad_clip must be > 0, got {grad_clip}")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
