"""Opinion summaries: the sentences nearest to a topic along the neighbourhood graph, without repeating one another.

Sources: kexue.fm/archives/9368; Basu Roy Chowdhury et al. 2022, arXiv:2209.07496 (importance = inverse geodesic
distance to the topic, greedy choice).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import finite_rows
from kexue.similarity._vectors import RESIDUE, mean_row, unit_rows
from kexue.similarity.neighbours.geodesic import GeodesicIndex

_WORD = re.compile(r"[\u3400-\u9fff]|\w+")  # a Chinese character counts as a word
_NEAR = 1e-6  # keeps the score of a sentence that is the topic itself finite


class Summary(NamedTuple):
    """Chosen sentences, best first.

    `indices`, `sentences`, `scores` (1 / distance) and `distances` run in parallel; `paths[i]` is the chain of
    sentences that leads from the i-th to the topic; `n_unreachable` counts sentences with no path to it.
    """

    indices: list[int]
    sentences: list[str]
    scores: list[float]
    distances: list[float]
    paths: list[list[int]]
    n_unreachable: int


class GeodesicSummarizer:
    """Choose the sentences that stand nearest to a topic.

    Args:
        k: neighbours in the graph; cut to what there are.
        topic: ``"mean"`` for a general summary; a vector; or words, and then the mean of the sentences holding one.
        redundancy: a sentence whose cosine to a chosen one exceeds this is passed over.
        budget: most words in all; a Chinese character counts as one. None: no limit.
    """

    def __init__(self, k: int = 10, *, topic: Any = "mean", redundancy: float = 0.8, budget: int | None = None) -> None:
        if not -1 <= redundancy <= 1:
            raise ValueError(f"redundancy is a cosine in [-1, 1], got {redundancy}")
        if budget is not None and budget < 1:
            raise ValueError(f"budget must be at least one word, got {budget}")
        self.k = k
        self.topic = topic
        self.redundancy = redundancy
        self.budget = budget

    def summarize(self, sentences: Sequence[str], encoder: Any, *, n: int | None = None) -> Summary:
        """Choose at most `n` of the sentences.

        Args:
            sentences: at least two.
            encoder: an object with ``encode(texts) -> (n, d)``, or a function of that form.
            n: most sentences; None: as many as budget and redundancy leave.

        Raises:
            ValueError: fewer than two sentences, a blank one, or topic words that no sentence holds, vectors that
                cancel to no direction.
        """
        if isinstance(sentences, str):
            raise TypeError(f"sentences must be a list of texts, got one text: {sentences[:40]!r}")
        texts = list(sentences)
        blank = next((i for i, text in enumerate(texts) if not text.strip()), None)
        if len(texts) < 2 or blank is not None:
            what = f"sentence {blank} is blank" if blank is not None else f"got {len(texts)}"
            raise ValueError(f"a summary needs two sentences or more, none of them blank; {what}")
        vectors = unit_rows(finite_rows(getattr(encoder, "encode", encoder)(texts), "the encoder's output"))
        topic = self._topic(texts, vectors)
        index = GeodesicIndex(min(self.k, len(texts) - 1)).fit(vectors)
        distances = index.distances(topic)[0]
        chosen = self._choose(texts, vectors, distances, n)
        return Summary(
            chosen,
            [texts[i] for i in chosen],
            [float(1 / (distances[i] + _NEAR)) for i in chosen],
            [float(distances[i]) for i in chosen],
            index.chains(topic, chosen),
            int(np.isinf(distances).sum()),
        )

    def _topic(self, texts: Sequence[str], vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if isinstance(self.topic, str) and self.topic == "mean":
            topic = self._mean(vectors)
        elif isinstance(self.topic, str) or (len(self.topic) and isinstance(self.topic[0], str)):
            words = [self.topic] if isinstance(self.topic, str) else list(self.topic)
            matching = [i for i, text in enumerate(texts) if any(word.lower() in text.lower() for word in words)]
            if not matching:
                raise ValueError(f"no sentence holds one of the topic words {words}; name words that occur")
            topic = self._mean(vectors[matching])
        else:
            topic = np.asarray(self.topic, dtype=np.float64)
            if topic.shape != vectors.shape[1:]:
                raise ValueError(f"the topic must be a vector of {vectors.shape[1]} numbers, got shape {topic.shape}")
        if not np.isfinite(topic).all() or not topic.any():
            raise ValueError("the topic must be a finite vector that is not zero: a zero vector has no direction")
        return np.asarray(topic)[None]

    def _mean(self, unit: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        mean = mean_row(unit)
        if np.abs(mean).max() <= RESIDUE:
            raise ValueError("the sentences' vectors cancel: their mean is zero, which has no direction. Give a topic.")
        return mean

    def _choose(
        self, texts: Sequence[str], vectors: np.ndarray[Any, Any], distances: np.ndarray[Any, Any], n: int | None
    ) -> list[int]:
        chosen: list[int] = []
        left = self.budget
        for i in np.argsort(distances, kind="stable").tolist():
            if np.isinf(distances[i]) or len(chosen) == n:
                break
            if chosen and float((vectors[chosen] @ vectors[i]).max()) > self.redundancy:
                continue
            if left is not None:
                words = len(_WORD.findall(texts[i]))
                if words > left:
                    continue
                left -= words
            chosen.append(i)
        return chosen
