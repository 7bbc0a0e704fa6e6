"""Tokens of a model of n-grams: the characters, or the words, of texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal

import numpy as np

from kexue._arrays import Array
from kexue.sampling.text.laws import Tokens
from kexue.sampling.text.trie import UNKNOWN

Level = Literal["char", "word"]
_CHUNK = 65_536  # texts that are turned into numbers at a time


class Vocabulary:
    """Tokens and their ids; ids 0 to 2 are the beginning, the end, and a token that is not known.

    Args:
        tokens: characters or words, each once.
        level: ``"char"`` or ``"word"``.
    """

    def __init__(self, tokens: Sequence[str], level: Level) -> None:
        self.tokens, self.level = list(tokens), level
        self._id = {token: i for i, token in enumerate(self.tokens, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self.tokens) + UNKNOWN + 1

    def encode(self, text: str) -> Tokens:
        """Return the ids of a text; ValueError names what of it is not known, or would not come out again."""
        pieces = split_text(text, self.level)
        unknown = dict.fromkeys(piece for piece in pieces if piece not in self._id)
        if unknown:
            kind = "character" if self.level == "char" else "word"
            named = ", ".join(map(repr, islice(unknown, 5)))
            raise ValueError(
                f"{text!r:.60}: the language model has never seen the {kind}{'s' * (len(unknown) > 1)} {named}; "
                "choose other words, or train a model on texts that have them (kexue sample lm-train)"
            )
        ids = tuple(self._id[piece] for piece in pieces)
        if self.decode(ids) != text:
            raise ValueError(f"{text!r:.60} becomes {self.decode(ids)!r:.60} in tokens; write it with single spaces")
        return ids

    def lookup(self, text: str) -> Tokens:
        """Return the ids of a text, that of the unknown token for what is not known."""
        return tuple(self._id.get(piece, UNKNOWN) for piece in split_text(text, self.level))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; the special ones are left out, except the unknown one, U+FFFD."""
        pieces = (self.tokens[i - UNKNOWN - 1] if i > UNKNOWN else "\ufffd" for i in ids if i >= UNKNOWN)
        return ("" if self.level == "char" else " ").join(pieces)


def split_text(text: str, level: Level) -> Sequence[str]:
    """Return the tokens of a text: its characters, or what spaces separate."""
    return text if level == "char" else text.split()


def read_texts(texts: Iterable[str] | os.PathLike[str], level: Level) -> tuple[Vocabulary, Array, Array]:
    """Return the vocabulary of texts, the ids of all, one after the other, and the number of tokens of each.

    Raises:
        TypeError: not strings. ValueError: no text that is not blank.
    """
    stream, codes, lengths = _texts(texts), [], []
    known: dict[str, int] = {}
    while chunk := list(islice(stream, _CHUNK)):
        pieces = [split_text(text, level) for text in chunk]
        lengths.append(np.fromiter(map(len, pieces), np.int64, len(pieces)))
        if level == "char":
            codes.append(np.frombuffer("".join(chunk).encode("utf-32-le", "surrogatepass"), dtype=np.uint32))
        else:
            words = [known.setdefault(word, len(known)) for word in chain.from_iterable(pieces)]
            codes.append(np.array(words, dtype=np.uint32))
    if not lengths:
        raise ValueError("texts: got none that is not blank, expected at least one")
    values, ids = np.unique(np.concatenate(codes), return_inverse=True)
    tokens = list(map(chr, values)) if level == "char" else list(known)
    return Vocabulary(tokens, level), ids + UNKNOWN + 1, np.concatenate(lengths)


def _texts(texts: Iterable[str] | os.PathLike[str]) -> Iterator[str]:
    """Yield the texts that are not blank."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be strings in a list, or the pathlib.Path of a file, got the string {texts!r:.40}")
    if isinstance(texts, os.PathLike):
        from kexue.corpus import read_records

        texts = (record.text for record in read_records([os.fspath(texts)]))
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a string, got {type(text).__name__}: {text!r:.80}")
        if text.strip():
            yield text
