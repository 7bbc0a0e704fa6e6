"""What a score means: its rank among random pairs and, with labels, a probability and a threshold.

Without labels. Scores of random pairs of a corpus are draws of "two texts that have nothing to do with one another".
The percentile of a score is the share of them that lies below; by construction it is uniform on random pairs, whatever
the encoder, so 99.9 means the same in every index.

With labels. Isotonic regression (pool adjacent violators) or Platt's logistic curve turns a score into P(label = 1).

Sources: Platt 1999, "Probabilistic outputs for support vector machines" (smoothed targets, section 2.2); Zadrozny and
Elkan 2002 (isotonic); Wilson 1927 (interval of a share).
"""

from __future__ import annotations

import json
import os
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from scipy import optimize, special

from kexue._files import replacing
from kexue.errors import DataError, InfeasibleError, NotFittedError
from kexue.similarity._arrays import Array, as_matrix, host

_Z = float(special.ndtri(0.975))  # intervals are 95 %
_FORMAT = "kexue-calibration-1"
_ARRAYS = ("null", "scores", "labels")
_CHUNK = 65_536


class Probability(NamedTuple):
    """P(label = 1) with a 95 % interval; each an array shaped as the scores."""

    value: Array
    low: Array
    high: Array


class Threshold(NamedTuple):
    """The lowest score from which on the wanted precision is kept.

    `precision` and `recall` are those on the labelled pairs at `value`; `low` and `high` bound the precision at 95 %.
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
        >>> calibrator.percentile([-2.0, 0.0, 2.0]).tolist()
        [0.0, 50.0, 100.0]
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
        """100 times the share of random pairs with a lower score, ties counted half; in [0, 100], shaped as `scores`.

        Raises:
            NotFittedError: before `fit`.
        """
        null = _fitted(self.null_, "fit(null_scores)")
        wanted = np.asarray(scores, dtype=np.float64)
        below, upto = np.searchsorted(null, wanted, "left"), np.searchsorted(null, wanted, "right")
        return np.asarray(50.0 * (below + upto) / len(null))

    # What the labels say

    def fit_labels(self, scores: Any, labels: Any) -> Self:
        """Take in labelled pairs: scores (m,) and labels (m,), 0 or 1, both of them present.

        Raises:
            ValueError: lengths that differ, NaN, or labels of one kind only or other than 0 and 1.
        """
        found, marks = _finite(scores, "scores"), _finite(labels, "labels")
        if found.shape != marks.shape:
            raise ValueError(f"{len(found)} scores came with {len(marks)} labels")
        kinds = set(np.unique(marks).tolist())
        if kinds != {0.0, 1.0}:
            raise ValueError(f"labels must be 0 and 1 with both present, got the values {sorted(kinds)[:5]}")
        order = np.argsort(found, kind="stable")
        self.scores_, self.labels_ = found[order], marks[order]
        return self

    def probability(self, scores: Any) -> Probability:
        """P(label = 1 | score), rising with the score, and its 95 % interval.

        Isotonic: the value is the share of ones in the block that holds the score, its interval Wilson's for the block,
        made rising; between blocks it is linear. Platt: 1/(1 + exp(-(a s + b))) on smoothed targets; the interval comes
        from the curvature of the likelihood.

        Raises:
            NotFittedError: before `fit_labels`.
        """
        known = _fitted(self.scores_, "fit_labels(scores, labels)")
        labels = _fitted(self.labels_, "fit_labels(scores, labels)")
        wanted = np.asarray(scores, dtype=np.float64)
        if self.method == "platt":
            return _platt(known, labels, wanted)
        centres, ones, total = _blocks(known, labels)
        low, high = wilson(ones, total)
        curves = (ones / total, np.maximum.accumulate(low), np.minimum.accumulate(high[::-1])[::-1])
        return Probability(*(np.asarray(np.interp(wanted, centres, curve)) for curve in curves))

    def threshold(self, precision: float = 0.9) -> Threshold:
        """The lowest score t such that labelled pairs with a score of at least t keep `precision`.

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
        at = int(reached[0])
        low, high = wilson(ones[at : at + 1], taken[at : at + 1])
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
                    raise DataError("this is no saved calibration.", path=path)
                made = cls(**json.loads(metadata["parameters"]))
                stored = set(file.keys())
                for name in _ARRAYS:
                    if name in stored:
                        setattr(made, f"{name}_", file.get_tensor(name))
        except SafetensorError as error:
            raise DataError(f"this is no saved calibration ({error}).", path=path) from error
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
        a, b = (host(matrix[rows]).astype(np.float64) for rows in (i, j))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        dots = np.einsum("ij,ij->i", a, b)
        scores[start : start + size] = np.divide(dots, lengths, out=np.zeros(size), where=lengths > 0)
    return np.clip(_finite(scores, "embeddings' cosines"), -1.0, 1.0)


def wilson(ones: Array, total: Array) -> tuple[Array, Array]:
    """Wilson's 95 % interval for shares ``ones / total``."""
    share = ones / total
    centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z * np.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / (1 + _Z**2 / total)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def _blocks(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Mean score, ones and size of the blocks of the isotonic fit; equal scores share a block."""
    values, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ones = np.bincount(place, weights=labels)
    fit = optimize.isotonic_regression(ones / sizes, weights=sizes.astype(np.float64))
    starts = fit.blocks[:-1]
    total = np.add.reduceat(sizes, starts).astype(np.float64)
    return np.add.reduceat(values * sizes, starts) / total, np.add.reduceat(ones, starts), total


def _platt(known: Array, labels: Array, wanted: Array) -> Probability:
    positives, negatives = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, scale = known.mean(), known.std() or 1.0
    x = np.column_stack([(known - centre) / scale, np.ones_like(known)])

    def loss(w: Array) -> tuple[float, Array]:
        z = x @ w
        return float((np.logaddexp(0, z) - targets * z).sum()), x.T @ (special.expit(z) - targets)

    w = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    p = special.expit(x @ w)
    covariance = np.linalg.pinv(x.T @ (x * (p * (1 - p))[:, None]))
    at = np.stack([(wanted - centre) / scale, np.ones_like(wanted)], axis=-1)
    z = at @ w
    spread = _Z * np.sqrt(np.einsum("...i,ij,...j->...", at, covariance, at))
    return Probability(*(np.asarray(special.expit(v)) for v in (z, z - spread, z + spread)))


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
