"""Calibration of similarity scores: percentile, chance and, with labels, probability and threshold.

Without labels. Scores of random pairs of a corpus are samples of the scores of "two unrelated texts". The percentile of
a score is the share of them below it; by construction it is uniform on random pairs, whatever the encoder, so 99.9
means the same in every index. With n pairs the finest step is one in n + 1: no percentile is higher than 100 n/(n + 1)
or lower than 100/(n + 1).

With scores of best hits. A search returns the largest of many scores, so a high percentile is common among first hits
even where a query has no answer. The best hits of queries without an answer say how often that happens. The chance of a
score s is (1 + number of those at or above s) / (n + 1) for n such queries: a p-value. For one more query of the same
kind it is at most a with a probability of at most a, whatever the distribution. It is never 0, and never below
1/(n + 1): nothing is claimed beyond the sample.

With labels. Isotonic regression or Platt's logistic curve turns a score into P(label = 1), with an interval that
assumes only that P does not fall as the score rises; see `kexue.similarity.probability`.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from kexue._arrays import Array, as_float64
from kexue._files import replacing
from kexue._text import parse_json
from kexue.errors import DataError, InfeasibleError, NotFittedError
from kexue.similarity._ranks import average_ranks
from kexue.similarity.probability import clopper_pearson, isotonic_curve, monotone_limits, platt_curve

_FORMAT = "kexue-calibration-1"
_ARRAYS = ("null", "scores", "labels")
_BEST = "best:"  # put before the kind of query in the name of an array in a file


class Probability(NamedTuple):
    """P(label = 1) and an interval that contains it in at least 95 % of cases; arrays shaped as the scores."""

    value: Array
    low: Array
    high: Array


class Threshold(NamedTuple):
    """Highest of the scores with the largest recall at the wanted precision, on labelled pairs.

    Attributes:
        value: the threshold.
        precision: precision of the labelled pairs at or above `value`.
        low, high: 95 % interval of the precision on other pairs, by Clopper and Pearson; it is wide enough to cover the
            bias of choosing the threshold on the same pairs.
        recall: recall of the labelled pairs at or above `value`.
    """

    value: float
    precision: float
    low: float
    high: float
    recall: float


class ScoreCalibrator:
    """Estimator of percentile, chance, probability and threshold of similarity scores.

    Args:
        method: ``"isotonic"`` fits any rising curve and needs a few hundred labels; ``"platt"`` fits the two parameters
            of a logistic curve and needs a few dozen.

    Attributes:
        null_: (n,), sorted scores of random pairs; None before `fit`.
        best_: kind of query to (n,), sorted scores of best hits of queries without an answer; empty before `fit_best`.
        scores_, labels_: (m,) each, sorted by score; None before `fit_labels`.

    Example:
        >>> import numpy as np
        >>> calibrator = ScoreCalibrator().fit(np.linspace(-1, 1, 201))
        >>> calibrator.percentile([-2.0, 0.0, 2.0]).round(2).tolist()
        [0.5, 50.0, 99.5]
    """

    def __init__(self, method: Literal["isotonic", "platt"] = "isotonic") -> None:
        if method not in ("isotonic", "platt"):
            raise ValueError(f"method must be 'isotonic' or 'platt', got {method!r}")
        self.method = method
        self.null_: Array | None = None
        self.best_: dict[str, Array] = {}
        self.scores_: Array | None = None
        self.labels_: Array | None = None

    # ---- without labels ------------------------------------------------------------------------------------------

    def fit(self, null_scores: Any) -> Self:
        """Store scores of random pairs, (n,), such as those of `random_pair_scores`. Returns self."""
        self.null_ = np.sort(_read_finite(null_scores, "null_scores"))
        return self

    def percentile(self, scores: Any) -> Array:
        """Return 100 times the share of random pairs with a lower score, ties counted half; shaped as `scores`.

        In [100/(n + 1), 100 n/(n + 1)] for n random pairs: the probability that one more draw is below a score that
        exceeds all of them.

        Raises:
            NotFittedError: before `fit`. ValueError: a NaN.
        """
        null = _require_fitted(self.null_, "fit(null_scores)")
        wanted, n = _read_scores(scores), len(null)
        below, upto = np.searchsorted(null, wanted, "left"), np.searchsorted(null, wanted, "right")
        return np.asarray(np.clip(50.0 * (below + upto) / n, 100.0 / (n + 1), 100.0 * n / (n + 1)))

    def fit_best(self, scores: Any, kind: str = "") -> Self:
        """Store scores (n,) of the best hits of n queries that have no answer. Returns self.

        Args:
            scores: the largest score that each query reaches.
            kind: of the queries, such as their language; the chance of a score depends on it.
        """
        self.best_[kind] = np.sort(_read_finite(scores, "scores"))
        return self

    def chance(self, scores: Any, kind: str = "") -> Array:
        """Return how often the best hit of a query without an answer scores as high, in [1/(n + 1), 1].

        Raises:
            NotFittedError: before `fit_best` with this kind. ValueError: a NaN.

        >>> ScoreCalibrator().fit_best([0.1, 0.2, 0.3, 0.4]).chance([0.5, 0.4, 0.25, 0.0]).tolist()
        [0.2, 0.4, 0.6, 1.0]
        """
        best = _require_fitted(self.best_.get(kind), f"fit_best(scores, {kind!r})")
        reached = len(best) - np.searchsorted(best, _read_scores(scores), "left")
        return np.asarray((1.0 + reached) / (len(best) + 1))

    # ---- with labels ---------------------------------------------------------------------------------------------

    def fit_labels(self, scores: Any, labels: Any) -> Self:
        """Store labelled pairs: scores (m,) and labels (m,), 0 and 1, both present. Returns self.

        Warns for ``"platt"`` where ones score lower than zeros on the whole, but not significantly.

        Raises:
            ValueError: lengths that differ, NaN, labels of one kind only or other than 0 and 1, or ones that score
                significantly lower than zeros: labels the wrong way round, or distances for scores.
        """
        values, marks = _read_finite(scores, "scores"), _read_finite(labels, "labels")
        if values.shape != marks.shape:
            raise ValueError(f"{len(values)} scores came with {len(marks)} labels")
        kinds = set(np.unique(marks).tolist())
        if kinds != {0.0, 1.0}:
            raise ValueError(f"labels must be 0 and 1 with both present, got the values {sorted(kinds)[:5]}")
        self._check_direction(values, marks)
        order = np.argsort(values, kind="stable")
        self.scores_, self.labels_ = values[order], marks[order]
        return self

    def _check_direction(self, scores: Array, labels: Array) -> None:
        """Raise or warn where ones score lower than zeros, by the Mann-Whitney test."""
        ones, zeros = labels.sum(), (1 - labels).sum()
        above = (average_ranks(scores)[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros)  # P(one > zero)
        error = np.sqrt((ones + zeros + 1) / (12 * ones * zeros))
        if above < 0.5 - 2 * error:
            raise ValueError(
                f"pairs labelled 1 score higher than pairs labelled 0 only {above:.0%} of the time. Exchange the "
                "labels if they are the wrong way round, or pass similarities instead of distances."
            )
        if above < 0.5 and self.method == "platt":
            warnings.warn(
                f"pairs labelled 1 score higher than pairs labelled 0 only {above:.0%} of the time, so the curve is "
                "flat: the scores cannot be calibrated with these pairs.",
                stacklevel=3,
            )

    def probability(self, scores: Any) -> Probability:
        """Return P(label = 1 | score), which never falls as the score rises, and its 95 % interval.

        Isotonic: the share of ones in the block that holds the score; linear between two blocks. Platt:
        1/(1 + exp(-(a s + b))), a >= 0, on smoothed targets. The interval is the same for both methods, and holds for
        each score separately.

        Raises:
            NotFittedError: before `fit_labels`. ValueError: a NaN.
        """
        known = _require_fitted(self.scores_, "fit_labels(scores, labels)")
        labels = _require_fitted(self.labels_, "fit_labels(scores, labels)")
        wanted = _read_scores(scores)
        value = (platt_curve if self.method == "platt" else isotonic_curve)(known, labels, wanted)
        low, high = monotone_limits(known, labels, wanted)
        return Probability(value, np.minimum(low, value), np.maximum(high, value))

    def threshold(self, precision: float = 0.9) -> Threshold:
        """Return the threshold with the largest recall among those where labelled pairs reach `precision`.

        Of several with that recall the highest, which is the most precise.

        Args:
            precision: in (0, 1], the wanted share of ones among the pairs at or above the threshold.

        Raises:
            InfeasibleError: no threshold reaches it; the message names the best precision.
            NotFittedError: before `fit_labels`. ValueError: `precision` outside (0, 1].
        """
        scores = _require_fitted(self.scores_, "fit_labels(scores, labels)")
        labels = _require_fitted(self.labels_, "fit_labels(scores, labels)")
        if not 0 < precision <= 1:
            raise ValueError(f"precision must be in (0, 1], got {precision}")
        # Equal scores are all above a threshold or all below: only the first of each run can be one.
        first = np.flatnonzero(np.concatenate([[True], np.diff(scores) > 0]))
        ones = np.cumsum(labels[::-1])[::-1][first]
        taken = len(scores) - first
        share = ones / taken
        reached = np.flatnonzero(share >= precision)
        if len(reached) == 0:
            best = int(np.argmax(share))
            raise InfeasibleError(
                f"no threshold keeps a precision of {precision:g} on these labels; the best is {share[best]:.3f}, at "
                f"{scores[first[best]]:.4g}.",
                remedy="Ask for less, or label more pairs.",
            )
        at = int(np.flatnonzero(ones == ones[reached[0]])[-1])
        low, high = clopper_pearson(ones[at : at + 1], taken[at : at + 1])
        recall = float(ones[at] / labels.sum())
        return Threshold(float(scores[first[at]]), float(share[at]), float(low[0]), float(high[0]), recall)

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, without the parts that were not fitted."""
        from safetensors.numpy import save_file

        arrays = {name: getattr(self, f"{name}_") for name in _ARRAYS}
        arrays |= {_BEST + kind: scores for kind, scores in self.best_.items()}
        fitted = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        with replacing(path) as temporary:
            save_file(
                fitted, temporary, metadata={"format": _FORMAT, "parameters": json.dumps({"method": self.method})}
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of `save`.

        Raises:
            DataError: the file is something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise DataError("this is no saved calibration.", path=path, remedy="Write one with save.")
                calibrator = cls(**parse_json(metadata["parameters"], path))
                stored = set(file.keys())
                for name in _ARRAYS:
                    if name in stored:
                        setattr(calibrator, f"{name}_", file.get_tensor(name))
                best = sorted(name for name in stored if name.startswith(_BEST))
                calibrator.best_ = {name.removeprefix(_BEST): file.get_tensor(name) for name in best}
        except (SafetensorError, KeyError, TypeError) as error:
            raise DataError(
                f"this is no saved calibration ({error}).", path=path, remedy="Write one with save."
            ) from error
        return calibrator


def _read_scores(scores: Any) -> Array:
    """Return scores of any shape as float64; ValueError on a NaN."""
    wanted = as_float64(scores)
    if np.isnan(wanted).any():
        raise ValueError(f"scores hold NaN at position {int(np.isnan(wanted).ravel().argmax())}; each must be a number")
    return wanted


def _read_finite(values: Any, name: str) -> Array:
    """Return `values` as float64 (n,), n >= 1; ValueError unless all are finite."""
    numbers = as_float64(values)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        place = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"{name} holds {numbers[place]} at position {place}; every number must be finite")
    return numbers


def _require_fitted(values: Array | None, call: str) -> Array:
    """Return fitted values, or raise NotFittedError naming the call that fits them."""
    if values is None:
        raise NotFittedError(f"this calibrator has no data: {call} was not called.", remedy=f"Call {call} first.")
    return values
