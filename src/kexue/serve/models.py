"""Encoders of a server: texts to vectors, batched across requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue.serve.batching import Batcher
from kexue.serve.errors import ApiError
from kexue.serve.metrics import Metrics
from kexue.similarity import Whitening
from kexue.text import Encoder

Vectors = np.ndarray[Any, np.dtype[np.float32]]
ALLOW_TRUNCATION = "or allow truncation: truncate true, truncation_direction right."


class Timing(NamedTuple):
    """Seconds that a request took.

    Attributes:
        tokenize: tokenising.
        queue: waiting for forward passes.
        inference: forward passes.
    """

    tokenize: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


class EmbeddingResult(NamedTuple):
    """Encoded texts.

    Attributes:
        vectors: (n, dim) float32.
        tokens: tokens read of each text.
        timing: seconds of each stage.
        warnings: one sentence where texts were cut.
        truncated: number of these texts.
    """

    vectors: Vectors
    tokens: list[int]
    timing: Timing
    warnings: list[str]
    truncated: int = 0


@dataclass
class ServedModel:
    """Encoder with its batcher.

    Attributes:
        name: name for clients.
        encoder: the encoder.
        batcher: batches the texts of all requests.
        metrics: metrics of the server.
        max_input_tokens: texts with more tokens are refused; None = they are cut.
        whitening: shortens vectors to the `dimensions` that a client wants; None = the first numbers are taken.
        created: time of loading, in seconds since 1970.
    """

    name: str
    encoder: Encoder
    batcher: Batcher
    metrics: Metrics
    max_input_tokens: int | None
    whitening: Whitening | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """Id of the encoder, without the path of its folder."""
        model_id = self.encoder.model_id
        return Path(model_id).name if Path(model_id).is_absolute() else model_id

    async def embed(
        self,
        inputs: Sequence[str] | Sequence[np.ndarray[Any, Any]],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
    ) -> EmbeddingResult:
        """Encode texts, or token ids with special tokens, in batches with those of other requests.

        Args:
            inputs: texts, or arrays (t,) of token ids; as `TokenIds` where some were cut.
            prompt: name of the prompt put before each text; None = the default.
            normalize: scale vectors to length 1; None = as the encoder does.
            dimensions: width of the vectors; None = the encoder's.
            truncate: cut long texts; False refuses them.

        Raises:
            ApiError: an unknown prompt, a text that cannot be tokenised or is too long, or `dimensions` out of range.
        """
        start = time.perf_counter()
        sequences = await asyncio.to_thread(self._tokenize, inputs, prompt, truncate)
        tokenize_seconds = time.perf_counter() - start
        encoded = await self.batcher.submit(sequences)
        counts = [len(ids) for ids in sequences]
        self.metrics.tokenize_time.labels(self.name).observe(tokenize_seconds)
        self.metrics.tokens.labels(self.name).inc(sum(counts))
        vectors = self._shape(encoded.vectors, normalize, dimensions)
        timing = Timing(tokenize_seconds, encoded.queue_seconds, encoded.inference_seconds)
        cut = getattr(sequences, "truncated", 0)
        return EmbeddingResult(vectors, counts, timing, truncation_warnings(cut, self.encoder.max_length), cut)

    def _tokenize(self, inputs: Sequence[Any], prompt: str | None, truncate: bool) -> Sequence[np.ndarray[Any, Any]]:
        """Return token ids within the limits; ApiError for a text that is too long or cannot be tokenised."""
        if not inputs or isinstance(inputs[0], np.ndarray):
            self._refuse_cut(inputs, truncate)
            return inputs
        try:
            sequences = self.encoder.tokenize(list(inputs), prompt_name=prompt)
        except ValueError as error:
            raise ApiError(422 if prompt in (None, *self.encoder.prompts) else 400, str(error)) from None
        limit = self.max_input_tokens
        self._refuse_cut(sequences, truncate)
        if limit is not None and (longest := max(map(len, sequences))) > limit:
            raise ApiError(413, f"An input has {longest} tokens or more, at most {limit} are allowed.")
        return sequences

    def _refuse_cut(self, sequences: object, truncate: bool) -> None:
        """Raise ApiError 413 where inputs were cut and must not be."""
        cut: int = getattr(sequences, "truncated", 0)
        if cut and not truncate:
            how = f"shorten it, {ALLOW_TRUNCATION}"
            raise ApiError(413, f"An input has more than {self.encoder.max_length} tokens; {how}")

    def _shape(self, vectors: Vectors, normalize: bool | None, dimensions: int | None) -> Vectors:
        """Shorten vectors to `dimensions`, and scale them to length 1 if wanted."""
        unit = self.encoder.normalize if normalize is None else normalize
        if unit or (self.encoder.normalize and self.whitening is not None and dimensions is not None):
            vectors = _unit(vectors)  # as the vectors that the whitening was fitted on
        if dimensions is None:
            return vectors
        if self.whitening is not None:
            rank = self.whitening.rank_
            if dimensions > rank:
                raise ApiError(400, f"dimensions must be at most {rank}, got {dimensions}.", param="dimensions")
            vectors = self.whitening.with_params(n_components=dimensions).transform(vectors).astype(np.float32)
        elif dimensions > vectors.shape[1]:
            most = vectors.shape[1]
            raise ApiError(400, f"dimensions must be at most {most}, got {dimensions}.", param="dimensions")
        else:
            vectors = vectors[:, :dimensions]
        return _unit(vectors) if unit else vectors


def truncation_warnings(texts: int, limit: int) -> list[str]:
    """Return a warning that a number of texts were longer than `limit` tokens; nothing for 0 texts."""
    if not texts:
        return []
    return [f"{texts} {'text was' if texts == 1 else 'texts were'} cut: at most {limit} tokens are read."]


def _unit(vectors: Vectors) -> Vectors:
    """Return vectors of length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit
