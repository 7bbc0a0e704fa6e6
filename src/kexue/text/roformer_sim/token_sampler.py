"""Choice of the next token at random, from the likeliest ones only: top-k, nucleus and temperature.

Source: Holtzman et al. 2020, arXiv:1904.09751 (nucleus); used so by kexue.fm/archives/8454.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kexue._counts import check_counts
from kexue._tensors import at_least_float32

_COLDEST, _HOTTEST = 1e-30, 1e30  # temperatures that float32 divides by: the likeliest tokens only, all alike
_FIRST = 64  # tokens that are sorted at first: a trained model's nucleus is seldom larger


@dataclass(frozen=True)
class TokenSampler:
    """Rule that draws one token for every row of scores.

    The probabilities are softmax(scores / temperature). Of the `top_k` likeliest tokens, scaled to sum 1, the nucleus
    remains: the fewest, likeliest first, whose mass reaches `top_p`, the token that crosses it included.

    Attributes:
        top_p: mass of the nucleus, in (0, 1]; 1 keeps every token.
        top_k: number of tokens, at least 1; None keeps every token.
        temperature: >= 0; below 1 favours likely tokens; 0 takes the likeliest one, without chance.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> scores = torch.tensor([[0.0, 3.0, 2.0, -1.0]])
        >>> probabilities, tokens = TokenSampler(top_p=0.9).keep(scores)
        >>> tokens[probabilities > 0].tolist()
        [1, 2]
    """

    top_p: float = 0.95
    top_k: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}; 1 keeps every token")
        if self.top_k is not None:
            check_counts(top_k=self.top_k)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more, and finite, got {self.temperature}; 1 changes nothing")

    def draw(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """Return one token id for every row, (B,).

        Args:
            scores: (B, V); -inf excludes a token, one in a row at least is finite.
            uniform: (B,), numbers of [0, 1) that decide.
        """
        if self.temperature == 0:
            return scores.argmax(-1)
        probabilities, tokens = self.keep(scores)
        below = probabilities.cumsum(-1)
        total = below[:, -1:]
        target = uniform[:, None].to(total.dtype) * total
        target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))  # rounding may reach the total
        return tokens.gather(-1, torch.searchsorted(below, target, right=True))[:, 0]

    def keep(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, K) of the tokens that may be drawn, not scaled to sum 1, and their ids (B, K).

        A row with fewer than K such tokens has zeros. The temperature must be above 0.
        """
        scores = at_least_float32(scores)
        scaled = (scores - scores.amax(-1, keepdim=True)) / min(max(self.temperature, _COLDEST), _HOTTEST)
        size = scaled.shape[-1]
        if self.top_k is not None:
            values, tokens = scaled.topk(min(self.top_k, size))
            return self._cut(values.softmax(-1)), tokens
        probabilities = scaled.softmax(-1)
        if self.top_p == 1:
            return probabilities, torch.arange(size, device=scores.device).expand(scores.shape)
        width = min(_FIRST, size)
        likeliest, tokens = probabilities.topk(width)
        while width < size and bool((likeliest.sum(-1) < self.top_p).any()):
            width = min(4 * width, size)
            likeliest, tokens = probabilities.topk(width)
        return self._cut(likeliest), tokens

    def _cut(self, probabilities: Tensor) -> Tensor:
        """Return probabilities, the largest first, with zeros outside the nucleus."""
        before = probabilities.cumsum(-1) - probabilities
        return probabilities.masked_fill(before >= self.top_p, 0.0)
