"""Choice of beta, gamma and the number of dimensions on labelled pairs, with a held-out score.

Source: kexue.fm/archives/9079 (tune on a validation set). Differences: the score is held out and has an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kexue._arrays import Array, as_float64, as_matrix, host, reread
from kexue.similarity.bootstrap import Metric
from kexue.similarity.metrics import pair_cosine
from kexue.similarity.whitening.advice import advise, advise_without_labels
from kexue.similarity.whitening.estimator import Whitening
from kexue.similarity.whitening.grid import (
    Setting,
    best_setting,
    grid_cosines,
    kept_share,
    read_grid,
    safe_setting,
)
from kexue.similarity.whitening.kernel import second_moment_spectrum
from kexue.similarity.whitening.statistics import Moments, moments
from kexue.similarity.whitening.trial import Trial, stratify_folds


@dataclass(frozen=True)
class TunedRow:
    """One setting: its score on all pairs, and the share of the mean square length about beta mean that it keeps.

    `name` is "raw" for the vectors without whitening, else empty. Scores are nan where there were no labels.
    """

    beta: float
    gamma: float
    k: int
    score: float
    kept: float
    name: str = ""


@dataclass(frozen=True)
class Tuned:
    """Result of `tune_whitening`.

    Attributes:
        whitening: fitted, with the setting that is best on all pairs, or the safe one where the pairs cannot choose.
        table: every setting tried, best first, and the raw vectors; these scores are on the pairs of the choice.
        score: held-out score of the procedure (nan without labels): on pairs that took no part in the choice.
        low: lower end of the 95 % interval of the held-out score, by bootstrap of the held-out pairs.
        high: upper end of that interval.
        raw: score of the raw vectors on the same pairs, fold by fold like `score`.
        advice: the result in words.
    """

    whitening: Whitening
    table: list[TunedRow]
    score: float
    low: float
    high: float
    raw: float
    advice: str


def tune_whitening(
    X: Any,
    pairs: Any = None,
    labels: Any = None,
    *,
    betas: Sequence[float] = (0, 0.5, 1),
    gammas: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    ks: Sequence[int] | None = None,
    metric: str | Metric = "spearman",
    cv: int = 5,
    generator: np.random.Generator | int | None = 0,
) -> Tuned:
    """Choose (beta, gamma, k) for `Whitening` by cross-validation on labelled pairs.

    Each fold of pairs in turn is held out; the setting that is best on the other folds is scored on it. `score` is the
    mean over folds, so it measures the procedure, not the setting that is chosen. The statistics use no
    labels and are taken from X once: one eigenproblem for each beta, none for gamma and k.

    Pairs that are too easy, or too few, do not tell settings apart: if the best of all settings is not better than the
    worst beyond noise, or the fewest dimensions do as well as the raw vectors, the pairs cannot choose. Then the
    safe setting is taken (beta and gamma nearest to 0, the fewest dimensions that keep 90 % of the mean square length),
    and `advice` says so.

    Source: kexue.fm/archives/9079.

    Args:
        X: (n, d), the vectors whose statistics are taken.
        pairs: (m, 2) rows of X, or two arrays (m, d). Without pairs or labels no choice can be made, and the safe
            setting comes back: beta 0, gamma 0, the fewest dimensions in `ks` that keep 90 % of the mean square length.
        labels: (m,); larger = more alike.
        betas: candidates for beta.
        gammas: candidates for gamma.
        ks: candidates for the number of dimensions, each in [1, d]; None: d, d/2, d/4, ... down to 8.
        metric: "spearman", or a function of (cosines, labels) where larger is better.
        cv: folds, at least 2.
        generator: for folds and bootstrap; an int is a fresh generator with that seed.

    Returns:
        Tuned(whitening, table, score, low, high, raw, advice); scores are fractions, not x100.

    Raises:
        ValueError: shapes that do not match, an index out of range, constant labels, or fewer than 4 pairs per fold.

    Cost: one pass over X, d^3 for each beta, m d (number of gammas and ks) for the cosines.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(400, 16)); X[:, 0] *= 30          # one direction drowns the others
        >>> pairs = rng.integers(0, 400, size=(300, 2))
        >>> hidden = pair_cosine(X[pairs[:, 0], 1:], X[pairs[:, 1], 1:])
        >>> tuned = tune_whitening(X, pairs, hidden)
        >>> tuned.whitening.gamma, tuned.score > tuned.raw
        (1.0, True)
    """
    x, pairs = as_matrix(X), reread(pairs)
    d = int(x.shape[1])
    grid = read_grid(betas, gammas, ks, d)
    stats = moments(x)
    if pairs is None or labels is None:
        return _choose_without_labels(stats, grid.ks)
    left, right = _read_pairs(x, pairs, d)
    target = _read_labels(labels, len(left), cv)
    if not callable(metric) and metric != "spearman":
        raise ValueError(f'metric must be "spearman" or a function of (cosines, labels), got {metric!r}.')
    random = np.random.default_rng(generator)

    settings, cosines = [Setting(0.0, 0.0, d, 1.0, "raw")], [pair_cosine(left, right)]
    for setting, cosine in grid_cosines(stats, left, right, grid):  # eq. 4 (9079)
        settings.append(setting)
        cosines.append(cosine)
    trial = Trial(settings, cosines, target, metric)
    scores = trial.scores()
    folds = stratify_folds(target, cv, random)
    choice = best_setting(settings, scores)
    doubt = trial.find_doubt(scores, choice, random)
    choice = safe_setting(settings) if doubt else choice
    result = trial.hold_out(folds, choice if doubt else None, random)

    table = [
        TunedRow(each.beta, each.gamma, each.k, float(score), each.kept, each.name)
        for each, score in zip(settings, scores, strict=True)
    ]
    table.sort(key=lambda row: (-row.score, row.k))
    best = settings[choice]
    whitening = Whitening(best.k, beta=best.beta, gamma=best.gamma).merge(stats)
    advice = advise(best, d, len(target), result, doubt)
    return Tuned(whitening, table, result.score, result.low, result.high, result.raw, advice)


def _choose_without_labels(stats: Moments, ks: list[int]) -> Tuned:
    """Return the safe setting: beta 0, gamma 0, the fewest of `ks` that keep 90 % of the mean square length."""
    spectrum = second_moment_spectrum(stats, 0.0, 0)
    settings = [Setting(0.0, 0.0, k, kept_share(spectrum, k)) for k in ks]
    table = [TunedRow(each.beta, each.gamma, each.k, math.nan, each.kept) for each in settings]
    best = settings[safe_setting(settings)]
    mean_share = float(stats.mean @ stats.mean) / max(float(spectrum.values.sum()), 1e-300)
    advice = advise_without_labels(best.k, len(stats.mean), best.kept, mean_share)
    whitening = Whitening(best.k, beta=0.0, gamma=0.0).merge(stats)
    return Tuned(whitening, table, math.nan, math.nan, math.nan, math.nan, advice)


def _read_pairs(x: Any, pairs: Any, d: int) -> tuple[Array, Array]:
    """Return the two sides (m, d), float64, of pairs given as rows of X or as vectors."""
    if len(pairs) == 2 and all(np.ndim(host(side)) == 2 for side in pairs):
        left, right = (host(as_matrix(side, "pairs")).astype(np.float64) for side in pairs)
        if left.shape != right.shape or left.shape[1] != d:
            raise ValueError(f"pairs must be two arrays (m, {d}), got {left.shape} and {right.shape}.")
        return left, right
    rows = np.asarray(host(pairs))
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be (m, 2) integer rows of X, or two arrays (m, {d}); "
            f"got shape {rows.shape}, dtype {rows.dtype}."
        )
    n = int(x.shape[0])
    if len(rows) and (rows.min() < 0 or rows.max() >= n):
        raise ValueError(f"pairs must hold rows in [0, {n - 1}], got {rows.min()} to {rows.max()}.")
    used, back = np.unique(rows, return_inverse=True)
    vectors = host(x[used]).astype(np.float64)
    back = back.reshape(rows.shape)
    return vectors[back[:, 0]], vectors[back[:, 1]]


def _read_labels(labels: Any, m: int, cv: int) -> Array:
    """Return the labels (m,) as float64; ValueError unless finite, not all equal, and enough for `cv` folds."""
    target = as_float64(labels)
    if target.shape != (m,):
        raise ValueError(f"labels must have shape ({m},), one for each pair, got {target.shape}.")
    if not np.isfinite(target).all():
        raise ValueError(f"labels must be finite, got {target[~np.isfinite(target)][0]}.")
    if m and np.ptp(target) == 0:
        raise ValueError(f"all labels are {target[0]:g}; a choice needs pairs that differ.")
    if cv < 2 or m < 4 * cv:
        raise ValueError(f"cv={cv} folds of {m} pairs: need cv >= 2 and at least 4 pairs per fold.")
    return target
