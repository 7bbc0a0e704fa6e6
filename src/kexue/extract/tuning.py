"""The thresholds with the highest F1 on annotated texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from kexue._progress import Progress
from kexue.extract.extractor import Extractor
from kexue.extract.scoring import TripleScore, triple_f1
from kexue.extract.triples import TripleExample, require_triples

_GRID = (0.3, 0.4, 0.5, 0.6, 0.7)


class ThresholdRow(NamedTuple):
    """A pair of thresholds and what it reaches."""

    head: float
    tail: float
    precision: float
    recall: float
    f1: float


class Thresholds(NamedTuple):
    """The best pair of thresholds, its F1, and the table of all pairs."""

    head: float
    tail: float
    f1: float
    table: tuple[ThresholdRow, ...]


def score_extractor(
    extractor: Extractor,
    examples: Sequence[TripleExample],
    *,
    head_threshold: float | None = None,
    tail_threshold: float | None = None,
    batch_size: int = 64,
) -> TripleScore:
    """Return the `triple_f1`, by strings, of an extractor on annotated texts."""
    found = extractor.extract(
        [example.text for example in examples],
        head_threshold=head_threshold,
        tail_threshold=tail_threshold,
        batch_size=batch_size,
    )
    return triple_f1(found, [example.triples for example in examples])


def tune_thresholds(
    extractor: Extractor, dev: Sequence[TripleExample], *, progress: Progress | None = None
) -> Thresholds:
    """Try all pairs of thresholds 0.3, 0.4, ..., 0.7 on annotated texts that were not trained on.

    Of equal pairs the one nearest to the defaults of the model is taken. The F1 of the best of 25 pairs is a little too
    good: report one of other texts.

    Args:
        extractor: a trained model.
        dev: annotated texts.
        progress: called as ``progress(texts_done, n)``.

    Raises:
        DataError: no text has a triple.
    """
    require_triples(dev, "dev")
    pairs = [(head, tail) for head in _GRID for tail in _GRID]
    golds = [example.triples for example in dev]
    found, notes = extractor.extract_by(pairs, [example.text for example in dev], progress=progress)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    scores = (triple_f1(one, golds) for one in found)
    rows = [ThresholdRow(*pair, s.precision, s.recall, s.f1) for pair, s in zip(pairs, scores, strict=True)]

    def rank(row: ThresholdRow) -> tuple[float, float]:
        return row.f1, -abs(row.head - extractor.head_threshold) - abs(row.tail - extractor.tail_threshold)

    best = max(rows, key=rank)
    return Thresholds(best.head, best.tail, best.f1, tuple(rows))
