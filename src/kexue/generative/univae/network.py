"""Network of a UniVAE: a Transformer with a latent in each of its last blocks.

The row of n + n tokens is the sentence twice, x x', the first to be read (segment 0), the second to be written (segment
1). Before each of the last blocks, i = k + 1 ... L, the state of place 0 becomes a latent and is replaced by it:

    r_i = R_i h_0 + b_i,      z_i = choose(r_i),      h_0 <- W_i z_i + c_i.

Only there do the places of x' see place 0 (`univae_mask`), so all that x' knows of x is z_1 ... z_{L-k}.

Source: kexue.fm/archives/8475.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kexue.generative.univae.mask import univae_mask
from kexue.generative.univae.writing import CachedSteps
from kexue.nn.linear import affine
from kexue.nn.transformer import Transformer

Choose = Callable[[int, Tensor], Tensor]


class UniVAENetwork(nn.Module):
    """A Transformer that reads a sentence into latents and writes another from them; the module has the formulas.

    Args:
        backbone: the Transformer.
        count: blocks with a latent, the last ones.
        width: numbers r that a latent is chosen from.
        dim: numbers of a latent.
        scale: root of the mean square of the length of a latent.
        length: n.

    Attributes:
        backbone, read, write: the Transformer, the maps R_i and the maps W_i.
    """

    def __init__(self, backbone: Transformer, count: int, width: int, dim: int, scale: float, length: int) -> None:
        super().__init__()
        d = backbone.config.hidden_size
        self.backbone, self.length = backbone, length
        self.first = len(backbone.blocks) - count  # k, the blocks without a latent
        self.read = nn.ModuleList(nn.Linear(d, width) for _ in range(count))
        self.write = nn.ModuleList(nn.Linear(dim, d) for _ in range(count))
        for linear in (*self.read, *self.write):
            nn.init.zeros_(linear.get_parameter("bias"))
        for linear in self.write:  # W z starts as large as a normalised state
            nn.init.normal_(linear.get_parameter("weight"), std=1 / scale)
        self.bias = nn.Parameter(torch.zeros(backbone.config.vocab_size))
        self.segments: Tensor
        self.register_buffer("segments", torch.arange(2 * length)[None] // length, persistent=False)

    def forward(self, token_ids: Tensor, choose: Choose) -> Tensor:
        """Return the states (B, n, d) of the sentence to write.

        Args:
            token_ids: sentences (B, n), to be read and written, or (B, 2n), the first half to be read.
            choose: called with the number of a latent, from 0, and its r (B, width); returns z (B, dim).
        """
        row = token_ids if token_ids.shape[1] == 2 * self.length else token_ids.repeat(1, 2)
        alone, together = (univae_mask(self.segments, see_cls=see) for see in (False, True))
        masks = [together if i >= self.first else alone for i in range(len(self.backbone.blocks))]
        out = self.backbone(
            row,
            mask=masks,  # section "Two masks"
            segment_ids=self.segments.expand(len(row), -1),
            before_block=self._replace(choose),
        )
        written: Tensor = out.last_hidden_state[:, self.length :]
        return written

    def read_only(self, token_ids: Tensor, choose: Choose) -> None:
        """Read sentences (B, n) alone: what is read sees nothing of what is written."""
        self.backbone(token_ids, before_block=self._replace(choose))

    def _replace(self, choose: Choose) -> Callable[[int, Tensor], Tensor]:
        """Return what turns the state of place 0 into a latent before a block."""

        def before_block(i: int, x: Tensor) -> Tensor:
            number = i - self.first
            if number < 0:
                return x
            z = choose(number, self.read[number](x[:, 0]))  # section "A latent in a block"
            return torch.cat([self.write[number](z)[:, None], x[:, 1:]], 1)

        return before_block

    def score_tokens(self, states: Tensor) -> Tensor:
        """Return the scores (..., V) of the next token after states (..., d), by the token table."""
        return affine(states, self.backbone.tokens.weight, self.bias)

    def begin_writing(self, z: Tensor) -> CachedSteps:
        """Return what scores the tokens of sentences one after another, from their latents (B, count, dim)."""
        places = [write(z[:, i]) for i, write in enumerate(self.write)]
        return CachedSteps(self.backbone, places, self.score_tokens, self.length)
