"""The meaning of scores in an index: percentile among random pairs, and probability that two texts belong together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from kexue.errors import InfeasibleError
from kexue.search.encoding import IndexEncoder
from kexue.search.sample import require_documents, sample_rows, sample_size, stack_vectors
from kexue.search.space import Space, file_bytes, from_file_bytes, read_record
from kexue.search.store.base import Row, Store, Value
from kexue.similarity import Probability, ScoreCalibrator
from kexue.similarity.calibration import null_scores

_PAIRS = 10_000  # whose scores are computed at a time


class StoredCalibration:
    """The calibration that a store records.

    Args:
        store: the store of the index. path: its path, for messages.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        self._loaded: tuple[bytes, ScoreCalibrator] | None = None

    def load(self) -> ScoreCalibrator | None:
        """Return the calibration that `Index.calibrate` recorded, in any process; None before."""
        blob = self._store.metadata().get("calibration")
        if not isinstance(blob, bytes):
            return None
        if self._loaded is None or self._loaded[0] is not blob:
            given = blob
            loaded = read_record(self._path, "calibration", lambda: from_file_bytes(given, ScoreCalibrator.load))
            self._loaded = blob, loaded
        return self._loaded[1]

    def save(self, calibrator: ScoreCalibrator, *, expect: dict[str, Value | None]) -> None:
        """Record a calibration, if the store's metadata still are those of `expect`."""
        self._store.upsert([], metadata={"calibration": file_bytes(calibrator.save)}, expect=expect)


def fit_calibration(
    store: Store,
    encoder: IndexEncoder,
    *,
    pairs: Iterable[tuple[str, str]] | None,
    labels: Iterable[int] | None,
    n: int,
    method: Literal["isotonic", "platt"],
    generator: Any,
) -> ScoreCalibrator:
    """Fit the scores of an index on random pairs of its documents, and on judged pairs; see `Index.calibrate`."""
    if (pairs is None) != (labels is None):
        raise ValueError("pairs come with labels, one each: 1 where the two texts belong together, 0 where not.")
    judged = None if pairs is None else list(pairs)  # once: both may be iterators
    given = None if labels is None else list(labels)
    require_documents(store, encoder.path, 2, "random pairs")
    random = np.random.default_rng(generator)
    rows = sample_rows(store, sample_size(store), random)
    calibrator = ScoreCalibrator(method).fit(random_scores(rows, encoder.space, n, random))
    if judged is not None and given is not None:
        sides = [encoder.space.project(encoder.encode([pair[i] for pair in judged], "pair")) for i in (0, 1)]
        calibrator.fit_labels(np.einsum("ij,ij->i", *sides, dtype=np.float64), given)
    return calibrator


def random_scores(rows: Sequence[Row], space: Space, n: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return the scores of `n` random pairs of documents, as a search would score them.

    The first of a pair stands for a query: one of its passages, drawn at random. The second is scored by its best
    passage. Without split documents these are cosines, of every pair once where there are at most `n`.
    """
    stacked = stack_vectors(rows)
    unit = stacked.vectors[:, :-1] if space.dehub == "csls" else stacked.vectors
    if len(unit) == len(rows):
        return null_scores(unit, n, generator=random)
    first = random.integers(len(rows), size=n)
    second = (first + random.integers(1, len(rows), size=n)) % len(rows)
    queries = stacked.firsts[first] + random.integers(stacked.sizes[first])
    found = np.full(n, -1.0)
    for passage in range(int(stacked.sizes.max())):
        some = np.flatnonzero(stacked.sizes[second] > passage)
        for part in np.array_split(some, len(some) // _PAIRS + 1):
            pairs = unit[queries[part]], unit[stacked.firsts[second[part]] + passage]
            found[part] = np.maximum(found[part], np.einsum("ij,ij->i", *pairs, dtype=np.float64))
    scores: np.ndarray[Any, Any] = np.clip(found, -1.0, 1.0)
    return scores


def interpret_scores(
    calibrator: ScoreCalibrator | None, scores: Sequence[float]
) -> tuple[Sequence[float | None], Sequence[Probability | None]]:
    """Return percentile and probability of each score; None without a calibration, or without labels."""
    nothing = [None] * len(scores)
    if calibrator is None:
        return nothing, nothing
    percentiles: list[float] = calibrator.percentile(scores).tolist()
    if calibrator.labels_ is None:
        return percentiles, nothing
    columns = (column.tolist() for column in calibrator.probability(scores))
    return percentiles, [Probability(*chance) for chance in zip(*columns, strict=True)]


def calibration_record(calibrator: ScoreCalibrator | None) -> dict[str, Any] | None:
    """Return a calibration as JSON values; the threshold is that for a precision of 0.9, None if none reaches it."""
    if calibrator is None or calibrator.null_ is None:
        return None
    labelled, threshold = 0, None
    if calibrator.labels_ is not None:
        labelled = len(calibrator.labels_)
        with contextlib.suppress(InfeasibleError):
            threshold = calibrator.threshold()._asdict()
    record = {"null_pairs": len(calibrator.null_), "labelled_pairs": labelled, "method": calibrator.method}
    return {**record, "threshold": threshold}
