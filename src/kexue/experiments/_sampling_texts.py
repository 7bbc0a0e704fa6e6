"""Sentences around given words: chains, rejection and beam search on one language model of n-grams."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.experiments._short_sentences import read_short, write_grammar
from kexue.sampling import MCMCResult, ProductTarget, anneal, metropolis_hastings, split_rhat
from kexue.sampling.text import (
    DeleteMove,
    InsertMove,
    Keywords,
    Length,
    LMTarget,
    MixtureProposal,
    NGramLM,
    ReplaceMove,
    SwapMove,
)

Tokens = tuple[int, ...]

# Words that occur together in sentences of the grammar, and in everyday ones.
WORDS = (
    ("今天", "老师", "公园", "看书"),
    ("明天", "妈妈", "家里", "休息"),
    ("周末", "朋友", "海边", "拍照"),
    ("晚上", "学生", "学校", "唱歌"),
    ("早上", "孩子", "车站", "吃饭"),
    ("昨天", "医生", "山上", "跑步"),
)
GAMMAS = (0.6, 0.8, 1.0, 1.2)
WRITING = (0.8, 1.0)  # powers of p at which sentences are written around words
LONGEST = 24  # characters of a sentence
CHAINS = 8


@dataclass(frozen=True)
class Corpus:
    """Sentences, a model of them, and sentences that it has not seen."""

    name: str
    lm: NGramLM
    sentences: int
    held_out: list[str]


def open_corpus(data: Path | None, most: int) -> Corpus:
    """Fit a model of characters to everyday sentences of the data folder, or to those of a grammar."""
    texts = read_short(data, LONGEST, 3000) if data is not None else []
    name = "short sentences of corpus_zh and parallel_en_zh" if texts else "a grammar of 6,912 sentences"
    texts = (texts or write_grammar())[: most + most // 10]
    held = len(texts) // 11
    return Corpus(name, NGramLM(5).fit(texts[held:]), len(texts) - held, texts[:held])


def make_chain(lm: NGramLM, words: Sequence[Tokens], gamma: float) -> tuple[ProductTarget[Tokens], MixtureProposal]:
    """Return the target p^gamma of sentences that have the words, and moves that keep the words whole."""
    factors: list[Any] = [Length(1, LONGEST), *([Keywords(words)] if words else []), LMTarget(lm, gamma)]
    moves: list[Any] = [InsertMove(lm), DeleteMove(), ReplaceMove(lm), *([SwapMove()] if words else [])]
    return ProductTarget(*factors), MixtureProposal(moves, protected=words)


# ---- rejection against chains ---------------------------------------------------------------------------------------


class Collapse(NamedTuple):
    """Shares (5, sets) for 0 to 4 words: of the model's sentences that have all, and of moves that chains accept."""

    rejection: Array
    chains: Array
    drawn: int


def compare_rejection(corpus: Corpus, drawn: int, steps: int, seed: int) -> Collapse:
    """Count how often the model writes the words by itself, and how often a chain that has them accepts a move."""
    lm, generator = corpus.lm, np.random.default_rng(seed)
    texts = [lm.sample(generator=generator, max_length=2 * LONGEST) for _ in range(drawn)]
    rejection, chains = np.ones((5, len(WORDS))), np.zeros((5, len(WORDS)))
    for i, words in enumerate(WORDS):
        tokens = [lm.encode(word) for word in words]
        for k in range(5):
            if k:
                having = Keywords(tokens[:k])
                rejection[k, i] = np.mean(np.asarray(having.log_rho(texts)) == 0)
            target, moves = make_chain(lm, tokens[:k], 0.8)
            start = tuple(itertools.chain(*tokens[:k])) or lm.encode(words[0])
            result = metropolis_hastings(
                target, moves, start, steps=steps, burn_in=steps // 4, chains=CHAINS, generator=seed + i
            )
            chains[k, i] = result.accepted.mean()
    return Collapse(rejection, chains, drawn)


# ---- length ---------------------------------------------------------------------------------------------------------


class Lengths(NamedTuple):
    """Lengths: means of chains (gammas, chains), of sentences that the model wrote by itself (n,), of ends of chains.

    `kept` are the ends of chains of gamma = 1 that started with sentences of the model, one of each.
    """

    by_gamma: Array
    direct: Array
    kept: Array


def compare_lengths(corpus: Corpus, steps: int, drawn: int, seed: int) -> Lengths:
    """Measure lengths of chains of p^gamma, and of sentences drawn from p, which gamma = 1 must agree with."""
    lm, generator = corpus.lm, np.random.default_rng(seed)
    rows = []
    for gamma in GAMMAS:
        target, moves = make_chain(lm, [], gamma)
        start = lm.encode(WORDS[0][0])
        result = metropolis_hastings(
            target, moves, start, steps=steps, burn_in=steps // 5, thin=10, chains=CHAINS, generator=seed
        )
        rows.append(result.measure(len).mean(1))
    texts = [lm.sample(generator=generator, max_length=2 * LONGEST) for _ in range(drawn)]
    direct = [len(text) for text in texts if 1 <= len(text) <= LONGEST]
    target, moves = make_chain(lm, [], 1.0)
    ends = metropolis_hastings(
        target, moves, lambda g: _draw_short(lm, g), steps=600, thin=600, chains=200, generator=seed
    )
    return Lengths(np.array(rows), np.array(direct, np.float64), ends.measure(len)[:, 0])


def _draw_short(lm: NGramLM, generator: np.random.Generator) -> Tokens:
    """Draw a sentence of the model that its moves can write."""
    while True:
        text = lm.sample(generator=generator, max_length=2 * LONGEST)
        if 1 <= len(text) <= LONGEST and all(token in lm.writable for token in text):
            return text


# ---- writing --------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """Sentences around one set of words.

    Attributes:
        words: what they must have.
        samples: by gamma, the last state of each chain.
        beams: as many of beam search.
        kept: share of all states of all chains that have the words.
        annealed, beam: best log p by annealing and by beam search.
        rhat: by gamma, R-hat of log rho.
    """

    words: tuple[str, ...]
    samples: dict[float, list[Tokens]]
    beams: list[Tokens]
    kept: float
    annealed: float
    beam: float
    rhat: dict[float, float]


def write_all(corpus: Corpus, counts: Sequence[int], steps: int, seed: int) -> list[Written]:
    """Write around the first words of every set, as many as `counts` say, by sampling, annealing and beam search."""
    return [_write(corpus.lm, words[:count], steps, seed + i) for count in counts for i, words in enumerate(WORDS)]


def _write(lm: NGramLM, words: tuple[str, ...], steps: int, seed: int) -> Written:
    tokens = [lm.encode(word) for word in words]
    start = tuple(itertools.chain(*tokens))
    having = Keywords(tokens)
    runs: dict[float, MCMCResult[Tokens]] = {}
    for gamma in WRITING:
        target, moves = make_chain(lm, tokens, gamma)
        runs[gamma] = metropolis_hastings(
            target, moves, start, steps=steps, burn_in=steps // 4, thin=5, chains=CHAINS, generator=seed
        )
    target, moves = make_chain(lm, tokens, 1.0)
    cold = anneal(target, moves, start, steps=steps, tau0=3.0, chains=CHAINS, generator=seed)
    beams = search_beams(lm, tokens, CHAINS)
    return Written(
        words,
        {gamma: [chain[-1] for chain in run.states] for gamma, run in runs.items()},
        [text for _, text in beams],
        float(np.mean([np.equal(having.log_rho(chain), 0) for run in runs.values() for chain in run.states])),
        float(cold.best_value.max()),
        beams[0][0],
        {gamma: split_rhat(run.log_rho) for gamma, run in runs.items()},
    )


def perplexity(lm: NGramLM, texts: Sequence[Tokens]) -> float:
    """Perplexity of a token, ends included, of sentences under the model."""
    return math.exp(-sum(lm.log_rho(texts)) / sum(len(text) + 1 for text in texts))


def distinct_pairs(texts: Sequence[Tokens]) -> float:
    """Share of different pairs of neighbours among all of them (distinct-2, Li et al. 2016)."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text)]
    return len(set(pairs)) / len(pairs)


def search_beams(lm: NGramLM, words: Sequence[Tokens], width: int) -> list[tuple[float, Tokens]]:
    """Grid beam search: the most probable sentences found that have all words, with log p, best first.

    A beam of `width` is kept for every number of tokens of the words that were written.

    Source: Hokamp and Liu 2017, arXiv:1704.07138.
    """
    total = sum(len(word) for word in words)
    grid: list[list[tuple[float, Tokens, frozenset[int], Tokens]]] = [[] for _ in range(total + 1)]
    grid[0] = [(0.0, (), frozenset(), ())]  # log p, text, words begun, rest of the word that is being written
    finished: list[tuple[float, Tokens]] = []
    for _ in range(LONGEST):
        grown: list[list[tuple[float, Tokens, frozenset[int], Tokens]]] = [[] for _ in range(total + 1)]
        for done, beam in enumerate(grid):
            for log_p, text, begun, rest in beam:
                scores = lm.next_log_probs(text)
                if rest:
                    grown[done + 1].append((log_p + scores[rest[0]], (*text, rest[0]), begun, rest[1:]))
                    continue
                if done == total and text:
                    finished.append((lm.log_prob(text), text))
                for i, word in enumerate(words):
                    if i not in begun:
                        grown[done + 1].append((log_p + scores[word[0]], (*text, word[0]), begun | {i}, word[1:]))
                free = scores[list(lm.writable)]
                for j in np.argsort(-free)[:width].tolist():
                    grown[done].append((log_p + free[j], (*text, lm.writable[j]), begun, ()))
        grid = [sorted(beam, key=lambda one: -one[0])[:width] for beam in grown]
    unique = {text: log_p for log_p, text in finished}
    return sorted(((log_p, text) for text, log_p in unique.items()), reverse=True)[:width]
