"""Probability of a label as a function of the score, with limits that assume only that it does not fall.

The interval assumes that P does not fall as the score rises: then the expected share of ones among the pairs just
below a score is at most P, and among the pairs just above at least P. The Clopper-Pearson limits of these two shares
bound P, whatever the shape of the curve.

Sources: Platt 1999, "Probabilistic outputs for support vector machines" (smoothed targets, section 2.2); Zadrozny and
Elkan 2002 (isotonic regression: pool adjacent violators); Clopper and Pearson 1934 (limits of a share).
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from kexue._arrays import Array

_TAIL = 0.025  # probability beyond either limit: intervals are 95 %


def clopper_pearson(ones: Array, total: Array, tail: float = _TAIL) -> tuple[Array, Array]:
    """Return the Clopper-Pearson limits of shares ``ones / total``; each is exceeded with probability <= `tail`."""
    low = special.betaincinv(np.maximum(ones, 1), total - ones + 1, tail)
    high = special.betaincinv(ones + 1, np.maximum(total - ones, 1), 1 - tail)
    return np.where(ones > 0, low, 0.0), np.where(ones < total, high, 1.0)


def mean_limits(mean: float, n: int) -> tuple[float, float]:
    """Return confidence limits of the mean of numbers between 0 and 1, of which `n` had the mean `mean`.

    Such numbers vary at most as much as zeros and ones of the same mean, so the limits of a share are wide enough.
    """
    low, high = clopper_pearson(np.array([mean * n]), np.array([n]))
    return float(low[0]), float(high[0])


def monotone_limits(scores: Array, labels: Array, wanted: Array) -> tuple[Array, Array]:
    """Return confidence limits of the probability at each wanted score, if it does not fall as the score rises.

    They come from the m^(2/3) nearest pairs on each side. The choice of these pairs does not depend on their
    labels, so the limits of their shares hold. The limits are then made monotone by widening them.
    """
    m = len(scores)
    reach = max(10, round(m ** (2 / 3)))
    ones = np.concatenate([[0.0], np.cumsum(labels)])
    values = np.unique(scores)
    stop = np.searchsorted(scores, values, "right")  # pairs up to each value; whole runs of equal scores
    start = np.searchsorted(scores, scores[np.maximum(stop - reach, 0)], "left")
    low = clopper_pearson(ones[stop] - ones[start], stop - start)[0]
    start = np.searchsorted(scores, values, "left")
    stop = np.searchsorted(scores, scores[np.minimum(start + reach, m) - 1], "right")
    high = clopper_pearson(ones[stop] - ones[start], stop - start)[1]
    low, high = np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
    # Between two scores of the pairs: the lower limit of the one below and the upper limit of the one above.
    below, above = np.searchsorted(values, wanted, "right"), np.searchsorted(values, wanted, "left")
    return np.concatenate([[0.0], low])[below], np.concatenate([high, [1.0]])[above]


def isotonic_curve(scores: Array, labels: Array, wanted: Array) -> Array:
    """Return the isotonic fit: the share of ones within a block, linear between blocks; equal scores share a block."""
    values, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ones = np.bincount(place, weights=labels)
    fit = optimize.isotonic_regression(ones / sizes, weights=sizes.astype(np.float64))
    starts, ends = fit.blocks[:-1], fit.blocks[1:] - 1
    share = np.add.reduceat(ones, starts) / np.add.reduceat(sizes, starts)
    return np.asarray(np.interp(wanted, values[np.column_stack([starts, ends]).ravel()], np.repeat(share, 2)))


def platt_curve(scores: Array, labels: Array, wanted: Array) -> Array:
    """Return Platt's fit: the logistic curve 1/(1 + exp(-(a s + b))), a >= 0, on smoothed targets."""
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    exponent = np.frexp(np.abs(scores).max())[1]  # squares of very large or small scores over- or underflow
    with np.errstate(over="ignore"):
        scores, wanted = np.ldexp(scores, -exponent), np.ldexp(wanted, -exponent)
    centre, scale = scores.mean(), scores.std() or 1.0
    x = np.column_stack([(scores - centre) / scale, np.ones_like(scores)])

    def loss(w: Array) -> tuple[float, Array]:
        z = x @ w
        return float((np.logaddexp(0, z) - targets * z).sum()), x.T @ (special.expit(z) - targets)

    w = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    if w[0] < 0:  # the curve would fall: a flat one instead; `fit_labels` warns
        w = np.array([0.0, special.logit(targets.mean())])
    return np.asarray(special.expit(np.clip((wanted - centre) / scale, -1e9, 1e9) * w[0] + w[1]))
