"""Simulated annealing: the maximum of a function by chains that grow cold.

Source: kexue.fm/archives/8084, section "Simulated annealing"; Kirkpatrick, Gelatt and Vecchi 1983, Science 220; Hajek
1988, Math. Oper. Res. 13(2), for logarithmic schedules.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal

import numpy as np

from kexue._arrays import Array
from kexue._counts import check_counts
from kexue.sampling.chains import LogAcceptance, start_chains, walk
from kexue.sampling.protocols import Proposal, Proposed, S
from kexue.sampling.targets import Score, as_target

Schedule = Literal["geometric", "linear", "logarithmic"] | Callable[[int], float]
_COLD = 1e-3  # last temperature of a geometric schedule whose rate is not given, in units of the first


@dataclass(frozen=True, eq=False)
class AnnealResult(Generic[S]):
    """The best states of C chains.

    Attributes:
        best: (C,) the best state that each chain was ever in, its start included.
        best_value: (C,) the objective of these.
        trace: (C, steps + 1) the objective of each chain's start and of its state after each step.
        temperature: (steps,).
    """

    best: list[S]
    best_value: Array
    trace: Array
    temperature: Array


def anneal(
    objective: Score[S],
    proposal: Proposal[S],
    x0: S | Callable[[np.random.Generator], S],
    *,
    steps: int,
    schedule: Schedule = "geometric",
    tau0: float = 1.0,
    rate: float | None = None,
    chains: int = 1,
    generator: np.random.Generator | int | None = None,
) -> AnnealResult[S]:
    """Seek the maximum of f: at step t accept a move from x to y as a chain of the law e^(f / tau_t), tau_t falling.

    A = min(1, exp((f(y) - f(x)) / tau_t) q(x<-y) / q(y<-x)). At tau = 0 only moves that do not lower f are accepted:
    hill climbing.

    Args:
        objective: f, as `Target.log_rho` or a function of a state; -inf forbids a state.
        proposal: moves, each with both of its probabilities; the article's q is symmetric.
        x0: start of all chains; or a function of a generator that draws a start for each.
        steps: moves of each chain, >= 1.
        schedule: tau_t, t = 0, 1, ...: "geometric", tau0 rate^t; "linear", max(0, tau0 - rate t); "logarithmic",
            tau0 log 2 / log(t + 2), which finds the maximum in the end if tau0 is large, and is too slow for use; or a
            function of t.
        tau0: first temperature, >= 0, in the units of f; 0 climbs hills. A good one is the size of the dips to cross.
        rate: of a geometric schedule in (0, 1], None: the last temperature is tau0 / 1000; of a linear one >= 0, None:
            the last temperature is 0.
        chains: number of chains, >= 1.
        generator: as of `metropolis_hastings`.

    Raises:
        InfeasibleError: a start of f = -inf.
        ValueError: NaN or +inf as f, with the state; NaN as probability of a move; an argument out of range.

    Example:
        >>> class Step:
        ...     def propose(self, x, generator):
        ...         return Proposed(x + int(generator.integers(2)) * 2 - 1, 0.0, 0.0)
        >>> wavy = lambda x: -0.05 * x * x + 2 * math.cos(x)  # many hills; the highest at 0
        >>> [anneal(wavy, Step(), 12, steps=2000, tau0=tau0, generator=0).best for tau0 in (0, 3)]
        [[12], [0]]
    """
    check_counts(steps=steps)
    temperature = temperatures(schedule, steps, tau0, rate)
    starts, generators = start_chains(x0, chains, generator)
    best: list[S] = list(starts)
    best_value: list[float] = []
    trace: list[list[float]] = []
    for step in walk(as_target(objective), proposal, starts, generators, steps, _accept(temperature.tolist())):
        best_value = best_value or list(step.scores)
        for c, value in enumerate(step.scores):
            if value > best_value[c]:
                best[c], best_value[c] = step.states[c], value
        trace.append(step.scores.copy())
    return AnnealResult(best, np.array(best_value), np.array(trace).T.copy(), temperature)


def temperatures(schedule: Schedule, steps: int, tau0: float, rate: float | None) -> Array:
    """Return the temperatures (steps,) of a schedule: see `anneal`."""
    if not 0 <= tau0 < math.inf:
        raise ValueError(f"tau0 must be >= 0 and finite, got {tau0}")
    if rate is not None and schedule not in ("geometric", "linear"):
        raise ValueError(f"rate is of geometric and linear schedules, got {rate} for {schedule!r}")
    t = np.arange(steps)
    if callable(schedule):
        tau = np.array([float(schedule(i)) for i in range(steps)])
        if not ((tau >= 0) & (tau < math.inf)).all():
            raise ValueError(
                f"schedule must return temperatures >= 0 and finite, got {tau[~(tau >= 0) | (tau == np.inf)][0]}"
            )
    elif schedule == "geometric":
        rate = _COLD ** (1 / max(1, steps - 1)) if rate is None else rate
        if not 0 < rate <= 1:
            raise ValueError(f"the rate of a geometric schedule must be in (0, 1], got {rate}")
        tau = tau0 * rate**t
    elif schedule == "linear":
        rate = tau0 / max(1, steps - 1) if rate is None else rate
        if not 0 <= rate < math.inf:
            raise ValueError(f"the rate of a linear schedule must be >= 0 and finite, got {rate}")
        tau = np.maximum(0.0, tau0 - rate * t)
    elif schedule == "logarithmic":
        tau = tau0 * math.log(2) / np.log(t + 2)
    else:
        raise ValueError(f'schedule must be "geometric", "linear", "logarithmic" or a function of t, got {schedule!r}')
    return tau


def _accept(temperature: list[float]) -> LogAcceptance[Any]:
    def log_acceptance(t: int, old: float, new: float, move: Proposed[Any]) -> float:
        hastings = move.log_reverse - move.log_forward
        if hastings == -math.inf or new == -math.inf:
            return -math.inf
        gain, tau = new - old, temperature[t]
        if gain:
            gain = gain / tau if tau else math.copysign(math.inf, gain)
        return min(gain, sys.float_info.max) + hastings  # 8084, "Simulated annealing"

    return log_acceptance
