"""Neural language models that read from left to right, as targets and as proposals, with cached prefixes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kexue._devices import choose_device
from kexue.sampling.text.laws import TokenLaw, Tokens, choose
from kexue.sampling.text.networks import Cache, open_reader
from kexue.text import RoFormerSim

_TEXTS = 64  # texts whose caches are kept
_SCORES = 200_000  # texts whose scores are remembered
_LAWS = 5_000  # laws that are remembered


@dataclass(frozen=True)
class _Read:
    """A text as read so far.

    Attributes:
        ids: its tokens, those before each text included.
        scores: (T, V) log-probabilities of the next token after each.
        cache: keys and values (1, H, T, D) of each layer.
    """

    ids: Tokens
    scores: Tensor
    cache: Cache


class CausalLM:
    """A neural language model: p(x) is the product of p(x_t | x_1 ... x_{t-1}), of the end as well.

    Candidates of a place are the likeliest tokens after its left side; their law is proportional to the probability of
    the whole text with each. What is left of an edit is not read again: its keys and values are cached, and the scores
    of candidate texts are remembered, so that the target needs no pass of its own for them.

    States are token ids. A tokenizer of pieces has several rows of ids for one string; they are different states, and
    only what it makes of the words is kept whole.

    Source: kexue.fm/archives/8194.

    Args:
        model: a `RoFormerSim`, a name or folder of one such as ``"roformer-sim-tiny-zh"``, or a folder of a causal
            model of Hugging Face. Nothing is downloaded for the latter.
        prompt: for RoFormer-Sim a sentence that texts shall resemble, for others what stands before each text.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.

    Raises:
        ModelNotFoundError: no such folder. CheckpointError: a folder of another kind.

    Example:
        >>> lm = CausalLM("roformer-sim-tiny-zh", prompt="广州有什么美食")  # doctest: +SKIP
        >>> lm.log_rho([lm.encode("广州的美食有哪些")])  # doctest: +SKIP
    """

    def __init__(self, model: str | os.PathLike[str] | RoFormerSim, *, prompt: str = "", device: str = "cpu") -> None:
        self._device = choose_device(device)
        self._reader = open_reader(model, prompt, self._device)
        self.writable: Sequence[int] = self._reader.writable
        self._writable = np.array(self._reader.writable)
        self._texts: OrderedDict[Tokens, _Read] = OrderedDict()
        self._scores: dict[Tokens, float] = {}
        self._laws: dict[tuple[Tokens, Tokens | None, int | None], TokenLaw] = {}

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text.

        Raises:
            ValueError: they would not give the same text again, or have special ones among them.
        """
        tokens = self._reader.encode(text)
        again = self._reader.decode(tokens)
        if again != text:
            raise ValueError(
                f"{text!r:.60} becomes {again!r:.60} in tokens of the model; expected words that come out the same"
            )
        if inside := set(tokens) - set(self.writable):
            pieces = ", ".join(repr(self._reader.decode([one])) for one in tokens if one in inside)
            raise ValueError(f"{text!r:.60} becomes special or inner tokens of the model ({pieces}); use other words")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._reader.decode(tokens)

    def log_rho(self, states: Sequence[Tokens], /) -> list[float]:
        """Return log p(x) of each text: the model as a target of `kexue.sampling`."""
        scores = []
        for state in states:
            known = self._scores.get(state)
            scores.append(self._remember(state, self._score(state)) if known is None else known)
        return scores

    def next_log_probs(self, context: Sequence[int]) -> np.ndarray:
        """Return log p(w | context) (V,) of every token after the beginning of a text."""
        return self._read((*self._reader.before, *context)).scores[-1].double().numpy(force=True)

    def law(self, left: Tokens, right: Tokens | None, top: int | None, include: Collection[int] = ()) -> TokenLaw:
        """Return the law of a token between two parts: p(left w right), scaled, of the likeliest ones after `left`."""
        key = (left, right, top)
        known = None if include else self._laws.get(key)
        if known is None:
            tokens, scores = choose(self._writable, self.next_log_probs(left)[self._writable], top, include)
            if right is not None:
                scores = scores + self._continue(left, tokens, right)
                before = self._log_prob(left)
                for token, score in zip(tokens.tolist(), scores.tolist(), strict=True):
                    self._remember((*left, token, *right), before + score)
            known = TokenLaw(tokens, scores)
            if not include:
                if len(self._laws) >= _LAWS:
                    self._laws.clear()
                self._laws[key] = known
        return known

    def _continue(self, left: Tokens, tokens: np.ndarray, right: Tokens) -> np.ndarray:
        """Return log p(right and the end | left w) (K,) for each of K tokens w, in one pass after the cached left."""
        cache = self._read((*self._reader.before, *left)).cache
        rows = torch.tensor([[token, *right] for token in tokens.tolist()], device=self._device)
        expanded = tuple((k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1)) for k, v in cache)
        scores, _ = self._reader.read(rows, expanded)
        targets = torch.tensor([*right, self._reader.end], device=self._device).expand(len(rows), -1)
        return scores.gather(-1, targets[..., None])[..., 0].double().sum(-1).numpy(force=True)

    def _score(self, text: Tokens) -> float:
        """Return log p(x)."""
        read = self._read((*self._reader.before, *text))
        return self._log_prob(text) + float(read.scores[-1, self._reader.end])

    def _log_prob(self, text: Tokens) -> float:
        """Return log p of a text's tokens, without its end."""
        before = len(self._reader.before)
        scores = self._read((*self._reader.before, *text)).scores
        places = torch.arange(before - 1, before - 1 + len(text), device=scores.device)
        return float(scores[places, torch.tensor(text, dtype=torch.int64, device=scores.device)].double().sum())

    def _read(self, ids: Tokens) -> _Read:
        """Return a text as read; only what no kept text begins with is computed."""
        known = self._texts.get(ids)
        if known is None:
            base, shared = None, len(self._reader.before) - 1  # the tokens before are read as a whole
            for one in self._texts.values():
                common = _common_prefix(one.ids, ids)
                if common > shared:
                    base, shared = one, common
            known = self._texts[ids] = self._extend(base, shared, ids)
            if len(self._texts) > _TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(ids)
        return known

    def _extend(self, base: _Read | None, shared: int, ids: Tokens) -> _Read:
        """Return a text as read, of which another one has the first `shared` tokens."""
        if base is None:
            scores, cache = self._reader.read(torch.tensor([ids], device=self._device), None)
            return _Read(ids, scores[0], cache)
        cache = tuple((keys[:, :, :shared], values[:, :, :shared]) for keys, values in base.cache)
        if shared == len(ids):
            return _Read(ids, base.scores[:shared], cache)
        scores, cache = self._reader.read(torch.tensor([ids[shared:]], device=self._device), cache)
        return _Read(ids, torch.cat([base.scores[:shared], scores[0]]), cache)

    def _remember(self, text: Tokens, score: float) -> float:
        if len(self._scores) >= _SCORES:
            self._scores.clear()
        self._scores[text] = score
        return score


def _common_prefix(a: Tokens, b: Tokens) -> int:
    """Return the number of tokens with which both begin."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
