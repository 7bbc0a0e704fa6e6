"""Texts to the numbers that the network reads: of each character, and of the word that it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kexue.extract.triples import lower
from kexue.extract.words import WordVectors, number_words, open_segmenter

PAD, UNKNOWN = 0, 1  # numbers of a character
_OFTEN = 2  # times that a character must occur to have a number


class CodedTexts(NamedTuple):
    """Texts of a batch, padded on the right: `characters` and `words` (B, T) int64, `mask` (B, T) bool."""

    characters: Tensor
    words: Tensor
    mask: Tensor


class TextReader:
    """Characters and words with a number each.

    Args:
        characters: known ones, in small letters.
        words: words with a vector, in the order of their vectors; of those that differ by letter case alone the first
            is found.
        segmenter: name of what splits a text into words, see `kexue.extract.words.open_segmenter`.
    """

    def __init__(self, characters: Sequence[str], words: Sequence[str] = (), segmenter: str = "characters") -> None:
        self.characters, self.words, self.segmenter = tuple(characters), tuple(words), segmenter
        self._characters = {character: number for number, character in enumerate(self.characters, start=UNKNOWN + 1)}
        self._words: dict[str, int] = {}
        for number, word in enumerate(self.words, start=1):
            self._words.setdefault(lower(word), number)
        self._segment = open_segmenter(segmenter, tuple(self._words)) if self.words else None

    @classmethod
    def of(cls, texts: Iterable[str], words: WordVectors | None, segmenter: str) -> TextReader:
        """Return a reader that knows the characters that occur at least twice in texts."""
        counts = Counter(character for text in texts for character in lower(text))
        known = sorted(character for character, count in counts.items() if count >= _OFTEN)
        return cls(known, () if words is None else words.words, segmenter)

    @property
    def num_characters(self) -> int:
        """Numbers of characters, those for padding and for unknown ones included."""
        return len(self.characters) + UNKNOWN + 1

    def encode(self, text: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the numbers of the characters (T,) and of their words (T,) of a text; 0 for a word without a vector.

        Raises:
            DataError: the words of the text do not join to it.
        """
        text = lower(text)
        characters = np.array([self._characters.get(character, UNKNOWN) for character in text], dtype=np.int64)
        if self._segment is None:
            return characters, np.zeros_like(characters)
        return characters, number_words(text, self._segment, self._words)

    def encode_batch(self, texts: Sequence[str], max_length: int) -> CodedTexts:
        """Return texts, none of them empty, as a batch; each is read up to `max_length` characters."""
        coded = [self.encode(text[:max_length]) for text in texts]
        longest = max(len(characters) for characters, _ in coded)
        both = np.zeros((2, len(texts), longest), dtype=np.int64)
        for row, parts in enumerate(coded):
            both[:, row, : len(parts[0])] = parts
        characters, words = torch.from_numpy(both)
        return CodedTexts(characters, words, characters != PAD)
