"""The meaning of scores in an index: their percentile among random pairs, and the probability that a pair belongs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from kexue.errors import InfeasibleError
from kexue.search.space import file_bytes, from_file_bytes, read_record
from kexue.search.store.base import Store, Value
from kexue.similarity import Probability, ScoreCalibrator


class StoredCalibration:
    """The calibration that a store records.

    Args:
        store: of the index. path: of the index, for messages.
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
    """A calibration as JSON values; the threshold is that for a precision of 0.9, None where it is out of reach."""
    if calibrator is None or calibrator.null_ is None:
        return None
    labelled, threshold = 0, None
    if calibrator.labels_ is not None:
        labelled = len(calibrator.labels_)
        with contextlib.suppress(InfeasibleError):
            threshold = calibrator.threshold()._asdict()
    record = {"null_pairs": len(calibrator.null_), "labelled_pairs": labelled, "method": calibrator.method}
    return {**record, "threshold": threshold}
