"""What samplers ask of a score and of a proposal.

A state is any value that is never changed in place: a number, a string, a tuple of tokens. All scores and
probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from kexue._arrays import Array

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


class Proposed(NamedTuple, Generic[S]):
    """A move that a chain in state x may make.

    Attributes:
        state: y, the state after the move.
        log_forward: log probability q(y|x) of this very move.
        log_reverse: log probability q(x|y) of the move that undoes it; -inf where no move does, so that the move is
            rejected. A proposal without any move in x proposes x itself in this way.
        tag: kind of move, under which it is counted.
        change: what differs between y and x, for targets that score by differences (`Follower`); None: not told.
    """

    state: S
    log_forward: float
    log_reverse: float
    tag: str = ""
    change: Any = None


@runtime_checkable
class Target(Protocol[S_contra]):
    """A score rho >= 0, the density that is sampled up to a constant: p(x) = rho(x) / Z."""

    def log_rho(self, states: Sequence[S_contra], /) -> Sequence[float] | Array:
        """Return log rho (C,) of C states; -inf where a state is forbidden, never NaN."""
        ...


class Follower(Protocol[S]):
    """Scores of the proposals of C chains, by one that knows where each chain is.

    A target that can score a changed state faster than a new one has a method `follow(states)`, which returns a
    follower of chains that start there. It may keep for each chain whatever helps: scores of tokens, cached states of a
    network. Samplers call `score` and `move` in turn.
    """

    def score(self, proposals: Sequence[Proposed[S]], /) -> Sequence[float] | Array:
        """Return log rho (C,) of one proposed state of each chain, by `change` or, where it is None, by `state`."""
        ...

    def move(self, accepted: Sequence[bool], /) -> None:
        """Learn which chains (C,) went to the states scored last; the others stay where they were."""
        ...


@runtime_checkable
class FollowingTarget(Target[S], Protocol[S]):
    """A target that scores changes: `Follower`."""

    def follow(self, states: Sequence[S], /) -> Follower[S]:
        """Return a follower of C chains that are in these states, all of a density above zero."""
        ...


class Proposal(Protocol[S]):
    """A law q(y|x) of moves from a state x."""

    def propose(self, state: S, generator: np.random.Generator, /) -> Proposed[S]:
        """Draw a move from `state`, with all random numbers from `generator`."""
        ...


class FiniteProposal(Proposal[S], Protocol[S]):
    """A proposal whose moves can be listed, so that its chain is a matrix: `transition_matrix`."""

    def enumerate(self, state: S, /) -> Iterable[Proposed[S]]:
        """Return all moves from `state`. What their probabilities lack to 1 is that of no move at all."""
        ...


class IndependentProposal(Protocol[S]):
    """A law q(x) that does not depend on a state: what rejection and importance sampling draw from."""

    def sample(self, n: int, *, generator: np.random.Generator) -> Sequence[S] | Array:
        """Draw n states."""
        ...

    def log_prob(self, states: Sequence[S], /) -> Sequence[float] | Array:
        """Return log q (n,) of n states, normalised."""
        ...
