"""What a run of Markov chains gives, and a judgement of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.sampling.convergence import (
    effective_sample_size,
    integrated_autocorrelation_time,
    split_rhat,
)
from kexue.sampling.protocols import S

MAX_RHAT, MIN_ESS, MIN_ACCEPTANCE = 1.01, 100, 0.01  # beyond which a run is flagged


class Diagnostics(NamedTuple):
    """A judgement of chains.

    Attributes:
        ess_bulk, ess_tail: effective sample sizes for the centre and for the tails of the law.
        iat: integrated autocorrelation time, in draws.
        rhat: rank-normalised split R-hat.
        acceptance: share of the moves that were accepted; None for bare numbers, as the next two.
        acceptance_by_move: this share for each tag.
        distinct: share of the states that differ from one another.
        flags: doubts in words; empty where there are none, which proves nothing: chains that all miss the same region
            agree, too.
    """

    ess_bulk: float
    ess_tail: float
    iat: float
    rhat: float
    acceptance: float | None
    acceptance_by_move: dict[str, float] | None
    distinct: float | None
    flags: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return the judgement JSON-ready: None for what is not known or not finite, flags as a list."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self._asdict().items()
        }
        return {**finite, "flags": list(self.flags)}


@dataclass(frozen=True, eq=False)
class MCMCResult(Generic[S]):
    """States of C chains, N of each.

    Attributes:
        states: (C, N), in order; a rejected move repeats the state before it.
        log_rho: (C, N) float64, of the states; NaN where the sampler knows no score.
        accepted: (C, M) bool, of every move after the burn-in, also of those between the states that were kept.
        moves: (C, M) tags of these moves.
    """

    states: list[list[S]]
    log_rho: Array
    accepted: Array
    moves: list[list[str]]

    def measure(self, function: Callable[[S], float]) -> Array:
        """Return a number (C, N) of each state, as its length, to be averaged or given to `diagnose`."""
        return np.array([[float(function(state)) for state in chain] for chain in self.states])

    def summary(self) -> str:
        """Return the judgement of `diagnose` in words."""
        report = diagnose(self)
        assert report.acceptance_by_move is not None
        moves = ", ".join(f"{tag or 'moves'} {share:.3f}" for tag, share in report.acceptance_by_move.items())
        return "\n".join(
            [
                f"{len(self.states)} chains of {self.log_rho.shape[1]} states, {report.distinct:.1%} of them distinct",
                f"accepted: {report.acceptance:.3f} of all moves ({moves})",
                f"log rho: R-hat {report.rhat:.3f}, effective sample size {report.ess_bulk:.0f} "
                f"(tails {report.ess_tail:.0f}), autocorrelation time {report.iat:.1f}",
                *(f"doubt: {flag}" for flag in report.flags),
            ]
        )

    def to_arviz(self) -> Any:
        """Return an `arviz.InferenceData`: log rho, the states where they are numbers or arrays, and what was accepted.

        Raises:
            MissingDependencyError: ArviZ is not installed.
        """
        arviz = import_optional("arviz")
        numbers = isinstance(self.states[0][0], (int, float, np.ndarray, np.number))
        statistics = {"lp": self.log_rho}
        if self.accepted.shape == self.log_rho.shape:
            statistics["accepted"] = self.accepted
        posterior = {"log_rho": self.log_rho} | ({"x": np.array(self.states)} if numbers else {})
        return arviz.from_dict(posterior=posterior, sample_stats=statistics)


def diagnose(samples: MCMCResult[Any] | Any) -> Diagnostics:
    """Judge chains by log rho, or by any number that they were measured by.

    A run is flagged where R-hat > 1.01, an effective sample size < 100, or fewer than 1 % of the moves were accepted.
    Judge every quantity that you will report: chains may agree on log rho and differ in length.

    Args:
        samples: a result; or numbers (chains, draws), as `MCMCResult.measure` returns.

    Raises:
        ValueError: fewer than 4 draws; NaN, as log rho of Gibbs chains without a target.
    """
    if not isinstance(samples, MCMCResult):
        return _judge(samples, None, None, None)
    if np.isnan(samples.log_rho).any():
        raise ValueError(
            "log rho of these chains is not known; judge a number of their states: result.measure(function)"
        )
    passes, tries = Counter[str](), Counter[str]()
    for tags, accepted in zip(samples.moves, samples.accepted, strict=True):
        tries.update(tags)
        passes.update(tag for tag, passed in zip(tags, accepted, strict=True) if passed)
    by_move = {tag: passes[tag] / tries[tag] for tag in sorted(tries)}
    keys = {_key(state) for chain in samples.states for state in chain}
    return _judge(samples.log_rho, float(samples.accepted.mean()), by_move, len(keys) / samples.log_rho.size)


def _judge(
    numbers: Any, acceptance: float | None, by_move: dict[str, float] | None, distinct: float | None
) -> Diagnostics:
    rhat = split_rhat(numbers)
    bulk, tail = effective_sample_size(numbers), effective_sample_size(numbers, "tail")
    flags = []
    if math.isnan(rhat):
        flags.append("all values are equal, so that they say nothing of how the chains mix")
    elif rhat > MAX_RHAT:
        flags.append(f"R-hat {rhat:.3f} > {MAX_RHAT}: the chains have not the same law; run them longer")
    if min(bulk, tail) < MIN_ESS:
        flags.append(f"effective sample size {min(bulk, tail):.0f} < {MIN_ESS}: run longer, or propose better moves")
    if acceptance is not None and acceptance < MIN_ACCEPTANCE:
        flags.append(f"acceptance {acceptance:.4f} < {MIN_ACCEPTANCE}: hardly a move passes; propose smaller ones")
    return Diagnostics(
        bulk, tail, integrated_autocorrelation_time(numbers), rhat, acceptance, by_move, distinct, tuple(flags)
    )


def _key(state: Any) -> Hashable:
    """Return what tells a state from others: itself, or the contents of an array or a list."""
    if isinstance(state, np.ndarray):
        return state.tobytes()
    return tuple(state) if isinstance(state, list) else state
