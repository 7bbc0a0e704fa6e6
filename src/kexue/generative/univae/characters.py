"""Vocabulary of characters, and sentences as rows of token ids of one length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, UNK, CLS, SEP = range(4)  # ids of the special tokens
_SPECIAL = 4


class CharacterVocabulary:
    """Characters as token ids: 0 padding, 1 an unknown character, 2 start, 3 end, and from 4 on the characters.

    Args:
        characters: distinct ones, in the order of their ids.

    Example:
        >>> vocabulary = CharacterVocabulary.from_texts(["abba", "b"])
        >>> vocabulary.encode(["ba", "c"], 5).tolist()
        [[2, 4, 5, 3, 0], [2, 1, 3, 0, 0]]
        >>> vocabulary.decode(vocabulary.encode(["abab"], 6))
        ['abab']
    """

    def __init__(self, characters: Sequence[str]) -> None:
        wrong = [one for one in characters if not isinstance(one, str) or len(one) != 1]
        if wrong or len(set(characters)) != len(characters):
            raise ValueError(f"characters must be single and distinct, got {wrong[0] if wrong else 'a repeated one'!r}")
        self.characters = tuple(characters)
        self._ids = {one: _SPECIAL + i for i, one in enumerate(self.characters)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, at_least: int = 1) -> CharacterVocabulary:
        """Return the characters that occur at least so often in the texts, the most frequent first.

        Raises:
            TypeError: a string in place of several.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of sentences, got one string")
        counts = Counter(one for text in texts for one in text)
        return cls([one for one, count in counts.most_common() if count >= at_least])

    def __len__(self) -> int:
        """Return the number of token ids, special ones included."""
        return _SPECIAL + len(self.characters)

    def encode(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Return int64 (n, max_length): start, characters, end, padding.

        Raises:
            TypeError: a string in place of a list. ValueError: a sentence of more than max_length - 2 characters.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of sentences, got one string")
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 (start and end), got {max_length}")
        ids = torch.full((len(texts), max_length), PAD)
        for i, text in enumerate(texts):
            if len(text) > max_length - 2:
                raise ValueError(
                    f"sentence {i} has {len(text)} characters, expected at most {max_length - 2} (max_length "
                    f"{max_length} with start and end); leave it out, split it, or build the model with a larger one"
                )
            row = [CLS, *(self._ids.get(one, UNK) for one in text), SEP]
            ids[i, : len(row)] = torch.tensor(row)
        return ids

    def decode(self, token_ids: Tensor) -> list[str]:
        """Return the sentences of rows (n, T): what stands before the first end; an unknown character is U+FFFD.

        Raises:
            ValueError: another shape, or an id outside the vocabulary.
        """
        if token_ids.ndim != 2:
            raise ValueError(f"rows (n, T) are expected, got shape {tuple(token_ids.shape)}")
        if token_ids.numel() and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < len(self):
            low, high = int(token_ids.min()), int(token_ids.max())
            raise ValueError(f"token ids must be in [0, {len(self)}), got {low} to {high}")
        texts = []
        for row in token_ids.tolist():
            inside = row[: row.index(SEP)] if SEP in row else row
            kept = (one for one in inside if one not in (PAD, CLS))
            texts.append("".join("\ufffd" if one == UNK else self.characters[one - _SPECIAL] for one in kept))
        return texts
