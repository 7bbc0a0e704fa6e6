"""Doubts about the answers of an index, as sentences for its user, and whether an answer holds a good match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kexue.search.calibration import GOOD_CHANCE
from kexue.search.encoding import tokenize_queries
from kexue.search.language import COMMON_WORDS, guess_language, name_language
from kexue.search.lexical import Terms, query_terms, read_terms
from kexue.search.ranking import Hit
from kexue.search.unknown import unknown_words
from kexue.search.unrelated import sample_queries

if TYPE_CHECKING:
    from kexue.search.index import Index

_JUDGED = 10  # nearest hits, by which an answer is judged at least
_SHOWN = 5  # unknown words that are listed
_EMPTY_IN = 3  # sample queries, from which on a word of them counts as one without content


def collect_warnings(index: Index, queries: Sequence[str | None], mode: str = "dense") -> list[list[str]]:
    """Return sentences of doubt about the answers to each query: the same in every channel.

    Words that the model does not know, a query in a language that it does not read or that was not calibrated, a query
    that is cut; and of the index: no calibration, one that is too old or about other vectors, too few judged pairs,
    documents unlike those that the whitening was fitted on.

    Args:
        index: its encoder, if it is loaded, is asked about the queries.
        queries: as texts; None for a query that was given as a vector.
        mode: of the search. ``"lexical"`` uses neither the model nor the calibration, so there is nothing to doubt.
    """
    if mode == "lexical":
        return [[] for _ in queries]
    meaning = index.meaning
    encoder = index.encoder.encoder
    texts = [query or "" for query in queries]
    unknown = unknown_words(encoder, texts)
    main = None if meaning.facts is None else meaning.facts.language
    known = () if meaning.calibrator is None else meaning.calibrator.best_
    return [
        [
            *_describe_unknown(words),
            *_describe_language(encoder, text, main, known),
            *_describe_cut(encoder, text),
            *meaning.doubts,
        ]
        for text, words in zip(texts, unknown, strict=True)
    ]


def _describe_unknown(words: Sequence[str]) -> list[str]:
    distinct = list(dict.fromkeys(words))
    if not distinct:
        return []
    more = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return [f"the model does not know these parts of the query: {', '.join(distinct[:_SHOWN])}{more}."]


def _describe_language(encoder: Any, text: str, main: str | None, known: Any) -> list[str]:
    """Return a sentence where the query is in a language that the model does not read, or that was not calibrated."""
    language = guess_language(text)
    if language is None:
        return []
    reads = getattr(encoder, "languages", None)
    if reads is not None and language not in reads:
        only = " and ".join(map(name_language, reads))
        return [
            f"the query looks {name_language(language)}, and {encoder.model_id} reads only {only}: its scores say "
            "little. A model for many languages is multilingual-e5-small."
        ]
    if main is not None and known and language not in known:
        return [
            f"the query looks {name_language(language)}, but the documents {name_language(main)}: how good its best "
            "hit is was not measured."
        ]
    return []


def _describe_cut(encoder: Any, text: str) -> list[str]:
    ids = tokenize_queries(encoder, [text])
    if ids is None or not ids.truncated:
        return []
    return [f"the query was cut: at most {encoder.max_length} tokens are read."]


def describe_sample(counted: int, documents: int) -> list[str]:
    """Return a sentence where something was measured on a sample of the documents, else nothing."""
    return [f"measured on {counted:,} of {documents:,} documents, drawn at random."] if counted < documents else []


def judge_match(hits: Sequence[Hit], query: str | None) -> Literal["good", "weak"] | None:
    """Return whether an answer holds a good match; None where nothing tells, as before calibration.

    Good: a best hit of an unrelated query reaches the score of one of the hits in at most 5 % of cases, or a hit holds
    all words of the query. Words without content, such as "how" and "the", do not count.

    Args:
        hits: answers to one query. query: as text; None where it was given as a vector.
    """
    chances = [hit.chance for hit in hits if hit.chance is not None]
    if not chances:
        return None
    if min(chances) <= GOOD_CHANCE or any(_holds_words(hit.passage_text, query) for hit in hits if query):
        return "good"
    return "weak"


class JudgedSearch:
    """A search that keeps at least ten hits, by which its answers are judged however few are wanted.

    Args:
        search: returns the given number of hits of each query.
    """

    def __init__(self, search: Callable[[int], list[list[Hit]]]) -> None:
        self._search = search
        self._answers: list[list[Hit]] = []

    def __call__(self, k: int) -> list[list[Hit]]:
        """Return the `k` nearest hits of each query."""
        self._answers = self._search(max(k, _JUDGED))
        return [hits[:k] for hits in self._answers]

    def matches(self, queries: Sequence[str | None]) -> list[Literal["good", "weak"] | None]:
        """Return `judge_match` of the hits of each query."""
        return [judge_match(hits, query) for hits, query in zip(self._answers, queries, strict=True)]


def _holds_words(text: str, query: str) -> bool:
    """Return whether a text holds every word with content of a query, and there is one."""
    wanted = np.setdiff1d(query_terms(query), _empty_terms())
    return bool(len(wanted)) and bool(np.isin(wanted, read_terms([text]).terms).all())


@cache
def _empty_terms() -> Terms:
    """Return the words without content: common ones, and those of several unrelated queries."""
    each = [query_terms(query) for queries in sample_queries().values() for query in queries]
    terms, counts = np.unique(np.concatenate(each), return_counts=True)
    common = query_terms(" ".join(word for words in COMMON_WORDS.values() for word in words))
    return np.union1d(terms[counts >= _EMPTY_IN], common)
