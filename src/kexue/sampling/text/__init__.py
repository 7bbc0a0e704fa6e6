"""Sentences written by sampling: language models, moves between texts, and what a sentence must have.

Importing this package loads no torch; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kexue._lazy import attach

if TYPE_CHECKING:
    from kexue.sampling.text.causal import CausalLM as CausalLM
    from kexue.sampling.text.masked import MaskedLMProposal as MaskedLMProposal, pseudo_gibbs as pseudo_gibbs
    from kexue.sampling.text.mixture import MixtureProposal as MixtureProposal
    from kexue.sampling.text.moves import (
        BlockMove as BlockMove,
        DeleteMove as DeleteMove,
        InsertMove as InsertMove,
        ReplaceMove as ReplaceMove,
        SwapMove as SwapMove,
    )
    from kexue.sampling.text.ngram import NGramLM as NGramLM
    from kexue.sampling.text.opening import load_lm as load_lm
    from kexue.sampling.text.rewriting import paraphrase as paraphrase, shorten as shorten
    from kexue.sampling.text.targets import (
        Keywords as Keywords,
        Length as Length,
        LMTarget as LMTarget,
        SimilarityTarget as SimilarityTarget,
    )
    from kexue.sampling.text.writing import Writing as Writing, write_keywords as write_keywords

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "causal": ("CausalLM",),
        "masked": ("MaskedLMProposal", "pseudo_gibbs"),
        "mixture": ("MixtureProposal",),
        "moves": ("BlockMove", "DeleteMove", "InsertMove", "ReplaceMove", "SwapMove"),
        "ngram": ("NGramLM",),
        "opening": ("load_lm",),
        "rewriting": ("paraphrase", "shorten"),
        "targets": ("Keywords", "LMTarget", "Length", "SimilarityTarget"),
        "writing": ("Writing", "write_keywords"),
    },
    needs={"causal": "torch", "masked": "torch"},
)
