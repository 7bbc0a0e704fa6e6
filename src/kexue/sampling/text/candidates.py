"""Candidates for a place of a text by n-grams: the likeliest tokens w by p(w | state) p(r | w), r the next token.

Tokens that the contexts of a state have not seen have log p(w | state) = b + log p(w), with one b for all. Their order
depends on r alone, so it is kept, and for a place only the tokens that were seen are scored and compared with the best
others.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.sampling.text.laws import choose
from kexue.sampling.text.trie import UNKNOWN, Trie

_BEST = 256  # tokens whose order is kept
_COLUMNS = 1_000  # columns that are remembered: with 5,000 tokens 45 MB
_STATES = 5_000  # states whose seen tokens are remembered: about 50 MB


class _Column(NamedTuple):
    """What one next token r says of the tokens before it.

    Attributes:
        scores: (V,) log p(r | w) of every single token w; 0 where r is not known.
        best: tokens of text with the largest log p(w) + log p(r | w), the largest first.
        best_scores: these sums.
    """

    scores: Array
    best: Array
    best_scores: Array


class _Seen(NamedTuple):
    """Tokens of text that followed a state or one of its shorter contexts.

    Attributes:
        tokens: their ids.
        scores: log p(w | state) of each.
        backoff: b, so that all other tokens have log p(w | state) = b + log p(w).
    """

    tokens: Array
    scores: Array
    backoff: float


class Candidates:
    """The scores of all tokens in a state of the model, and the best tokens of a place."""

    def __init__(self, trie: Trie) -> None:
        V = trie.vocabulary
        self._trie = trie
        self._token_of = np.concatenate([[0], trie.keys % V])
        self._texts = np.arange(UNKNOWN + 1, V)
        pairs = np.arange(trie.first_child[1], trie.first_child[V + 1])
        self._pairs = pairs[np.argsort(self._token_of[pairs], kind="stable")]  # 2-grams by their last token
        self._starts = np.searchsorted(self._token_of[self._pairs], np.arange(V + 1))
        self._columns: dict[int | None, _Column] = {}
        self._states: dict[int, _Seen] = {}

    def score(self, state: int) -> Array:
        """Return log p(w | state) (V,): from the shortest context on, each longer one replaces what it has seen."""
        trie = self._trie
        scores = trie.log_prob[1 : trie.vocabulary + 1].copy()
        for context, first, last in reversed(self._contexts(state)):
            scores += trie.backoff[context]
            scores[self._token_of[first:last]] = trie.log_prob[first:last]
        return scores

    def choose(
        self, state: int, following: int | None, top: int | None, include: Collection[int] = ()
    ) -> tuple[Array, Array]:
        """Return the likeliest tokens of a place and those to include, with their scores: see `laws.choose`."""
        column = self._column(following)
        if top is not None and not include:
            seen = self._seen(state)
            taken = np.zeros(self._trie.vocabulary, bool)
            taken[seen.tokens] = True
            free = np.flatnonzero(~taken[column.best])[:top]
            if len(free) == top:
                tokens = np.concatenate([seen.tokens, column.best[free]])
                known, other = seen.scores + column.scores[seen.tokens], seen.backoff + column.best_scores[free]
                scores = np.concatenate([known, other])
                chosen = scores.argpartition(-top)[-top:]
                return tokens[chosen], scores[chosen]
        return choose(self._texts, (self.score(state) + column.scores)[UNKNOWN + 1 :], top, include)

    def _contexts(self, state: int) -> list[tuple[int, int, int]]:
        """Return a state's contexts that tokens have followed, the longest first, each with the range of its nodes."""
        trie, contexts = self._trie, []
        while state:
            first, last = int(trie.first_child[state]), int(trie.first_child[state + 1])
            if first < last:
                contexts.append((state, first, last))
            state = int(trie.suffix[state])
        return contexts

    def _seen(self, state: int) -> _Seen:
        seen = self._states.get(state)
        if seen is None:
            contexts = self._contexts(state)
            mask = np.zeros(self._trie.vocabulary, bool)
            for _, first, last in contexts:
                mask[self._token_of[first:last]] = True
            mask[: UNKNOWN + 1] = False
            tokens = np.flatnonzero(mask)
            backoff = float(sum(self._trie.backoff[context] for context, _, _ in contexts))
            if len(self._states) >= _STATES:
                self._states.clear()
            seen = self._states[state] = _Seen(tokens, self.score(state)[tokens], backoff)
        return seen

    def _column(self, token: int | None) -> _Column:
        column = self._columns.get(token)
        if column is None:
            trie = self._trie
            V = trie.vocabulary
            scores = np.zeros(V)
            if token is not None:
                pairs = self._pairs[self._starts[token] : self._starts[token + 1]]
                scores = trie.backoff[1 : V + 1] + trie.log_prob[1 + token]
                scores[trie.keys[pairs - 1] // V - 1] = trie.log_prob[pairs]
            sums = (trie.log_prob[1 : V + 1] + scores)[UNKNOWN + 1 :]
            best = sums.argpartition(-_BEST)[-_BEST:] if len(sums) > _BEST else np.arange(len(sums))
            best = best[np.argsort(-sums[best])]
            if len(self._columns) >= _COLUMNS:
                self._columns.clear()
            column = self._columns[token] = _Column(scores, best + UNKNOWN + 1, sums[best])
        return column
