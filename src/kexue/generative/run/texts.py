"""Sentences of one alphabet: where they are read from and how they are written."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from kexue._counts import check_count
from kexue._files import check_output, replacing
from kexue._text import say_count
from kexue.corpus.decoding import read_lines
from kexue.corpus.open import STDIN
from kexue.errors import DataError
from kexue.generative.run.medium import Medium, Parts
from kexue.generative.univae.characters import PAD, UNK, CharacterVocabulary

_LONGEST = 64  # tokens of a sentence, start and end included
_SHARE = 10  # a tenth of the sentences chooses the best step, another one is for test,
_MOST = 2000  # but no more than this
_RARE = 2  # characters that occur less often are unknown
_NAMED = 10  # unknown characters in a warning
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts(Medium):
    """Sentences as rows of token ids, one for each character.

    Attributes:
        characters: of the vocabulary, in the order of their ids.
        max_length: tokens of a row, start and end included.
    """

    characters: str
    max_length: int
    sheet = "samples.txt"
    files = walks = (".txt",)
    image_size = None

    def __post_init__(self) -> None:
        if check_count(self.max_length, "max_length", 3) > _LONGEST:
            raise ValueError(f"max_length must be at most {_LONGEST}, got {self.max_length}")

    @classmethod
    def load(cls, source: str | os.PathLike[str], image_size: int | None) -> tuple[Self, Parts]:
        """Return the kind of the sentences of a text file, one a line, and its parts.

        Blank lines, repeated ones and those of more than 62 characters are left out.

        Raises:
            DataError: the file cannot be read, or has fewer than 10 sentences.
        """
        if image_size is not None:
            raise ValueError("--image-size (image_size) is for models of images; leave it out")
        if os.fspath(source) == STDIN:
            raise DataError(
                "standard input cannot be read again, as is needed to continue the training and to evaluate the model.",
                path=source,
                remedy="Write it to a file, and name the file.",
            )
        if not os.path.exists(source):
            raise DataError(
                "no such file.", path=source, remedy="A model of texts learns from a text file with a sentence a line."
            )
        lines = dict.fromkeys(line.strip() for line in read_lines(source) if line.strip())
        short = [line for line in lines if len(line) <= _LONGEST - 2]
        if len(short) < len(lines):
            _LOG.warning(
                "%s of more than %d characters left out of %d", say_count(len(lines) - len(short), "sentence"),
                _LONGEST - 2, len(lines),
            )  # fmt: skip
        if len(short) < 10:
            raise DataError(
                f"holds {say_count(len(short), 'different sentence')} of at most {_LONGEST - 2} characters, expected "
                "10 at least, and thousands for a model of use.",
                path=source,
                remedy="Name a text file with a sentence a line.",
            )
        order = torch.randperm(len(short), generator=torch.Generator().manual_seed(0)).tolist()
        held = max(1, min(len(short) // _SHARE, _MOST))
        train = [short[i] for i in order[2 * held :]]
        vocabulary = CharacterVocabulary.from_texts(train, at_least=_RARE if len(train) >= 1000 else 1)
        medium = cls("".join(vocabulary.characters), 2 + max(map(len, short)))
        parts = [train, [short[i] for i in order[:held]], [short[i] for i in order[held : 2 * held]]]
        return medium, Parts(*(medium.to_rows(part) for part in parts))

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Return the kind that `facts` has written."""
        return cls("".join(CharacterVocabulary(facts["characters"]).characters), facts["max_length"])

    def facts(self) -> dict[str, Any]:
        """Return vocabulary and length by name."""
        return {"characters": self.characters, "max_length": self.max_length}

    @property
    def vocabulary(self) -> CharacterVocabulary:
        """The vocabulary of the characters."""
        return CharacterVocabulary(self.characters)

    def to_rows(self, texts: list[str]) -> Tensor:
        """Return rows of token ids (n, max_length)."""
        return self.vocabulary.encode(texts, self.max_length)

    def compare(self, items: Tensor, again: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens of rows are counted, and which of these stand in their places in other rows.

        Characters and ends are counted, not starts and padding. An unknown character is never right: no model can tell
        which one it was.
        """
        counted = items != PAD
        counted[:, 0] = False
        return counted, counted & (items == again) & (items != UNK)

    def measure_difference(self, items: Tensor, again: Tensor) -> float:
        """Return the share of the characters and ends of sentences that others have not in their places."""
        counted, right = self.compare(items, again)
        return 1 - float(right[counted].double().mean())

    def read(self, source: str | os.PathLike[str]) -> Tensor:
        """Return the rows of the sentences of a text file, blank lines left out.

        Raises:
            DataError: the file cannot be read, has no sentence, or one that is too long.
        """
        lines = [(number, line.strip()) for number, line in enumerate(read_lines(source), start=1) if line.strip()]
        if not lines:
            raise DataError("holds no sentence.", path=source, remedy="Name a text file with a sentence a line.")
        for number, line in lines:
            self._check(line, source, number)
        return self._to_rows_with_warning([line for _, line in lines])

    def read_one(self, source: str) -> Tensor:
        """Return the row of a sentence."""
        if not source.strip():
            raise DataError("a sentence is expected, got a blank one.")
        self._check(source.strip())
        return self._to_rows_with_warning([source.strip()])[0]

    def _to_rows_with_warning(self, texts: list[str]) -> Tensor:
        """Return rows of token ids; warn of characters that the model does not know."""
        unknown = list(dict.fromkeys(one for text in texts for one in text if one not in self.characters))
        if unknown:
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            named = ", ".join(unknown[:_NAMED])
            _LOG.warning("the model has learnt no such characters, and reads the same one there: %s%s", named, more)
        return self.to_rows(texts)

    def _check(self, line: str, path: str | os.PathLike[str] | None = None, number: int | None = None) -> None:
        """Raise a DataError for a sentence that is too long."""
        if len(line) > self.max_length - 2:
            raise DataError(
                f"the sentence has {len(line)} characters, the model takes {self.max_length - 2} at most.",
                path=path,
                line=number,
                remedy="Split it, or leave it out.",
            )

    def write(self, items: Tensor, path: Path) -> None:
        """Write rows as sentences, one a line, to a file .txt."""
        check_output(path, *self.files)
        with replacing(path) as temporary:
            lines = "".join(f"{line}\n" for line in self.vocabulary.decode(items))
            temporary.write_text(lines, encoding="utf-8")

    def write_walk(self, items: Tensor, path: Path) -> None:
        """Write rows as sentences, one a line, to a file .txt."""
        self.write(items, path)

    def draw(self, items: Tensor) -> bytes | None:
        """Return None: sentences are no picture."""
