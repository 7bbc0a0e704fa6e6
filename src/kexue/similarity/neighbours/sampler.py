"""Sampling of latents by hubness: keep the draws that are among the nearest neighbours of many others.

Sources: kexue.fm/archives/9147; Liang et al. 2022, arXiv:2206.06014.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array, host
from kexue.errors import InfeasibleError
from kexue.similarity.neighbours.occurrence import k_occurrence


class HubSample(NamedTuple):
    """Latents (size, dim), the share of draws accepted, and the number of rounds of n draws."""

    latents: Array
    acceptance: float
    rounds: int


class HubSampler:
    """Draw latents and keep the hubs among them: those with N_k >= threshold among n draws.

    Source: kexue.fm/archives/9147; Liang et al. 2022, arXiv:2206.06014. Differences: a latent is not counted as its own
    neighbour. Accepted latents lie nearer to the centre, so this acts like a truncation: quality rises, diversity
    falls. A threshold is valid only for the n and k it was chosen for.

    Args:
        dim: of a latent.
        n: draws a round.
        k: neighbours.
        threshold: least N_k to accept.
        prior: ``prior(n, generator) -> (n, dim)``; None is the standard normal.
        inclusive: accept N_k >= threshold; False: only N_k > threshold.
        max_rounds: largest number of rounds.
    """

    def __init__(
        self,
        dim: int,
        *,
        n: int = 10_000,
        k: int = 5,
        threshold: int = 50,
        prior: Callable[[int, np.random.Generator], Any] | None = None,
        inclusive: bool = True,
        max_rounds: int = 100,
    ) -> None:
        if dim < 1 or not 1 <= k < n or max_rounds < 1:
            raise ValueError(f"expected dim >= 1, 1 <= k < n, max_rounds >= 1; got {dim}, {k}, {n}, {max_rounds}")
        self.dim = dim
        self.n = n
        self.k = k
        self.threshold = threshold
        self.prior = prior
        self.inclusive = inclusive
        self.max_rounds = max_rounds

    def sample(self, size: int, *, generator: Any = None) -> HubSample:
        """Draw `size` hubs.

        Raises:
            InfeasibleError: `max_rounds` rounds did not give enough; the message says what was reached.
            ValueError: a negative size, or a prior of another shape.
        """
        if size < 0:
            raise ValueError(f"size must be >= 0, got {size}")
        rng = np.random.default_rng(generator)
        accepted: list[Array] = []
        total, largest = 0, 0
        least = self.threshold if self.inclusive else self.threshold + 1
        for rounds in range(1, self.max_rounds + 1):
            draws = rng.normal(size=(self.n, self.dim)) if self.prior is None else host(self.prior(self.n, rng))
            if draws.shape != (self.n, self.dim):
                raise ValueError(f"the prior must give latents ({self.n}, {self.dim}), got shape {draws.shape}")
            counts = k_occurrence(draws, self.k, generator=rng)
            largest = max(largest, int(counts.max()))
            accepted.append(draws[counts >= least])  # section "提升采样" (9147): a hub value of t or more
            total += len(accepted[-1])
            if total >= size:
                return HubSample(np.concatenate(accepted)[:size], total / (rounds * self.n), rounds)
        raise InfeasibleError(
            f"{self.max_rounds} rounds of {self.n} draws gave {total} of {size} latents with a {self.k}-occurrence of "
            f"{least}; the largest seen is {largest}.",
            remedy="Lower the threshold, or raise n or max_rounds.",
        )
