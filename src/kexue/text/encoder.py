"""Texts to vectors: sorted by length, batched by tokens, in bfloat16 where that is exact enough and faster."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from kexue._devices import choose_device, has_native_bfloat16, set_threads
from kexue._progress import Progress
from kexue.errors import CheckpointError
from kexue.text.checkpoints import DenseStage, fingerprint, load_dense, load_transformer, read_stack
from kexue.text.identity import ModelIdentity
from kexue.text.models import canonical_pooling, find_model, model_id_of
from kexue.text.pooling import pool
from kexue.text.streaming import EncodeReport, encode_to
from kexue.text.tokenizer import TextTokenizer, Tokens, checked_texts

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger("kexue.text")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU_TOKENS = 2048  # on a processor a larger batch leaves the cache: measured 20 % slower at 8192
_UNKNOWN_SHARE = 0.2
_LEAST_COSINE = 0.999
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
    """Sentence encoder: transformer, pooling, dense stages, unit length.

    Reads any sentence-transformers or Hugging Face folder with safetensors weights. Vectors equal those of
    sentence-transformers to 1e-5 in float32; half precision is taken only after a check against float32 at load.

    Source of the poolings: kexue.fm/archives/8321.

    Args:
        model: ``"auto"`` (see `find_model`), a folder, or a hub id.
        pooling: ``"cls"``, ``"pooler"`` (linear, without tanh), ``"last-avg"`` (alias ``"mean"``),
            ``"first-last-avg"`` or ``"max"``; None = the folder's own, mean for a plain Hugging Face folder.
        device: ``"auto"`` (`KEXUE_DEVICE`, else cuda, mps, cpu in this order), ``"cpu"``, ``"cuda"``, ``"cuda:0"``, ...
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``. Auto is bfloat16 on CUDA and on processors
            with native bfloat16, if its vectors keep a cosine of at least 0.999 to float32 on probe sentences.
        batch_tokens: most tokens of one forward pass, padding included; on a processor batches end at 2,048 tokens
            even so. A text longer than that is a batch of its own.
        max_length: tokens kept of a text, special ones included; None = what the folder says, never more than that.
        normalize: bring vectors to unit length. False leaves out a last Normalize stage of the folder, too.
        prompts: name -> text put before each input; added to the folder's own.

    Attributes:
        dim: width of a vector.
        max_length: tokens kept of a text.
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
        if dtype not in ("auto", *_DTYPES):
            raise ValueError(f"unknown dtype {dtype!r}, expected auto, {', '.join(_DTYPES)}.")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}.")
        set_threads()
        self.device = choose_device(device)
        folder = find_model(model)
        self.model_id = model_id_of(folder)
        self._stack = read_stack(folder)
        self._model = load_transformer(self._stack.transformer)
        self._pooler = self._model.pooler
        self._stages = [load_dense(s) if isinstance(s, DenseStage) else s for s in self._stack.stages]
        self._tokenizer = TextTokenizer(self._stack.transformer, lower=self._stack.lower)
        self.pooling = self._check_pooling(pooling or self._stack.pooling)
        self.max_length = self._choose_max_length(max_length)
        self._tokenizer.set_max_length(self.max_length)
        self.normalize = normalize
        self.prompts = {**self._stack.prompts, **(prompts or {})}
        self.batch_tokens = batch_tokens
        self.truncated_ = 0
        self._told_unknown = [False]  # a list: encoders that share the weights warn once together
        self._to_device(dtype)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        widths = [stage.out_features for stage in self._stack.stages if isinstance(stage, DenseStage)]
        return widths[-1] if widths else self._pooled_dim

    @property
    def dtype(self) -> str:
        """Arithmetic of the transformer: ``"float32"``, ``"bfloat16"`` or ``"float16"``."""
        return str(self._model.dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything in the folder that changes a vector, and the pooling, in hexadecimal."""
        return fingerprint(self._stack, self.pooling)

    @cached_property
    def _vocabulary_size(self) -> int:
        ids: dict[str, int] = self._tokenizer._backend.get_vocab()
        return 1 + max(ids.values())

    @property
    def identity(self) -> ModelIdentity:
        """Identity that an index records, to refuse vectors of another space."""
        return ModelIdentity(
            self.model_id,
            self.fingerprint,
            self.dim,
            self.pooling,
            reference=self.model_id if type(self) is Encoder else None,  # a subclass is the caller's to open
            max_length=self.max_length,
            normalize=self.normalize,
            prompts=self.prompts,
        )

    @property
    def default_prompt(self) -> str:
        """The prompt put before each text when none is named; most models have none."""
        return self._prompt(None)

    def with_pooling(self, mode: str) -> Encoder:
        """Return an encoder with another pooling that shares these weights; this one stays as it is."""
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other.pooling = other._check_pooling(canonical_pooling(mode))
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

        Cost: the ids of all texts (4 bytes a token) and the result are in memory; `encode_to` needs neither.
        """
        tokens = self._read(texts, prompt_name)
        self._warn_if_unknown(tokens)
        return self._vectors(tokens, normalize, progress)

    def tokenize(self, texts: Iterable[str], *, prompt_name: str | None = None) -> TokenIds:
        """Return the token ids of each text as `encode` reads them: prompt put before, cut to `max_length`.

        Args:
            texts: n strings; one plain string counts as a list of one.
            prompt_name: as in `encode`.

        Returns:
            n arrays (t,) int32, special tokens included, for `encode_ids`. Its ``truncated`` is the number of texts
            that were cut; unlike `truncated_`, it stays right where several threads share the encoder.

        Raises:
            TypeError: an element is not a string; its position is named. ValueError: an unknown prompt.
        """
        tokens = self._read(texts, prompt_name)
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
        """Return the sequences as int32, once each is one that `encode_ids` can read.

        Raises:
            ValueError: not one row of whole numbers, empty, longer than `max_length`, or an id outside the
                vocabulary; the position is named.
        """
        checked = [np.asarray(sequence) for sequence in sequences]
        for i, ids in enumerate(checked):
            if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
                raise ValueError(f"sequences[{i}] must be one row of token ids, got {ids.dtype} {ids.shape}.")
            if not 1 <= len(ids) <= self.max_length:
                raise ValueError(f"sequences[{i}] must have 1 to {self.max_length} tokens, got {len(ids)}.")
        everything = np.concatenate(checked) if checked else np.empty(0, dtype=np.int32)
        if np.any(everything < 0) or np.any(everything >= self._vocabulary_size):
            for i, ids in enumerate(checked):
                wrong = ids[(ids < 0) | (ids >= self._vocabulary_size)]
                if wrong.size:
                    most = self._vocabulary_size - 1
                    raise ValueError(f"sequences[{i}] holds the token id {wrong[0]}, expected 0 to {most}.")
        return [ids.astype(np.int32, copy=False) for ids in checked]

    def encode_tokens(self, texts: Iterable[str]) -> list[TokenVectors]:
        """Return the last layer's vector of every token, special tokens left out, with where each stands in its text.

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
        encodings = self._tokenizer.encode_with_offsets(checked_texts(texts))
        self.truncated_ = sum(1 for encoding in encodings if encoding.overflowing)
        lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        ids = np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int32)
        tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), self.truncated_, 0.0)
        results: list[Any] = [None] * len(encodings)
        for rows in self._batches(lengths):
            states, _ = self._forward(*tokens.padded(rows, self._tokenizer.pad_id))
            for row, state in zip(rows.tolist(), states[-1].float().numpy(force=True), strict=True):
                record = encodings[row]
                kept = np.flatnonzero(np.array(record.special_tokens_mask) == 0)
                results[row] = TokenVectors(
                    [record.tokens[j] for j in kept], [record.offsets[j] for j in kept], state[kept]
                )
        return results

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text as `encode` reads them: cut to `max_length`, special tokens included, prompt left out."""
        return [int(length) for length in self._tokenizer.encode(checked_texts(texts)).lengths]

    def cut(self, texts: Iterable[str], tokens: int) -> list[str]:
        """Each text up to the end of its first `tokens` tokens, special ones not counted; whole where it has no more.

        Raises:
            ValueError: `tokens` < 1. TypeError: an element is not a string; its position is named.
        """
        if tokens < 1:
            raise ValueError(f"tokens must be >= 1, got {tokens}.")
        texts = checked_texts(texts)
        short = []
        for text, record in zip(texts, self._tokenizer.encode_with_offsets(texts), strict=True):
            offsets = [
                at for at, special in zip(record.offsets, record.special_tokens_mask, strict=True) if not special
            ]
            short.append(text[: offsets[tokens - 1][1]] if len(offsets) > tokens else text)
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

        Written beside `path` and renamed into place at the end. After a kill or a full disk the same call goes on
        where it stopped and gives the same bytes; see `kexue.text.streaming.encode_to` for how.

        Args:
            path: the file to write; read it with ``numpy.load(path, mmap_mode="r")``.
            texts: any iterable of strings; on resuming, the same texts from the start.
            resume: go on from what an interrupted call left. False starts anew.
            progress: called as ``progress(texts_done, n)``; n is None while `texts` has no length.

        Returns:
            `EncodeReport`: n, dim, truncated, seconds.

        Raises:
            DiskFullError: no room; before starting where ``len(texts)`` tells. TypeError: an element is no string.
        """
        return encode_to(self, path, texts, resume=resume, progress=progress)

    @property
    def pass_tokens(self) -> int:
        """Most tokens of one forward pass on this device, padding included."""
        return min(self.batch_tokens, _CPU_TOKENS) if self.device.type == "cpu" else self.batch_tokens

    # -- from here on: one batch -----------------------------------------------------------------------------------

    def _read(self, texts: Iterable[str], prompt_name: str | None) -> Tokens:
        texts = checked_texts(texts)
        prompt = self._prompt(prompt_name)
        tokens = self._tokenizer.encode([prompt + text for text in texts] if prompt else texts)
        self.truncated_ = tokens.truncated
        return tokens

    def _vectors(self, tokens: Tokens, normalize: bool | None, progress: Progress | None = None) -> np.ndarray:
        unit = self.normalize if normalize is None else normalize
        n = len(tokens.starts) - 1
        vectors = np.empty((n, self.dim), dtype=np.float32)
        done = 0
        for rows in self._batches(tokens.lengths):
            vectors[rows] = self._sentence_vectors(*tokens.padded(rows, self._tokenizer.pad_id), unit)
            done += len(rows)
            if progress is not None:
                progress(done, n)
        return vectors

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Yield rows, longest texts first, so many that rows x longest stays within the token budget."""
        budget = self.pass_tokens
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            stop = start + max(1, budget // max(1, int(lengths[order[start]])))
            yield order[start:stop]
            start = stop

    @torch.inference_mode()
    def _forward(self, ids: np.ndarray, mask: np.ndarray) -> tuple[tuple[Tensor, ...], Tensor]:
        """Run the transformer; return the hidden states the pooling looks at, and the mask."""
        keep = torch.from_numpy(mask).to(self.device)
        return self._model(torch.from_numpy(ids).to(self.device), keep, self.pooling == "first-last-avg"), keep

    @torch.inference_mode()
    def _sentence_vectors(self, ids: np.ndarray, mask: np.ndarray, unit: bool) -> np.ndarray:
        states, keep = self._forward(ids, mask)
        used = [states[0], states[1], states[-1]] if len(states) > 1 else states
        vectors = pool([state.float() for state in used], keep, self.pooling, pooler=self._pool_linearly)
        for i, stage in enumerate(self._stages):
            if not isinstance(stage, str):
                vectors = stage(vectors)
            elif i < len(self._stages) - 1:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if unit:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        array: np.ndarray = vectors.numpy(force=True)
        return array

    def _pool_linearly(self, first: Tensor) -> Tensor:
        assert self._pooler is not None  # _check_pooling saw to it
        return torch.nn.functional.linear(first, *self._pooler)

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
        if tokens.unknown > _UNKNOWN_SHARE and not self._told_unknown[0]:
            self._told_unknown[0] = True
            warnings.warn(
                f"{tokens.unknown:.0%} of the tokens are unknown to {self.model_id}: its vectors say little about "
                "these texts. Use a model for their language: model=..., --model, or KEXUE_MODEL.",
                UserWarning,
                stacklevel=3,
            )

    # -- from here on: what the constructor settles ----------------------------------------------------------------

    def _check_pooling(self, mode: str | None) -> str:
        where = self._stack.transformer
        if mode is None:
            raise CheckpointError(
                f"{where} pools by {self._stack.pooling_raw}, which is not offered.", remedy="Choose one with pooling=."
            )
        if mode == "pooler" and self._pooler is None:
            raise CheckpointError(
                f"{where} holds no weights of a linear pooler.", remedy='Use another pooling, such as "cls".'
            )
        width = self._model.hidden_size
        for stage in self._stack.stages:
            if isinstance(stage, DenseStage):
                if stage.in_features != width:
                    raise CheckpointError(f"{stage.folder} takes {stage.in_features} dimensions, but gets {width}.")
                width = stage.out_features
        self._pooled_dim = width
        return mode

    def _choose_max_length(self, wanted: int | None) -> int:
        limits = [self._tokenizer.model_max_length]
        if self._model.max_positions is not None and self._model.max_positions > 0:
            limits.append(self._model.max_positions)
        most = min(limits)
        least = self._tokenizer.specials + 1
        if wanted is None:
            wanted = min(self._stack.max_length or most, most)
            if wanted > 1_000_000:  # the folder is silent
                wanted = 512
        if not least <= wanted <= most:
            raise ValueError(f"max_length must be between {least} and {most} tokens for this model, got {wanted}.")
        return wanted

    def _to_device(self, dtype: str) -> None:
        self._stages = [stage if isinstance(stage, str) else stage.to(self.device) for stage in self._stages]
        if self._pooler is not None:  # in float32, as all that follows the transformer
            self._pooler = (self._pooler[0].to(self.device), self._pooler[1].to(self.device))
        self._model = self._model.to(self.device, _DTYPES.get(dtype, torch.float32))
        if dtype != "auto":
            return
        if not has_native_bfloat16(self.device):
            return
        probes = self._tokenizer.encode(_PROBES)
        batch = probes.padded(np.arange(len(_PROBES)), self._tokenizer.pad_id)
        exact = self._model
        reference = self._sentence_vectors(*batch, True)
        self._model = exact.to(self.device, torch.bfloat16)
        worst = float((self._sentence_vectors(*batch, True) * reference).sum(axis=1).min())
        if not worst >= _LEAST_COSINE:  # a NaN fails, too
            self._model = exact
            _LOG.warning("%s: bfloat16 reaches a cosine of %.5f to float32 only; using float32.", self.model_id, worst)
        else:
            _LOG.info("%s: bfloat16, cosine to float32 at least %.5f on probes.", self.model_id, worst)
