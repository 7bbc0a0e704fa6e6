"""Chains of finitely many states as matrices, in which detailed balance can be seen.

Source: kexue.fm/archives/8084, on transition probabilities and detailed balance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kexue._arrays import Array
from kexue.errors import InfeasibleError
from kexue.sampling.protocols import FiniteProposal, S
from kexue.sampling.targets import Score, as_target, score_states


def transition_matrix(target: Score[S], proposal: FiniteProposal[S], states: Sequence[S]) -> Array:
    """Compute the transition matrix of `metropolis_hastings` on finitely many states.

    T[i, j] = sum over moves from x_i to x_j of q A, T[i, i] also holds the moves rejected, or lacking to 1.

    With p the probabilities of the states, p[:, None] * T is symmetric (detailed balance) and p @ T = p (stationary),
    whatever the proposal: where not, one of its probabilities is wrong. States that one cannot reach from another,
    zeros of T to the power of their number, are never sampled from there.

    Args:
        target: log rho, a `Target` or a function of a state.
        proposal: moves that can be listed.
        states: S hashable states, all of density above zero that moves lead to from any of them.

    Returns:
        (S, S) float64, rows sum to 1.

    Raises:
        InfeasibleError: a state of density zero.
        ValueError: a state twice, an accepted move that leads elsewhere, moves whose probabilities have a sum above 1,
            or NaN as a score or a probability.
    """
    target = as_target(target)
    index = {state: i for i, state in enumerate(states)}
    if len(index) != len(states) or not index:
        raise ValueError(f"states must be different, and at least one, got {len(states)} of which {len(index)} differ")
    log_rho = score_states(target, states)
    matrix = np.zeros((len(states), len(states)))
    for i, state in enumerate(states):
        if log_rho[i] == -math.inf:
            raise InfeasibleError(f"The state {state!r} has density zero.", remedy="Leave it out.")
        moves = list(proposal.enumerate(state))
        total = sum(math.exp(move.log_forward) for move in moves)
        if not total <= 1 + 1e-9:
            raise ValueError(f"the probabilities of the moves from {state!r} must have a sum <= 1, got {total}")
        for move, score in zip(moves, score_states(target, [move.state for move in moves]).tolist(), strict=True):
            if move.log_forward == -math.inf:
                continue  # never made
            log_accept = score - log_rho[i] + move.log_reverse - move.log_forward
            if not log_accept < math.inf:
                raise ValueError(f"the move from {state!r} has no acceptance probability: {move}")
            accept = math.exp(min(0.0, log_accept))
            if accept and move.state not in index:
                raise ValueError(f"a move leads from {state!r} to {move.state!r}, which is not one of the states")
            if accept:
                matrix[i, index[move.state]] += math.exp(move.log_forward) * accept
        matrix[i, i] += 1 - matrix[i].sum()
    return matrix
