"""Extractive summaries: the sentences nearest to a topic along the neighbourhood graph, without repetition.

Sources: kexue.fm/archives/9368; Basu Roy Chowdhury et al. 2022, arXiv:2209.07496 (importance = inverse geodesic
distance to the topic, greedy choice).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array, finite_rows
from kexue.similarity._vectors import RESIDUE, mean_row, unit_rows
from kexue.similarity.neighbours.geodesic import GeodesicIndex

_WORD = re.compile(r"[\u3400-\u9fff]|\w+")  # a Chinese character counts as a word
_NEAR = 1e-6  # added to distances, so that the score of a sentence equal to the topic stays finite


class Summary(NamedTuple):
    """Chosen sentences, best first.

    Attributes:
        indices: their numbers.
        sentences: their texts.
        scores: 1 / distance of each.
        distances: geodesic distance of each to the topic.
        paths: for each, the numbers of the sentences on its path to the topic.
        n_unreachable: number of sentences without a path to the topic.
    """

    indices: list[int]
    sentences: list[str]
    scores: list[float]
    distances: list[float]
    paths: list[list[int]]
    n_unreachable: int


class GeodesicSummarizer:
    """Summarizer that chooses the sentences nearest to a topic by geodesic distance.

    Args:
        k: number of neighbours in the graph, >= 1; at most the number of other sentences is used.
        topic: ``"mean"`` for a general summary; a vector; or words: then the mean of the sentences holding one.
        redundancy: in [-1, 1]; a sentence whose cosine to a chosen one exceeds this is skipped.
        budget: largest number of words in all, >= 1; a Chinese character counts as one. None: no limit.
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
            n: largest number of sentences; None: limited by budget and redundancy only.

        Raises:
            ValueError: fewer than two sentences, a blank one, topic words that no sentence contains, or vectors whose
                mean is zero.
        """
        if isinstance(sentences, str):
            raise TypeError(f"sentences must be a list of texts, got one text: {sentences[:40]!r}")
        texts = list(sentences)
        blank = next((i for i, text in enumerate(texts) if not text.strip()), None)
        if len(texts) < 2 or blank is not None:
            what = f"sentence {blank} is blank" if blank is not None else f"got {len(texts)}"
            raise ValueError(f"a summary needs two sentences or more, none of them blank; {what}")
        vectors = unit_rows(finite_rows(getattr(encoder, "encode", encoder)(texts), "the encoder's output"))
        topic = self._topic_vector(texts, vectors)
        index = GeodesicIndex(min(self.k, len(texts) - 1)).fit(vectors)
        distances = index.distances(topic)[0]
        chosen = self._choose(texts, vectors, distances, n)
        return Summary(
            chosen,
            [texts[i] for i in chosen],
            [float(1 / (distances[i] + _NEAR)) for i in chosen],  # eq. 1 (9368)
            [float(distances[i]) for i in chosen],
            index.chains(topic, chosen),
            int(np.isinf(distances).sum()),
        )

    def _topic_vector(self, texts: Sequence[str], vectors: Array) -> Array:
        """Return the topic as one row (1, d)."""
        if isinstance(self.topic, str) and self.topic == "mean":
            topic = _mean_direction(vectors)
        elif isinstance(self.topic, str) or (len(self.topic) and isinstance(self.topic[0], str)):
            words = [self.topic] if isinstance(self.topic, str) else list(self.topic)
            matching = [i for i, text in enumerate(texts) if any(word.lower() in text.lower() for word in words)]
            if not matching:
                raise ValueError(f"no sentence contains one of the topic words {words}; give words that occur")
            topic = _mean_direction(vectors[matching])
        else:
            topic = np.asarray(self.topic, dtype=np.float64)
            if topic.shape != vectors.shape[1:]:
                raise ValueError(f"the topic must be a vector of {vectors.shape[1]} numbers, got shape {topic.shape}")
        if not np.isfinite(topic).all() or not topic.any():
            raise ValueError("the topic must be a finite vector that is not zero: a zero vector has no direction")
        return np.asarray(topic)[None]

    def _choose(self, texts: Sequence[str], vectors: Array, distances: Array, n: int | None) -> list[int]:
        """Return the numbers of the sentences chosen greedily, nearest first."""
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


def _mean_direction(unit: Array) -> Array:
    """Return the mean of unit vectors; ValueError where it is zero up to rounding."""
    mean = mean_row(unit)
    if np.abs(mean).max() <= RESIDUE:
        raise ValueError("the sentences' vectors cancel: their mean is zero, which has no direction. Give a topic.")
    return mean
