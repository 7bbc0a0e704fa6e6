"""Scores made of others, and their checks: what a chain calls at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic

import numpy as np

from kexue._arrays import Array
from kexue.sampling.protocols import Follower, FollowingTarget, IndependentProposal, Proposed, S, Target

Score = Target[S] | Callable[[S], float]


class FunctionTarget(Generic[S]):
    """A score whose logarithm is a function of one state."""

    def __init__(self, function: Callable[[S], float]) -> None:
        self.function = function

    def log_rho(self, states: Sequence[S], /) -> list[float]:
        """Return the function of each state."""
        return [float(self.function(state)) for state in states]


class ProductTarget(Generic[S]):
    """A product of scores with powers: log rho = sum of power_i log rho_i, and -inf where a factor forbids the state.

    Factors are called in the order given, each with those states alone that the ones before it allow (factors that
    follow chains, with all): cheap constraints belong first. A power of 0 leaves its factor out.

    Source: kexue.fm/archives/8062: rho(x) = p_LM(x) sim(x, c) chi(x, c).

    Args:
        targets: factors, at least one; a function of a state is one, too.
        powers: one of each factor, >= 0; None: 1.

    Raises:
        ValueError: no factor, another number of powers than of factors, or a power below 0 or not finite.

    Example:
        >>> short = FunctionTarget(lambda word: 0.0 if len(word) < 4 else -math.inf)
        >>> ProductTarget(short, lambda word: -float(len(word)), powers=[1, 0.5]).log_rho(["a", "abc", "abcd"]).tolist()
        [-0.5, -1.5, -inf]
    """

    def __init__(self, *targets: Score[S], powers: Sequence[float] | None = None) -> None:
        powers = [1.0] * len(targets) if powers is None else [float(power) for power in powers]
        if not targets or len(powers) != len(targets):
            raise ValueError(f"a product needs factors and a power of each, got {len(targets)} and {len(powers)}")
        if not all(0 <= power < math.inf for power in powers):
            raise ValueError(f"powers must be >= 0 and finite, got {powers}")
        self.targets = [as_target(target) for target in targets]
        self.powers = powers

    def log_rho(self, states: Sequence[S], /) -> Array:
        """Return log rho (C,) of C states."""
        total = np.zeros(len(states))
        for target, power in zip(self.targets, self.powers, strict=True):
            allowed = np.flatnonzero(total > -math.inf).tolist()
            if power and len(allowed):
                total[allowed] += power * np.asarray(target.log_rho([states[i] for i in allowed]), np.float64)
        return total

    def follow(self, states: Sequence[S], /) -> Follower[S]:
        """Return a follower that combines those of the factors."""
        pairs = zip(self.targets, self.powers, strict=True)
        return _ProductFollower([(follow(target, states), power) for target, power in pairs if power])


class _ProductFollower(Generic[S]):
    """Followers of the factors of a product, with their powers."""

    def __init__(self, factors: list[tuple[Follower[S], float]]) -> None:
        self.factors = factors

    def score(self, proposals: Sequence[Proposed[S]], /) -> list[float]:
        total = [0.0] * len(proposals)
        for follower, power in self.factors:
            if isinstance(follower, _PlainFollower):
                asked = [i for i, value in enumerate(total) if value > -math.inf]
                scores = follower.score([proposals[i] for i in asked]) if asked else []
            else:
                asked, scores = list(range(len(total))), follower.score(proposals)
            for i, score in zip(asked, scores, strict=True):
                total[i] += power * float(score)
        return total

    def move(self, accepted: Sequence[bool], /) -> None:
        for follower, _ in self.factors:
            follower.move(accepted)


class _PlainFollower(Generic[S]):
    """Scores of whole states, of a target that cannot score changes."""

    def __init__(self, target: Target[S]) -> None:
        self.target = target

    def score(self, proposals: Sequence[Proposed[S]], /) -> Sequence[float] | Array:
        return self.target.log_rho([proposed.state for proposed in proposals])

    def move(self, accepted: Sequence[bool], /) -> None:
        pass


def as_target(score: Score[S]) -> Target[S]:
    """Return a target as it is, and a function of one state as a target.

    Raises:
        TypeError: neither.
    """
    if isinstance(score, Target):
        return score
    if not callable(score):
        raise TypeError(f"a target needs a method log_rho(states), or is a function of a state, got {score!r}")
    return FunctionTarget(score)


def follow(target: Target[S], states: Sequence[S]) -> Follower[S]:
    """Return the target's own follower of chains in these states, or one that scores every proposal anew."""
    return target.follow(states) if isinstance(target, FollowingTarget) else _PlainFollower(target)


def check_score(value: float, state: Any) -> None:
    """Raise a ValueError, which names the state, for a log rho that is NaN or +inf."""
    if not value < math.inf:
        raise ValueError(f"log rho must be a number < inf, or -inf where forbidden, got {value} for state {state!r}")


def score_states(target: Target[S], states: Sequence[S]) -> Array:
    """Return log rho (n,) of states, float64, checked.

    Raises:
        ValueError: NaN, +inf, or another number of scores than of states.
    """
    scores = np.asarray(target.log_rho(states), np.float64)
    if scores.shape != (len(states),):
        raise ValueError(f"log_rho must return ({len(states)},) numbers, one of each state, got shape {scores.shape}")
    for i in np.flatnonzero(~(scores < math.inf)).tolist():
        check_score(float(scores[i]), states[i])
    return scores


def draw_states(proposal: IndependentProposal[S], n: int, generator: np.random.Generator) -> list[S]:
    """Return n states drawn from q; ValueError where it gives another number."""
    states = list(proposal.sample(n, generator=generator))
    if len(states) != n:
        raise ValueError(f"sample({n}) of the proposal must return {n} states, got {len(states)}")
    return states


def score_proposed(target: Target[S], proposal: IndependentProposal[S], states: Sequence[S]) -> Array:
    """Return log rho - log q (n,) of states drawn from q, checked.

    Raises:
        ValueError: as of `score_states`; or q is 0 or NaN of a state that it gave.
    """
    log_q = np.asarray(proposal.log_prob(states), np.float64)
    if log_q.shape != (len(states),):
        raise ValueError(f"log_prob must return ({len(states)},) numbers, one of each state, got shape {log_q.shape}")
    for i in np.flatnonzero(~np.isfinite(log_q)).tolist():
        raise ValueError(
            f"a proposal must know the probability of its samples, got log q = {log_q[i]} of {states[i]!r}"
        )
    return score_states(target, states) - log_q
