"""Masked language models as proposals, and sampling by their conditionals alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import numpy as np
import torch

from kexue._devices import choose_device
from kexue.errors import CheckpointError
from kexue.sampling import MCMCResult, gibbs
from kexue.sampling.text.laws import TokenLaw, Tokens, choose
from kexue.sampling.text.networks import check_ids, load_folder, writable_tokens

_SCORES = 5_000  # places whose scores are remembered: with 20,000 tokens 800 MB at most


class MaskedLMProposal:
    """A masked language model as the law of a token, given both sides: p(w | left [MASK] right).

    It gives moves their candidates (`ReplaceMove`, `InsertMove`, `BlockMove`). The target, whose tokens must be those
    of this model, decides what is sampled.

    Source: kexue.fm/archives/8119; Wang and Cho 2019, arXiv:1902.04094.

    Args:
        folder: of a masked language model of Hugging Face; nothing is downloaded.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.

    Raises:
        CheckpointError: no such model, or a tokenizer without [MASK].
    """

    def __init__(self, folder: str | os.PathLike[str], *, device: str = "cpu") -> None:
        self._device = choose_device(device)
        self._tokenizer, self._model = load_folder(folder, "AutoModelForMaskedLM", self._device)
        if self._tokenizer.mask_token_id is None:
            raise CheckpointError(f"{folder}: its tokenizer has no mask_token.", remedy="Name a masked language model.")
        self.mask: int = self._tokenizer.mask_token_id
        self._ends = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        self._writable = np.array(writable_tokens(self._tokenizer, self._model.get_input_embeddings().num_embeddings))
        self.writable: Sequence[int] = self._writable.tolist()
        self._known: dict[tuple[Tokens, Tokens], np.ndarray] = {}

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a text; ValueError where they would not give the same text again."""
        tokens = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        if self.decode(tokens) != text.replace(" ", ""):
            raise ValueError(f"{text!r:.60} becomes {self.decode(tokens)!r:.60} in tokens of the model")
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without spaces."""
        return str(self._tokenizer.decode(list(tokens))).replace(" ", "")

    def law(self, left: Tokens, right: Tokens | None, top: int | None, include: Collection[int] = ()) -> TokenLaw:
        """Return the law of a token between two parts; of an unknown right side nothing is read."""
        scores = self._score(left, right or ())
        return TokenLaw(*choose(self._writable, scores[self._writable], top, include))

    @torch.inference_mode()
    def _score(self, left: Tokens, right: Tokens) -> np.ndarray:
        """Return the scores (V,) of the token between two parts."""
        known = self._known.get((left, right))
        if known is None:
            begin, end = ([] if one is None else [one] for one in self._ends)
            ids = torch.tensor([[*begin, *left, self.mask, *right, *end]], device=self._device)
            check_ids(self._model, ids)
            logits = self._model(input_ids=ids).logits[0, len(begin) + len(left)]
            if len(self._known) >= _SCORES:
                self._known.clear()
            known = self._known[left, right] = logits.float().log_softmax(-1).double().numpy(force=True)
        return known


def pseudo_gibbs(
    model: MaskedLMProposal,
    init: str | Sequence[int],
    *,
    steps: int,
    burn_in: int = 0,
    thin: int = 1,
    chains: int = 1,
    generator: np.random.Generator | int | None = None,
) -> MCMCResult[Tokens]:
    """Draw one token after another anew from a masked language model, the places at random: texts of fixed length.

    Caveat: the conditionals of such a model are in general not those of one law, so this is no Gibbs sampler of a law.
    The chain has a stationary law, but it depends on the order of places and has no formula: `log_rho` is NaN. For a
    law that can be stated, use the model in a `ReplaceMove` with an `LMTarget`.

    Source: kexue.fm/archives/8119; Wang and Cho 2019, arXiv:1902.04094, with its correction by K. Cho.

    Args:
        model: the masked language model.
        init: start, a text or tokens; ``[model.mask] * n`` is n tokens of nothing.
        steps, burn_in, thin, chains, generator: as of `kexue.sampling.gibbs`.

    Raises:
        ValueError: an empty start, one whose tokens do not give it again.
    """
    start = model.encode(init) if isinstance(init, str) else tuple(init)

    def draw(state: Tokens, i: int, random: np.random.Generator) -> Tokens:
        left, right = state[:i], state[i + 1 :]
        return (*left, model.law(left, right, None).draw(random.random()), *right)

    return gibbs(draw, start, steps=steps, burn_in=burn_in, thin=thin, chains=chains, generator=generator)
