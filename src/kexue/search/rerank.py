"""Reranking: hits of a search scored again by optimal transport between tokens, or by another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from kexue.errors import ModelNotFoundError, NotSupported
from kexue.search.encoding import encode_texts
from kexue.search.ranking import Hit, count_candidates
from kexue.similarity import ExplainedPair, Explanation, explain, pair_cosine

_CHINESE = 0x2E80  # first code point of the characters that count as one word each
_MOST_TOKENS = 1024  # of a text; a plan of 1,024 x 1,024 takes a second, one of 8,192 x 8,192 gigabytes
_LONGEST_WORD = 40  # letters of a word in an explanation


class Reranked(NamedTuple):
    """Scores (n,) of documents, larger is nearer, and an explanation or None for each."""

    scores: np.ndarray[Any, Any]
    explanations: list[Explanation | None]


@runtime_checkable
class Reranker(Protocol):
    """An object that scores documents for a query."""

    def rerank(self, query: str, documents: Sequence[str]) -> Reranked:
        """Return the scores of `documents`, in their order."""
        ...


class TransportReranker:
    """Rerank by optimal transport between the tokens of query and document.

    ``"wrd"``: 1 - WRD, in [-1, 1]; ``"wmd"``: 1 / (1 + WMD), in (0, 1]. The transport plan is the explanation:
    which token moved to which, and the cost of each pair, which add up to the distance.

    Source: kexue.fm/archives/7388. Token vectors of encoders that end in a layer norm have similar lengths, so the
    weights of WRD are then nearly equal.

    At most the first 1,024 tokens of a text are used, and never more than the encoder reads.

    Args:
        encoder: has ``encode_tokens(texts)``, as `kexue.text.Encoder`.
        kind: ``"wrd"`` or ``"wmd"``.

    Cost: one pass of the encoder over query and documents, and one small exact transport problem per document.
    """

    def __init__(self, encoder: Any, kind: Literal["wrd", "wmd"] = "wrd") -> None:
        if kind not in ("wrd", "wmd"):
            raise ValueError(f"kind must be 'wrd' or 'wmd', got {kind!r}")
        if not hasattr(encoder, "encode_tokens"):
            raise NotSupported(
                f"{type(encoder).__name__} gives no token vectors, which this needs.",
                remedy="Use kexue.text.Encoder, or an encoder with encode_tokens(texts).",
            )
        self.encoder = encoder
        self.kind: Literal["wrd", "wmd"] = kind

    def rerank(self, query: str, documents: Sequence[str]) -> Reranked:
        """Return the scores of `documents`, in order; a text without tokens gets the lowest, and no explanation."""
        asked, *given = self.encoder.encode_tokens([query, *documents])
        x, words = asked.vectors[:_MOST_TOKENS], words_of_tokens(query, asked.offsets[:_MOST_TOKENS])
        explanations = []
        for text, one in zip(documents, given, strict=True):
            y, names = one.vectors[:_MOST_TOKENS], words_of_tokens(text, one.offsets[:_MOST_TOKENS])
            explanations.append(merge_words(explain(x, y, words, names, kind=self.kind)))
        distances = np.array([one.distance for one in explanations])
        scores = np.maximum(1 - distances, -1) if self.kind == "wrd" else 1 / (1 + distances)
        return Reranked(scores, [one if np.isfinite(one.distance) else None for one in explanations])


def merge_words(explanation: Explanation) -> Explanation:
    """Merge the moves (token to token) of the same two words: masses and contributions are summed, costs averaged.

    A word that the tokenizer splits moves in pieces, and so does one that occurs twice. Words of more than 40 letters
    are cut, and their length is added.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for pair in explanation.pairs:
        entry = sums.setdefault((pair.source, pair.target), [0.0, 0.0])
        entry[0] += pair.mass
        entry[1] += pair.contribution
    pairs = [
        ExplainedPair(_label(source), _label(target), mass, contribution / mass, contribution)
        for (source, target), (mass, contribution) in sums.items()
    ]
    pairs.sort(key=lambda pair: (-pair.mass, pair.cost))
    return explanation._replace(pairs=tuple(pairs))


def _label(word: str) -> str:
    return word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}... ({len(word):,} letters)"


def check_rerank(queries: Any, rerank: Any) -> list[str]:
    """Return queries that are to be reranked or explained as a list of texts.

    Raises:
        ValueError: vectors instead of texts, or an unknown name of a reranker.
    """
    texts = [queries] if isinstance(queries, str) else queries
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("rerank and explain need words: give the queries as text, not as vectors.")
    if isinstance(rerank, str) and rerank not in ("wrd", "wmd", "cross"):
        raise ValueError(f"rerank must be 'wrd', 'wmd', 'cross', an object or None, got {rerank!r}")
    return list(texts)


def choose_reranker(rerank: Any, load_encoder: Callable[[], Any]) -> Reranker | None:
    """Return the reranker that `Index.search` was asked for; None for none.

    Args:
        rerank: ``"wrd"``, ``"wmd"``, an object with ``rerank(query, documents)``, or None.
        load_encoder: returns the encoder whose tokens ``"wrd"`` and ``"wmd"`` compare.

    Raises:
        ModelNotFoundError: ``"cross"``, which names no cross-encoder. ValueError: another name.
    """
    if rerank is None:
        return None
    if rerank == "cross":
        raise ModelNotFoundError(
            "rerank='cross' does not name a cross-encoder.",
            remedy="Pass rerank=CrossEncoderReranker(folder), or --cross-encoder FOLDER on the command line.",
        )
    if isinstance(rerank, str):
        check_rerank([], rerank)
        return TransportReranker(load_encoder(), "wrd" if rerank == "wrd" else "wmd")
    if not isinstance(rerank, Reranker):
        raise TypeError(f"rerank must be 'wrd', 'wmd' or an object with rerank(query, documents), got {rerank!r:.60}")
    return rerank


def search_and_rerank(
    search: Callable[[int], list[list[Hit]]],
    queries: Sequence[str],
    k: int,
    *,
    rerank: Any,
    explain: bool,
    candidates: int | None,
    load_encoder: Callable[[], Any],
    lap: Callable[[str], None] = lambda stage: None,
) -> list[list[Hit]]:
    """Search for as many hits as are reranked, then rerank or explain them.

    Args:
        search: returns the given number of hits of each query.
        queries: as texts; not read where hits are neither reranked nor explained.
        k, rerank, explain, candidates: as in `Index.search`.
        load_encoder: see `choose_reranker`.
        lap: called as ``lap(stage)`` at the end of the stages ``"search"`` and ``"rerank"``.
    """
    reranker = choose_reranker(rerank, load_encoder)  # made before the search, because it may raise an error
    answers = search(k if reranker is None else count_candidates(k, candidates))
    lap("search")
    if reranker is not None or explain:
        answers = rerank_answers(queries, answers, k, reranker=reranker, explain=explain, load_encoder=load_encoder)
    lap("rerank")
    return answers


def rerank_answers(
    queries: Sequence[str],
    answers: Sequence[Sequence[Hit]],
    k: int,
    *,
    reranker: Reranker | None,
    explain: bool,
    load_encoder: Callable[[], Any],
) -> list[list[Hit]]:
    """Rerank or explain the hits of several queries; see `Index.rerank` and `rerank_hits`."""
    explainer = (lambda: TransportReranker(load_encoder())) if explain else None
    return [
        rerank_hits(query, hits, k, reranker=reranker, explainer=explainer)
        for query, hits in zip(queries, answers, strict=True)
    ]


def rerank_hits(
    query: str,
    hits: Sequence[Hit],
    k: int,
    *,
    reranker: Reranker | None,
    explainer: Callable[[], Reranker] | None = None,
) -> list[Hit]:
    """Rerank the hits of a query and keep the best `k`; explain them.

    Args:
        query: as text.
        hits: of a search; neither encoded nor searched again. Of a document that was split the passage is read.
        k: hits to keep.
        reranker: orders and scores the hits; None keeps order and scores.
        explainer: makes the reranker that explains hits where `reranker` gives no explanations; None adds none.
    """
    best = list(hits)
    reasons: list[Explanation | None] = [None] * len(best)
    if reranker is not None and best:
        scores, given = reranker.rerank(query, [hit.passage_text for hit in best])
        order = np.argsort(-np.asarray(scores), kind="stable").tolist()
        best, reasons = [best[at]._replace(score=float(scores[at])) for at in order], [given[at] for at in order]
    best, reasons = best[:k], reasons[:k]
    if explainer is None or not best:
        return best
    if all(reason is None for reason in reasons):
        reasons = explainer().rerank(query, [hit.passage_text for hit in best]).explanations
    return [hit._replace(explanation=reason) for hit, reason in zip(best, reasons, strict=True)]


def words_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Return the word of `text` that contains each token; a token of Chinese is a word by itself."""
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    while ends and _within_word(text, ends[-1], ends[-1]):  # the last token read may end within a word
        ends[-1] += 1
    for i in range(1, len(offsets)):
        if _within_word(text, ends[i - 1], offsets[i][0]):
            starts[i] = starts[i - 1]
    for i in range(len(offsets) - 1, 0, -1):
        if _within_word(text, offsets[i - 1][1], offsets[i][0]):
            ends[i - 1] = ends[i]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _within_word(text: str, end: int, start: int) -> bool:
    """Whether a token that ends at `end` and one that starts at `start` are pieces of the same word."""
    return (
        end == start and 0 < end < len(text) and all(c.isalnum() and ord(c) < _CHINESE for c in text[end - 1 : end + 1])
    )


class CosineReranker:
    """Rerank by the cosine of the sentence vectors of another encoder.

    Args:
        encoder: has ``encode(texts) -> (n, d)``.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def rerank(self, query: str, documents: Sequence[str]) -> Reranked:
        """Return the scores of `documents`, in their order."""
        vectors = encode_texts(self.encoder, list(documents), "document")
        asked = np.broadcast_to(encode_texts(self.encoder, [query], "query"), vectors.shape)
        return Reranked(pair_cosine(asked, vectors), [None] * len(documents))
