"""Language model of n-grams with interpolated Kneser-Ney smoothing, and texts to its tokens."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from kexue._arrays import Array
from kexue._counts import check_count, check_counts
from kexue.errors import NotFittedError
from kexue.sampling.text.candidates import Candidates
from kexue.sampling.text.follower import NGramFollower
from kexue.sampling.text.laws import TokenLaw, Tokens
from kexue.sampling.text.ngram_files import read_counts, write_counts
from kexue.sampling.text.trie import BEGIN, END, UNKNOWN, Counts, Trie, count_ngrams, smooth, wrap_texts
from kexue.sampling.text.vocabulary import Level, Vocabulary, read_texts

_KEPT = 1_000_000  # transitions that are remembered: about 150 MB
_CONTEXTS = 100_000  # states after the last tokens before a place, remembered: about 20 MB
_LAWS = 20_000  # laws that are remembered: with 64 candidates about 150 MB
_MAX_ORDER = 5


class NGramLM:
    """Model of texts by n-grams: p(x) is the product of p(x_t | x_{t-n+1} ... x_{t-1}), of the end as well.

    The formulas are in `kexue.sampling.text.trie`. A token that was never seen is `unknown`; its probability is what
    smoothing leaves for it.

    Source: Kneser and Ney 1995; used in the place of the article's language model, kexue.fm/archives/8194.

    Args:
        order: n, tokens of the longest n-gram, 1 to 5.
        level: ``"char"``, tokens are characters, or ``"word"``, tokens are what spaces separate.
        min_count: n-grams of three tokens and more that occur fewer times are left out, for a smaller model.

    Attributes:
        tokens_: number of tokens in the texts, ends included.
        start: state at the beginning of a text.

    Raises:
        ValueError: a number out of range, another level.

    Example:
        >>> lm = NGramLM(3).fit(["我爱北京", "我爱广州", "广州美食"])
        >>> lm.decode(lm.sample(generator=7))
        '我爱广州'
        >>> round(lm.log_prob(lm.encode("我爱美食")), 2) > round(lm.log_prob(lm.encode("食美爱我")), 2)
        True
    """

    def __init__(self, order: int = 5, *, level: Level = "char", min_count: int = 1) -> None:
        if check_count(order, "order", 1) > _MAX_ORDER:
            raise ValueError(f"order must be at most {_MAX_ORDER}, got {order}")
        if level not in ("char", "word"):
            raise ValueError(f"level must be 'char' or 'word', got {level!r}")
        check_counts(min_count=min_count)
        self.order, self.level, self.min_count = order, level, min_count
        self.tokens_ = 0
        self._vocabulary: Vocabulary | None = None
        self._trie: Trie | None = None
        self._counts: Counts | None = None

    def fit(self, texts: Iterable[str] | os.PathLike[str]) -> NGramLM:
        """Count the n-grams of texts, and replace what was counted before.

        Memory: about 150 bytes a token while it counts, and 90 for each n-gram of the model.

        Args:
            texts: strings, each a text by itself with a beginning and an end; or the `Path` of a file that
                `kexue.corpus.read_records` reads. Blank ones are skipped.

        Raises:
            TypeError: not strings. ValueError: no text that is not blank.
        """
        vocabulary, ids, lengths = read_texts(texts, self.level)
        tokens, places = wrap_texts(ids, lengths)
        self.tokens_ = len(ids) + len(lengths)
        self._set(vocabulary, count_ngrams(tokens, places, len(vocabulary), self.order, self.min_count))
        return self

    def _set(self, vocabulary: Vocabulary, counts: Counts) -> None:
        """Take over counts."""
        self._vocabulary, self._counts, self._trie = vocabulary, counts, smooth(counts)
        trie = self._trie
        self._candidates = Candidates(trie)
        self._deepest = 1
        for _ in range(self.order - 1):
            self._deepest = int(trie.first_child[self._deepest])
        # copies whose numbers are those of Python: faster to get one by one
        whole = (array("q", part.astype(np.int64).tobytes()) for part in (trie.keys, trie.suffix, trie.first_child))
        self._keys, self._suffix, self._first_child = whole
        self._backoff, self._log_prob = (array("d", part.tobytes()) for part in (trie.backoff, trie.log_prob))
        self._steps: dict[int, tuple[float, int]] = {}
        self._contexts: dict[Tokens, int] = {}
        self._laws: dict[tuple[int, int | None, int | None], TokenLaw] = {}
        self._size = len(vocabulary)
        self.start = self.step(0, BEGIN)[1]

    def __len__(self) -> int:
        """Number of n-grams."""
        return len(self._fitted().keys)

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokens of the model."""
        self._fitted()
        assert self._vocabulary is not None
        return self._vocabulary

    def _fitted(self) -> Trie:
        if self._trie is None:
            raise NotFittedError("this NGramLM has no texts yet.", remedy="Call fit(texts) or NGramLM.load(path).")
        return self._trie

    @property
    def writable(self) -> Sequence[int]:
        """Tokens of text."""
        self._fitted()
        return range(UNKNOWN + 1, self._size)

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text; ValueError names what the model has never seen."""
        return self.vocabulary.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.vocabulary.decode(tokens)

    # The model as an automaton: a state is the longest n-gram that matters for what follows.

    def step(self, state: int, token: int) -> tuple[float, int]:
        """Return the log-probability of a token in a state, and the state after it; both are remembered."""
        if not 0 <= token < self._size:
            raise ValueError(f"token {token!r} is not of this model, whose tokens are 0 to {self._size - 1}")
        key = state * self._size + token
        known = self._steps.get(key)
        if known is None:
            if len(self._steps) >= _KEPT:
                self._steps.clear()
            known = self._steps[key] = self._step(state, token)
        return known

    def _step(self, state: int, token: int) -> tuple[float, int]:
        """Compute a step: the shorter contexts in turn, until one is followed by the token."""
        self._fitted()
        keys, suffix, first_child = self._keys, self._suffix, self._first_child
        log_prob = 0.0
        while True:
            key = state * self._size + token
            place = bisect_left(keys, key, first_child[state] - 1, first_child[state + 1] - 1)
            if place < len(keys) and keys[place] == key:
                break
            log_prob += self._backoff[state]
            state = suffix[state]
        node = place + 1
        log_prob += self._log_prob[node]
        if node >= self._deepest:
            node = suffix[node]
        while node and first_child[node] == first_child[node + 1]:  # what follows does not depend on it
            node = suffix[node]
        return log_prob, node

    def log_prob(self, tokens: Sequence[int]) -> float:
        """Return log p(x) of a text's tokens, its end included.

        Raises:
            ValueError: a number that is no token of text.
        """
        size = len(self.vocabulary)
        for token in tokens:
            if not UNKNOWN <= token < size:
                raise ValueError(f"tokens: got {token!r}, expected numbers from {UNKNOWN} to {size - 1}")
        return self.log_rho([tuple(tokens)])[0]

    def log_rho(self, states: Sequence[Tokens], /) -> list[float]:
        """Return log p(x) of each text: the model as a target of `kexue.sampling`."""
        self._fitted()
        scores = []
        for text in states:
            total, state = 0.0, self.start
            for token in (*text, END):
                log_prob, state = self.step(state, token)
                total += log_prob
            scores.append(total)
        return scores

    def follow(self, states: Sequence[Tokens], /) -> NGramFollower:
        """Return a follower of chains, which scores again only what an edit changes."""
        self._fitted()
        return NGramFollower(self.step, self.start, states)

    def next_log_probs(self, context: Sequence[int]) -> Array:
        """Return log p(w | context) (V,) of every token after the beginning of a text; -inf for the beginning itself.

        Args:
            context: all tokens of the text so far; () for none.
        """
        return self._candidates.score(self._walk(context))

    def _walk(self, tokens: Sequence[int]) -> int:
        """Return the state after the first tokens of a text."""
        self._fitted()
        state = self.start
        for token in tokens:
            state = self.step(state, token)[1]
        return state

    def law(self, left: Tokens, right: Tokens | None, top: int | None, include: Collection[int] = ()) -> TokenLaw:
        """Return the law of a token between two parts: proportional to p(w | left) p(r | w), r the next token.

        Of what follows, only the next token is looked at, with the token w as its only context. So the law is cheap;
        the samplers correct what it leaves out.
        """
        self._fitted()
        context = left[max(0, len(left) - self.order + 1) :]
        state = self._contexts.get(context)
        if state is None:
            if len(self._contexts) >= _CONTEXTS:
                self._contexts.clear()
            state = self._contexts[context] = self._walk(context)
        following = None if right is None else right[0] if right else END
        key = (state, following, top)
        known = None if include else self._laws.get(key)
        if known is None:
            known = TokenLaw(*self._candidates.choose(state, following, top, include))
            if not include:
                if len(self._laws) >= _LAWS:
                    self._laws.clear()
                self._laws[key] = known
        return known

    def sample(self, *, generator: np.random.Generator | int | None = None, max_length: int = 256) -> Tokens:
        """Draw a text, token by token, the unknown one among them; it is cut at `max_length` tokens."""
        check_counts(max_length=max_length)
        self._fitted()
        random = np.random.default_rng(generator)
        text: list[int] = []
        state = self.start
        while len(text) < max_length:
            below = np.exp(self._candidates.score(state)).cumsum()
            token = int(below.searchsorted(random.random() * below[-1], side="right"))
            if token == END:
                break
            text.append(token)
            state = self.step(state, token)[1]
        return tuple(text)

    def perplexity(self, texts: Sequence[str]) -> float:
        """Return exp of the mean -log p of the tokens of texts, ends included; unknown tokens count as such.

        Raises:
            ValueError: no texts.
        """
        tokens = [self.vocabulary.lookup(text) for text in texts]
        if not tokens:
            raise ValueError("texts: got none, expected at least one")
        return float(np.exp(-sum(self.log_rho(tokens)) / sum(len(text) + 1 for text in tokens)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder with the counts (safetensors) and the tokens (JSON); one written before is replaced.

        Raises:
            NotFittedError: no texts yet. DataError: the folder holds other files.
        """
        self._fitted()
        assert self._counts is not None
        write_counts(path, self._counts, {"order": self.order, "level": self.level, "min_count": self.min_count,
                                          "fitted_on": self.tokens_, "tokens": self.vocabulary.tokens})  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NGramLM:
        """Read a folder that `save` has written.

        Raises:
            CheckpointError: no such folder, or a damaged one.
        """
        counts, settings = read_counts(path)
        lm = cls(settings["order"], level=settings["level"], min_count=settings["min_count"])
        lm.tokens_ = settings["fitted_on"]
        lm._set(Vocabulary(settings["tokens"], lm.level), counts)
        return lm
