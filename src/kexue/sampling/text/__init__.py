"""Sentences written by sampling: language models, moves between texts, and what a sentence must have.

Importing this package loads no torch; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.sampling.text.mixture import MixtureProposal as MixtureProposal
    from kexue.sampling.text.moves import (
        BlockMove as BlockMove,
        DeleteMove as DeleteMove,
        InsertMove as InsertMove,
        ReplaceMove as ReplaceMove,
        SwapMove as SwapMove,
    )
    from kexue.sampling.text.ngram import NGramLM as NGramLM
    from kexue.sampling.text.targets import (
        Keywords as Keywords,
        Length as Length,
        LMTarget as LMTarget,
        SimilarityTarget as SimilarityTarget,
    )

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "mixture": ("MixtureProposal",),
        "moves": ("BlockMove", "DeleteMove", "InsertMove", "ReplaceMove", "SwapMove"),
        "ngram": ("NGramLM",),
        "targets": ("Keywords", "LMTarget", "Length", "SimilarityTarget"),
    },
)
