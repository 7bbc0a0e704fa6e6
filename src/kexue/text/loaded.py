"""A model folder opened for encoding: layers and tokenizer, and the pooling, limits and prompts that apply."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kexue._progress import Progress
from kexue.errors import CheckpointError
from kexue.text.batches import split_by_tokens
from kexue.text.folder import ModelFolder, compute_fingerprint, read_model_folder
from kexue.text.models import model_id_of, published_prompts
from kexue.text.network import Batch, Network
from kexue.text.pooling import canonical_pooling
from kexue.text.tokenizer import TextTokenizer, Tokens

_PROBES = [
    "A man is playing a guitar.",
    "Return the number of items in the list, or zero when it is empty!",
    "The quick brown fox jumps over 13 lazy dogs",
    "今天天气很好,我们去公园散步。",
    "退货要多久?",
]
_UNKNOWN_SHARE = 0.2


class LoadedModel:
    """Model folder opened for encoding.

    Args:
        folder: as `kexue.text.find_model` returns it.
        device: device of the weights.
        pooling, dtype, max_length, prompts: as of `kexue.text.Encoder`.

    Attributes:
        model_id: hub id, name of a packaged model, or the folder's path.
        stack: stages of the folder.
        network: its layers.
        tokenizer: cuts at `max_length`.
        pooling: canonical name.
        max_length: limit of tokens read of a text.
        prompts: text put before an input, by name.

    Raises:
        CheckpointError: the folder cannot be read as an encoder. ValueError: `max_length` is out of range.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        pooling: str | None,
        dtype: str,
        max_length: int | None,
        prompts: Mapping[str, str] | None,
    ) -> None:
        self.model_id = model_id_of(folder)
        self.stack: ModelFolder = read_model_folder(folder)
        self.network = Network(self.stack, device)
        self.tokenizer = TextTokenizer(self.stack.transformer, lower=self.stack.lower)
        self.pooling = self._check_pooling(pooling or self.stack.pooling)
        self.max_length = self._choose_max_length(max_length)
        self.tokenizer.set_max_length(self.max_length)
        self.prompts = {**published_prompts(self.model_id), **self.stack.prompts, **(prompts or {})}
        self._warned = [False]  # a list, which copies with another pooling share: they warn once
        self.network.set_dtype(dtype, probes=self._read_probes, pooling=self.pooling, name=self.model_id)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything in the folder that changes a vector, and the pooling, in hexadecimal."""
        return compute_fingerprint(self.stack, self.pooling)

    def with_pooling(self, mode: str) -> LoadedModel:
        """Return the same weights with another pooling; this one is not changed."""
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other.pooling = self._check_pooling(canonical_pooling(mode))
        return other

    def prompt(self, name: str | None) -> str:
        """Return the text of a prompt; None is the folder's default. ValueError where there is none of this name."""
        if name is None:
            name = self.stack.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(
                f"unknown prompt {name!r}; this model has: {known}. Add it with prompts={{{name!r}: ...}}."
            )
        return self.prompts[name]

    def compute_vectors(
        self, tokens: Tokens, pass_tokens: int, *, unit: bool, progress: Progress | None = None
    ) -> np.ndarray:
        """Return the vectors (n, dim) float32 of texts, in order, scaled to length 1 where `unit`.

        Args:
            tokens: those of n texts.
            pass_tokens: limit of tokens in one forward pass, padding included.
            unit: scale them.
            progress: called as ``progress(texts_done, n)``.
        """
        n = len(tokens.lengths)
        vectors = np.empty((n, self.network.dim), dtype=np.float32)
        done = 0
        for rows in split_by_tokens(tokens.lengths, pass_tokens):
            batch = tokens.pad(rows, self.tokenizer.pad_id)
            vectors[rows] = self.network.vectors(batch, self.pooling, unit=unit)
            done += len(rows)
            if progress is not None:
                progress(done, n)
        return vectors

    def warn_of_unknown(self, share: float) -> None:
        """Warn, once, where more than a fifth of the tokens are unknown to the model; `share` of them are."""
        if share > _UNKNOWN_SHARE and not self._warned[0]:
            self._warned[0] = True
            warnings.warn(
                f"{share:.0%} of the tokens are unknown to {self.model_id}: its vectors say little about these texts. "
                "Use a model for their language: model=..., --model, or KEXUE_MODEL.",
                UserWarning,
                stacklevel=4,
            )

    def _check_pooling(self, mode: str | None) -> str:
        """Return the pooling to use; CheckpointError where the folder cannot serve it."""
        if mode is None:
            raise CheckpointError(
                f"{self.stack.transformer} uses the pooling {self.stack.pooling_raw}, which is not supported.",
                remedy="Choose one with pooling=.",
            )
        return self.network.check_pooling(mode)

    def _choose_max_length(self, wanted: int | None) -> int:
        limits = [self.tokenizer.model_max_length]
        if self.network.max_positions is not None and self.network.max_positions > 0:
            limits.append(self.network.max_positions)
        most = min(limits)
        least = self.tokenizer.specials + 1
        if wanted is None:
            wanted = min(self.stack.max_length or most, most)
            if wanted > 1_000_000:  # the folder states no limit
                wanted = 512
        if not least <= wanted <= most:
            raise ValueError(f"max_length must be between {least} and {most} tokens for this model, got {wanted}.")
        return wanted

    def _read_probes(self) -> Batch:
        """Return the batch of the sentences that decide on bfloat16."""
        probes = self.tokenizer.encode(_PROBES)
        return probes.pad(np.arange(len(_PROBES)), self.tokenizer.pad_id)
