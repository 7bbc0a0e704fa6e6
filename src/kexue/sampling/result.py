"""What a run of Markov chains gives, and a judgement of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple

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
_KINDS: tuple[Literal["bulk", "tail"], ...] = ("bulk", "tail")


class Diagnostics(NamedTuple):
    """A judgement of chains. Of several numbers that they are judged by, the worst counts.

    The first four are NaN where all values are equal: chains that never move do not say how many draws they are worth.

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

    def summary(self, *measures: Callable[[S], float]) -> str:
        """Return the judgement of `diagnose` in words."""
        report = diagnose(self, *measures)
        assert report.acceptance_by_move is not None
        moves = ", ".join(f"{tag or 'moves'} {share:.3f}" for tag, share in report.acceptance_by_move.items())
        judged = "log rho and others, the worst" if measures else "log rho"
        return "\n".join(
            [
                f"{len(self.states)} chains of {self.log_rho.shape[1]} states, {report.distinct:.1%} of them distinct",
                f"accepted: {report.acceptance:.3f} of all moves ({moves})",
                f"{judged}: R-hat {report.rhat:.3f}, effective sample size {report.ess_bulk:.0f} "
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


def diagnose(samples: MCMCResult[Any] | Any, *measures: Callable[[Any], float]) -> Diagnostics:
    """Judge chains by log rho, or by any number that they were measured by.

    A run is flagged where there is one chain alone, R-hat > 1.01, an effective sample size < 100, or a chain that
    accepted fewer than 1 % of its moves. Judge every quantity that you will report: chains may agree on log rho and
    differ in length.

    Args:
        samples: a result; or numbers (chains, draws), as `MCMCResult.measure` returns.
        measures: of a result: functions of a state, such as ``len``, by which the chains are judged beside log rho.
            One that is the same for all states is left out.

    Raises:
        ValueError: fewer than 4 draws; NaN, as log rho of Gibbs chains without a target.
        TypeError: measures of bare numbers.
    """
    if not isinstance(samples, MCMCResult):
        if measures:
            raise TypeError(f"measures are functions of the states of an MCMCResult, got {type(samples).__name__}")
        return _judge([samples], None, None, None, math.inf)
    if not np.isfinite(samples.log_rho).all():
        raise ValueError(
            "log rho of these chains is not known, or not finite; judge a number of their states: "
            "result.measure(function)"
        )
    passes, tries = Counter[str](), Counter[str]()
    for tags, accepted in zip(samples.moves, samples.accepted, strict=True):
        tries.update(tags)
        passes.update(tag for tag, passed in zip(tags, accepted, strict=True) if passed)
    by_move = {tag: passes[tag] / tries[tag] for tag in sorted(tries)}
    keys = {_key(state) for chain in samples.states for state in chain}
    series = [samples.log_rho, *map(samples.measure, measures)]
    series = [numbers for numbers in series if np.ptp(numbers)] or series[:1]
    distinct, slowest = len(keys) / samples.log_rho.size, float(samples.accepted.mean(1).min())
    return _judge(series, float(samples.accepted.mean()), by_move, distinct, slowest)


def _judge(
    series: Sequence[Any],
    acceptance: float | None,
    by_move: dict[str, float] | None,
    distinct: float | None,
    slowest: float,
) -> Diagnostics:
    rhat = float(np.fmax.reduce([split_rhat(numbers) for numbers in series]))
    iat = max(map(integrated_autocorrelation_time, series))
    bulk, tail = (min(effective_sample_size(numbers, kind) for numbers in series) for kind in _KINDS)
    flags = []
    if len(np.atleast_2d(series[0])) == 1:
        flags.append("one chain alone: whether it has missed a part of the law cannot be seen; run several")
    if math.isnan(rhat):
        bulk = tail = iat = math.nan
        flags.append("all values are equal, so that they say nothing of how the chains mix")
    elif rhat > MAX_RHAT:
        flags.append(f"R-hat {rhat:.3f} > {MAX_RHAT}: the chains have not the same law; run them longer")
    if min(bulk, tail) < MIN_ESS:
        flags.append(f"effective sample size {min(bulk, tail):.0f} < {MIN_ESS}: run longer, or propose better moves")
    if slowest < MIN_ACCEPTANCE:
        flags.append(f"acceptance {slowest:.4f} < {MIN_ACCEPTANCE} in a chain: it hardly moves; propose smaller moves")
    return Diagnostics(bulk, tail, iat, rhat, acceptance, by_move, distinct, tuple(flags))


def _key(state: Any) -> Hashable:
    """Return what tells a state from others: itself, or the contents of an array or a list."""
    if isinstance(state, np.ndarray):
        return state.tobytes()
    return tuple(state) if isinstance(state, list) else state
