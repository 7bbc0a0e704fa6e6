"""Trial of whitening settings on labelled pairs: scores, doubts about the choice, and the held-out score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.similarity.bootstrap import Metric, bootstrap_metric, bootstrap_spearman, percentile_interval
from kexue.similarity.metrics import spearman
from kexue.similarity.whitening.grid import Setting, best_setting

_BOOTSTRAP = 1000  # resamples behind each interval


class HeldOutScores(NamedTuple):
    """Held-out scores: of the chosen settings, with a 95 % interval, and of the raw vectors."""

    score: float
    low: float
    high: float
    raw: float


@dataclass(frozen=True)
class Trial:
    """Settings, the cosines of all pairs under each, and the labels; setting 0 is the raw vectors."""

    settings: list[Setting]
    cosines: list[Array]
    labels: Array
    metric: str | Metric

    def score(self, index: int, rows: Array | slice = slice(None)) -> float:
        """Score one setting on some of the pairs; nan where the metric is undefined."""
        cosines, labels = self.cosines[index][rows], self.labels[rows]
        if callable(self.metric):
            return self.metric(cosines, labels)
        return spearman(cosines, labels) if np.ptp(cosines) > 0 and np.ptp(labels) > 0 else math.nan

    def scores(self, rows: Array | slice = slice(None)) -> Array:
        """Score every setting on some of the pairs."""
        return np.array([self.score(index, rows) for index in range(len(self.settings))])

    def bootstrap(self, indices: list[int], random: np.random.Generator, rows: Array | slice = slice(None)) -> Array:
        """Return scores (len(indices), times) over resamples of some of the pairs, the same for all settings."""
        cosines, labels = [self.cosines[index][rows] for index in indices], self.labels[rows]
        if callable(self.metric):
            return bootstrap_metric(self.metric, cosines, labels, _BOOTSTRAP, random)
        return bootstrap_spearman(cosines, labels, _BOOTSTRAP, random)

    def find_doubt(self, scores: Array, choice: int, random: np.random.Generator) -> str:
        """Return why these pairs do not allow a choice of setting; "" where they do."""
        worst = int(np.nanargmin(scores))
        best_samples, worst_samples, raw_samples = self.bootstrap([choice, worst, 0], random)
        span = f"{scores[worst]:.3f} to {scores[choice]:.3f} over all settings, raw vectors {scores[0]:.3f}"
        if not callable(self.metric) and percentile_interval(best_samples)[0] <= 0:
            return f"Under no setting do the cosines of these pairs follow the labels beyond doubt ({span})"
        if not _differ(best_samples, worst_samples):
            return f"These pairs do not tell the settings apart ({span})"
        fewest, d = min(setting.k for setting in self.settings[1:]), self.settings[0].k
        if self.settings[choice].k == fewest < d and not _differ(best_samples, raw_samples):
            return (
                f"These pairs do not show what shortening costs: {fewest} of {d} dimensions do as well as all ({span})"
            )
        return ""

    def hold_out(self, folds: Array, choice: int | None, random: np.random.Generator) -> HeldOutScores:
        """Score the procedure on each fold in turn, after choosing on the other folds.

        Args:
            folds: (m,) fold of each pair.
            choice: a setting fixed beforehand; None chooses the best on the other folds.
            random: generator of the resamples.
        """
        scores, raw, chosen = [], [], []
        for fold in range(int(folds.max()) + 1):
            out = folds == fold
            index = best_setting(self.settings, self.scores(~out)) if choice is None else choice
            chosen.append((index, out))
            scores.append(self.score(index, out))
            raw.append(self.score(0, out))
        samples = [self.bootstrap([index], random, out)[0] for index, out in chosen]
        low, high = percentile_interval(_mean_over_folds(np.array(samples)))
        score, unchanged = (float(_mean_over_folds(np.array(each))) for each in (scores, raw))
        return HeldOutScores(score, low, high, unchanged)


def stratify_folds(labels: Array, cv: int, random: np.random.Generator) -> Array:
    """Return the fold (m,) of each pair: of cv pairs with neighbouring labels, each goes to another fold."""
    order = np.lexsort((random.random(len(labels)), labels))
    folds = np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(labels), cv):
        run = order[start : start + cv]
        folds[run] = random.permutation(cv)[: len(run)]
    return folds


def _differ(a: Array, b: Array) -> bool:
    """Return whether the 95 % interval of paired differences excludes 0."""
    low, high = percentile_interval(a - b)
    return low > 0 or high < 0


def _mean_over_folds(values: Array) -> Array:
    """Return the mean over folds, those without a score (equal labels) left out."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(finite, values, 0.0).sum(axis=0) / finite.sum(axis=0)
    return mean
