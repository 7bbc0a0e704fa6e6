"""Ranking of stored vectors for a query: candidates, correction for hubs, hits with percentile and probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue.corpus.documents import find_location
from kexue.errors import SpaceMismatchError
from kexue.search.documents import check_text
from kexue.search.encoding import IndexEncoder
from kexue.search.fusion import WEIGHT
from kexue.search.hubs import NEIGHBOURS, extend_queries, local_means
from kexue.search.meaning import Meaning
from kexue.search.modes import Mode, choose_mode, corrects_after
from kexue.search.products import Vectors
from kexue.search.space import Space, as_vectors
from kexue.search.store.base import Filter, Match, Store, Words
from kexue.similarity import Explanation, Probability

RERANKED = 50  # hits that are reranked or corrected by default


class Passage(NamedTuple):
    """The part of a document that a hit is about: `text` is its characters from `start` to `end` (exclusive).

    `location` is the page (``"page 3"``) or the heading it begins under, of a document whose file has them.
    """

    start: int
    end: int
    text: str
    location: str | None = None


class Hit(NamedTuple):
    """One answer to a query.

    `score` is the cosine of the stored vectors, in [-1, 1], also where words or a correction for hubs change the order;
    0 where one of them has no direction. In mode ``"lexical"`` it is BM25, >= 0. After `Index.calibrate`, `percentile`
    (0 to 100) is the rank of a cosine among random pairs of documents, and with labels `probability` (value, low,
    high) says how likely such a pair belongs together.
    `chance` (0 to 1) is how often the best hit of an unrelated query, in the language of this one, has a score this
    high; None where it was not measured. `passage` is the best part of a document that was split, else None;
    score and explanation are then those of this part. `explanation`, on request, lists which word moved to which, at
    what cost.
    """

    id: str
    text: str
    score: float
    percentile: float | None
    chance: float | None
    probability: Probability | None
    passage: Passage | None
    metadata: dict[str, Any]
    explanation: Explanation | None

    @property
    def passage_text(self) -> str:
        """The text that the score is about: the passage, or the whole document where it was not split."""
        return self.text if self.passage is None else self.passage.text


def rank_documents(
    store: Store,
    space: Space,
    raw: Vectors,
    k: int,
    *,
    dehub: str | None,
    candidates: int | None,
    filter: Filter | None,
    exact: bool,
    words: Words | None = None,
) -> list[list[Match]]:
    """Return the `k` best documents of each query in order, each with its cosine.

    Args:
        store, space: those of the index.
        raw: query vectors (m, dim) of the encoder, before whitening.
        k, dehub, candidates, filter, exact: as in `Index.search`, checked.
        words: the queries as texts, for a hybrid search.

    Raises:
        SpaceMismatchError: the space of the store has been changed meanwhile.
    """
    unit, expect = space.project(raw), {"space": space.token}
    options: dict[str, Any] = {"filter": filter, "exact": exact, "candidates": candidates, "expect": expect}
    options["words"] = words
    dehub = dehub or space.dehub
    if space.dehub != "csls":
        if dehub != "csls":
            return store.search(unit, k, **options)
        answers = store.search(unit, count_candidates(k, candidates), **options, with_vectors=True)
        return [correct_hubs(store, matches)[:k] for matches in answers]
    if dehub != "csls":
        return store.search(extend_queries(unit, 0.0), k, **options)
    answers = store.search(extend_queries(unit, 1.0), k, **options, with_vectors=True)
    return [
        [one._replace(score=one.score - float(one.vector[-1]), vector=None) for one in matches]  # type: ignore[index]
        for matches in answers
    ]


def search_index(
    store: Store,
    encoder: IndexEncoder,
    queries: str | Sequence[str] | Any,
    k: int,
    meaning: Meaning,
    *,
    vectors: Any = None,
    mode: Mode = "auto",
    weight: float | None = None,
    filter: Filter | None = None,
    dehub: str | None = None,
    **options: Any,
) -> list[list[Hit]]:
    """Search an index without reranking; a search during which another process replaces the space is repeated.

    Args:
        store, encoder, meaning: those of the index.
        queries: a text, several, or vectors (m, dim), as in `Index.search`.
        k, filter, dehub, options: those of `rank_documents`.
        vectors, mode, weight: as in `Index.search`.
    """
    space = encoder.last_space
    texts = _read_queries(queries)
    reorder = corrects_after(dehub, space)
    chosen = choose_mode(mode, store, texts=texts is not None, weight=weight, reorder=reorder)
    if chosen == "lexical":
        answers = store.search_words(texts or [], k, filter=filter)
        return [[_make_word_hit(match) for match in matches] for matches in answers]
    if vectors is None and texts is not None:
        if not texts or space.token is None:
            return [[] for _ in texts]
        vectors = encoder.encode(texts, "query")
    raw = as_vectors(queries if vectors is None else vectors, dim=space.model.dim, what="query vectors")
    if texts is not None and len(texts) != len(raw):
        raise ValueError(f"vectors must have one row for each of the {len(texts)} queries, got {len(raw)}.")
    if space.token is None:
        return [[] for _ in raw]
    options.update(filter=filter, dehub=dehub)
    if chosen == "hybrid" and texts is not None:
        options["words"] = Words(texts, WEIGHT if weight is None else weight)
    try:
        answers = rank_documents(store, space, raw, k, **options)
    except SpaceMismatchError:
        if encoder.space.token == space.token:
            raise
        answers = rank_documents(store, encoder.space, raw, k, **options)
    asked: Sequence[str | None] = [None] * len(answers) if texts is None else texts
    return [make_hits(matches, meaning, query) for matches, query in zip(answers, asked, strict=True)]


def _read_queries(queries: Any) -> list[str] | None:
    """Return queries as texts after a check; None where they are vectors."""
    if isinstance(queries, str):
        queries = [queries]
    if not isinstance(queries, list | tuple) or not all(isinstance(query, str) for query in queries):
        return None
    for place, query in enumerate(queries):
        check_text(query, f"position {place} of the queries")
    return list(queries)


def correct_hubs(store: Store, matches: list[Match]) -> list[Match]:
    """Order the answers of an index without offsets by CSLS; the neighbours of each are looked up."""
    if not matches:
        return matches
    vectors = np.stack([match.vector for match in matches if match.vector is not None])
    scores = np.full((len(matches), NEIGHBOURS), np.nan, np.float32)
    near = store.search(vectors, NEIGHBOURS + 1)
    for row, match, others in zip(scores, matches, near, strict=True):
        best = [other.score for other in others if other.id != match.id][:NEIGHBOURS]
        row[: len(best)] = best
    # c - r(y) / 2: for one query the order of 2 c - r(q) - r(y)
    corrected = np.array([match.score for match in matches]) - local_means(scores) / 2
    return [matches[at] for at in np.argsort(-corrected, kind="stable")]


def make_hits(matches: Sequence[Match], meaning: Meaning, query: str | None = None) -> list[Hit]:
    """Return the answers to one query as hits, with what their scores mean."""
    scores = [max(-1.0, min(1.0, match.score)) for match in matches]
    return [
        Hit(match.id, match.text, score, *reading, _passage(match), match.metadata, None)
        for match, score, reading in zip(matches, scores, meaning.read(scores, query), strict=True)
    ]


def _make_word_hit(match: Match) -> Hit:
    """Return an answer of a search for words as a hit; its score is no cosine, so nothing says what it means."""
    return Hit(match.id, match.text, match.score, None, None, None, _passage(match), match.metadata, None)


def _passage(match: Match) -> Passage | None:
    """Return the passage that an answer is about."""
    if match.span is None:
        return None
    start, end = match.span
    return Passage(start, end, match.text[start:end], find_location(match.metadata, start))


def check_counts(k: Any, candidates: int | None) -> None:
    """Raise ValueError where `k` or `candidates` is not a positive number."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a whole number >= 1, got {k!r}.")
    if candidates is not None and candidates < 1:
        raise ValueError(f"candidates must be >= 1, got {candidates!r}.")


def count_candidates(k: int, candidates: int | None) -> int:
    """Number of hits that are searched for before they are reranked or corrected, and the best `k` kept."""
    return max(k, candidates or RERANKED)
