"""Bootstrap of scores on labelled pairs: resamples, percentile intervals, paired tests.

A resample is a count for every pair. With the order of the scores known once, the average ranks of a resample are
running sums of its counts, so a thousand resamples cost a thousand passes instead of a thousand sorts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from kexue._arrays import Array
from kexue.similarity._ranks import Ranking, correlate_ranks

Metric = Callable[[Array, Array], float]  # of (scores, labels); larger is better
_BATCH_VALUES = 1 << 20  # counts held at a time, over all resamples of a batch
_TAIL = 0.025  # share of resamples beyond either end of an interval: intervals are 95 %


def resample_counts(n: int, times: int, generator: np.random.Generator) -> Iterator[Array]:
    """Yield batches (b, n) of counts, float64; each of `times` rows is one draw of n out of n with replacement."""
    step = max(1, _BATCH_VALUES // n)
    for start in range(0, times, step):
        rows = min(step, times - start)
        drawn = generator.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrap_spearman(scores: list[Array], labels: Array, times: int, generator: np.random.Generator) -> Array:
    """Return Spearman's correlation (s, times) of s score vectors with the labels; a column is one resample for all."""
    rankings = [Ranking(score) for score in scores]
    target = Ranking(labels)
    samples = np.empty((len(scores), times))
    start = 0
    for counts in resample_counts(len(labels), times, generator):
        stop = start + len(counts)
        ranks = target.resample_ranks(counts)
        for row, ranking in zip(samples, rankings, strict=True):
            row[start:stop] = correlate_ranks(ranking.resample_ranks(counts), ranks, counts)
        start = stop
    return samples


def bootstrap_metric(
    metric: Metric, scores: list[Array], labels: Array, times: int, generator: np.random.Generator
) -> Array:
    """Return any metric (s, times) of s score vectors with the labels; a column is one resample for all."""
    drawn = generator.integers(0, len(labels), size=(times, len(labels)))
    return np.array([[metric(score[rows], labels[rows]) for rows in drawn] for score in scores])


def totals_interval(counts: Array, score: Callable[[Array], Array], *, times: int = 1000) -> tuple[float, float]:
    """Return the 95 % interval of a score of totals, such as an F1, over units such as texts, by 1000 resamples.

    Args:
        counts: (n, ...) what each of n units adds to the totals.
        score: from the totals (b, ...) of b resamples to their scores (b,).
        times: resamples.
    """
    rows = counts.reshape(len(counts), -1).astype(np.float64)
    draws = resample_counts(len(counts), times, np.random.default_rng(0))
    return percentile_interval(np.concatenate([score((draw @ rows).reshape(-1, *counts.shape[1:])) for draw in draws]))


def percentile_interval(samples: Array) -> tuple[float, float]:
    """Return the 95 % percentile interval of the finite samples; nan where there are none."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, (_TAIL, 1 - _TAIL))
    return float(low), float(high)


def two_sided_p_value(differences: Array) -> float:
    """Return twice the smaller share of finite differences on one side of 0, the observed value counted in; or nan."""
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        return float("nan")
    sides = np.count_nonzero(finite <= 0), np.count_nonzero(finite >= 0)
    return min(1.0, 2.0 * (1 + int(min(sides))) / (1 + len(finite)))
