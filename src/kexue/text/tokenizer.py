"""Texts to token ids, with the fast tokenizer of a model folder, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._optional import import_optional
from kexue.text.tokenizer_files import load_tokenizer, save_tokenizer

_CHUNK = 1024  # texts tokenised at a time: the tokenizer's records take a hundred times the bytes of the ids
_CHARACTERS_PER_TOKEN = 32  # assumed at most; far above what any vocabulary needs for running text
_CHINESE = "\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"  # and marks beside it
_BESIDE_CHINESE = re.compile(rf"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")
_BETWEEN_DIGITS = re.compile(r"(?<=\d) ?([.,:/-]) ?(?=\d)")
_PART = 65_536  # characters of a long text whose tokens are located at a time
_MARGIN = 128  # tokens read past the limit: a word cut in two there cannot change the tokens before the limit


def list_texts(texts: Iterable[str], *, first: int = 0) -> list[str]:
    """Return the texts as a list; one plain string is a list of one. TypeError names the place of another type."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a string, got {type(text).__name__}: {text!r:.80}.")
    return texts


def cut_text(text: str, offsets: Sequence[tuple[int, int]], tokens: int) -> str:
    """Return a text up to the end of its first `tokens` tokens, whole where it has no more.

    Args:
        text: the text.
        offsets: start and end of each token in it, special tokens left out.
        tokens: tokens to keep, at least 1.
    """
    return text[: offsets[tokens - 1][1]] if len(offsets) > tokens else text


class Tokens(NamedTuple):
    """Token ids of n texts, one after the other.

    Attributes:
        ids: (total,) int32.
        starts: (n + 1,) int64; text i holds ``ids[starts[i]:starts[i + 1]]``, special tokens included.
        truncated: number of texts cut to the maximum length.
        unknown: share of unknown tokens, special tokens not counted.
    """

    ids: np.ndarray
    starts: np.ndarray
    truncated: int
    unknown: float

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64, tokens of each text."""
        return np.diff(self.starts)

    def pad(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (B, T) int64 and mask (B, T) bool of the texts `rows`, padded on the right to the longest."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        places = np.where(mask, starts[:, None] + columns, 0)
        return np.where(mask, self.ids[places], pad_id).astype(np.int64), mask


class TextTokenizer:
    """Fast tokenizer of a model folder.

    Args:
        folder: folder of the tokenizer's files.
        lower: turn text into lower case before the tokenizer's normaliser.

    Attributes:
        model_max_length: limit that the folder states; a huge number where it states none.
        pad_id: id that fills rows up, 0 where the tokenizer has none.
        unknown_id, mask_id, cls_id, sep_id: ids of these special tokens; None for one that it does not have.
        specials: number of special tokens that are added to a text.

    Raises:
        CheckpointError: the folder holds no tokenizer, or none with a fast form.
    """

    def __init__(self, folder: Path, *, lower: bool = False) -> None:
        self._backend, self._special = load_tokenizer(folder)
        if lower:
            normalizers = import_optional("tokenizers").normalizers
            own = self._backend.normalizer
            self._backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])
        self._backend.no_padding()
        self.model_max_length = self._special.max_length
        self.pad_id = self._special.pad or 0
        self.specials: int = self._backend.num_special_tokens_to_add(False)
        self.unknown_id, self.mask_id = self._special.unk, self._special.mask
        self.cls_id, self.sep_id = self._special.cls, self._special.sep

    def set_max_length(self, max_length: int) -> None:
        """Cut at `max_length` tokens, special ones included; ValueError where that leaves no room for a text."""
        if max_length <= self.specials:
            raise ValueError(f"max_length must be at least {self.specials + 1} tokens, got {max_length}.")
        self.max_length = max_length
        self._backend.enable_truncation(max_length)
        self._characters = max(_CHARACTERS_PER_TOKEN * max_length, 4096)
        self._enough_overflow = 1 + ceil(_MARGIN / (max_length - self.specials))

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Return the ids of all texts. They are tokenised in chunks, so memory grows with the ids only.

        Raises:
            ValueError: a text is not valid Unicode, or has no token; its position is named.
        """
        lengths = np.empty(len(texts), dtype=np.int64)
        pieces: list[np.ndarray] = []
        truncated = 0
        for start, encodings in self._chunks(texts, self._backend.encode_batch_fast):
            ids = [encoding.ids for encoding in encodings]
            lengths[start : start + len(ids)] = sizes = np.fromiter(map(len, ids), np.int64, len(ids))
            pieces.append(np.fromiter(chain.from_iterable(ids), np.int32, int(sizes.sum())))
            truncated += sum(1 for encoding in encodings if encoding.overflowing)
        if not lengths.all():
            raise ValueError(f"texts[{int(lengths.argmin())}] has no token, and this tokenizer adds no special token.")
        flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
        words = flat.size - self.specials * len(texts)
        unknown = 0 if self.unknown_id is None else int(np.count_nonzero(flat == self.unknown_id))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return Tokens(flat, starts, truncated, unknown / words if words > 0 else 0.0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special ones left out, without spaces beside Chinese characters.

        Example:
            >>> tokenizer.decode(tokenizer.encode(["买iPhone 12.5 吗?"]).ids)  # doctest: +SKIP
            '买iphone 12.5吗?'
        """
        text: str = self._backend.decode([int(one) for one in ids])
        return _BETWEEN_DIGITS.sub(r"\1", _BESIDE_CHINESE.sub("", text))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which open as the same tokenizer, into a folder."""
        save_tokenizer(self._backend, self._special, folder)

    @cached_property
    def tokens(self) -> list[str]:
        """Tokens in the order of their ids; empty where an id has none."""
        names = [""] * self.vocabulary_size
        for token, number in self._backend.get_vocab().items():
            names[number] = token
        return names

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        ids: dict[str, int] = self._backend.get_vocab()
        return 1 + max(ids.values())

    def check_ids(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return sequences of token ids as int32; ValueError names the first that is illegal.

        See `kexue.text.Encoder.check_ids`.
        """
        checked = [np.asarray(sequence) for sequence in sequences]
        for i, ids in enumerate(checked):
            if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
                raise ValueError(f"sequences[{i}] must be one row of token ids, got {ids.dtype} {ids.shape}.")
            if not 1 <= len(ids) <= self.max_length:
                raise ValueError(f"sequences[{i}] must have 1 to {self.max_length} tokens, got {len(ids)}.")
        everything = np.concatenate(checked) if checked else np.empty(0, dtype=np.int32)
        if np.any(everything < 0) or np.any(everything >= self.vocabulary_size):
            for i, ids in enumerate(checked):
                wrong = ids[(ids < 0) | (ids >= self.vocabulary_size)]
                if wrong.size:
                    most = self.vocabulary_size - 1
                    raise ValueError(f"sequences[{i}] holds the token id {wrong[0]}, expected 0 to {most}.")
        return [ids.astype(np.int32, copy=False) for ids in checked]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Any]:
        """Return the tokenizer's own records: ids, tokens, offsets, special_tokens_mask, overflowing."""
        return [record for _, records in self._chunks(texts, self._backend.encode_batch) for record in records]

    def read_offsets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the characters (t, 2) of all tokens of each text, also beyond the maximum length.

        Special tokens are left out. A text of more than 65,536 characters is read in parts that end with a line or a
        word where there is one.
        """
        places = [(at, start, stop) for at, text in enumerate(texts) for start, stop in _parts(text)]
        try:
            records = self._backend.encode_batch([texts[at][start:stop] for at, start, stop in places])
        except TypeError:
            raise ValueError(_describe_invalid(texts, 0)) from None
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for (at, start, _), record in zip(places, records, strict=True):
            for one in (record, *record.overflowing):
                offsets = np.array(one.offsets, np.int64).reshape(-1, 2)
                found[at].append(offsets[np.array(one.special_tokens_mask) == 0] + start)
        return [np.concatenate(parts) if parts else np.empty((0, 2), np.int64) for parts in found]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, also beyond the maximum length, without special ones."""
        records = self._backend.encode_batch_fast(list(texts))
        return [sum(len(one.ids) - self.specials for one in (record, *record.overflowing)) for record in records]

    def _chunks(self, texts: Sequence[str], encode_batch: Any) -> Iterator[tuple[int, list[Any]]]:
        """Yield chunks of records; of a long text only a beginning that fills the maximum length is tokenised."""
        limit = self._characters
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            try:
                encodings = encode_batch([text[:limit] for text in chunk])
            except TypeError:
                raise ValueError(_describe_invalid(chunk, start)) from None
            for i, text in enumerate(chunk):
                size = limit
                while size < len(text) and len(encodings[i].overflowing) < self._enough_overflow:
                    size *= 8
                    encodings[i] = encode_batch([text[:size]])[0]
            yield start, encodings


def _parts(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and stop of the parts of a text that are tokenised at a time."""
    start = 0
    while len(text) - start > _PART:
        stop = max(text.rfind(mark, start + _PART // 2, start + _PART) for mark in "\n ") + 1 or start + _PART
        yield start, stop
        start = stop
    yield start, len(text)


def _describe_invalid(chunk: Sequence[str], start: int) -> str:
    for i, text in enumerate(chunk, start=start):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return (
                f"texts[{i}] is no valid Unicode: {text[error.start]!r} at character {error.start} is half a "
                "surrogate pair. Decode the text again, with errors='replace' if necessary."
            )
    return f"one of texts[{start}:{start + len(chunk)}] cannot be tokenised."
