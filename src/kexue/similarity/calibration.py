"""What a score means: its rank among random pairs and, with labels, a probability and a threshold.

Without labels. Scores of random pairs of a corpus are draws of "two texts that have nothing to do with one another".
The percentile of a score is the share of them that lies below; by construction it is uniform on random pairs, whatever
the encoder, so 99.9 means the same in every index. n pairs tell nothing beyond one in n + 1: no percentile is higher
than 100 n/(n + 1), none lower than 100/(n + 1).

With labels. Isotonic regression (pool adjacent violators) or Platt's logistic curve turns a score into P(label = 1).
The interval of either asks for one thing only, that P does not fall as the score rises: then the share of ones among
the pairs just below a score cannot be expected above P, nor that among the pairs just above below it. Clopper and
Pearson's limits of these two shares bound P, whatever the shape of the curve.

Sources: Platt 1999, "Probabilistic outputs for support vector machines" (smoothed targets, section 2.2); Zadrozny and
Elkan 2002 (isotonic); Clopper and Pearson 1934 (limits of a share).
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from scipy import optimize, special

from kexue._arrays import Array, as_matrix, finite_rows, host
from kexue._files import replacing
from kexue._text import parse_json
from kexue.errors import DataError, InfeasibleError, NotFittedError
from kexue.similarity._ranks import average_ranks
from kexue.similarity._vectors import unit_rows

_TAIL = 0.025  # on either side: intervals are 95 %
_FORMAT = "kexue-calibration-1"
_ARRAYS = ("null", "scores", "labels")
_CHUNK = 65_536


class Probability(NamedTuple):
    """P(label = 1) with an interval that holds it 95 % of the time or more; each an array shaped as the scores."""

    value: Array
    low: Array
    high: Array


class Threshold(NamedTuple):
    """The score from which on the wanted precision is kept.

    `precision` and `recall` are those on the labelled pairs at `value`; `low` and `high` bound the precision on other
    pairs at 95 %, by Clopper and Pearson, whose caution outweighs that the threshold was chosen on the same pairs.
    """

    value: float
    precision: float
    low: float
    high: float
    recall: float


class ScoreCalibrator:
    """Percentile, probability and threshold of similarity scores.

    Args:
        method: ``"isotonic"`` follows any rising curve and wants some hundred labels; ``"platt"`` fits the two numbers
            of a logistic curve and makes do with some dozen.

    Attributes:
        null_: (n,), sorted scores of random pairs, or None before `fit`.
        scores_, labels_: (m,) each, sorted by score, or None before `fit_labels`.

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
        self.scores_: Array | None = None
        self.labels_: Array | None = None

    # What the scores of unrelated texts are

    def fit(self, null_scores: Any) -> Self:
        """Take in scores of random pairs, (n,), as `random_pair_scores` draws them."""
        self.null_ = np.sort(_finite(null_scores, "null_scores"))
        return self

    def percentile(self, scores: Any) -> Array:
        """100 times the share of random pairs with a lower score, ties counted half; shaped as `scores`.

        In [100/(n + 1), 100 n/(n + 1)] for n random pairs: a score above all of them is above one more draw that often.

        Raises:
            NotFittedError: before `fit`. ValueError: a NaN.
        """
        null = _fitted(self.null_, "fit(null_scores)")
        wanted, n = _numbers(scores), len(null)
        below, upto = np.searchsorted(null, wanted, "left"), np.searchsorted(null, wanted, "right")
        return np.asarray(np.clip(50.0 * (below + upto) / n, 100.0 / (n + 1), 100.0 * n / (n + 1)))

    # What the labels say

    def fit_labels(self, scores: Any, labels: Any) -> Self:
        """Take in labelled pairs: scores (m,) and labels (m,), 0 or 1, both of them present.

        Warns where ones do not score higher than zeros on the whole, though not by so much that it cannot be chance.

        Raises:
            ValueError: lengths that differ, NaN, labels of one kind only or other than 0 and 1, or ones that score
                lower than zeros beyond chance: labels the wrong way round, or distances for scores.
        """
        found, marks = _finite(scores, "scores"), _finite(labels, "labels")
        if found.shape != marks.shape:
            raise ValueError(f"{len(found)} scores came with {len(marks)} labels")
        kinds = set(np.unique(marks).tolist())
        if kinds != {0.0, 1.0}:
            raise ValueError(f"labels must be 0 and 1 with both present, got the values {sorted(kinds)[:5]}")
        self._check_direction(found, marks)
        order = np.argsort(found, kind="stable")
        self.scores_, self.labels_ = found[order], marks[order]
        return self

    def _check_direction(self, scores: Array, labels: Array) -> None:
        """Mann and Whitney's test of ones against zeros."""
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
                "flat: these pairs do not tell what a score means.",
                stacklevel=3,
            )

    def probability(self, scores: Any) -> Probability:
        """P(label = 1 | score), never falling with the score, and its 95 % interval.

        Isotonic: the value is the share of ones in the block that holds the score; between two blocks, where no score
        was seen, it is linear. Platt: 1/(1 + exp(-(a s + b))), a >= 0, on smoothed targets. The interval is the same
        for both: see the module's first lines. It holds for each score by itself, for a P that does not fall.

        Raises:
            NotFittedError: before `fit_labels`. ValueError: a NaN.
        """
        known = _fitted(self.scores_, "fit_labels(scores, labels)")
        labels = _fitted(self.labels_, "fit_labels(scores, labels)")
        wanted = _numbers(scores)
        value = _platt(known, labels, wanted) if self.method == "platt" else _isotonic(known, labels, wanted)
        low, high = _rising_limits(known, labels, wanted)
        return Probability(value, np.minimum(low, value), np.maximum(high, value))

    def threshold(self, precision: float = 0.9) -> Threshold:
        """The score t from which on labelled pairs keep `precision`, with the largest recall there is.

        Of the scores with that recall the highest, which is the most precise.

        Args:
            precision: in (0, 1], the wanted share of ones among the pairs at or above the threshold.

        Raises:
            InfeasibleError: no threshold reaches it; the message names the best precision there is.
            NotFittedError: before `fit_labels`. ValueError: `precision` outside (0, 1].
        """
        scores = _fitted(self.scores_, "fit_labels(scores, labels)")
        labels = _fitted(self.labels_, "fit_labels(scores, labels)")
        if not 0 < precision <= 1:
            raise ValueError(f"precision must be in (0, 1], got {precision}")
        # At a tie all pairs of that score are in or out: only the first of each run can be a threshold.
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
        low, high = share_limits(ones[at : at + 1], taken[at : at + 1])
        recall = float(ones[at] / labels.sum())
        return Threshold(float(scores[first[at]]), float(share[at]), float(low[0]), float(high[0]), recall)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; what was not fitted is left out."""
        from safetensors.numpy import save_file

        arrays = {name: getattr(self, f"{name}_") for name in _ARRAYS}
        kept = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        with replacing(path) as temporary:
            save_file(kept, temporary, metadata={"format": _FORMAT, "parameters": json.dumps({"method": self.method})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise DataError("this is no saved calibration.", path=path, remedy="Write one with save.")
                made = cls(**parse_json(metadata["parameters"], path))
                stored = set(file.keys())
                for name in _ARRAYS:
                    if name in stored:
                        setattr(made, f"{name}_", file.get_tensor(name))
        except (SafetensorError, KeyError, TypeError) as error:
            raise DataError(
                f"this is no saved calibration ({error}).", path=path, remedy="Write one with save."
            ) from error
        return made


def random_pair_scores(embeddings: Any, n: int = 100_000, *, generator: Any = 0) -> Array:
    """Cosines of random pairs of different rows: what scores look like where texts have nothing to do with each other.

    Args:
        embeddings: (m, d), m >= 2, numpy or torch.
        n: how many pairs, drawn with replacement from the m (m - 1) / 2.
        generator: numpy Generator or seed; None draws fresh.

    Returns:
        (n,) float64, in [-1, 1]; 0 where a row is zero.

    Raises:
        ValueError: fewer than two rows, n < 1, or NaN.

    Example:
        >>> import numpy as np
        >>> random_pair_scores(np.array([[1.0, 0.0], [0.0, 2.0]]), 3).tolist()
        [0.0, 0.0, 0.0]

    Cost: O(n d) time, memory for 65,536 pairs at a time.
    """
    matrix = as_matrix(embeddings, "embeddings")
    if matrix.shape[0] < 2 or n < 1:
        raise ValueError(f"random pairs need two rows and n >= 1, got {matrix.shape[0]} rows and n = {n}")
    rng = np.random.default_rng(generator)
    scores = np.empty(n)
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        i = rng.integers(matrix.shape[0], size=size)
        j = (i + rng.integers(1, matrix.shape[0], size=size)) % matrix.shape[0]  # any other row, all equally likely
        a, b = (unit_rows(finite_rows(matrix[rows], "embeddings")) for rows in (i, j))
        scores[start : start + size] = np.einsum("ij,ij->i", a, b)
    return np.clip(scores, -1.0, 1.0)


def null_scores(embeddings: Any, n: int, *, generator: Any = 0) -> Array:
    """Cosines of `n` random pairs; of every pair once where there are no more: drawn twice it would count for two."""
    matrix = as_matrix(embeddings, "embeddings")
    m = int(matrix.shape[0])
    if m < 2 or m * (m - 1) // 2 > n:
        return random_pair_scores(matrix, n, generator=generator)
    unit = unit_rows(finite_rows(matrix, "embeddings"))
    return np.asarray(np.clip((unit @ unit.T)[np.triu_indices(m, 1)], -1.0, 1.0))


def share_limits(ones: Array, total: Array, tail: float = _TAIL) -> tuple[Array, Array]:
    """Clopper and Pearson's limits of shares ``ones / total``: each is passed with a chance of `tail` at most."""
    low = special.betaincinv(np.maximum(ones, 1), total - ones + 1, tail)
    high = special.betaincinv(ones + 1, np.maximum(total - ones, 1), 1 - tail)
    return np.where(ones > 0, low, 0.0), np.where(ones < total, high, 1.0)


def _rising_limits(scores: Array, labels: Array, wanted: Array) -> tuple[Array, Array]:
    """Limits of a rising P at each wanted score, from the m^(2/3) pairs next below and next above it.

    Which pairs these are does not hang on their labels, so the limits of their shares hold. Made rising outwards, which
    only widens them.
    """
    m = len(scores)
    reach = max(10, round(m ** (2 / 3)))
    ones = np.concatenate([[0.0], np.cumsum(labels)])
    values = np.unique(scores)
    stop = np.searchsorted(scores, values, "right")  # pairs up to each value; whole runs of equal scores
    start = np.searchsorted(scores, scores[np.maximum(stop - reach, 0)], "left")
    low = share_limits(ones[stop] - ones[start], stop - start)[0]
    start = np.searchsorted(scores, values, "left")
    stop = np.searchsorted(scores, scores[np.minimum(start + reach, m) - 1], "right")
    high = share_limits(ones[stop] - ones[start], stop - start)[1]
    low, high = np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)
    # At a score that was not seen: what the next seen below, and the next above, bound.
    below, above = np.searchsorted(values, wanted, "right"), np.searchsorted(values, wanted, "left")
    return np.concatenate([[0.0], low])[below], np.concatenate([high, [1.0]])[above]


def _isotonic(scores: Array, labels: Array, wanted: Array) -> Array:
    """The isotonic fit: the share of ones within a block, linear between blocks; equal scores share a block."""
    values, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ones = np.bincount(place, weights=labels)
    fit = optimize.isotonic_regression(ones / sizes, weights=sizes.astype(np.float64))
    starts, ends = fit.blocks[:-1], fit.blocks[1:] - 1
    share = np.add.reduceat(ones, starts) / np.add.reduceat(sizes, starts)
    return np.asarray(np.interp(wanted, values[np.column_stack([starts, ends]).ravel()], np.repeat(share, 2)))


def _platt(known: Array, labels: Array, wanted: Array) -> Array:
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    exponent = np.frexp(np.abs(known).max())[1]  # squares of very large or small scores leave float64
    with np.errstate(over="ignore"):
        known, wanted = np.ldexp(known, -exponent), np.ldexp(wanted, -exponent)
    centre, scale = known.mean(), known.std() or 1.0
    x = np.column_stack([(known - centre) / scale, np.ones_like(known)])

    def loss(w: Array) -> tuple[float, Array]:
        z = x @ w
        return float((np.logaddexp(0, z) - targets * z).sum()), x.T @ (special.expit(z) - targets)

    w = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    if w[0] < 0:  # `fit_labels` has said so
        w = np.array([0.0, special.logit(targets.mean())])
    return np.asarray(special.expit(np.clip((wanted - centre) / scale, -1e9, 1e9) * w[0] + w[1]))


def _numbers(scores: Any) -> Array:
    wanted = np.asarray(host(scores), dtype=np.float64)
    if np.isnan(wanted).any():
        raise ValueError(f"scores hold NaN at position {int(np.isnan(wanted).ravel().argmax())}; each must be a number")
    return wanted


def _finite(values: Any, name: str) -> Array:
    found = np.asarray(host(values), dtype=np.float64)
    if found.ndim != 1 or len(found) == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, got shape {found.shape}")
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"{name} holds {found[place]} at position {place}; every number must be finite")
    return found


def _fitted(values: Array | None, call: str) -> Array:
    if values is None:
        raise NotFittedError("this calibrator has not seen what the answer needs.", remedy=f"Call {call} first.")
    return values
