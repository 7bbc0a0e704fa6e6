"""Choose beta, gamma and the number of dimensions on labelled pairs, and say how far the choice can be trusted.

Source: kexue.fm/archives/9079 (tune on a validation set). Differences: the score is held out and has an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kexue._arrays import Array, as_matrix, host, reread
from kexue.similarity._ranks import bootstrap_spearman, interval
from kexue.similarity.evaluation import pair_cosine, spearman
from kexue.similarity.whitening.estimator import Whitening
from kexue.similarity.whitening.kernel import Spectrum, numerical_rank, spectrum
from kexue.similarity.whitening.statistics import Moments, moments

Metric = Callable[[Array, Array], float]

_RCOND = 1e-10
_BOOTSTRAP = 1000
_KEEP = 0.9  # share of the mean square length that the safe setting keeps


@dataclass(frozen=True)
class TunedRow:
    """One setting: its score on all pairs, and the share of the mean square length about beta mean that it keeps.

    `name` is "raw" for the vectors as they are, else empty. Scores are nan where there were no labels.
    """

    beta: float
    gamma: float
    k: int
    score: float
    kept: float
    name: str = ""


@dataclass(frozen=True)
class Tuned:
    """What `tune_whitening` chose.

    Attributes:
        whitening: fitted, with the setting that is best on all pairs, or the safe one where pairs cannot choose.
        table: every setting tried, best first, and the raw vectors; its scores have seen the choice.
        score: held-out score of the procedure (nan without labels): on pairs that did not take part in the choice.
        low: 95 % interval of the held-out score, by bootstrap of the held-out pairs.
        high: its upper end.
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
    mean over folds, so it belongs to the procedure, not to a setting picked after the fact. The statistics use no
    labels and are taken from X once: one eigenproblem for each beta, gamma and k for nothing.

    Pairs that are too easy, or too few, do not tell settings apart: where the best of all settings is not better than
    the worst beyond noise, or the fewest dimensions do as well as the raw vectors, nothing can be chosen by them. Then
    the safe setting is taken (beta and gamma nearest to 0, the fewest dimensions that keep 90 % of the mean square
    length), and `advice` says so.

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
        ValueError: shapes that do not match, an index out of range, constant labels, or fewer than 4 pairs a fold.

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
    grid = (_candidates(betas, "betas"), _candidates(gammas, "gammas"), _dimensions(ks, d))
    found = moments(x)
    if pairs is None or labels is None:
        return _without_labels(found, grid[2])
    left, right = _sides(x, pairs, d)
    target = _labels(labels, len(left), cv)
    random = np.random.default_rng(generator)
    score_of = _metric(metric)

    settings = [(0.0, 0.0, d, 1.0, "raw")]
    cosines = [pair_cosine(left, right)]
    for setting, cosine in _all_cosines(found, left, right, grid):
        settings.append(setting)
        cosines.append(cosine)
    scores = np.array([score_of(cosine, target) for cosine in cosines])
    folds = _stratified(target, cv, random)
    choice = _best(settings, scores)
    doubt = _doubt(metric, settings, scores, cosines, target, choice, random)
    choice = _safe(settings) if doubt else choice

    held, raw, chosen = [], [], []
    for fold in range(cv):
        out, picked = folds == fold, choice
        if not doubt:
            picked = _best(settings, np.array([score_of(cosine[~out], target[~out]) for cosine in cosines]))
        chosen.append((cosines[picked][out], target[out]))
        held.append(score_of(*chosen[-1]))
        raw.append(score_of(cosines[0][out], target[out]))
    samples = _mean(np.array([_resampled(metric, [c], t, random)[0] for c, t in chosen]))
    low, high = interval(samples)

    table = [
        TunedRow(beta, gamma, k, float(score), kept, name)
        for (beta, gamma, k, kept, name), score in zip(settings, scores, strict=True)
    ]
    beta, gamma, k, _kept, _name = settings[choice]
    whitening = Whitening(k, beta=beta, gamma=gamma).merge(found)
    result, baseline = float(_mean(np.array(held))), float(_mean(np.array(raw)))
    advice = _advice(table[choice], d, len(target), result, low, high, baseline, doubt)
    table.sort(key=lambda row: (-row.score, row.k))
    return Tuned(whitening, table, result, low, high, baseline, advice)


# ---- the grid ------------------------------------------------------------------------------------------------------

_Grid = tuple[list[float], list[float], list[int]]
_Setting = tuple[float, float, int, float, str]  # beta, gamma, k, kept, name


def _all_cosines(found: Moments, left: Array, right: Array, grid: _Grid) -> Iterator[tuple[_Setting, Array]]:
    """Cosines of all pairs under every setting: three matrix products for each beta and gamma.

    In the eigenbasis <y, y'> = sum over j <= k of lambda_j^-gamma p_j q_j, so all k share the products p q, p p, q q.
    """
    betas, gammas, ks = grid
    for beta in betas:
        values, vectors = solved = spectrum(found, beta, 0)
        rank = numerical_rank(values, found.mean, _RCOND)
        p, q = ((side - beta * found.mean) @ vectors for side in (left, right))
        products = p * q, p * p, q * q
        for gamma in gammas:
            kept = sorted({k if gamma <= 0 else min(k, rank) for k in ks if gamma <= 0 or rank > 0})
            if not kept:
                continue
            columns = np.arange(len(values))[:, None] < np.array(kept)
            weights = np.ones_like(values) if gamma == 0 else np.zeros_like(values)
            used = slice(None) if gamma < 0 else slice(rank)
            if gamma != 0:
                weights[used] = values[used] ** -gamma
            dot, pp, qq = (product @ (weights[:, None] * columns) for product in products)
            size = np.sqrt(pp * qq)
            cosine = np.divide(dot, size, out=np.zeros_like(dot), where=size > 0)
            for column, k in enumerate(kept):
                yield (beta, gamma, k, _share(solved, k), ""), np.clip(cosine[:, column], -1.0, 1.0)


def _share(solved: Spectrum, k: int) -> float:
    total = float(solved.values.sum())
    return float(solved.values[:k].sum()) / total if total > 0 else 1.0


def _best(settings: list[_Setting], scores: Array) -> int:
    """Index of the best score; among equals the one with fewer dimensions, then the gentler. Raw itself is not one."""
    if not np.isfinite(scores[1:]).any():
        raise ValueError("no setting has a score: the metric is undefined on these pairs. Check that labels vary.")
    order = [
        (-round(float(score), 12) if math.isfinite(score) else math.inf, k, abs(gamma), abs(beta), index)
        for index, ((beta, gamma, k, _kept, _name), score) in enumerate(zip(settings, scores, strict=True))
    ]
    return min(order[1:])[-1]


def _safe(settings: list[_Setting]) -> int:
    """Index of the gentlest setting tried, with the fewest dimensions that keep 90 % of the mean square length."""
    gentlest = min((abs(gamma), abs(beta)) for beta, gamma, *_ in settings[1:])
    order = [
        ((kept < _KEEP, k if kept >= _KEEP else -k), index)
        for index, (beta, gamma, k, kept, _name) in enumerate(settings)
        if index and (abs(gamma), abs(beta)) == gentlest
    ]
    return min(order)[1]


def _doubt(
    metric: str | Metric,
    settings: list[_Setting],
    scores: Array,
    cosines: list[Array],
    labels: Array,
    choice: int,
    random: np.random.Generator,
) -> str:
    """Why the pairs cannot make the choice, in words; "" where they can; by resamples of the pairs."""
    worst = int(np.nanargmin(scores))
    best, least, raw = _resampled(metric, [cosines[i] for i in (choice, worst, 0)], labels, random)

    def alike(a: Array, b: Array) -> bool:
        low, high = interval(a - b)
        return not (low > 0 or high < 0)

    span = f"{scores[worst]:.3f} to {scores[choice]:.3f} over all settings, raw vectors {scores[0]:.3f}"
    if alike(best, least):
        return f"These pairs do not tell the settings apart ({span})"
    ks, d = sorted({k for _beta, _gamma, k, *_ in settings[1:]}), settings[0][2]
    if settings[choice][2] == ks[0] < d and alike(best, raw):
        return f"These pairs do not show what shortening costs: {ks[0]} of {d} dimensions do as well as all ({span})"
    return ""


# ---- the labels ----------------------------------------------------------------------------------------------------


def _stratified(labels: Array, cv: int, random: np.random.Generator) -> Array:
    """(m,) fold of each pair: runs of cv pairs with neighbouring labels are dealt out, one to a fold."""
    order = np.lexsort((random.random(len(labels)), labels))
    folds = np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(labels), cv):
        run = order[start : start + cv]
        folds[run] = random.permutation(cv)[: len(run)]
    return folds


def _resampled(metric: str | Metric, cosines: list[Array], labels: Array, random: np.random.Generator) -> Array:
    """(len(cosines), times) scores over resamples of the pairs, the same for all."""
    if not callable(metric):
        return bootstrap_spearman(cosines, labels, _BOOTSTRAP, random)
    drawn = random.integers(0, len(labels), size=(_BOOTSTRAP, len(labels)))
    return np.array([[metric(cosine[rows], labels[rows]) for rows in drawn] for cosine in cosines])


def _mean(values: Array) -> Array:
    """Mean over folds without those that have no score because all their labels are equal."""
    kept = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(kept, values, 0.0).sum(axis=0) / kept.sum(axis=0)
    return mean


def _metric(metric: str | Metric) -> Metric:
    if callable(metric):
        return metric
    if metric != "spearman":
        raise ValueError(f'metric must be "spearman" or a function of (cosines, labels), got {metric!r}.')
    return lambda cosines, labels: spearman(cosines, labels) if np.ptp(cosines) > 0 and np.ptp(labels) > 0 else math.nan


# ---- in words ------------------------------------------------------------------------------------------------------


def _without_labels(found: Moments, ks: list[int]) -> Tuned:
    solved = spectrum(found, 0.0, 0)
    d = len(found.mean)
    table = [TunedRow(0.0, 0.0, k, math.nan, _share(solved, k)) for k in ks]
    chosen = min(
        (row for row in table if row.kept >= _KEEP), key=lambda row: row.k, default=max(table, key=lambda r: r.k)
    )
    mean_share = float(found.mean @ found.mean) / max(float(solved.values.sum()), 1e-300)
    advice = (
        "No labels, so this is the safe setting, not the best: beta=0, gamma=0 changes cosines by truncation only; "
        f"{chosen.k} of {d} dimensions keep {chosen.kept:.1%} of the mean square length. What it cannot know: whether "
        f"your task gains from centring (the mean holds {mean_share:.0%} of the mean square length) or from isotropy; "
        "vectors of a plain language model often do, of a trained sentence encoder rarely. "
        "A few hundred labelled pairs settle it."
    )
    return Tuned(
        Whitening(chosen.k, beta=0.0, gamma=0.0).merge(found), table, math.nan, math.nan, math.nan, math.nan, advice
    )


def _advice(row: TunedRow, d: int, m: int, score: float, low: float, high: float, raw: float, doubt: str) -> str:
    setting = f"beta={row.beta:g}, gamma={row.gamma:g}, k={row.k} of {d}"
    held = f"held out {score:.3f} (95 % {low:.3f} to {high:.3f}, {m} pairs), raw vectors {raw:.3f}"
    if doubt:
        return (
            f"{doubt}, so this is the safe setting: {setting}, which keeps {row.kept:.1%} of the mean square length; "
            f"{held}. Harder or graded pairs, or more of them, would tell."
        )
    if raw > high:
        return f"Leave the vectors as they are: the best setting, {setting}, is worse than raw: {held}."
    if raw >= low:
        saves = f" It saves {1 - row.k / d:.0%} of the memory." if row.k < d else ""
        return f"No gain that these pairs can show: {setting}, {held}; raw lies within the interval.{saves}"
    return f"Use {setting}: {held}."


# ---- checks --------------------------------------------------------------------------------------------------------


def _candidates(values: Sequence[float], name: str) -> list[float]:
    found = sorted({float(value) for value in values})
    if not found or not np.isfinite(found).all():
        raise ValueError(f"{name} must hold at least one number, all finite, got {tuple(values)}.")
    return found


def _dimensions(ks: Sequence[int] | None, d: int) -> list[int]:
    if ks is None:
        halves = [d >> i for i in range(d.bit_length()) if d >> i >= 8]
        return sorted(halves or [d])
    found = sorted({int(k) for k in ks})
    if not found or found[0] < 1 or found[-1] > d:
        raise ValueError(f"ks must lie in [1, {d}], the number of dimensions, got {tuple(ks)}.")
    return found


def _sides(x: Any, pairs: Any, d: int) -> tuple[Array, Array]:
    """The two (m, d) arrays, float64, of pairs given as rows of X or as vectors."""
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


def _labels(labels: Any, m: int, cv: int) -> Array:
    target = np.asarray(host(labels), dtype=np.float64)
    if target.shape != (m,):
        raise ValueError(f"labels must have shape ({m},), one for each pair, got {target.shape}.")
    if not np.isfinite(target).all():
        raise ValueError(f"labels must be finite, got {target[~np.isfinite(target)][0]}.")
    if m and np.ptp(target) == 0:
        raise ValueError(f"all labels are {target[0]:g}; a choice needs pairs that differ.")
    if cv < 2 or m < 4 * cv:
        raise ValueError(f"cv={cv} folds of {m} pairs: need cv >= 2 and at least 4 pairs a fold.")
    return target
