"""Solvers of ordinary differential equations of batches: fixed steps, and Dormand-Prince with error control."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Generic, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._tensors import float32_or_wider, may_read

Method = Literal["rk45", "euler", "midpoint", "heun", "rk4"]
State = TypeVar("State", Tensor, tuple[Tensor, ...])


class ODEResult(NamedTuple, Generic[State]):
    """The end of a solution of an ordinary differential equation, and what it took.

    Attributes:
        x: state at the last time of the grid.
        n_evals: calls of the right-hand side, each with the whole batch.
        n_rejected: steps that were repeated because their error was too large, of all items; 0 for fixed steps.
    """

    x: State
    n_evals: int
    n_rejected: int


class _Tableau(NamedTuple):
    """Coefficients of an explicit Runge-Kutta method: times and weights of each stage after the first, of the step."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


_FIXED = {
    "euler": _Tableau((), (), (1.0,)),
    "midpoint": _Tableau((1 / 2,), ((1 / 2,),), (0.0, 1.0)),
    "heun": _Tableau((1.0,), ((1.0,),), (1 / 2, 1 / 2)),
    "rk4": _Tableau(
        (1 / 2, 1 / 2, 1.0), ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}  # fmt: skip
_DORMAND_PRINCE = _Tableau(
    (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # fifth order minus fourth
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


def odeint(
    rhs: Callable[[Tensor, State], State],
    x: State,
    grid: Sequence[float] | Tensor,
    *,
    method: Method = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    error_norm: Literal["sample", "batch"] = "sample",
    max_steps: int = 10_000,
) -> ODEResult[State]:
    """Return the solution of dx/dt = rhs(t, x) at the last time of a grid, from `x` at the first.

    - ``rk45``: Dormand-Prince, order 5, with steps of its own choice between the two ends of the grid: the root mean
      square of error / (atol + rtol |x|) stays below 1 in each step.
    - ``euler`` (order 1), ``midpoint`` and ``heun`` (2), ``rk4`` (4): one step between neighbours of the grid, with 1,
      2, 2 and 4 calls.

    Gradients reach `x` and the parameters of `rhs` through the steps; within ``torch.no_grad()`` they cost nothing.
    Half precision is computed in float32.

    Args:
        rhs: called with times (B,), one for each item, and the state; returns the derivative of the state.
        x: (B, ...), or a tuple of such tensors.
        grid: times, increasing or decreasing, at least 2.
        method: name of the method.
        rtol, atol: tolerances of ``rk45``, >= 0 and not both 0.
        error_norm: of ``rk45``: ``"sample"`` is an error and steps for each item, so that an item does not depend on
            the others; ``"batch"`` is one error and the same steps for all.
        max_steps: most steps of ``rk45``, repeated ones included.

    Raises:
        ValueError: a grid that is not monotone, a tolerance out of range, a derivative of another shape.
        FloatingPointError: `rhs` returns NaN or infinity; the message names time and item.
        ArithmeticError: `max_steps` were not enough.

    Example:
        >>> result = odeint(lambda t, x: -x, torch.ones(1, 2), [0.0, 1.0])
        >>> result.x
        tensor([[0.3679, 0.3679]])
    """
    times = check_grid(grid)
    if method != "rk45" and method not in _FIXED:
        raise ValueError(f"method must be 'rk45', {', '.join(map(repr, _FIXED))}, got {method!r}")
    field = _Field(rhs, x)
    start = field.pack(x)
    if not start.numel():
        return ODEResult(x, 0, 0)
    if method == "rk45":
        control = _Control(rtol, atol, error_norm, max_steps)
        end, rejected = _solve_adaptive(field, start, times[0], times[-1], control)
    else:
        end, rejected = _solve_fixed(field, start, times, _FIXED[method]), 0
    return ODEResult(field.unpack(end), field.calls, rejected)


def check_grid(grid: Sequence[float] | Tensor) -> list[float]:
    """Return the times of a grid; ValueError unless they are finite, at least 2, and strictly monotone."""
    times = [float(t) for t in grid]
    steps = [b - a for a, b in pairwise(times)]
    monotone = all(h > 0 for h in steps) or all(h < 0 for h in steps)
    if not steps or not monotone or not all(map(math.isfinite, times)):
        raise ValueError(
            f"grid must be 2 finite times or more that increase or decrease all the way, got {_shorten(times)}"
        )
    return times


def _shorten(times: list[float]) -> str:
    shown = ", ".join(f"{t:g}" for t in times[:8])
    return f"[{shown}{', ...' if len(times) > 8 else ''}]"


class _Field(Generic[State]):
    """The right-hand side seen by a solver: from one matrix (B, D) to another, calls counted, values checked."""

    def __init__(self, rhs: Callable[[Tensor, State], State], x: State) -> None:
        self.rhs: Callable[[Tensor, State], State] = rhs
        self.calls = 0
        self.single = isinstance(x, Tensor)
        parts = self._parts(x)
        if not parts or any(not isinstance(part, Tensor) or not part.ndim for part in parts):
            raise ValueError("x must be a tensor (B, ...), or a tuple of them")
        if any(not part.is_floating_point() for part in parts):
            raise TypeError(f"x must be of floats, got {', '.join(str(part.dtype) for part in parts)}")
        if any(len(part) != len(parts[0]) for part in parts):
            raise ValueError(f"parts of x must have one length, got {', '.join(str(tuple(p.shape)) for p in parts)}")
        self.shapes = [part.shape for part in parts]
        self.dtypes = [float32_or_wider(part.dtype) for part in parts]

    def _parts(self, x: State) -> tuple[Tensor, ...]:
        return (x,) if isinstance(x, Tensor) else tuple(x)

    def pack(self, x: State) -> Tensor:
        columns = [part.reshape(len(part), -1) if len(part) else part.new_zeros(0, 1) for part in self._parts(x)]
        packed = columns[0] if self.single else torch.cat(columns, 1)
        return packed.to(float32_or_wider(packed.dtype))

    def unpack(self, packed: Tensor) -> State:
        if self.single:
            return cast(State, packed.reshape(self.shapes[0]))  # type: ignore[redundant-cast]
        columns = torch.split(packed, [max(shape.numel() // len(packed), 1) for shape in self.shapes], 1)
        parts = zip(columns, self.shapes, self.dtypes, strict=True)
        return cast(State, tuple(column.reshape(shape).to(dtype) for column, shape, dtype in parts))

    def __call__(self, t: Tensor, packed: Tensor) -> Tensor:
        """Return the derivative (B, D) at times (B,) in float64."""
        self.calls += 1
        derivative = self.rhs(t.to(packed.dtype), self.unpack(packed))
        shapes = [getattr(part, "shape", None) for part in self._parts(derivative)]
        if shapes != self.shapes:
            expected, got = (", ".join(str(None if s is None else tuple(s)) for s in x) for x in (self.shapes, shapes))
            raise ValueError(f"rhs must return the shape of the state, {expected}, got {got}")
        value = self.pack(derivative).to(packed.dtype)
        if may_read(value) and not bool(value.isfinite().all()):
            item = int((~value.isfinite()).any(1).nonzero()[0])
            raise FloatingPointError(
                f"rhs returned NaN or infinity for item {item} at t = {float(t[item]):.6g}; look at its value there, "
                "or solve with smaller steps"
            )
        return value


def _combine(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of stages."""
    terms = [k if w == 1.0 else w * k for w, k in zip(weights, stages, strict=True) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _stages(field: _Field[State], first: Tensor, t: Tensor, x: Tensor, h: Tensor, tableau: _Tableau) -> list[Tensor]:
    """Return the derivatives at every stage of a step `h` (B,), of which the first is known."""
    stages, step = [first], h.to(x.dtype)[:, None]
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        stages.append(field(t + node * h, x + step * _combine(row, stages)))
    return stages


def _solve_fixed(field: _Field[State], x: Tensor, times: list[float], tableau: _Tableau) -> Tensor:
    for begin, end in pairwise(times):
        t, h = _column(begin, x), _column(end - begin, x)
        stages = _stages(field, field(t, x), t, x, h, tableau)
        x = x + (end - begin) * _combine(tableau.weights, stages)
    return x


def _column(value: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), value, dtype=torch.float64, device=x.device)


class _Control:
    """Tolerances, and the norm by which errors are measured against them."""

    def __init__(self, rtol: float, atol: float, error_norm: str, max_steps: int) -> None:
        if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol > 0):
            raise ValueError(f"rtol and atol must be finite, >= 0 and not both 0, got {rtol} and {atol}")
        if error_norm not in ("sample", "batch"):
            raise ValueError(f"error_norm must be 'sample' or 'batch', got {error_norm!r}")
        check_count(max_steps, "max_steps", 1)
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps
        self.shared = error_norm == "batch"

    def norm(self, values: Tensor, size: Tensor) -> Tensor:
        """Return the root mean square (B,) of values / (atol + rtol size), in float64."""
        tolerance = (self.atol + self.rtol * size).clamp(min=torch.finfo(size.dtype).tiny)
        squares = (values / tolerance).square().mean(1, dtype=torch.float64)
        return (squares.mean().expand(len(squares)) if self.shared else squares).sqrt()


@torch.no_grad()
def _first_step(field: _Field[State], x: Tensor, first: Tensor, t: Tensor, span: float, control: _Control) -> Tensor:
    """Return the size (B,) of the first step, from the derivative and how fast it changes (Hairer, Norsett, Wanner)."""
    size, speed = control.norm(x, x.abs()), control.norm(first, x.abs())
    h = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp(max=abs(span))
    signed = math.copysign(1.0, span) * h
    second = field(t + signed, x + signed.to(x.dtype)[:, None] * first)
    bend = torch.maximum(speed, control.norm(second - first, x.abs()) / h)
    best = torch.where(bend <= 1e-15, (1e-3 * h).clamp(min=1e-6), (0.01 / bend) ** 0.2)
    return _round_step(torch.minimum(100 * h, best))


def _round_step(h: Tensor) -> Tensor:
    """Return steps rounded down to a power of 2^(1/8), so that rounding of the network does not change the steps."""
    return torch.exp2((8 * h.log2()).floor() / 8)


def _solve_adaptive(
    field: _Field[State], x: Tensor, start: float, stop: float, control: _Control
) -> tuple[Tensor, int]:
    """Return the state at `stop`, and the number of rejected steps; finished items wait, with steps of size 0."""
    sign = math.copysign(1.0, stop - start)
    t, end = _column(start, x), _column(stop, x)
    first = field(t, x)
    h = _first_step(field, x, first, t, stop - start, control)
    before = torch.full_like(h, 1e-4)  # error of the last accepted step
    active, rejected = torch.ones_like(h, dtype=torch.bool), torch.zeros((), dtype=torch.long, device=x.device)
    for _ in range(control.max_steps):
        remaining = (end - t).abs()
        last = 1.01 * h >= remaining
        step = torch.where(active, torch.where(last, remaining, h), 0.0)
        stages = _stages(field, first, t, x, sign * step, _DORMAND_PRINCE)
        signed = (sign * step).to(x.dtype)[:, None]
        new = x + signed * _combine(_DORMAND_PRINCE.weights, stages)
        arrived = torch.where(last, end, t + sign * step)
        stages.append(field(arrived, new))
        with torch.no_grad():
            size = torch.maximum(x.abs(), new.abs())
            error = control.norm(signed * _combine(_DIFFERENCE, stages), size).clamp(min=1e-10)
            accepted, refused = active & (error <= 1), active & (error > 1)
            rejected += refused[: 1 if control.shared else None].sum()
            growth = (_SAFETY * error**-0.17 * before**0.04).clamp(_SHRINK, _GROW)  # PI control of the step
            shrinkage = (_SAFETY * error**-0.2).clamp(_SHRINK, 1.0)
            h = _round_step(step * torch.where(accepted, growth, shrinkage))
            before = torch.where(accepted, error, before)
        x = torch.where(accepted[:, None], new, x)
        first = torch.where(accepted[:, None], stages[-1], first)
        t = torch.where(accepted, arrived, t)
        active = active & ~(accepted & last)
        if not bool(active.any()):
            return x, int(rejected)
    late = int(active.nonzero()[0])
    raise ArithmeticError(
        f"{control.max_steps} steps were not enough: item {late} is at t = {float(t[late]):.6g} on the way to {stop:g} "
        f"with steps of {float(h[late]):.2g}; loosen rtol and atol, or allow more with max_steps"
    )
