"""Rejection: exact samples of a score from those of a law that bounds it.

Source: kexue.fm/archives/8062, section "Rejection sampling"; von Neumann 1951.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from kexue._counts import check_count, check_counts
from kexue.sampling.protocols import IndependentProposal, S
from kexue.sampling.targets import Score, as_target, draw_states, score_proposed

_BATCH = 65_536  # states drawn at a time, at most
_ROUNDING = 1e-9  # of log ratios, by which a bound may be exceeded


@dataclass(frozen=True, eq=False)
class SampleResult(Generic[S]):
    """Independent samples of p.

    Attributes:
        states: those accepted, in order; fewer than were asked for where the tries ran out.
        acceptance: accepted states / tries, an estimate of Z / M.
        tries: states drawn, up to the last one accepted, or all where they ran out.
    """

    states: list[S]
    acceptance: float
    tries: int


def rejection_sample(
    target: Score[S],
    proposal: IndependentProposal[S],
    n: int,
    *,
    log_bound: float,
    max_tries: int | None = None,
    generator: np.random.Generator | int | None = None,
) -> SampleResult[S]:
    """Draw n independent samples of p(x) = rho(x) / Z: x ~ q is accepted with probability rho(x) / (M q(x)).

    M must be at least the largest ratio rho / q. The rate of acceptance is Z / M: a sample costs M / Z tries.
    For q a language model and rho = q where a text meets constraints, this rate is the probability that it does.

    Args:
        target: log rho, a `Target` or a function of a state.
        proposal: q, sampled and scored.
        n: samples, >= 1.
        log_bound: log M.
        max_tries: states drawn at most, >= 1; None: until there are n samples, which may be never.
        generator: numpy Generator, a seed, or None.

    Raises:
        ValueError: a state whose ratio exceeds M, so that all samples would be biased; a state drawn whose q is 0; NaN.

    Example:
        >>> class Die:
        ...     def sample(self, n, *, generator): return generator.integers(1, 7, n)
        ...     def log_prob(self, states): return [-math.log(6)] * len(states)
        >>> even = lambda x: 0.0 if x % 2 == 0 else -math.inf
        >>> result = rejection_sample(even, Die(), 1000, log_bound=math.log(6), generator=0)
        >>> sorted({int(x) for x in result.states}), round(result.acceptance, 1)  # Z / M = 3 / 6
        ([2, 4, 6], 0.5)
    """
    check_counts(n=n)
    limit = math.inf if max_tries is None else check_count(max_tries, "max_tries", 1)
    if not math.isfinite(log_bound):
        raise ValueError(f"log_bound must be a finite number, the logarithm of M, got {log_bound}")
    target = as_target(target)
    random = np.random.default_rng(generator)
    states: list[Any] = []
    tries = 0
    while len(states) < n and tries < limit:
        rate = max(len(states), 1) / max(tries, 1)
        batch = int(min(limit - tries, _BATCH, max(n, 1.1 * (n - len(states)) / rate)))
        drawn = draw_states(proposal, batch, random)
        log_ratio = score_proposed(target, proposal, drawn) - log_bound
        worst = int(log_ratio.argmax())
        if log_ratio[worst] > _ROUNDING:
            raise ValueError(
                f"the bound is broken: log_bound must be at least {log_ratio[worst] + log_bound:.6g}, the logarithm of "
                f"rho / q of state {drawn[worst]!r}, got {log_bound:.6g}"
            )
        passed = np.flatnonzero(random.random(batch) < np.exp(log_ratio))[: n - len(states)].tolist()
        states += [drawn[i] for i in passed]
        tries += passed[-1] + 1 if len(states) == n else batch
    return SampleResult(states, len(states) / tries, tries)
