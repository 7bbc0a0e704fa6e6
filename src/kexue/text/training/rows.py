"""Rows of tokens for training: ``[CLS] a [SEP]``, or ``[CLS] a [SEP] b [SEP]`` where b is to be written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from kexue.text.tokenizer import TextTokenizer, Tokens, cut_text
from kexue.text.training.noise import corrupt
from kexue.text.training.words import Splitter, choose_splitter

Batch = dict[str, torch.Tensor]
NOISE = 0.15  # share of the words of a text with noise
_CHUNK = 1024  # texts read at a time
_LAST_MARK = re.compile(r".*[。！？；，、.!?;,…\n]", re.DOTALL)


class Coded(NamedTuple):
    """Texts as tokens.

    Attributes:
        tokens: each text as ``[CLS] ... [SEP]``.
        words: (total,) int32, the number of each token's word within its text, -1 for special tokens; None where no
            words were asked for.
        cut: number of texts that were longer than the limit.
    """

    tokens: Tokens
    words: np.ndarray | None
    cut: int


def encode_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], max_length: int, splitter: Splitter | None = None
) -> Coded:
    """Return the tokens of texts; a text that is too long ends with its last punctuation mark within the limit.

    Args:
        tokenizer: texts to tokens.
        texts: n texts.
        max_length: limit of tokens, special ones included.
        splitter: text to words; None: words are not needed.
    """
    room = max_length - tokenizer.specials
    texts, cut = list(texts), 0
    for start in range(0, len(texts), _CHUNK):
        counts = tokenizer.count(texts[start : start + _CHUNK])
        for i in (start + i for i, count in enumerate(counts) if count > room):
            [offsets] = tokenizer.read_offsets([texts[i]])
            texts[i], cut = _cut_at_mark(cut_text(texts[i], offsets.tolist(), room)), cut + 1
    tokens = tokenizer.encode(texts)
    return Coded(tokens, None if splitter is None else _number_words(tokenizer, texts, splitter), cut)


def _cut_at_mark(text: str) -> str:
    """Return a text up to its last punctuation mark, whole where that would leave less than half."""
    match = _LAST_MARK.match(text)
    return text[: match.end()] if match and 2 * match.end() >= len(text) else text


def _number_words(tokenizer: TextTokenizer, texts: Sequence[str], splitter: Splitter) -> np.ndarray:
    """Return the number of each token's word within its text, -1 for special tokens."""
    numbers = []
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        for text, record in zip(part, tokenizer.encode_with_offsets(part), strict=True):
            ends = np.cumsum([len(word) for word in splitter(text)])
            begins = np.array(record.offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
            words = np.searchsorted(ends, begins, side="right")
            numbers.append(np.where(np.array(record.special_tokens_mask) == 1, -1, words))
    return np.concatenate(numbers).astype(np.int32) if numbers else np.empty(0, np.int32)


class RowMaker:
    """Rows of numbered texts.

    Args:
        coded: the texts.
        tokenizer: that of the model.
        noise: share of rows with a second text whose first gets noise on whole words.
    """

    def __init__(self, coded: Coded, tokenizer: TextTokenizer, *, noise: float = 0.0) -> None:
        self.coded, self.tokenizer, self.noise = coded, tokenizer, noise

    def sizes(self, first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Return the tokens of each row, as `join` makes it."""
        lengths = self.coded.tokens.lengths
        added = 0 if second is None else np.where(second < 0, 0, lengths[second] - 1)
        return np.asarray(lengths[first] + added)

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> Batch:
        """Return the rows of texts `first`, each followed by its text `second` where that is not -1.

        Noise comes from torch's global generator.

        Args:
            first: (B,) numbers of texts.
            second: (B,) numbers of texts to be written, whose [CLS] is left out, or -1; None: no text is to be written.

        Returns:
            ``token_ids`` (B, T) int64, ``segment_ids`` (B, T) int64, ``mask`` (B, T) bool.
        """
        tokens = self.coded.tokens
        starts = tokens.starts
        parts = [tokens.ids[starts[i] : starts[i + 1]] for i in first]
        own = np.array([len(part) for part in parts])
        if second is not None:
            parts = self._add_noise(parts, first, second >= 0)
            parts = [
                part if j < 0 else np.concatenate((part, tokens.ids[starts[j] + 1 : starts[j + 1]]))
                for part, j in zip(parts, second, strict=True)
            ]
        sizes = np.array([len(part) for part in parts])
        columns = np.arange(sizes.max())
        mask = columns < sizes[:, None]
        ids = np.full(mask.shape, self.tokenizer.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(parts)
        segments = (columns >= own[:, None]) & mask
        return {
            "token_ids": torch.from_numpy(ids),
            "segment_ids": torch.from_numpy(segments.astype(np.int64)),
            "mask": torch.from_numpy(mask),
        }

    def _add_noise(self, parts: list[np.ndarray], first: np.ndarray, written: np.ndarray) -> list[np.ndarray]:
        """Return the first parts of rows, with noise in a share of those that a second follows."""
        words, starts = self.coded.words, self.coded.tokens.starts
        if not self.noise or words is None:
            return parts
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        chosen = np.flatnonzero(written & (generator.random(len(parts)) < self.noise))
        if not len(chosen):
            return parts
        numbers = [words[starts[i] : starts[i + 1]] for i in first[chosen]]
        before = np.cumsum([0, *(int(own.max()) + 1 for own in numbers[:-1])])  # words of the texts before
        of = np.concatenate([np.where(own < 0, -1, own + add) for own, add in zip(numbers, before, strict=True)])
        noisy = corrupt(np.concatenate([parts[i] for i in chosen]), of, self.tokenizer, NOISE, generator)
        ends = np.cumsum([len(own) for own in numbers])[:-1]
        for i, part in zip(chosen, np.split(noisy, ends), strict=True):
            parts[i] = part
        return parts


class PairCollator:
    """Pairs of texts to a batch of rows: pair (a, b) gives ``[CLS] a [SEP] b [SEP]`` and ``[CLS] b [SEP] a [SEP]``.

    The two rows of pair i are 2i and 2i + 1, as `kexue.losses.pair_contrastive_loss` expects. Noise comes from torch's
    global generator.

    Args:
        tokenizer: that of the model.
        p_noise: share of rows whose first text gets noise on whole words; the text to be written stays clean.
        max_length: tokens of a text, special ones included; a longer one ends with its last punctuation mark before.
        splitter: text to words, which joined give the text; None: by jieba, and where that is not installed each
            Chinese character is a word.

    Attributes:
        cut_: texts cut to the limit so far.

    Raises:
        ValueError: a share outside [0, 1].

    Example:
        >>> batch = PairCollator(model.tokenizer)([("怎么退货", "如何退货")])  # doctest: +SKIP
        >>> batch["token_ids"].shape  # doctest: +SKIP
        torch.Size([2, 11])
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        p_noise: float = 0.5,
        max_length: int = 64,
        splitter: Splitter | None = None,
    ) -> None:
        if not 0 <= p_noise <= 1:
            raise ValueError(f"p_noise is a share between 0 and 1, got {p_noise}")
        self.tokenizer, self.p_noise, self.max_length = tokenizer, p_noise, max_length
        self.cut_ = 0
        self._splitter = splitter or choose_splitter(())[1] if p_noise else None

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Batch:
        """Return ``token_ids``, ``segment_ids`` and ``mask``, each (2B, T), of B pairs."""
        texts = [text for pair in pairs for text in pair]
        coded = encode_texts(self.tokenizer, texts, self.max_length, self._splitter)
        self.cut_ += coded.cut
        rows = np.arange(len(texts))
        return RowMaker(coded, self.tokenizer, noise=self.p_noise).join(rows, rows ^ 1)
