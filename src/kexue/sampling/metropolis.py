"""Markov chains of a score known up to a constant: Metropolis and Hastings, and Metropolis as the article has it.

Source: kexue.fm/archives/8084; Metropolis et al. 1953, J. Chem. Phys. 21(6); Hastings 1970, Biometrika 57(1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kexue.sampling.chains import LogAcceptance, Watch, check_plan, record, start_chains, walk
from kexue.sampling.protocols import Proposal, Proposed, S
from kexue.sampling.result import MCMCResult
from kexue.sampling.targets import Score, as_target


def metropolis_hastings(
    target: Score[S],
    proposal: Proposal[S],
    x0: S | Callable[[np.random.Generator], S],
    *,
    steps: int,
    burn_in: int = 0,
    thin: int = 1,
    chains: int = 1,
    generator: np.random.Generator | int | None = None,
    watch: Watch | None = None,
) -> MCMCResult[S]:
    """Run Markov chains whose law tends to p(x) = rho(x) / Z, without Z.

    A move from x to y is accepted with probability

        A(y<-x) = min(1, rho(y) q(x<-y) / (rho(x) q(y<-x))),

    so that p(x) q(y<-x) A(y<-x) = min(p(x) q(y<-x), p(y) q(x<-y)) is the same both ways (detailed balance): p is
    stationary. It is the only such law if the moves lead from every state to every other. A rejected move
    repeats the state: without that, states that are hard to leave would be counted too seldom.

    Args:
        target: log rho, a `Target` or a function of a state. A target is called once a step, with the proposals of all
            chains.
        proposal: moves, each with both of its probabilities.
        x0: start of all chains, of rho > 0; or a function of a generator that draws a start for each.
        steps: moves of each chain, >= 1, those of the burn-in included.
        burn_in: moves at the beginning after which no state is kept, >= 0.
        thin: of the others every `thin`-th state is kept, >= 1. Averages need no thinning; it saves memory alone.
        chains: number of chains, side by side, >= 1. One is not enough to see that it has not converged.
        generator: numpy Generator, a seed, or None. Every chain gets a stream of its own: chain i is the same in
            company of any number of others.
        watch: called after each step, those of the burn-in included, with the states of all chains, log rho of each,
            which moves were accepted, and their tags.

    Returns:
        (steps - burn_in) // thin states of each chain.

    Raises:
        InfeasibleError: a start of log rho = -inf.
        ValueError: NaN or +inf as log rho, with the state; NaN as probability of a move; numbers that keep no state.

    Example:
        >>> import math
        >>> class Step:
        ...     def propose(self, x, generator):
        ...         return Proposed(x + int(generator.integers(2)) * 2 - 1, math.log(0.5), math.log(0.5), "step")
        >>> log_rho = lambda x: -math.inf if x < 1 else x * math.log(0.5)  # p(x) = 2^-x for x = 1, 2, 3, ...
        >>> result = metropolis_hastings(log_rho, Step(), 1, steps=5000, burn_in=100, chains=4, generator=0)
        >>> round(float(result.measure(float).mean()), 1), result.log_rho.shape
        (2.0, (4, 4900))
    """
    return _run(target, proposal, x0, _accept_hastings, steps, burn_in, thin, chains, generator, watch)


def metropolis_1953(
    target: Score[S],
    proposal: Proposal[S],
    x0: S | Callable[[np.random.Generator], S],
    *,
    steps: int,
    burn_in: int = 0,
    thin: int = 1,
    chains: int = 1,
    generator: np.random.Generator | int | None = None,
) -> MCMCResult[S]:
    """Run Markov chains as the article first does, to be compared with `metropolis_hastings`, which is never slower.

    A move from x to y is accepted with probability q(x<-y) p(y): in detailed balance, too, but far below 1, and p must
    be normalised. Textbooks mean another thing by "Metropolis algorithm": that of Hastings where q is symmetric.

    Args:
        target: log p of a law on countably many states, normalised.

    Other arguments, results and errors are those of `metropolis_hastings`.

    Raises:
        ValueError: p(y) > 1, so that the target is no probability.
    """
    return _run(target, proposal, x0, _accept_1953, steps, burn_in, thin, chains, generator)


def _accept_hastings(t: int, old: float, new: float, move: Proposed[Any]) -> float:
    return new - old + move.log_reverse - move.log_forward  # 8084, "Metropolis-Hastings"


def _accept_1953(t: int, old: float, new: float, move: Proposed[Any]) -> float:
    if new > 1e-9:
        raise ValueError(f"metropolis_1953 needs normalised probabilities, got log p = {new} for state {move.state!r}")
    return move.log_reverse + new  # 8084, "Metropolis"


def _run(
    target: Score[S],
    proposal: Proposal[S],
    x0: S | Callable[[np.random.Generator], S],
    log_acceptance: LogAcceptance[S],
    steps: int,
    burn_in: int,
    thin: int,
    chains: int,
    generator: Any,
    watch: Watch | None = None,
) -> MCMCResult[S]:
    check_plan(steps, burn_in, thin)
    starts, generators = start_chains(x0, chains, generator)
    return record(walk(as_target(target), proposal, starts, generators, steps, log_acceptance), burn_in, thin, watch)
