"""Words of a text that join to exactly that text, and vectors of words from files in the text format of word2vec."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from kexue._optional import import_optional
from kexue.corpus.decoding import Decoder, decode_lines
from kexue.errors import DataError
from kexue.text.training.words import split_longest

Segmenter = Callable[[str], list[str]]
SegmenterName = Literal["jieba", "longest", "characters"]


class WordVectors(NamedTuple):
    """Words (n,) and their vectors (n, d) float32."""

    words: tuple[str, ...]
    vectors: np.ndarray[Any, Any]


def read_word_vectors(path: str | os.PathLike[str]) -> WordVectors:
    """Read the text format of word2vec, also compressed: a first line ``n d``, then a word and its d numbers a line.

    The first line may be missing. Of a word that is there twice the first vector counts.

    Raises:
        DataError: no vector, a line with another number of numbers, one that is not finite; it names the line.
    """
    path, dim = os.fspath(path), 0
    rows: dict[str, np.ndarray[Any, Any]] = {}
    for line, raw in decode_lines(path, Decoder("strict", options=False)):
        text = raw.rstrip()
        if line == 1 and len(text.split()) == 2 and text.replace(" ", "").isdigit():
            dim = int(text.split()[1])
            continue
        if not text:
            continue
        dim = dim or len(text.split()) - 1
        word, *numbers = text.rsplit(" ", dim)
        vector = _read_numbers(numbers)
        if not dim or len(numbers) != dim or vector is None:
            raise DataError(
                f"expected a word and {dim or 'some'} finite numbers, got {text!r:.60}.",
                path=path,
                line=line,
                remedy="Give a file in the text format of word2vec, not a binary one.",
            )
        rows.setdefault(word, vector)
    if not rows:
        raise DataError("no vector.", path=path, remedy="Give a file in the text format of word2vec.")
    return WordVectors(tuple(rows), np.stack(list(rows.values())))


def _read_numbers(fields: list[str]) -> np.ndarray[Any, Any] | None:
    """Return finite numbers as float32; None where one is none."""
    try:
        vector = np.array(fields, dtype=np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None


def choose_segmenter(words: tuple[str, ...]) -> SegmenterName:
    """Return the segmenter for a file of vectors: jieba where it is installed and most words have several characters,
    else the longest match."""
    longer = sum(len(word) > 1 for word in words)
    return "jieba" if 2 * longer > len(words) and find_spec("jieba") is not None else "longest"


def open_segmenter(name: str, words: tuple[str, ...]) -> Segmenter:
    """Return a function from a text to its words.

    Args:
        name: ``"jieba"``; ``"longest"``: the longest match from the left among `words`, of up to four Chinese
            characters; ``"characters"``.
        words: for ``"longest"``.

    Raises:
        MissingDependencyError: jieba is not installed. ValueError: an unknown name.
    """
    if name == "jieba":
        jieba = import_optional("jieba")
        jieba.setLogLevel("WARNING")
        return lambda text: list(jieba.lcut(text))
    if name == "longest":
        return partial(split_longest, words=frozenset(words))
    if name == "characters":
        return list
    raise ValueError(f"segmenter must be one of {', '.join(get_args(SegmenterName))}, got {name!r}")


def number_words(text: str, segment: Segmenter, numbers: dict[str, int]) -> np.ndarray[Any, Any]:
    """Return for each character the number of its word, (len(text),) int64; 0 where `numbers` does not have the word.

    Raises:
        DataError: the words do not join to the text.
    """
    words = segment(text)
    if "".join(words) != text:
        raise DataError(
            f"the words of {text!r:.60} join to {''.join(words)!r:.60}, another text.",
            remedy='Use segmenter="characters", or a segmenter that drops and changes nothing.',
        )
    ids = np.array([numbers.get(word, 0) for word in words], dtype=np.int64)
    return np.repeat(ids, [len(word) for word in words]) if words else ids
