"""Writing of sentences from latents, token by token, with a cache.

Of what was read a place to be written sees place 0 only, in the blocks with a latent. So the cache begins empty in the
blocks before, and with one key and one value in each of the others: those of W_i z_i. Nothing is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kexue.generative.univae.rows import SpecialTokens
from kexue.nn.growing_cache import GrowingKeysValues
from kexue.nn.transformer import Block, Transformer


class CachedSteps:
    """Scores of the next token of B sentences, step by step.

    Args:
        backbone: the Transformer.
        latents: W_i z_i (B, d) of each of its last blocks.
        score_tokens: from states (B, d) to scores (B, V).
        length: n, places of a sentence; its first place is the n-th of a row.
    """

    def __init__(
        self, backbone: Transformer, latents: Sequence[Tensor], score_tokens: Callable[[Tensor], Tensor], length: int
    ) -> None:
        self._backbone, self._score, self.length = backbone, score_tokens, length
        self.rows, self.device, self._place = len(latents[0]), latents[0].device, length
        first = len(backbone.blocks) - len(latents)
        self._cache: list[GrowingKeysValues] = []
        for i, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            keys, values = block.keys_values(latents[max(0, i - first)][:, None])
            seen = 1 if i >= first else 0  # section "Writing"
            self._cache.append(GrowingKeysValues((keys[:, :, :seen], values[:, :, :seen]), length))

    def score(self, tokens: Tensor) -> Tensor:
        """Return the scores (B, V) of the tokens that follow these (B,)."""
        out = self._backbone(
            tokens[:, None],
            segment_ids=torch.ones_like(tokens)[:, None],
            positions=torch.tensor([self._place], device=tokens.device),
            cache=tuple(self._cache),
        )
        self._place += 1
        return self._score(out.last_hidden_state[:, -1])

    def keep(self, rows: Tensor) -> None:
        """Continue these rows only, in this order."""
        for past in self._cache:
            past.keep(rows)


def write_likeliest(steps: CachedSteps, special: SpecialTokens) -> Tensor:
    """Return sentences (B, n) of the likeliest token at every step."""
    return _write(steps, special, lambda log_p, _: log_p.argmax(-1))


def write_at_random(steps: CachedSteps, special: SpecialTokens, uniform: Tensor, temperature: float) -> Tensor:
    """Return sentences (B, n) of tokens drawn by uniform numbers (B, n - 1); at temperature 0 the likeliest."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be >= 0 and finite, got {temperature}")
    if temperature == 0:
        return write_likeliest(steps, special)

    def choose(log_p: Tensor, step: int) -> Tensor:
        below = (log_p.double() / temperature).softmax(-1).cumsum(-1)
        total = below[:, -1:]
        target = torch.minimum(uniform[:, step, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(below, target, right=True)[:, 0]

    return _write(steps, special, choose)


def _write(steps: CachedSteps, special: SpecialTokens, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Return sentences (B, n) whose tokens `choose` takes from log-probabilities (B, V) and the number of the step."""
    written = torch.full((steps.rows, steps.length), special.pad, device=steps.device)
    written[:, 0] = special.start
    for step in range(steps.length - 1):
        log_p = _log_probabilities(steps, written[:, step], special, last=step == steps.length - 2)
        written[:, step + 1] = choose(log_p, step)
        if bool(_is_over(written[:, step + 1], special).all()):
            break
    return written


def write_best(steps: CachedSteps, special: SpecialTokens, beams: int) -> Tensor:
    """Return the likeliest sentences (B, n) that a search finds which keeps `beams` of them at every step."""
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        raise ValueError(f"beams must be a whole number, at least 1, got {beams}")
    batch, length = steps.rows, steps.length
    steps.keep(torch.arange(batch, device=steps.device).repeat_interleave(beams))
    written = torch.full((batch, beams, length), special.pad, device=steps.device)
    written[:, :, 0] = special.start
    total = torch.full((batch, beams), -torch.inf, device=steps.device)
    total[:, 0] = 0.0  # at first all are the same sentence
    offset = torch.arange(batch, device=steps.device)[:, None] * beams
    for step in range(length - 1):
        log_p = _log_probabilities(steps, written[:, :, step].flatten(), special, last=step == length - 2)
        size = log_p.shape[-1]
        total, best = (total.unsqueeze(-1) + log_p.view(batch, beams, size)).flatten(1).topk(beams)
        rows = offset + best // size
        written = written.flatten(0, 1)[rows]
        written[:, :, step + 1] = best % size
        steps.keep(rows.flatten())
        if bool(_is_over(written[:, :, step + 1], special).all()):
            break
    return written[:, 0]


def _log_probabilities(steps: CachedSteps, tokens: Tensor, special: SpecialTokens, *, last: bool) -> Tensor:
    """Return log-probabilities (B, V) of the next tokens: padding after the end, and the end at the last place."""
    scores = steps.score(tokens)
    log_p = scores.float().log_softmax(-1)
    log_p[:, [special.pad, special.start]] = -torch.inf
    if last:
        end = log_p[:, special.end].clone()
        log_p.fill_(-torch.inf)
        log_p[:, special.end] = end
    over = _is_over(tokens, special)
    log_p[over] = -torch.inf
    log_p[over, special.pad] = 0.0
    return log_p


def _is_over(tokens: Tensor, special: SpecialTokens) -> Tensor:
    """Return whether these are the end of a sentence, or behind it."""
    return (tokens == special.end) | (tokens == special.pad)
