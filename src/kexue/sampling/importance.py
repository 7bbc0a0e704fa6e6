"""Importance sampling: means under a score from weighted samples of another law.

Source: kexue.fm/archives/8062, section "Importance sampling"; Rubin 1987 for resampling (SIR).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from kexue._arrays import Array
from kexue._counts import check_counts
from kexue.errors import InfeasibleError
from kexue.sampling.protocols import IndependentProposal, S
from kexue.sampling.targets import Score, as_target, draw_states, score_proposed


@dataclass(frozen=True, eq=False)
class ImportanceResult(Generic[S]):
    """Weighted samples.

    Attributes:
        states: n states.
        log_weights: (n,), log(rho / q); all equal log Z after resampling.
        ess: (sum w)^2 / sum w^2: how many samples of p say as much. A small one is a warning, a large one no proof: of
            regions that q never reached it knows nothing.
        log_z: log of the mean weight, an estimate of log Z; its exponential has no bias.
        max_weight_share: share of the largest weight, 1 / n at best.
    """

    states: list[S]
    log_weights: Array
    ess: float
    log_z: float
    max_weight_share: float

    def expect(self, function: Callable[[S], Any]) -> Any:
        """Return sum w f(x) / sum w, the mean of a number or an array f(x) under p; its bias is O(1 / n).

        States of weight 0 are left out: there f need not be finite, as log rho is not.
        """
        weights = _shares(self.log_weights)
        seen = np.flatnonzero(weights)
        mean = np.tensordot(weights[seen], np.array([function(self.states[i]) for i in seen], np.float64), 1)
        return mean if mean.ndim else float(mean)


def importance_sample(
    target: Score[S],
    proposal: IndependentProposal[S],
    n: int,
    *,
    resample: bool = False,
    generator: np.random.Generator | int | None = None,
) -> ImportanceResult[S]:
    """Draw n states from q and weigh them by w = rho / q, so that E_p f = sum w f / sum w in the limit of large n.

    q must be above zero wherever rho is.

    Args:
        target: log rho, a `Target` or a function of a state.
        proposal: q, sampled and scored.
        n: states, >= 1.
        resample: draw n of the states again, with probabilities in proportion to their weights (SIR): nearly samples of
            p, many of them several times. `ess` and `max_weight_share` are those of the weights before.
        generator: numpy Generator, a seed, or None.

    Raises:
        InfeasibleError: all weights are zero.
        ValueError: a state drawn whose q is 0; NaN.

    Example:
        >>> class Die:
        ...     def sample(self, n, *, generator): return generator.integers(1, 7, n)
        ...     def log_prob(self, states): return [-math.log(6)] * len(states)
        >>> result = importance_sample(lambda x: math.log(x), Die(), 20_000, generator=0)  # p(x) = x / 21
        >>> round(result.expect(float), 1), round(math.exp(result.log_z)), round(91 / 21, 1)
        (4.3, 21, 4.3)
    """
    check_counts(n=n)
    random = np.random.default_rng(generator)
    states = draw_states(proposal, n, random)
    log_weights = score_proposed(as_target(target), proposal, states)
    top = float(log_weights.max())
    if top == -math.inf:
        raise InfeasibleError(
            f"All {n} states have density zero.", remedy="Draw more, or from a law nearer to the target."
        )
    log_z = top + math.log(float(np.exp(log_weights - top).mean()))
    shares = _shares(log_weights)
    ess, largest = 1 / float(shares @ shares), float(shares.max())
    if resample:
        states = [states[i] for i in random.choice(n, n, p=shares).tolist()]
        log_weights = np.full(n, log_z)
    return ImportanceResult(states, log_weights, ess, log_z, largest)


def _shares(log_weights: Array) -> Array:
    """Return weights (n,) of sum 1."""
    weights = np.exp(log_weights - log_weights.max())
    shares: Array = weights / weights.sum()
    return shares
