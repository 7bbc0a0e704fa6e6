"""Whether chains agree, and how many independent draws theirs are worth: R-hat, effective sample size, IAT.

Source: kexue.fm/archives/8084 (chains); Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Bayesian Analysis 16(2),
arXiv:1903.08008; Geyer 1992, Statistical Science 7(4), for the sequences of pairs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from scipy import fft, special, stats

from kexue._arrays import Array, finite_rows

LEAST = 4  # draws of a chain: two in each half
_TAILS = (0.05, 0.95)


def split_rhat(x: Any) -> float:
    """Compute rank-normalised split R-hat: above 1.01 the chains have not yet the same law.

    R-hat = sqrt((B + (n - 1) W) / (n W)) of the halves of all chains, n draws each: W is the mean of their variances,
    B is n times the variance of their means. Values are replaced by normal scores of their ranks, so that heavy tails
    do no harm. The larger of two is returned, of x and of |x - median|: chains may differ in place or in width.

    Source: Vehtari et al. 2021, eqs. 4, 14 and section 4.2.

    Args:
        x: (chains, draws), draws >= 4; one chain is compared with itself.

    Returns:
        >= 0; NaN where all values are equal, inf where no half ever moves but halves differ.

    Raises:
        ValueError: another shape, too few draws, NaN or infinity.
    """
    halves = _split(_series(x))
    folded = np.abs(halves - np.median(halves))
    return float(np.fmax(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded))))


def effective_sample_size(x: Any, kind: Literal["bulk", "tail", "mean"] = "bulk") -> float:
    """Compute how many independent draws say as much as these: ESS = chains draws / IAT.

    Args:
        x: (chains, draws), draws >= 4.
        kind: "bulk": of the normal scores of the ranks, for the centre of the law; "tail": the smaller of those of the
            indicators of the 5 % and the 95 % quantile; "mean": of the values themselves, for their mean.

    Returns:
        > 0; the number of draws where all values are equal. Above it where draws alternate around the mean.

    Raises:
        ValueError: as of `split_rhat`, or another kind.
    """
    series = _series(x)
    if kind == "bulk":
        return _ess(_normal_scores(_split(series)))
    if kind == "tail":
        return min(_ess(_split((series <= np.quantile(series, tail)).astype(np.float64))) for tail in _TAILS)
    if kind == "mean":
        return _ess(_split(series))
    raise ValueError(f'kind must be "bulk", "tail" or "mean", got {kind!r}')


def integrated_autocorrelation_time(x: Any) -> float:
    """Compute the integrated autocorrelation time: how many draws of these chains are worth an independent one.

    tau = 1 + 2 sum over lags k >= 1 of rho_k, cut where sums of pairs rho_2k + rho_2k+1 turn negative, and made falling
    before (Geyer's initial monotone sequence). The autocorrelations rho_k are those of the halves of all chains.

    Args:
        x: (chains, draws), draws >= 4.

    Raises:
        ValueError: as of `split_rhat`.
    """
    series = _series(x)
    return series.size / _ess(_split(series))


def _series(x: Any) -> Array:
    series = finite_rows(np.asarray(x)[None] if np.ndim(x) == 1 else x, "x")
    if not len(series) or series.shape[1] < LEAST:
        raise ValueError(f"x must be (chains, draws) with at least {LEAST} draws, got shape {series.shape}")
    return series


def _split(series: Array) -> Array:
    """Return the halves (2 chains, draws // 2) of all chains; of an odd number of draws the middle one is left out."""
    half = series.shape[1] // 2
    return np.concatenate([series[:, :half], series[:, -half:]])


def _normal_scores(series: Array) -> Array:
    """Return the normal quantiles of the average ranks r of all N values: of (r - 3/8) / (N + 1/4) (eq. 14)."""
    ranks = stats.rankdata(series, axis=None).reshape(series.shape)
    scores: Array = special.ndtri((ranks - 0.375) / (series.size + 0.25))
    return scores


def _rhat(series: Array) -> float:
    n = series.shape[1]
    between, within = float(series.mean(1).var(ddof=1)), float(series.var(1, ddof=1).mean())
    if not np.ptp(series, axis=1).any():  # `within` may be above 0, by rounding
        return math.inf if np.ptp(series) else math.nan
    return math.sqrt(between / within + (n - 1) / n)  # eq. 4


def _ess(series: Array) -> float:
    """Return the effective sample size of chains (m, n) by their joint autocorrelations (eqs. 10 to 13)."""
    m, n = series.shape
    if np.ptp(series) < np.finfo(float).resolution:
        return float(m * n)
    covariances = _autocovariances(series).mean(0)
    within = covariances[0] * n / (n - 1)
    total = covariances[0] + (series.mean(1).var(ddof=1) if m > 1 else 0.0)
    rho = 1 - (within - covariances) / total  # eq. 10
    rho[0] = 1.0
    pairs = rho[: 2 * (n // 2)].reshape(-1, 2).sum(1)[: max(0, (n - 3) // 2)]
    negative = np.flatnonzero(pairs <= 0)
    last = int(negative[0]) if len(negative) else len(pairs)  # the first pair that does not count
    kept = np.minimum.accumulate(pairs[:last])
    tail = rho[2 * last] if rho[2 * last] + rho[2 * last + 1] >= 0 else max(0.0, rho[2 * last])
    tau = -1 + 2 * float(kept.sum()) + tail
    return float(m * n / max(float(tau), 1 / math.log10(m * n)))


def _autocovariances(series: Array) -> Array:
    """Return autocovariances (m, n) of m chains at lags 0 to n - 1, each divided by n."""
    n = series.shape[1]
    size = fft.next_fast_len(2 * n, real=True)
    spectrum = fft.rfft(series - series.mean(1, keepdims=True), size, axis=1)
    covariances: Array = fft.irfft(np.abs(spectrum) ** 2, size, axis=1)[:, :n] / n
    return covariances
