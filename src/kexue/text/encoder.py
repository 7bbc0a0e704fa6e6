"""Texts to vectors: sorted by length, batched by tokens, in bfloat16 where that is exact enough and faster."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kexue._devices import choose_device, set_threads
from kexue._progress import Progress
from kexue.errors import CheckpointError
from kexue.text.batches import split_by_tokens
from kexue.text.folder import compute_fingerprint, read_model_folder
from kexue.text.identity import ModelIdentity
from kexue.text.models import find_model, model_id_of
from kexue.text.network import DTYPES, Batch, Network
from kexue.text.pooling import canonical_pooling
from kexue.text.streaming import EncodeReport, encode_to
from kexue.text.tokenizer import TextTokenizer, Tokens, cut_text, list_texts

_CPU_TOKENS = 2048  # on a processor a larger batch leaves the cache: measured 20 % slower at 8192
_UNKNOWN_SHARE = 0.2  # share of unknown tokens above which a warning is given
_PROBES = [
    "A man is playing a guitar.",
    "Return the number of items in the list, or zero when it is empty!",
    "The quick brown fox jumps over 13 lazy dogs",
    "今天天气很好,我们去公园散步。",
    "退货要多久?",
]


class TokenVectors(NamedTuple):
    """The tokens of one text, without the special ones.

    Attributes:
        tokens: t strings, as the vocabulary spells them (``"##ing"``).
        offsets: t pairs; token j is ``text[start:end]``, counted in characters.
        vectors: (t, h) float32, output of the last layer.
    """

    tokens: list[str]
    offsets: list[tuple[int, int]]
    vectors: np.ndarray


class TokenIds(list[np.ndarray]):
    """Token ids of n texts: n arrays (t,) int32, special tokens included; `truncated` of the texts were cut."""

    truncated: int = 0


class Encoder:
    """Sentence encoder: transformer, pooling, dense stages, scaling to length 1.

    Reads any sentence-transformers or Hugging Face folder with safetensors weights. Vectors equal those of
    sentence-transformers to 1e-5 in float32; half precision is used only after a check against float32 at load.

    Source of the poolings: kexue.fm/archives/8321.

    Args:
        model: ``"auto"`` (see `find_model`), a folder, or a hub id.
        pooling: ``"cls"``, ``"pooler"`` (linear, without tanh), ``"last-avg"`` (alias ``"mean"``),
            ``"first-last-avg"`` or ``"max"``; None = the folder's own, mean for a plain Hugging Face folder.
        device: ``"auto"`` (`KEXUE_DEVICE`, else cuda, mps, cpu in this order), ``"cpu"``, ``"cuda"``, ``"cuda:0"``, ...
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``. Auto is bfloat16 on CUDA and on processors
            with native bfloat16, if its vectors keep a cosine of at least 0.999 to float32 on probe sentences.
        batch_tokens: limit of tokens in one forward pass, padding included, at least 1; on a processor never more
            than 2,048. A longer text is a batch by itself.
        max_length: limit of tokens read of a text, special ones included, at most what the model has positions for;
            None = the folder's own limit.
        normalize: scale vectors to unit length; False also leaves out a last Normalize stage of the folder.
        prompts: name -> text put before each input; added to those of the folder.

    Attributes:
        dim: width of a vector.
        max_length: limit of tokens read of a text.
        model_id: hub id, or the folder's absolute path.
        fingerprint: sha256 over everything in the folder that changes a vector, and the pooling.
        truncated_: texts cut to `max_length` in the last call.

    Raises:
        ModelNotFoundError: no such model. CheckpointError: a folder that cannot be read as an encoder.
        ValueError: an unknown pooling, device, dtype, or a limit that is out of range.

    Example:
        >>> encoder = Encoder()  # doctest: +SKIP
        >>> encoder.encode(["A dog runs.", "It rains."]).shape  # doctest: +SKIP
        (2, 384)

    Cost: loading reads the weights once; they are hashed when `fingerprint` is first asked for.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "auto",
        *,
        pooling: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 8192,
        max_length: int | None = None,
        normalize: bool = True,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        if pooling is not None:
            pooling = canonical_pooling(pooling)
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"unknown dtype {dtype!r}, expected auto, {', '.join(DTYPES)}.")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}.")
        set_threads()
        self.device = choose_device(device)
        folder = find_model(model)
        self.model_id = model_id_of(folder)
        self._stack = read_model_folder(folder)
        self._network = Network(self._stack, self.device)
        self._tokenizer = TextTokenizer(self._stack.transformer, lower=self._stack.lower)
        self.pooling = self._check_pooling(pooling or self._stack.pooling)
        self.max_length = self._choose_max_length(max_length)
        self._tokenizer.set_max_length(self.max_length)
        self.normalize = normalize
        self.prompts = {**self._stack.prompts, **(prompts or {})}
        self.batch_tokens = batch_tokens
        self.truncated_ = 0
        self._warned_unknown = [False]  # a list, which encoders of the same weights share: they warn once
        self._network.set_dtype(dtype, probes=self._read_probes, pooling=self.pooling, name=self.model_id)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._network.dim

    @property
    def dtype(self) -> str:
        """Dtype of the transformer: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        return self._network.dtype

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything in the folder that changes a vector, and the pooling, in hexadecimal."""
        return compute_fingerprint(self._stack, self.pooling)

    @property
    def identity(self) -> ModelIdentity:
        """Identity that an index records, to refuse vectors of another space."""
        return ModelIdentity(
            self.model_id,
            self.fingerprint,
            self.dim,
            self.pooling,
            reference=self.model_id if type(self) is Encoder else None,  # only the caller can open a subclass again
            max_length=self.max_length,
            normalize=self.normalize,
            prompts=self.prompts,
        )

    def settings(self) -> dict[str, Any]:
        """Return everything that the bytes of its vectors depend on, texts apart, as JSON values."""
        return {
            "model": self.model_id,
            "fingerprint": self.fingerprint,
            "normalize": self.normalize,
            "dtype": self.dtype,
            "device": self.device.type,
            "max_length": self.max_length,
            "batch_tokens": self.batch_tokens,
            "prompt": self.default_prompt,
        }

    @property
    def default_prompt(self) -> str:
        """Prompt put before each text when none is named; empty for most models."""
        return self._prompt(None)

    def with_pooling(self, mode: str) -> Encoder:
        """Return an encoder with another pooling that shares these weights; this one is not changed."""
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other.pooling = self._check_pooling(canonical_pooling(mode))
        return other

    def encode(
        self,
        texts: Iterable[str],
        *,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Encode texts, in their order.

        Args:
            texts: n strings; one plain string counts as a list of one. An empty string is encoded as it is.
            normalize: unit length; None = as set for the encoder.
            prompt_name: prompt put before each text; None = the folder's default, most have none.
            progress: called as ``progress(texts_done, n)``.

        Returns:
            (n, dim) float32; (0, dim) for no texts.

        Raises:
            TypeError: an element is not a string; its position is named. ValueError: an unknown prompt.

        Cost: the ids of all texts (4 bytes per token) and the result are in memory; `encode_to` needs neither.
        """
        tokens = self._tokenize(texts, prompt_name)
        self._warn_if_unknown(tokens)
        return self._vectors(tokens, normalize, progress)

    def tokenize(self, texts: Iterable[str], *, prompt_name: str | None = None) -> TokenIds:
        """Return the token ids of each text as `encode` reads them: after the prompt, cut to `max_length`.

        Args:
            texts: n strings; one plain string counts as a list of one.
            prompt_name: as in `encode`.

        Returns:
            n arrays (t,) int32, special tokens included, for `encode_ids`. Its ``truncated`` is the number of texts
            that were cut; it is correct if several threads share the encoder, `truncated_` is not.

        Raises:
            TypeError: an element is not a string; its position is named. ValueError: an unknown prompt.
        """
        tokens = self._tokenize(texts, prompt_name)
        self._warn_if_unknown(tokens)
        sequences = TokenIds(np.split(tokens.ids, tokens.starts[1:-1]) if len(tokens.starts) > 1 else [])
        sequences.truncated = tokens.truncated
        return sequences

    def encode_ids(self, sequences: Sequence[np.ndarray], *, normalize: bool | None = None) -> np.ndarray:
        """Encode texts that are token ids already: ``encode(texts) = encode_ids(tokenize(texts))``.

        Args:
            sequences: n sequences (t,) of whole numbers, special tokens included, 1 <= t <= `max_length`.
            normalize: as in `encode`.

        Returns:
            (n, dim) float32, in order; (0, dim) for no sequences.

        Raises:
            ValueError: what `check_ids` finds wrong.
        """
        checked = self.check_ids(sequences)
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in checked], dtype=np.int64)])
        ids = np.concatenate(checked) if checked else np.empty(0, dtype=np.int32)
        return self._vectors(Tokens(ids, starts, 0, 0.0), normalize)

    def check_ids(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the sequences as int32 after checking that `encode_ids` can read them.

        Raises:
            ValueError: a sequence is not one row of whole numbers, is empty or longer than `max_length`, or holds an
                id outside the vocabulary; its position is named.
        """
        return self._tokenizer.check_ids(sequences)

    def encode_tokens(self, texts: Iterable[str]) -> list[TokenVectors]:
        """Return the last layer's vector of every token and its place in the text; special tokens are left out.

        Args:
            texts: n strings; one plain string counts as a list of one. No prompt is put before them.

        Returns:
            n `TokenVectors`, in order; neither pooled nor normalised. An empty text has 0 tokens.

        Raises:
            TypeError: an element is not a string; its position is named.

        Example:
            >>> [tokens] = encoder.encode_tokens(["Dogs run."])  # doctest: +SKIP
            >>> tokens.tokens, tokens.offsets  # doctest: +SKIP
            (['dogs', 'run', '.'], [(0, 4), (5, 8), (8, 9)])
        """
        encodings = self._tokenizer.encode_with_offsets(list_texts(texts))
        self.truncated_ = sum(1 for encoding in encodings if encoding.overflowing)
        lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        ids = np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int32)
        tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), self.truncated_, 0.0)
        results: list[Any] = [None] * len(encodings)
        for rows in split_by_tokens(lengths, self.pass_tokens):
            states, _ = self._network.states(tokens.pad(rows, self._tokenizer.pad_id))
            for row, state in zip(rows.tolist(), states[-1].float().numpy(force=True), strict=True):
                record = encodings[row]
                kept = np.flatnonzero(np.array(record.special_tokens_mask) == 0)
                results[row] = TokenVectors(
                    [record.tokens[j] for j in kept], [record.offsets[j] for j in kept], state[kept]
                )
        return results

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Count the tokens of each text: cut to `max_length`, special tokens included, without a prompt."""
        return [int(length) for length in self._tokenizer.encode(list_texts(texts)).lengths]

    def cut(self, texts: Iterable[str], tokens: int) -> list[str]:
        """Return each text up to the end of its first `tokens` tokens, special ones not counted.

        Raises:
            ValueError: `tokens` < 1. TypeError: an element is not a string; its position is named.
        """
        if tokens < 1:
            raise ValueError(f"tokens must be >= 1, got {tokens}.")
        texts = list_texts(texts)
        short = []
        for text, record in zip(texts, self._tokenizer.encode_with_offsets(texts), strict=True):
            offsets = [
                at for at, special in zip(record.offsets, record.special_tokens_mask, strict=True) if not special
            ]
            short.append(cut_text(text, offsets, tokens))
        return short

    def encode_to(
        self,
        path: str | os.PathLike[str],
        texts: Iterable[str],
        *,
        resume: bool = True,
        progress: Progress | None = None,
    ) -> EncodeReport:
        """Encode a stream of texts into a ``.npy`` file, float32 (n, dim), without holding either in memory.

        The file is written under another name and renamed at the end. After a kill or a full disk the same call
        continues where it stopped and gives the same bytes; `kexue.text.streaming.encode_to` explains how.

        Args:
            path: the file to write; read it with ``numpy.load(path, mmap_mode="r")``.
            texts: any iterable of strings; on resuming, the same texts from the start.
            resume: continue what an interrupted call left; False starts from the beginning.
            progress: called as ``progress(texts_done, n)``; n is None while `texts` has no length.

        Returns:
            `EncodeReport`: n, dim, truncated, seconds.

        Raises:
            DiskFullError: not enough room on the disk; raised before starting if ``len(texts)`` is known.
            TypeError: an element is not a string.
        """
        return encode_to(self, path, texts, resume=resume, progress=progress)

    @property
    def pass_tokens(self) -> int:
        """Largest number of tokens of one forward pass on this device, padding included."""
        return min(self.batch_tokens, _CPU_TOKENS) if self.device.type == "cpu" else self.batch_tokens

    # One call

    def _tokenize(self, texts: Iterable[str], prompt_name: str | None) -> Tokens:
        texts = list_texts(texts)
        prompt = self._prompt(prompt_name)
        tokens = self._tokenizer.encode([prompt + text for text in texts] if prompt else texts)
        self.truncated_ = tokens.truncated
        return tokens

    def _vectors(self, tokens: Tokens, normalize: bool | None, progress: Progress | None = None) -> np.ndarray:
        unit = self.normalize if normalize is None else normalize
        n = len(tokens.starts) - 1
        vectors = np.empty((n, self.dim), dtype=np.float32)
        done = 0
        for rows in split_by_tokens(tokens.lengths, self.pass_tokens):
            batch = tokens.pad(rows, self._tokenizer.pad_id)
            vectors[rows] = self._network.vectors(batch, self.pooling, unit=unit)
            done += len(rows)
            if progress is not None:
                progress(done, n)
        return vectors

    def _prompt(self, name: str | None) -> str:
        if name is None:
            name = self._stack.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(
                f"unknown prompt {name!r}; this model has: {known}. Add it with prompts={{{name!r}: ...}}."
            )
        return self.prompts[name]

    def _warn_if_unknown(self, tokens: Tokens) -> None:
        if tokens.unknown > _UNKNOWN_SHARE and not self._warned_unknown[0]:
            self._warned_unknown[0] = True
            warnings.warn(
                f"{tokens.unknown:.0%} of the tokens are unknown to {self.model_id}: its vectors say little about "
                "these texts. Use a model for their language: model=..., --model, or KEXUE_MODEL.",
                UserWarning,
                stacklevel=3,
            )

    # What the constructor checks and chooses

    def _check_pooling(self, mode: str | None) -> str:
        """Return the pooling to use; CheckpointError where the folder cannot serve it."""
        if mode is None:
            raise CheckpointError(
                f"{self._stack.transformer} uses the pooling {self._stack.pooling_raw}, which is not supported.",
                remedy="Choose one with pooling=.",
            )
        return self._network.check_pooling(mode)

    def _choose_max_length(self, wanted: int | None) -> int:
        limits = [self._tokenizer.model_max_length]
        if self._network.max_positions is not None and self._network.max_positions > 0:
            limits.append(self._network.max_positions)
        most = min(limits)
        least = self._tokenizer.specials + 1
        if wanted is None:
            wanted = min(self._stack.max_length or most, most)
            if wanted > 1_000_000:  # the folder states no limit
                wanted = 512
        if not least <= wanted <= most:
            raise ValueError(f"max_length must be between {least} and {most} tokens for this model, got {wanted}.")
        return wanted

    def _read_probes(self) -> Batch:
        """Return the batch of the sentences that decide on bfloat16."""
        probes = self._tokenizer.encode(_PROBES)
        return probes.pad(np.arange(len(_PROBES)), self._tokenizer.pad_id)
