"""The sampling loop: events are carried along a time grid by steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from kexue._tensors import is_finite, may_read
from kexue.errors import KexueError
from kexue.generative.diffusion.denoiser import ClippedDenoiser, Prediction, Predictor
from kexue.generative.diffusion.grid import check_grid
from kexue.generative.diffusion.ode_steps import ab_step, euler_step, heun_step, midpoint_step, rk4_step
from kexue.generative.diffusion.schedule import Schedule
from kexue.generative.diffusion.steps import (
    Step,
    ancestral_step,
    ddim_step,
    ddpm_step,
    dpm1_step,
    dpmpp_2m_step,
    euler_maruyama_step,
    predictor_corrector_step,
)
from kexue.generative.noise import Noise


class StepFunction(Protocol):
    """A step of `kexue.generative.diffusion`, or your own of the same form."""

    def __call__(
        self,
        denoiser: Predictor,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        z: Tensor | None = None,
        state: Any = None,
        condition: Tensor | None = None,
        **options: Any,
    ) -> Step:
        """Return the events at time s."""
        ...


@dataclass(frozen=True)
class Solver:
    """A step function by its name.

    Attributes:
        step: the function.
        draws: returns how many noises (B, *event) a step with these options takes; of more than one, a pile.
    """

    step: Callable[..., Step]
    draws: Callable[[Mapping[str, Any]], int] = lambda _options: 0


def _one(_options: Mapping[str, Any]) -> int:
    return 1


def _ddim_draws(options: Mapping[str, Any]) -> int:
    return int(options.get("eta", 0) != 0 or options.get("noise") == "forward")


SOLVERS = {
    "ddim": Solver(ddim_step, _ddim_draws),
    "ddpm": Solver(ddpm_step, _one),
    "ancestral": Solver(ancestral_step, _one),
    "euler_maruyama": Solver(euler_maruyama_step, _one),
    "predictor_corrector": Solver(predictor_corrector_step, lambda options: 1 + options.get("n_corrector", 1)),
    "euler": Solver(euler_step),
    "heun": Solver(heun_step),
    "midpoint": Solver(midpoint_step),
    "rk4": Solver(rk4_step),
    "ab": Solver(ab_step),
    "dpm1": Solver(dpm1_step),
    "dpmpp_2m": Solver(dpmpp_2m_step),
}


@dataclass(frozen=True)
class Trajectory:
    """All stops of a sampling.

    Attributes:
        x: events at the last time, (B, *event).
        times: (T + 1,).
        xs: events at every time, (T + 1, B, *event).
        n_evals: calls of the network.
    """

    x: Tensor
    times: Tensor
    xs: Tensor
    n_evals: int


class _Counter:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Predictor) -> None:
        self._denoiser, self.calls = denoiser, 0

    @property
    def schedule(self) -> Schedule:
        """The schedule of the denoiser."""
        return self._denoiser.schedule

    def predict(self, x: Tensor, t: Tensor, *, condition: Tensor | None = None) -> Prediction:
        """Return the prediction of the denoiser."""
        self.calls += 1
        return self._denoiser.predict(x, t, condition=condition)


def solve(
    denoiser: Predictor,
    x: Tensor,
    grid: Tensor | Sequence[float],
    *,
    solver: str | StepFunction = "ddim",
    condition: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | int | Noise | None = None,
    clip: Literal["static", "dynamic"] | None = None,
    callback: Callable[[int, Tensor, Step], object] | None = None,
    return_trajectory: bool = False,
    **options: Any,
) -> Tensor | Trajectory:
    """Carry noisy events along a grid of times, to data.

    Args:
        denoiser: a `Denoiser`, or anything that predicts, such as a guided one.
        x: events at the first time (B, *event), such as ``schedule.prior.sample((B, *event))``.
        grid: falling times, from `make_grid`, or a list of your own.
        solver: ``"ddim"``, ``"ddpm"``, ``"ancestral"``, ``"euler_maruyama"``, ``"predictor_corrector"``, ``"euler"``,
            ``"heun"``, ``"midpoint"``, ``"rk4"``, ``"ab"``, ``"dpm1"``, ``"dpmpp_2m"``, or a step function.
        condition: of the denoiser, (B, ...).
        generator: as of `GenerativeModel.sample`: with a seed, or a generator for each event, event i is the same in a
            batch of any size.
        clip: keeps the estimates of the data within [-1, 1] (``"static"``) or within the 0.995 quantile
            (``"dynamic"``), and derives the noise from them.
        callback: called as callback(i, time, step) after step i, from 0 on.
        return_trajectory: whether all stops are returned, as a `Trajectory`.
        options: of the step, such as eta of ``"ddim"``.

    Returns:
        Events at the last time. The last step on a continuous schedule, and a step to clean data, add no noise.

    Raises:
        ValueError: an unknown solver, a grid that does not fall.
        TypeError: an option that the solver does not have.
        KexueError: NaN or infinity from the network; the time and the step are named.

    Example:
        >>> from kexue.generative.diffusion import VP, Denoiser, make_grid
        >>> exact = Denoiser(lambda x, t: VP().sigma(t).to(x.dtype) * x, VP())  # of data N(0, 1)
        >>> x = VP().prior.sample((1000, 1), generator=0)
        >>> solve(exact, x, make_grid(VP(), 20)).shape
        torch.Size([1000, 1])
    """
    if not x.is_floating_point():
        raise TypeError(f"events must be a tensor of floats, got {x.dtype}; use x.float()")
    chosen = _find_solver(solver)
    draws = chosen.draws(options)
    times = check_grid(denoiser.schedule, grid).to(x.device)
    counter = _Counter(denoiser)
    source: Predictor = counter if clip is None else ClippedDenoiser(counter, clip)
    noise = generator if isinstance(generator, Noise) else Noise(generator, len(x), x.device)
    state, xs = None, [x]
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        z = _draw(noise, x, draws) if draws and (i < len(times) - 2 or denoiser.schedule.discrete) else None
        made = chosen.step(source, x, t, s, z=z, state=state, condition=condition, **options)
        if i == 0 and made.prediction.tilt is not None and chosen.step not in (ddim_step, ddpm_step):
            raise ValueError(f"guidance of the form 'mean' goes with the solvers ddpm and ddim, got {solver!r}")
        x, state = made.x, made.state
        if may_read(x) and not is_finite(x):
            raise KexueError(
                f"the events are not finite after step {i} of {len(times) - 1}, at time {t.item():g}",
                remedy="Check the network for NaN, or take more steps or another solver.",
            )
        if callback is not None:
            callback(i, s, made)
        if return_trajectory:
            xs.append(x)
    return Trajectory(x, times, torch.stack(xs), counter.calls) if return_trajectory else x


def _find_solver(solver: str | StepFunction) -> Solver:
    """Return a solver by its name, or that of a step function, which gets one noise."""
    if callable(solver):
        return Solver(solver, _one)
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    return SOLVERS[solver]


def _draw(noise: Noise, x: Tensor, count: int) -> Tensor:
    """Return one noise (B, *event), or a pile of several."""
    piled = [noise.normal(x.shape[1:], x.dtype) for _ in range(count)]
    return piled[0] if count == 1 else torch.stack(piled)
