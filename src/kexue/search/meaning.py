"""What the scores of an index mean: a sample of its vectors, and hits with percentile and probability."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from kexue.errors import InfeasibleError
from kexue.search.nearest import Vectors
from kexue.search.store.base import Row, Store
from kexue.similarity import Probability, ScoreCalibrator

SAMPLE = 20_000  # documents; pairs of them are two hundred million


def meaning(
    calibrator: ScoreCalibrator | None, scores: Sequence[float]
) -> tuple[Sequence[float | None], Sequence[Probability | None]]:
    """Percentile and probability of each score; None where there is nothing to tell them by."""
    nothing = [None] * len(scores)
    if calibrator is None:
        return nothing, nothing
    percentiles: list[float] = calibrator.percentile(scores).tolist()
    if calibrator.labels_ is None:
        return percentiles, nothing
    columns = (column.tolist() for column in calibrator.probability(scores))
    return percentiles, [Probability(*chance) for chance in zip(*columns, strict=True)]


def sample_rows(store: Store, most: int, random: np.random.Generator) -> list[Row]:
    """All documents of a store with their vectors, or `most` of them drawn at random, oldest first."""
    total = store.count()
    wanted = np.ones(total, bool)
    if total > most:
        wanted[:] = False
        wanted[random.choice(total, most, replace=False)] = True
    stored = zip(wanted, chain.from_iterable(store.iterate()), strict=False)
    return [row for take, row in stored if take]


def stack(rows: Sequence[Row]) -> Vectors:
    """Vectors (n, d) of rows that have one."""
    return np.stack([row.vector for row in rows if row.vector is not None])


def calibration_record(calibrator: ScoreCalibrator | None) -> dict[str, Any] | None:
    """What `kexue index info` says of a calibration; the threshold is that for a precision of 0.9, if there is one."""
    if calibrator is None or calibrator.null_ is None:
        return None
    labelled, threshold = 0, None
    if calibrator.labels_ is not None:
        labelled = len(calibrator.labels_)
        with contextlib.suppress(InfeasibleError):
            threshold = calibrator.threshold()._asdict()
    record = {"null_pairs": len(calibrator.null_), "labelled_pairs": labelled, "method": calibrator.method}
    return {**record, "threshold": threshold}
