"""Probabilities of heads and tails to spans, and to triples: the decoding of half pointers, half tags.

Source: kexue.fm/archives/6671.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kexue.extract.triples import Span

HEAD, TAIL = 0.5, 0.4  # thresholds of the article
Array = np.ndarray[Any, Any]


def decode_triples(
    subject_probs: Array,
    object_probs: Callable[[int, int], Array],
    *,
    head_threshold: float = HEAD,
    tail_threshold: float = TAIL,
) -> list[tuple[Span, int, Span]]:
    """Decode the triples of one text.

    A head above its threshold goes with the nearest tail above its own, at or after it; of objects also with the same
    predicate.

    Args:
        subject_probs: (T, 2), probabilities that a subject begins, and that one ends, with each character.
        object_probs: from the span of a subject, called as ``object_probs(start, end)``, to (T, P, 2): that an object
            of each predicate begins, and that one ends, with each character.
        head_threshold, tail_threshold: limits, excluded.

    Returns:
        (span of the subject, number of the predicate, span of the object), spans as ``[start, end)``, in ascending
        order of subject, place and predicate.

    Raises:
        ValueError: a threshold outside [0, 1), probabilities of another shape.

    >>> decode_triples(np.array([[0.9, 0.1], [0.1, 0.8], [0.2, 0.0]]), lambda start, end: np.ones((3, 1, 2)))[0]
    ((0, 2), 0, (0, 1))
    """
    check_thresholds(head_threshold, tail_threshold)
    if subject_probs.ndim != 2 or subject_probs.shape[1] != 2:
        raise ValueError(f"subject_probs must be (T, 2), got {subject_probs.shape}")
    triples = []
    for subject in decode_spans(subject_probs[:, None], head_threshold, tail_threshold):
        probabilities = object_probs(subject[1], subject[2])
        if probabilities.ndim != 3 or probabilities.shape[::2] != (len(subject_probs), 2):
            raise ValueError(f"object_probs must return ({len(subject_probs)}, P, 2), got {probabilities.shape}")
        for kind, start, end in decode_spans(probabilities, head_threshold, tail_threshold):
            triples.append(((subject[1], subject[2]), kind, (start, end)))
    return triples


def decode_spans(probabilities: Array, head_threshold: float, tail_threshold: float) -> list[tuple[int, int, int]]:
    """Return the (kind, start, end) of probabilities (T, kinds, 2), in ascending order of start and kind."""
    heads, tails = probabilities[..., 0] > head_threshold, probabilities[..., 1] > tail_threshold
    starts, kinds = np.nonzero(heads)
    if not len(starts):
        return []
    length = len(tails)
    places = np.where(tails, np.arange(length)[:, None], length)
    nearest = np.minimum.accumulate(places[::-1])[::-1]  # the first tail at or after each place
    ends = nearest[starts, kinds]
    kept = ends < length
    return [(int(k), int(s), int(e) + 1) for k, s, e in zip(kinds[kept], starts[kept], ends[kept], strict=True)]


def check_thresholds(head: float, tail: float) -> None:
    """Raise a ValueError for a threshold outside [0, 1)."""
    for name, value in (("head_threshold", head), ("tail_threshold", tail)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value!r}")
