"""Samples and maxima of a score known up to a constant, and the diagnostics that tell whether to trust them.

numpy and scipy only. Public names load on first use, so importing this package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.sampling.protocols import (
        FiniteProposal as FiniteProposal,
        Follower as Follower,
        FollowingTarget as FollowingTarget,
        IndependentProposal as IndependentProposal,
        Proposal as Proposal,
        Proposed as Proposed,
        Target as Target,
    )
    from kexue.sampling.targets import FunctionTarget as FunctionTarget, ProductTarget as ProductTarget

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "protocols": (
            "FiniteProposal",
            "Follower",
            "FollowingTarget",
            "IndependentProposal",
            "Proposal",
            "Proposed",
            "Target",
        ),
        "targets": ("FunctionTarget", "ProductTarget"),
    },
)
