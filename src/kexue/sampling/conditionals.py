"""Gibbs sampling: one coordinate at a time, drawn given all others.

Source: kexue.fm/archives/8084, section "Gibbs sampling"; Geman and Geman 1984.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from kexue.sampling.chains import Step, check_plan, record, start_chains
from kexue.sampling.protocols import S, Target
from kexue.sampling.result import MCMCResult
from kexue.sampling.targets import Score, as_target, score_states

X = TypeVar("X", str, tuple[Any, ...])
Conditional = Callable[[S, int, np.random.Generator], S]


class FiniteConditional(Generic[X]):
    """The conditionals of a score on strings or tuples of n letters: p(x_i | x_-i) = rho(x) / sum over x_i of rho(x).

    Args:
        target: log rho, a `Target` or a function of a state. It is called with all values of a coordinate at once.
        values: the letters, different ones, at least one.
    """

    def __init__(self, target: Score[X], values: Sequence[Any]) -> None:
        self.target: Target[X] = as_target(target)
        self.values = list(values)
        if not self.values:
            raise ValueError("values must hold the letters of a coordinate, got none")
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"values must be different, or the law would count some of them twice, got {self.values}")

    def __call__(self, state: X, i: int, generator: np.random.Generator, /) -> X:
        """Draw coordinate `i` given the others."""
        head, tail = state[:i], state[i + 1 :]
        states: list[X] = [head + (v if isinstance(state, str) else (v,)) + tail for v in self.values]
        scores = score_states(self.target, states)
        if scores.max() == -math.inf:
            raise ValueError(f"no value of coordinate {i} is allowed in state {state!r}")
        cumulative = np.exp(scores - scores.max()).cumsum()
        return states[int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))]


def gibbs(
    conditional: Conditional[S],
    x0: S | Callable[[np.random.Generator], S],
    *,
    steps: int,
    scan: Literal["random", "systematic"] = "random",
    target: Score[S] | None = None,
    burn_in: int = 0,
    thin: int = 1,
    chains: int = 1,
    generator: np.random.Generator | int | None = None,
) -> MCMCResult[S]:
    """Run Markov chains that draw one coordinate at a step from its law given the others, p(x_i | x_-i).

    As a move of Metropolis and Hastings such a step has acceptance 1: q(y<-x) = p(y_i | x_-i), and
    p(x) q(y<-x) = p(x_-i) p(x_i | x_-i) p(y_i | x_-i) is the same both ways. With a random scan the chain is in
    detailed balance; with a systematic one p is still stationary. If the conditionals are not those of one law, as in a
    masked language model, there is no such p: the chain has some stationary law, which depends on the scan.

    Args:
        conditional: of (state, i, generator), the state with coordinate i drawn anew.
        x0: start of all chains, a sequence of n >= 1 coordinates; or a function of a generator that draws it.
        steps: coordinates drawn, those of the burn-in included; n of them are a sweep.
        scan: "random": i uniformly at each step; "systematic": 0, 1, ..., n - 1, 0, ...
        target: log rho, to be computed of the states that are kept; None: `log_rho` is NaN.
        burn_in, thin, chains, generator: as of `metropolis_hastings`.

    Raises:
        ValueError: an empty start, an unknown scan, numbers that keep no state.

    Example:
        >>> same = FiniteConditional(lambda x: 0.9 * (x[0] == x[1]), "ab")
        >>> result = gibbs(same, "ab", steps=2500, chains=4, generator=0)
        >>> round(float(result.measure(lambda x: x[0] == x[1]).mean()), 1), round(1 / (1 + math.exp(-0.9)), 1)
        (0.7, 0.7)
    """
    check_plan(steps, burn_in, thin)
    if scan not in ("random", "systematic"):
        raise ValueError(f'scan must be "random" or "systematic", got {scan!r}')
    starts, generators = start_chains(x0, chains, generator)
    sizes = [len(start) for start in starts]  # type: ignore[arg-type]
    if not min(sizes):
        raise ValueError(f"a start must have at least one coordinate, got {starts[sizes.index(0)]!r}")
    result = record(_scan(conditional, starts, generators, steps, scan == "random"), burn_in, thin)
    if target is not None:
        for scores, states in zip(result.log_rho, result.states, strict=True):
            scores[:] = score_states(as_target(target), states)
    return result


def _scan(
    conditional: Conditional[S], starts: list[S], generators: list[np.random.Generator], steps: int, random: bool
) -> Iterator[Step]:
    states, scores, accepted, tags = starts, [math.nan] * len(starts), [True] * len(starts), ["gibbs"] * len(starts)
    yield Step(states, scores, accepted, tags)
    for t in range(steps):
        for c, (state, generator) in enumerate(zip(states, generators, strict=True)):
            n = len(state)  # type: ignore[arg-type]
            states[c] = conditional(state, int(generator.integers(n)) if random else t % n, generator)
        yield Step(states, scores, accepted, tags)
