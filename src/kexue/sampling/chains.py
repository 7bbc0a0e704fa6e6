"""The loop that all Markov chains share: propose, score, accept or stay.

Source: kexue.fm/archives/8084; Metropolis et al. 1953; Hastings 1970, Biometrika 57(1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._counts import check_count, check_counts
from kexue.errors import InfeasibleError
from kexue.sampling.protocols import Proposal, Proposed, S, Target
from kexue.sampling.result import MCMCResult
from kexue.sampling.targets import check_score, follow, score_states

LogAcceptance = Callable[[int, float, float, Proposed[S]], float]
"""Log of the probability to accept a proposal, or of more than 1: of (step, log rho(x), log rho(y), proposal)."""


class Step(NamedTuple):
    """Where C chains are after a step. The first two lists are changed by the next step."""

    states: list[Any]
    scores: list[float]
    accepted: list[bool]
    tags: list[str]


Watch = Callable[[Step], None]
"""Called after each step of the chains."""


def start_chains(
    x0: S | Callable[[np.random.Generator], S], chains: int, generator: Any
) -> tuple[list[S], list[np.random.Generator]]:
    """Return a start and a generator of each chain. Those of chain i are the same for any number of chains."""
    check_counts(chains=chains)
    generators = np.random.default_rng(generator).spawn(chains)
    return [x0(each) if callable(x0) else x0 for each in generators], generators


def walk(
    target: Target[S],
    proposal: Proposal[S],
    starts: Sequence[S],
    generators: Sequence[np.random.Generator],
    steps: int,
    log_acceptance: LogAcceptance[S],
) -> Iterator[Step]:
    """Run chains side by side: yield where they start, then where they are after each of `steps` steps.

    At each step chain c draws its move and then one uniform number from `generators[c]`, whatever the outcome.

    Raises:
        InfeasibleError: a start of log rho = -inf.
        ValueError: NaN or +inf as log rho, or as logarithm of an acceptance probability.
    """
    states, scores = list(starts), score_states(target, starts).tolist()
    for state, score in zip(states, scores, strict=True):
        if score == -math.inf:
            raise InfeasibleError(
                f"The start {state!r} has density zero.", remedy="Start from a state that meets all constraints."
            )
    yield Step(states, scores, [], [])
    follower = follow(target, states)
    propose = proposal.propose
    for t in range(steps):
        proposals = [propose(state, generator) for state, generator in zip(states, generators, strict=True)]
        accepted = []
        for c, (proposed, score) in enumerate(zip(proposals, follower.score(proposals), strict=True)):
            if not score < math.inf:
                check_score(score, proposed.state)
            log_accept = log_acceptance(t, scores[c], score, proposed)
            if not log_accept < math.inf:
                raise ValueError(f"the move from {states[c]!r} has no acceptance probability: {proposed}")
            passed = generators[c].random() < (1.0 if log_accept >= 0 else math.exp(log_accept))
            if passed:
                states[c], scores[c] = proposed.state, float(score)
            accepted.append(passed)
        follower.move(accepted)
        yield Step(states, scores, accepted, [proposed.tag for proposed in proposals])


def check_plan(steps: int, burn_in: int, thin: int) -> None:
    """Raise a ValueError for a plan of a run by which no state is kept."""
    check_counts(steps=steps, thin=thin)
    if check_count(burn_in, "burn_in") + thin > steps:
        raise ValueError(f"burn_in + thin must be <= steps, or no state is kept, got {burn_in} + {thin} > {steps}")


def record(walk: Iterator[Step], burn_in: int, thin: int, watch: Watch | None = None) -> MCMCResult[Any]:
    """Run chains to their end and keep the state after each `thin`-th step that follows the burn-in."""
    states, scores, accepted, tags = [], [], [], []
    next(walk)  # the start
    for t, step in enumerate(walk, 1 - burn_in):
        if watch is not None:
            watch(step)
        if t > 0:
            accepted.append(step.accepted)
            tags.append(step.tags)
            if t % thin == 0:
                states.append(step.states.copy())
                scores.append(step.scores.copy())
    by_chain = [list(map(list, zip(*rows, strict=True))) for rows in (states, tags)]
    return MCMCResult(by_chain[0], np.array(scores).T.copy(), np.array(accepted, bool).T.copy(), by_chain[1])
