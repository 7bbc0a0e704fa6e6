"""Samples and maxima of a score known up to a constant, and the diagnostics that tell whether to trust them.

numpy and scipy only. Public names load on first use, so importing this package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.sampling.annealing import AnnealResult as AnnealResult, anneal as anneal
    from kexue.sampling.conditionals import FiniteConditional as FiniteConditional, gibbs as gibbs
    from kexue.sampling.convergence import (
        effective_sample_size as effective_sample_size,
        integrated_autocorrelation_time as integrated_autocorrelation_time,
        split_rhat as split_rhat,
    )
    from kexue.sampling.exact import transition_matrix as transition_matrix
    from kexue.sampling.importance import ImportanceResult as ImportanceResult, importance_sample as importance_sample
    from kexue.sampling.metropolis import metropolis_1953 as metropolis_1953, metropolis_hastings as metropolis_hastings
    from kexue.sampling.protocols import (
        FiniteProposal as FiniteProposal,
        Follower as Follower,
        FollowingTarget as FollowingTarget,
        IndependentProposal as IndependentProposal,
        Proposal as Proposal,
        Proposed as Proposed,
        Target as Target,
    )
    from kexue.sampling.rejection import SampleResult as SampleResult, rejection_sample as rejection_sample
    from kexue.sampling.result import Diagnostics as Diagnostics, MCMCResult as MCMCResult, diagnose as diagnose
    from kexue.sampling.targets import FunctionTarget as FunctionTarget, ProductTarget as ProductTarget

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "annealing": ("AnnealResult", "anneal"),
        "conditionals": ("FiniteConditional", "gibbs"),
        "convergence": ("effective_sample_size", "integrated_autocorrelation_time", "split_rhat"),
        "exact": ("transition_matrix",),
        "importance": ("ImportanceResult", "importance_sample"),
        "metropolis": ("metropolis_1953", "metropolis_hastings"),
        "protocols": (
            "FiniteProposal",
            "Follower",
            "FollowingTarget",
            "IndependentProposal",
            "Proposal",
            "Proposed",
            "Target",
        ),
        "rejection": ("SampleResult", "rejection_sample"),
        "result": ("Diagnostics", "MCMCResult", "diagnose"),
        "targets": ("FunctionTarget", "ProductTarget"),
    },
)
