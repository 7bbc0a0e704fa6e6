"""Candidates looked at once more, word by word: scores from transported tokens, and why two texts are near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from kexue.errors import NotSupported
from kexue.similarity import Explanation, explain, pair_cosine

_CHINESE = 0x2E80  # from here on a character is a word


class Reranked(NamedTuple):
    """Scores (n,) of the documents, larger is nearer, and for each an explanation, or None where there is none."""

    scores: np.ndarray[Any, Any]
    explanations: list[Explanation | None]


@runtime_checkable
class Reranker(Protocol):
    """Anything that scores documents against a query."""

    def rerank(self, query: str, documents: Sequence[str]) -> Reranked:
        """Score `documents`, in their order."""
        ...


class TransportReranker:
    """Score by moving the tokens of the query onto those of the document.

    ``"wrd"``: 1 - WRD, in [-1, 1]; ``"wmd"``: 1 / (1 + WMD), in (0, 1]. The plan that moves them is the explanation:
    which token went to which, and what each pair cost, adding up to the distance.

    Source: kexue.fm/archives/7388. Token vectors of encoders that end in a layer norm have similar lengths, so the
    weights of WRD are then nearly equal.

    Args:
        encoder: has ``encode_tokens(texts)``, as `kexue.text.Encoder`.
        kind: which distance.

    Cost: one pass of the encoder over query and documents, and one small exact problem each.
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
        """Score `documents`, in their order; a text without tokens scores lowest and has no explanation."""
        asked, *given = self.encoder.encode_tokens([query, *documents])
        words = surface(query, asked.offsets)
        found = [
            explain(asked.vectors, one.vectors, words, surface(text, one.offsets), kind=self.kind)
            for text, one in zip(documents, given, strict=True)
        ]
        distances = np.array([one.distance for one in found])
        scores = np.maximum(1 - distances, -1) if self.kind == "wrd" else 1 / (1 + distances)
        return Reranked(scores, [one if np.isfinite(one.distance) else None for one in found])


def surface(text: str, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The word of `text` that each token stands in; a token of Chinese is a word of its own."""
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    for i in range(1, len(offsets)):
        if _joined(text, ends[i - 1], offsets[i][0]):
            starts[i] = starts[i - 1]
    for i in range(len(offsets) - 1, 0, -1):
        if _joined(text, offsets[i - 1][1], offsets[i][0]):
            ends[i - 1] = ends[i]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _joined(text: str, end: int, start: int) -> bool:
    """Whether nothing but the tokenizer parts what ends at `end` from what starts at `start`."""
    return (
        end == start and 0 < end < len(text) and all(c.isalnum() and ord(c) < _CHINESE for c in text[end - 1 : end + 1])
    )


class CosineReranker:
    """Score by the cosine of another encoder's sentence vectors.

    Args:
        encoder: has ``encode(texts) -> (n, d)``.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def rerank(self, query: str, documents: Sequence[str]) -> Reranked:
        """Score `documents`, in their order."""
        vectors = np.asarray(self.encoder.encode([query, *documents]))
        asked = np.broadcast_to(vectors[0], vectors[1:].shape)
        return Reranked(pair_cosine(asked, vectors[1:]), [None] * len(documents))
