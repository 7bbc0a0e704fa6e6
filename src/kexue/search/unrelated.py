"""Queries that have no answer in an index: sentences about everyday subjects, and mixed words of its documents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

SHUFFLED = 500  # queries of mixed words
_FEWEST_WORDS, _MOST_WORDS = 3, 9  # of such a query
_REACH = 3.0  # a score further above the upper quartile than this many interquartile ranges is an answer
_PIECE = re.compile(r"[^\W_]+")
_LETTERS = 2  # characters of a piece in scripts without spaces
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2,}")


@cache
def sample_queries() -> dict[str, list[str]]:
    """Return everyday questions, sentences and phrases by language: 150 each in English and Chinese, 43 in others.

    They come from thirty subjects (twenty in the others), so that most are unrelated to any one collection.

    >>> sorted(sample_queries())
    ['de', 'en', 'es', 'fr', 'ja', 'ru', 'zh']
    """
    text = files("kexue.search").joinpath("samples.json").read_text(encoding="utf-8")
    languages: dict[str, dict[str, list[str]]] = json.loads(text)
    return {name: [text for group in subjects.values() for text in group] for name, subjects in languages.items()}


def shuffle_words(texts: Sequence[str], n: int, generator: np.random.Generator) -> list[str]:
    """Return `n` queries of 3 to 9 words, each word from another of the texts, drawn at random.

    In scripts without spaces two neighbouring characters stand for a word. Fewer than `n` where texts have no words.
    """
    drawn = [texts[at] for at in generator.integers(len(texts), size=n * _MOST_WORDS)] if texts else []
    pieces = [piece for text in drawn if (piece := _draw_piece(text, generator)) is not None]
    queries, start = [], 0
    for size in generator.integers(_FEWEST_WORDS, _MOST_WORDS + 1, size=n).tolist():
        if start + size > len(pieces):
            break
        words = pieces[start : start + size]
        unspaced = sum(bool(_UNSPACED.fullmatch(word)) for word in words)
        queries.append(("" if 2 * unspaced > size else " ").join(words))
        start += size
    return queries


def _draw_piece(text: str, generator: np.random.Generator) -> str | None:
    """Return a word of a text, drawn at random; None where it has none."""
    words: list[str] = _PIECE.findall(text)
    if not words:
        return None
    word = words[int(generator.integers(len(words)))]
    if not _UNSPACED.fullmatch(word):
        return word
    start = int(generator.integers(len(word) - _LETTERS + 1))
    return word[start : start + _LETTERS]


def find_answered(scores: np.ndarray) -> np.ndarray:
    """Return which best scores (n,) stand out so far that the index does answer the query: a mask (n,).

    Beyond the upper quartile by more than three interquartile ranges: a query of a sample that belongs to the
    collection after all. Quartiles hardly move for it. Of best scores of truly unrelated queries, which follow
    an extreme value distribution, about one in four hundred is so far out.

    >>> find_answered(np.array([0.3, 0.31, 0.32, 0.33, 0.34, 0.8])).tolist()
    [False, False, False, False, False, True]
    """
    low, high = np.quantile(scores, [0.25, 0.75])
    return np.asarray(scores > high + _REACH * (high - low))
