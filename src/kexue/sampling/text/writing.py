"""Sentences around given words.

The law is rho(x) = p(x)^gamma · [all words occur] · [the length is allowed]. Chains start from the words, in random
order, with drawn tokens around them. Then gamma rises in stages to its value, as a chain that begins with a large gamma
stays near its start. The states after that are kept.

Source: kexue.fm/archives/8194; Miao et al. 2019, arXiv:1811.10996.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kexue._counts import check_count, check_counts
from kexue.errors import InfeasibleError
from kexue.sampling import MCMCResult, ProductTarget, Target, metropolis_hastings
from kexue.sampling.chains import Step
from kexue.sampling.text.laws import LanguageModel, Tokens
from kexue.sampling.text.mixture import MixtureProposal
from kexue.sampling.text.moves import BlockMove, DeleteMove, InsertMove, ReplaceMove, SwapMove
from kexue.sampling.text.ngram import NGramLM
from kexue.sampling.text.targets import Keywords, Length, LMTarget
from kexue.sampling.text.units import Parser, join_units

_STAGES = (0.4, 0.46, 0.52, 0.58, 0.64, 0.7, 0.76, 0.82, 0.88, 0.94)  # of gamma, before the states that are kept
_AROUND, _ROOM = 6, 16  # tokens beside the words, at least and at most, unless lengths are given


class Moment(NamedTuple):
    """Where chains are after a step.

    Attributes:
        done, steps: steps done, and of all.
        gamma: power of the model's probability.
        states: texts of the chains as tokens.
        log_rho: of each text, with this power.
        accepted: whether each chain has moved.
    """

    done: int
    steps: int
    gamma: float
    states: Sequence[Tokens]
    log_rho: Sequence[float]
    accepted: Sequence[bool]


Watch = Callable[[Moment], None]


class Writing(NamedTuple):
    """Sentences that chains have written.

    Attributes:
        sentences: the likeliest of each chain, each once, the likeliest first.
        log_rho: of each.
        result: all states that were kept.
    """

    sentences: list[str]
    log_rho: list[float]
    result: MCMCResult[Tokens]


def write_keywords(
    words: Sequence[str],
    lm: LanguageModel,
    *,
    steps: int = 500,
    chains: int = 8,
    gamma: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    generator: np.random.Generator | int | None = None,
    watch: Watch | None = None,
) -> Writing:
    """Write sentences that contain all given words, in any order.

    Args:
        words: at least one, none blank.
        lm: the language model.
        steps: states of each chain that are kept; as many are made before them, see the module.
        chains: number of chains, at least 1; each gives one sentence at most.
        gamma: power of the model's probability, > 0; a larger one gives likelier sentences, less various ones. None: 2
            for n-grams, which write nonsense below 1; 0.8, the article's, for others.
        min_length: fewest tokens; None: 6 more than those of the words, or `max_length` if that is less.
        max_length: most tokens; None: 16 more than those of the words, or `min_length` if that is more.
        generator: numpy Generator, a seed, or None.
        watch: called after each step with a `Moment`.

    Returns:
        Sentences which meet all constraints.

    Raises:
        ValueError: no word, a blank one, one that the model has never seen, a number out of range.
        InfeasibleError: words longer than `max_length` (side by side; overlaps are not looked for), or `min_length`
            above it.

    Example:
        >>> from kexue.sampling.text import load_lm
        >>> written = write_keywords(["故宫", "孩子"], load_lm(), generator=0)
        >>> all("故宫" in sentence and "孩子" in sentence for sentence in written.sentences)
        True
    """
    check_counts(steps=steps, chains=chains)
    gamma = choose_gamma(gamma, lm)
    tokens = _encode(words, lm)
    length = _bounds(tokens, min_length, max_length)
    whole = [word for word in tokens if not any(_within(word, other) for other in tokens)]
    proposal = make_moves(lm, whole)
    random = np.random.default_rng(generator)
    starts = [_start(lm, whole, length, random) for _ in range(chains)]
    constraints: list[Target[Tokens]] = [length, Keywords(tokens)]
    result = climb(lm, constraints, proposal, starts, steps=steps, gamma=gamma, generator=random, watch=watch)
    return best_of_chains(result, lm, lambda text: all(word in text for word in words))


def choose_gamma(gamma: float | None, lm: LanguageModel) -> float:
    """Return the power of a model's probability: the one given, checked, or that of its kind."""
    if gamma is None:
        return 2.0 if isinstance(lm, NGramLM) else 0.8
    return LMTarget(lm, gamma).gamma


def make_moves(lm: LanguageModel, protected: Sequence[Tokens] = ()) -> MixtureProposal:
    """Return the moves by which sentences are written."""
    moves = [ReplaceMove(lm), InsertMove(lm), DeleteMove(), SwapMove(), BlockMove(lm)]
    return MixtureProposal(moves, [3, 3, 3, 1, 1], protected=protected)


def climb(
    lm: LanguageModel,
    others: Sequence[Target[Tokens]],
    proposal: MixtureProposal,
    starts: Sequence[Tokens],
    *,
    steps: int,
    gamma: float,
    generator: np.random.Generator,
    watch: Watch | None = None,
) -> MCMCResult[Tokens]:
    """Run chains whose gamma rises in stages, `steps` steps in all, then `steps` steps whose states are kept."""
    short = max(1, steps // len(_STAGES))
    plan = [*((short, part * gamma) for part in _STAGES), (steps, gamma)]
    total, before = sum(count for count, _ in plan), 0
    for count, power in plan:
        target, report = ProductTarget(*others, LMTarget(lm, power)), _report_to(watch, before, total, power)
        result = _run_from(starts, target, proposal, count, generator, report)
        starts, before = [chain[-1] for chain in result.states], before + count
    return result


def _run_from(
    starts: Sequence[Tokens],
    target: Target[Tokens],
    proposal: MixtureProposal,
    steps: int,
    generator: np.random.Generator,
    report: Callable[[Step], None] | None,
) -> MCMCResult[Tokens]:
    """Run a chain from each start."""
    given = iter(starts)
    return metropolis_hastings(
        target,
        proposal,
        lambda _: next(given),
        steps=steps,
        chains=len(starts),
        generator=generator,
        watch=report,
    )


def _report_to(watch: Watch | None, before: int, steps: int, gamma: float) -> Callable[[Step], None] | None:
    """Return what tells `watch` of the steps that follow `before` others."""
    if watch is None:
        return None
    numbers = itertools.count(before + 1)
    return lambda step: watch(
        Moment(next(numbers), steps, gamma, tuple(step.states), tuple(step.scores), tuple(step.accepted))
    )


def best_of_chains(
    result: MCMCResult[Tokens], lm: LanguageModel, allowed: Callable[[str], bool] = lambda text: True
) -> Writing:
    """Return the likeliest state of each chain whose text is allowed, each once, the likeliest first."""
    best: dict[str, float] = {}
    for states, scores in zip(result.states, result.log_rho, strict=True):
        for i in np.argsort(-scores, kind="stable").tolist():
            if allowed(text := lm.decode(states[i])):
                best.setdefault(text, float(scores[i]))
                break
    order = sorted(best, key=best.__getitem__, reverse=True)
    return Writing(order, [best[text] for text in order], result)


def _encode(words: Sequence[str], lm: LanguageModel) -> list[Tokens]:
    """Return the tokens of words, each once."""
    if isinstance(words, str):
        raise TypeError(f"words must be a list of strings, got the string {words!r}")
    if not words:
        raise ValueError("words: got none, expected at least one")
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"words[{i}] must be a string, got {type(word).__name__}: {word!r:.40}")
        if not word.strip():
            raise ValueError(f"words[{i}] is blank: {word!r}, expected a word")
    return list(dict.fromkeys(lm.encode(word) for word in words))


def _bounds(words: Sequence[Tokens], low: int | None, high: int | None) -> Length:
    """Return the bounds of the length; InfeasibleError where the words do not fit."""
    whole = sum(len(word) for word in words if not any(_within(word, other) for other in words))
    if high is None:
        high = max(whole + _ROOM, check_count(low or 0, "min_length"))
    if low is None:
        low = min(whole + _AROUND, check_count(high, "max_length"))
    length = Length(check_count(low, "min_length"), check_count(high, "max_length"))
    if whole > high:
        raise InfeasibleError(
            f"the words have {whole} tokens, and max_length is {high}.", remedy=f"Allow {whole} at least."
        )
    return length


def _within(word: Tokens, other: Tokens) -> bool:
    """Return whether a word is a part of another one."""
    return word != other and any(other[i : i + len(word)] == word for i in range(len(other) - len(word) + 1))


def _start(lm: LanguageModel, words: Sequence[Tokens], length: Length, random: np.random.Generator) -> Tokens:
    """Return the words in random order with tokens around them, long enough."""
    insert, parser = InsertMove(lm), Parser(words)
    text = join_units(words[i] for i in random.permutation(len(words)))
    while len(text) < length.low:
        units = parser.parse(text)
        edit = insert.draw(units, random)
        assert edit is not None  # there is always a gap
        text = join_units(edit.apply(units))
    return text
