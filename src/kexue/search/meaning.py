"""Meaning of the scores of a search: percentile, chance and probability, as far as the calibration still holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kexue.search.calibration import LEAST, CalibrationFacts, StoredCalibration, identify_space
from kexue.search.ingest import count_written, drift_sum
from kexue.search.language import guess_language
from kexue.search.space import Space
from kexue.search.store.base import Store, Value
from kexue.similarity import Probability, ScoreCalibrator

LEAST_PAIRS = 20  # judged pairs that a probability needs
LEAST_OF_A_LABEL = 5  # of them with each label
CHANGED_SHARE = 0.25  # of the documents; a quarter more of the same kind raises a chance by a quarter at most
DRIFT = 0.3  # in standard deviations of the vectors; documents of another subject are above, of the same below
LEAST_DRIFTED = 50  # vectors that a drift is measured on


class Reading(NamedTuple):
    """What one score means; see `kexue.search.Hit`."""

    percentile: float | None
    chance: float | None
    probability: Probability | None


@dataclass(frozen=True)
class Meaning:
    """Reads scores by the calibration of an index, and knows the reasons to doubt them.

    Attributes:
        calibrator: None before the index was calibrated, or where the calibration belongs to another vector space.
        facts: what it was made from; None for a calibration of an older version.
        judged: whether its labels are enough, and still about these vectors, for a probability.
        doubts: sentences for the user, the same for every query.
    """

    calibrator: ScoreCalibrator | None
    facts: CalibrationFacts | None
    judged: bool
    doubts: Sequence[str]

    def read(self, scores: Sequence[float], query: str | None = None) -> list[Reading]:
        """Return what each score of the hits of a query means.

        Args:
            scores: cosines.
            query: as text, which tells its language; None: that of the documents.
        """
        if self.calibrator is None:
            return [Reading(None, None, None)] * len(scores)
        language = self.language(query)
        percentiles = self.calibrator.percentile(scores).tolist()
        chances: list[float | None] = [None] * len(scores)
        if language in self.calibrator.best_:
            chances = self.calibrator.chance(scores, language).tolist()
        likely: list[Probability | None] = [None] * len(scores)
        if self.judged and (self.facts is None or language == self.facts.language):
            columns = (column.tolist() for column in self.calibrator.probability(scores))
            likely = [Probability(*values) for values in zip(*columns, strict=True)]
        return [Reading(*values) for values in zip(percentiles, chances, likely, strict=True)]

    def language(self, query: str | None) -> str:
        """Return the language of a query, or of the documents where it does not show."""
        main = "" if self.facts is None else self.facts.language
        return (None if query is None else guess_language(query)) or main


def read_meaning(store: Store, stored: StoredCalibration, space: Space) -> Meaning:
    """Return what the scores of an index mean at present.

    Args:
        store, space: those of the index.
        stored: its calibration.
    """
    metadata, documents = store.metadata(), store.count()
    calibrator, facts = stored.load(), stored.facts()
    drifted = _is_drifted(space, metadata)
    doubts = [_DRIFTED] if drifted else []
    if calibrator is None:
        few = f"the index holds fewer than {LEAST} documents: too few to tell a good score from a common one."
        doubts += [] if not documents else [few] if documents < LEAST else [_ABSENT]
        return Meaning(None, None, False, doubts)
    if facts is not None and facts.space != identify_space(space):
        doubts.append(f"the calibration belongs to vectors of another model or whitening and is not used. {_AGAIN}")
        return Meaning(None, None, False, doubts)
    if facts is None:
        doubts.append(f"the calibration is of an older version, which does not tell how good a best hit is. {_AGAIN}")
    else:
        doubts += _compare_documents(facts, metadata, documents)
    if facts is not None and not calibrator.best_:
        doubts.append("the index was calibrated without an encoder, so nothing tells how good a best hit is.")
    labels = calibrator.labels_
    if labels is None:
        return Meaning(calibrator, facts, False, doubts)
    enough = len(labels) >= LEAST_PAIRS and min(labels.sum(), (1 - labels).sum()) >= LEAST_OF_A_LABEL
    if not enough:
        doubts.append(
            f"the judged pairs are too few for a probability: {len(labels)}, of which {int(labels.sum())} belong "
            f"together; needed are {LEAST_PAIRS}, and {LEAST_OF_A_LABEL} of either kind."
        )
    return Meaning(calibrator, facts, enough and not drifted, doubts)


_DRIFTED = (
    "documents added since the whitening was fitted are of another kind than those it was fitted on. Build the index "
    "again: kexue index build."
)
_ABSENT = "the scores are not calibrated: nothing tells a good one from a common one. Run: kexue index calibrate."
_AGAIN = "Calibrate it again: kexue index calibrate."


def measure_drift(space: Space, metadata: Mapping[str, Value]) -> float | None:
    """Return the distance of the mean of later vectors from the fitted mean; see `kexue.search.IndexInfo`."""
    if space.whitening is None:
        return None
    n, total = drift_sum(metadata)
    variance = float(np.trace(space.whitening.covariance_))
    if not n or variance <= 0:
        return None
    return float(np.linalg.norm(total / n - space.whitening.mean_)) / math.sqrt(variance)


def _is_drifted(space: Space, metadata: Mapping[str, Value]) -> bool:
    """Return whether the vectors added since the whitening was fitted, if there are enough, are of another kind."""
    drift, (n, _) = measure_drift(space, metadata), drift_sum(metadata)
    return drift is not None and n >= LEAST_DRIFTED and drift > DRIFT


def _compare_documents(facts: CalibrationFacts, metadata: Mapping[str, Value], documents: int) -> list[str]:
    """Return a sentence where many documents were added or removed since the calibration, else nothing."""
    written = count_written(metadata) - facts.written
    changed = max(written, written - (documents - facts.documents))  # an update is written, and removes one
    if changed <= CHANGED_SHARE * facts.documents:
        return []
    return [
        f"the calibration is too old: it saw {facts.documents:,} documents, and {changed:,} have been added, changed "
        f"or removed since. {_AGAIN}"
    ]
