"""Texts to vectors: sorted by length, batched by tokens, in bfloat16 where that is exact enough and faster."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kexue._devices import choose_device, set_threads
from kexue._progress import Progress
from kexue.text.identity import ModelIdentity
from kexue.text.loaded import LoadedModel
from kexue.text.models import DEFAULT_MODEL, TINY_CHINESE
from kexue.text.network import DTYPES
from kexue.text.opening import ChosenModel
from kexue.text.passages import split_texts
from kexue.text.pooling import canonical_pooling
from kexue.text.roles import Role, choose_prompt
from kexue.text.streaming import EncodeReport, encode_to
from kexue.text.tokenizer import Tokens, list_texts
from kexue.text.tokens import (
    TokenIds,
    TokenVectors,
    compute_token_vectors,
    cut_texts,
    join_token_ids,
    list_token_ids,
    list_unknown,
)

_CPU_TOKENS = 2048  # on a processor a larger batch leaves the cache: measured 20 % slower at 8192


class Encoder:
    """Sentence encoder: transformer, pooling, dense stages, scaling to length 1.

    Reads any sentence-transformers or Hugging Face folder with safetensors weights. Vectors equal those of
    sentence-transformers to 1e-5 in float32; half precision is used only after a check against float32 at load.

    Source of the poolings: kexue.fm/archives/8321.

    Args:
        model: a folder, a name or hub id (see `find_model`), or ``"auto"``: `KEXUE_MODEL`, else the first texts decide
            (see `find_model_for`), once. Whoever asks ``"auto"`` for `dim` and the like before any text gets English.
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
        prompts: name -> text put before each input; added to those of the model.

    Attributes:
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
        self.normalize = normalize
        self.batch_tokens = batch_tokens
        self.truncated_ = 0
        opened = partial(
            LoadedModel, device=self.device, pooling=pooling, dtype=dtype, max_length=max_length, prompts=prompts
        )
        self._choice = ChosenModel(os.fspath(model), opened)

    def choose_model(self, texts: Sequence[str]) -> None:
        """Choose the model of ``Encoder("auto")`` by texts, see `find_model_for`; later calls change nothing.

        `encode` and its kin do it with the texts of their first call. What reads texts in batches calls it first.

        Raises:
            ModelNotFoundError: the model is neither on this machine nor on the hub.
        """
        self._choice.choose(texts)

    @property
    def _model(self) -> LoadedModel:
        """The opened model; before any text the one for English."""
        return self._choice.get()

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._model.network.dim

    @property
    def dtype(self) -> str:
        """Dtype of the transformer: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        return self._model.network.dtype

    @property
    def model_id(self) -> str:
        """Hub id, name of a packaged model, or the folder's absolute path."""
        return self._model.model_id

    @property
    def languages(self) -> tuple[str, ...] | None:
        """Codes of the languages that the model reads, such as ``("en",)``; None where that is not known."""
        return {DEFAULT_MODEL: ("en",), TINY_CHINESE: ("zh",)}.get(self.model_id)

    @property
    def pooling(self) -> str:
        """Name of the pooling."""
        return self._model.pooling

    @property
    def max_length(self) -> int:
        """Limit of tokens read of a text, special ones included."""
        return self._model.max_length

    @property
    def prompts(self) -> dict[str, str]:
        """Text put before an input, by name: the published ones, those of the folder, those of the caller."""
        return self._model.prompts

    @property
    def fingerprint(self) -> str:
        """sha256 over everything in the folder that changes a vector, and the pooling, in hexadecimal."""
        return self._model.fingerprint

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
        return self._model.prompt(None)

    def with_pooling(self, mode: str) -> Encoder:
        """Return an encoder with another pooling that shares these weights; this one is not changed."""
        other = copy.copy(self)
        other._choice = self._choice.with_pooling(mode)
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
        return self._vectors(tokens, normalize, progress)

    def encode_queries(self, texts: Iterable[str], *, progress: Progress | None = None) -> np.ndarray:
        """Encode queries, or texts that are compared as equals, with the model's prompt for them, if it has one.

        Arguments and errors are those of `encode`; so are those of `encode_documents`.
        """
        return self._encode_as("query", texts, progress)

    def encode_documents(self, texts: Iterable[str], *, progress: Progress | None = None) -> np.ndarray:
        """Encode texts to be searched, with the model's prompt for documents, if it has one."""
        return self._encode_as("document", texts, progress)

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
        return list_token_ids(self._tokenize(texts, prompt_name))

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
        return self._vectors(join_token_ids(self.check_ids(sequences)), normalize)

    def check_ids(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the sequences as int32 after checking that `encode_ids` can read them.

        Raises:
            ValueError: a sequence is not one row of whole numbers, is empty or longer than `max_length`, or holds an
                id outside the vocabulary; its position is named.
        """
        return self._model.tokenizer.check_ids(sequences)

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
        texts = list_texts(texts)
        vectors, self.truncated_ = compute_token_vectors(self._choice.choose(texts), texts, self.pass_tokens)
        return vectors

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Count the tokens of each text: cut to `max_length`, special tokens included, without a prompt."""
        texts = list_texts(texts)
        return [int(length) for length in self._choice.choose(texts).tokenizer.encode(texts).lengths]

    def unknown_words(self, texts: Iterable[str]) -> list[list[str]]:
        """Return the parts of each text that are no token of the model: it reads them all as the same unknown one.

        Example:
            >>> encoder.unknown_words(["a dog", "退货"])  # doctest: +SKIP
            [[], ['退', '货']]
        """
        texts = list_texts(texts)
        return list_unknown(self._choice.choose(texts), texts)

    def cut(self, texts: Iterable[str], tokens: int) -> list[str]:
        """Return each text up to the end of its first `tokens` tokens, special ones not counted.

        Raises:
            ValueError: `tokens` < 1. TypeError: an element is not a string; its position is named.
        """
        texts = list_texts(texts)
        return cut_texts(self._choice.choose(texts), texts, tokens)

    def split(
        self, texts: Iterable[str], tokens: int | None = None, overlap: int = 0, *, prompt_name: str | None = None
    ) -> list[list[tuple[int, int]]]:
        """Split texts that have more than `tokens` tokens into passages; see `kexue.text.passages.split_text`.

        Args:
            texts: n strings; one plain string counts as a list of one.
            tokens: tokens of a passage, special ones not counted; None = as many as `encode` reads after the prompt.
            overlap: tokens that a passage may repeat of the one before, up to half of `tokens`.
            prompt_name: prompt put before each passage, as in `encode`.

        Returns:
            The passages of each text as characters (start, end); one, the whole text, where it is short.

        Raises:
            ValueError: `tokens` or `overlap` is out of range, or an unknown prompt.

        Example:
            >>> encoder.split(["A dog runs. It rains."], 5)  # doctest: +SKIP
            [[(0, 12), (12, 21)]]
        """
        texts = list_texts(texts)
        self.choose_model(texts)
        [prompt] = self.count_tokens([self._model.prompt(prompt_name)])
        room = self.max_length - prompt
        if tokens is not None and not 1 <= tokens <= room:
            raise ValueError(f"a passage must have between 1 and {room} tokens for {self.model_id}, got {tokens}.")
        return split_texts(texts, self._model.tokenizer, room if tokens is None else tokens, overlap)

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
        texts = self._choice.choose_by_stream([texts] if isinstance(texts, str) else texts)
        return encode_to(self, path, texts, resume=resume, progress=progress)

    @property
    def pass_tokens(self) -> int:
        """Largest number of tokens of one forward pass on this device, padding included."""
        return min(self.batch_tokens, _CPU_TOKENS) if self.device.type == "cpu" else self.batch_tokens

    def _encode_as(self, role: Role, texts: Iterable[str], progress: Progress | None) -> np.ndarray:
        texts = list_texts(texts)
        self.choose_model(texts)  # which decides on the prompts, too
        return self.encode(texts, prompt_name=choose_prompt(self, role), progress=progress)

    def _tokenize(self, texts: Iterable[str], prompt_name: str | None) -> Tokens:
        texts = list_texts(texts)
        model = self._choice.choose(texts)
        prompt = model.prompt(prompt_name)
        tokens = model.tokenizer.encode([prompt + text for text in texts] if prompt else texts)
        self.truncated_ = tokens.truncated
        model.warn_of_unknown(tokens.unknown)
        return tokens

    def _vectors(self, tokens: Tokens, normalize: bool | None, progress: Progress | None = None) -> np.ndarray:
        unit = self.normalize if normalize is None else normalize
        return self._model.compute_vectors(tokens, self.pass_tokens, unit=unit, progress=progress)
