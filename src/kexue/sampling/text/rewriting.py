"""Sentences that mean what a given one means: said otherwise, or shorter.

The law is rho(x) = p(x)^gamma · cos(v(x), v(text))^k · exp(20 · difference · d(x)) · [the length is allowed], with
vectors v of an encoder and d the share of the pairs of neighbouring tokens of x that the text does not have; k is 200
for other words, and 50 for fewer, which cannot say all.

Source: Liu et al. 2020, "Unsupervised paraphrasing by simulated annealing", arXiv:1909.03588, for the three factors,
which it maximises; here they are sampled, as annealing strayed further from the meaning (page of search-sampling).
Compare kexue.fm/archives/8194.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kexue._counts import check_count, check_counts
from kexue.errors import InfeasibleError
from kexue.sampling import FunctionTarget, Target
from kexue.sampling.text.laws import LanguageModel, Tokens
from kexue.sampling.text.targets import Length, SentenceEncoder, SimilarityTarget
from kexue.sampling.text.writing import Watch, Writing, best_of_chains, choose_gamma, climb, make_moves

_POWER, _POWER_SHORTER = 200.0, 50.0  # of the cosine
_DIFFERENCE = 20.0  # nats for a text that shares no pair of tokens
_SPAN = 4  # tokens that are taken out at a time


def paraphrase(
    text: str,
    *,
    lm: LanguageModel,
    encoder: SentenceEncoder,
    steps: int = 500,
    chains: int = 8,
    gamma: float | None = None,
    difference: float = 1.0,
    generator: np.random.Generator | int | None = None,
    watch: Watch | None = None,
) -> Writing:
    """Write sentences that mean about what a text means, in other words. The text itself is not among them.

    Read them: many mean something else. They are the best states of each chain, found as by a search. What is told of
    the chains (R-hat) is told of all states that were kept, which the last gamma has.

    Args:
        text: a sentence that the model can read.
        lm: the language model.
        encoder: turns texts into vectors, such as a `kexue.text.RoFormerSim` or `kexue.text.Encoder`.
        steps, chains, gamma, generator, watch: as of `write_keywords`.
        difference: reward for other words, >= 0.

    Raises:
        ValueError: a blank text, one that the model cannot read, a number out of range.
    """
    if not 0 <= difference < math.inf:
        raise ValueError(f"difference must be >= 0 and finite, got {difference}")
    check_counts(steps=steps, chains=chains)
    power = choose_gamma(gamma, lm)
    start = _encode(text, lm)
    pairs = _pairs(start)

    def reward(state: Tokens) -> float:
        own = _pairs(state)
        return _DIFFERENCE * difference * len(own - pairs) / max(1, len(own))

    others: list[Target[Tokens]] = [
        Length((len(start) + 1) // 2, len(start) + len(start) // 2 + 2),
        SimilarityTarget(encoder, text, _POWER, decode=lm.decode),
        FunctionTarget(reward),
    ]
    result = climb(lm, others, make_moves(lm), [start] * chains, steps=steps, gamma=power,
                   generator=np.random.default_rng(generator), watch=watch)  # fmt: skip
    return best_of_chains(result, lm, lambda written: written != text)


def shorten(
    text: str,
    *,
    lm: LanguageModel,
    encoder: SentenceEncoder,
    target_length: int,
    steps: int = 500,
    chains: int = 8,
    gamma: float | None = None,
    generator: np.random.Generator | int | None = None,
    watch: Watch | None = None,
) -> Writing:
    """Write sentences of few tokens that mean about what a text means.

    Chains start from the text without spans of one to four tokens, each time the one that leaves the largest rho.

    Args:
        text: a sentence that the model can read.
        lm, encoder: as of `paraphrase`.
        target_length: most tokens, at least 1.
        steps, chains, gamma, generator, watch: as of `write_keywords`.

    Raises:
        ValueError: a blank text, one that the model cannot read, a number out of range.
        InfeasibleError: no shorter text has a cosine above 0.
    """
    check_counts(steps=steps, chains=chains, target_length=target_length)
    similarity = SimilarityTarget(encoder, text, _POWER_SHORTER, decode=lm.decode)
    power = choose_gamma(gamma, lm)
    start = _encode(text, lm)
    while len(start) > target_length:
        start = _take_out(start, target_length, lm, similarity, power)
    others: list[Target[Tokens]] = [Length(1, check_count(target_length, "target_length", 1)), similarity]
    result = climb(lm, others, make_moves(lm), [start] * chains, steps=steps, gamma=power,
                   generator=np.random.default_rng(generator), watch=watch)  # fmt: skip
    return best_of_chains(result, lm)


def _take_out(text: Tokens, least: int, lm: LanguageModel, similarity: SimilarityTarget, gamma: float) -> Tokens:
    """Return a text without the span that leaves the largest rho."""
    spans = range(1, min(_SPAN, len(text) - least) + 1)
    shorter = [text[:i] + text[i + size :] for size in spans for i in range(len(text) - size + 1)]
    scores = gamma * np.array(lm.log_rho(shorter)) + np.array(similarity.log_rho(shorter))
    if scores.max() == -math.inf:
        raise InfeasibleError(
            f"no part of {lm.decode(text)!r:.60} means about the same: their cosines are not above 0.",
            remedy="Allow more tokens, or use another encoder.",
        )
    return shorter[int(scores.argmax())]


def _encode(text: str, lm: LanguageModel) -> Tokens:
    """Return the tokens of a text that is not blank."""
    if not text.strip():
        raise ValueError(f"text is blank: {text!r}, expected a sentence")
    return lm.encode(text)


def _pairs(text: Sequence[int]) -> set[tuple[int, int]]:
    """Return the pairs of neighbouring tokens."""
    return set(pairwise(text))
