"""Hubness: a few vectors are among the nearest of very many queries. Measure it, reduce it, use it for sampling.

N_k(i), the k-occurrence of a vector, is the number of other vectors that have it among their k nearest. Its mean is k;
in high dimension its distribution grows a long right tail (hubs) and a heap at zero (antihubs).

Sources: kexue.fm/archives/9147; Liang et al. 2022, arXiv:2206.06014 (sampling); Radovanovic et al. 2010, JMLR 11 (the
phenomenon); Schnitzer et al. 2012, JMLR 13 (mutual proximity); Conneau et al. 2018, arXiv:1710.04087 (CSLS);
Zelnik-Manor and Perona 2004 (local scaling); Jegou et al. 2007 (NICDM).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from scipy import special

from kexue._arrays import Array, as_matrix, finite_rows, host, like, raise_non_finite
from kexue.errors import InfeasibleError, NotFittedError, NotSupported
from kexue.similarity._vectors import centred_unit_rows, mean_row, unit_rows
from kexue.similarity.neighbours.knn import Backend, nearest

Metric = Literal["euclidean", "cosine"]
Method = Literal["csls", "center", "nicdm", "local_scaling", "mutual_proximity"]
_METHODS = ("csls", "center", "nicdm", "local_scaling", "mutual_proximity")
_SAMPLE = 10_000  # rows that mutual proximity takes its means and deviations from
_BLOCK = 1024  # rows compared with them at a time


def ball_to_cube_ratio(n: int) -> float:
    """Volume of the unit ball over that of the cube around it: pi^(n/2) / (2^n Gamma(n/2 + 1)).

    Source: kexue.fm/archives/9147. It vanishes faster than exponentially, so a corner is the typical place of a cube.

    Args:
        n: dimension, at least 1.

    Example:
        >>> round(ball_to_cube_ratio(3), 4)
        0.5236
    """
    if n < 1:
        raise ValueError(f"the dimension must be at least 1, got {n}")
    return math.exp(n / 2 * math.log(math.pi) - n * math.log(2) - math.lgamma(n / 2 + 1))


def k_occurrence(
    embeddings: Any,
    k: int = 10,
    *,
    metric: Metric = "euclidean",
    queries: Any = None,
    chunk: int = 4096,
    backend: Backend = "exact",
    generator: Any = 0,
) -> Array:
    """N_k: how often each vector is among the k nearest of another (or of the `queries`).

    Source: kexue.fm/archives/9147, the "hub value"; a vector is never counted as its own neighbour.

    Args:
        embeddings: (n, d), numpy or torch.
        k: 1 <= k < n.
        metric: ``"euclidean"`` or ``"cosine"``.
        queries: (m, d), counted instead of the vectors themselves; then k <= n.
        chunk: queries compared at a time.
        backend: ``"exact"``, or ``"approx"`` for large n (FAISS; its misses fall on antihubs).
        generator: draws among ties for the k-th place, for each query anew, so that all of them count alike in the
            mean; int or numpy Generator.

    Returns:
        (n,) int64; the sum is n k (m k with `queries`).

    Raises:
        ValueError: k out of range, an unknown metric, NaN, a zero vector with cosine.

    Example:
        >>> import numpy as np
        >>> k_occurrence(np.array([[0.0], [1.0], [2.1]]), k=1).tolist()
        [1, 2, 0]

    Cost: O(n^2 d) time, 8 chunk n bytes.
    """
    _check_metric(metric)
    points = as_matrix(embeddings, "embeddings")
    chosen, _ = nearest(
        points,
        k,
        queries=queries,
        cosine=metric == "cosine",
        chunk=chunk,
        backend=backend,
        generator=generator,
    )
    return np.bincount(chosen.ravel(), minlength=len(points)).astype(np.int64)


class HubnessReport(NamedTuple):
    """How unevenly neighbourhoods are shared out; all measures are of the counts N_k.

    `k_skewness` is their population skewness; `robinhood` the share of slots to move for equality; `gini` and
    `atkinson` (epsilon 1/2) in [0, 1], 0 when all are equal; `antihub_occurrence` the share of vectors in no list;
    `hub_occurrence` the share of slots held by hubs (N_k >= hub_size k); `top20_share` that of the 20 % most frequent;
    `top` the most frequent as (row, count).
    """

    n: int
    k: int
    k_skewness: float
    robinhood: float
    gini: float
    atkinson: float
    antihub_occurrence: float
    hub_occurrence: float
    max: int
    top20_share: float
    top: list[tuple[int, int]]


def hubness_report(
    embeddings_or_counts: Any,
    k: int = 10,
    *,
    hub_size: float = 2.0,
    metric: Metric = "euclidean",
    top: int = 20,
) -> HubnessReport:
    """Measure hubness; see `HubnessReport`.

    Sources: kexue.fm/archives/9147; Feldbauer et al. 2018 (the measures; names as in scikit-hubness). Skewness depends
    on the number of vectors, so state n beside it.

    Args:
        embeddings_or_counts: (n, d) vectors, or (n,) counts from `k_occurrence` with the same `k`.
        k: 1 <= k < n.
        hub_size: a hub has N_k >= hub_size k.
        metric: for vectors, ``"euclidean"`` or ``"cosine"``.
        top: how many of the most frequent to list.

    Raises:
        ValueError: see `k_occurrence`; counts that are negative or all zero.

    Example:
        >>> hubness_report([1, 1, 1, 1], k=1).k_skewness
        0.0
    """
    if k < 1 or top < 0:
        raise ValueError(f"expected k >= 1 and top >= 0, got {k} and {top}")
    counts = host(embeddings_or_counts)
    if counts.ndim != 1:
        counts = k_occurrence(counts, k, metric=metric)
    if len(counts) == 0 or not (np.isfinite(counts).all() and counts.min() >= 0 and counts.sum() > 0):
        raise ValueError(f"counts must be finite, non-negative and not all zero, got {counts[:5].tolist()} ...")
    n, total, mean = len(counts), float(counts.sum()), float(counts.mean())
    rising = np.sort(counts)
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ rising / (n * total))
    most = np.argsort(-counts, kind="stable")[:top]
    return HubnessReport(
        n=n,
        k=int(k),
        k_skewness=_skewness(counts),
        robinhood=float(np.abs(counts - mean).sum() / (2 * total)),
        gini=gini,
        atkinson=float(1 - np.sqrt(counts).mean() ** 2 / mean),
        antihub_occurrence=float((counts == 0).mean()),
        hub_occurrence=float(counts[counts >= hub_size * k].sum() / total),
        max=int(counts.max()),
        top20_share=float(rising[n - math.ceil(0.2 * n) :].sum() / total),
        top=[(int(row), int(counts[row])) for row in most],
    )


class HubnessReducer:
    """Scores corrected so that hubs no longer answer everything; larger is nearer for every method.

    With c the cosine of query q and vector y, d = sqrt(2 - 2c) the chord between them:

    - ``"csls"``: 2 c - r(q) - r(y), r the mean cosine to the k nearest vectors of the corpus.
    - ``"center"``: the cosine of q - mu and y - mu, mu the mean of the corpus (beta = 1 of whitening).
    - ``"nicdm"``: -d / sqrt(m(q) m(y)), m the mean distance to the k nearest.
    - ``"local_scaling"``: exp(-d^2 / (s(q) s(y))), s the distance to the k-th nearest.
    - ``"mutual_proximity"``: P(D_q > d) P(D_y > d), D normal with the mean and deviation of distances to the corpus.

    A vector is never its own neighbour. A zero vector has a cosine of 0, a chord of sqrt(2), to every vector; so has,
    for ``"center"``, one that equals mu up to rounding.

    ``"csls"`` and ``"center"`` also come as vectors, so that any index of inner products serves them (`augment`).

    Args:
        method: which correction.
        k: neighbours it is made from; the centre and mutual proximity do without.
    """

    def __init__(self, method: Method = "csls", k: int = 10) -> None:
        if method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.method = method
        self.k = k
        self._unit: Array | None = None

    def fit(self, X: Any) -> Self:
        """Take in the corpus, (n, d) with n > k.

        Raises:
            ValueError: too few vectors, NaN.
        """
        matrix = as_matrix(X, "X")
        if matrix.shape[0] <= self.k:
            raise ValueError(
                f"the {self.method} correction needs more than k = {self.k} vectors, got {matrix.shape[0]}"
            )
        vectors = finite_rows(matrix, "X")
        self.mean_ = mean_row(vectors)
        self._unit = unit_rows(vectors)
        if self.method == "center":
            self._centred = centred_unit_rows(vectors, self.mean_)
        else:
            self.local_ = self._local(self._unit, own=True)
        return self

    def rescore(self, queries: Any, scores: Any, ids: Any) -> Array:
        """Corrected scores of candidates.

        Args:
            queries: (m, d).
            scores: (m, c) cosines of each query with its candidates.
            ids: (m, c) rows of the fitted corpus.

        Returns:
            (m, c) float64; larger is nearer.

        Raises:
            ValueError: shapes that do not fit, NaN or infinity, an id that is no row of the corpus.
        """
        vectors = self._queries(queries)
        cosines, rows = np.asarray(host(scores), dtype=np.float64), host(ids)
        if cosines.shape != rows.shape or cosines.ndim != 2 or len(cosines) != len(vectors):
            raise ValueError(f"{len(vectors)} queries came with scores {cosines.shape} and ids {rows.shape}")
        raise_non_finite(cosines, "scores")
        n = len(self._unit) if self._unit is not None else 0
        if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n):
            raise ValueError(f"ids must be whole numbers in [0, {n}), got {rows.min()} to {rows.max()} ({rows.dtype})")
        rows = rows.astype(np.int64)
        if self.method == "center":
            centred = centred_unit_rows(vectors, self.mean_)
            return np.asarray(np.einsum("md,mcd->mc", centred, self._centred[rows]))
        mine, theirs = self._local(unit_rows(vectors), own=False), self.local_
        if self.method == "csls":
            return np.asarray(2 * cosines - mine[:, None] - theirs[rows])
        chord = np.sqrt(np.maximum(0.0, 2 - 2 * cosines))
        if self.method == "mutual_proximity":
            return np.asarray(_beyond(chord, mine[:, None]) * _beyond(chord, theirs[rows]))
        scale = mine[:, None] * theirs[rows]
        if self.method == "nicdm":
            return np.asarray(-chord / np.sqrt(np.maximum(scale, 1e-300)))
        return np.asarray(np.exp(-(chord**2) / np.maximum(scale, 1e-300)))

    def augment(self, X: Any) -> Any:
        """Corpus vectors for a plain index of inner products; the fitted corpus itself, in its order.

        ``"csls"``: (n, d + 1), rows (2 y, -r(y)) with y of length 1; with `augment_queries` the product is
        2 cos(q, y) - r(y), which orders documents as CSLS does, r(q) being the same for all of them.
        ``"center"``: (n, d), y - mu of length 1.

        Raises:
            NotSupported: the other methods are no inner product.
        """
        matrix = as_matrix(X, "X")
        vectors = self._queries(matrix)
        if self.method == "center":
            return like(centred_unit_rows(vectors, self.mean_), matrix)
        self._only_linear()
        unit = unit_rows(vectors)
        own = self._unit is not None and np.array_equal(unit, self._unit)
        local = self.local_ if own else self._local(unit, own=False)
        return like(np.hstack([2 * unit, -local[:, None]]), matrix)

    def augment_queries(self, Q: Any) -> Any:
        """Query vectors for an index of `augment`\\ ed ones: (m, d + 1), rows (q, 1), or (m, d) for the centre."""
        matrix = as_matrix(Q, "Q")
        vectors = self._queries(matrix)
        if self.method == "center":
            return like(centred_unit_rows(vectors, self.mean_), matrix)
        self._only_linear()
        return like(np.hstack([unit_rows(vectors), np.ones((len(vectors), 1))]), matrix)

    def _only_linear(self) -> None:
        if self.method != "csls":
            raise NotSupported(
                f"{self.method} is not an inner product, so no vectors carry it.",
                remedy="Use csls or center in an index; rescore() corrects candidates with any method.",
            )

    def _queries(self, queries: Any) -> Array:
        if self._unit is None:
            raise NotFittedError("this reducer has not seen a corpus.", remedy="Call fit(X) first.")
        vectors = finite_rows(queries, "queries")
        if vectors.shape[1] != self._unit.shape[1]:
            raise ValueError(f"the corpus has {self._unit.shape[1]} dimensions, got {vectors.shape[1]}")
        return vectors

    def _local(self, unit: Array, *, own: bool) -> Array:
        """What the method knows of each vector's neighbourhood in the corpus; (n,), or (n, 2) mean and deviation."""
        corpus = self._unit
        assert corpus is not None  # set before any call
        if self.method == "mutual_proximity":
            return _spread(unit, corpus, own)
        chords = _nearest_chords(unit, corpus, self.k, own)
        if self.method == "csls":
            return np.asarray((1 - chords**2 / 2).mean(axis=1))
        return np.asarray(chords.mean(axis=1) if self.method == "nicdm" else chords[:, -1])


def _nearest_chords(unit: Array, corpus: Array, k: int, own: bool) -> Array:
    """Chords (m, k) to the k nearest vectors of the corpus, rising; to and from a zero vector sqrt(2)."""
    chords = np.full((len(unit), k), math.sqrt(2.0))
    here, there = unit.any(axis=1), corpus.any(axis=1)
    near = min(k, int(there.sum()) - own)
    if near > 0 and here.any():
        known = nearest(corpus[there], near, queries=None if own else unit[here], cosine=True)[1]
        if (absent := min(k, int((~there).sum()))) > 0:
            known = np.sort(np.hstack([known, np.full((len(known), absent), math.sqrt(2.0))]), axis=1)
        chords[here] = known[:, :k]
    return chords


def _spread(unit: Array, corpus: Array, own: bool) -> Array:
    """Mean and deviation (m, 2) of the chords to a sample of the corpus, without a vector's own."""
    step = max(1, len(corpus) // _SAMPLE)
    some = corpus[::step]
    out = np.empty((len(unit), 2))
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK]
        chords = np.sqrt(np.maximum(0.0, 2 - 2 * (block @ some.T)))
        rows = np.arange(start, start + len(block))
        count = np.full(len(block), len(some))
        if own:
            inside = rows % step == 0
            here, self_ = np.flatnonzero(inside), rows[inside] // step
            count[inside] -= 1
            chords[here, self_] = 0.0
            chords[here, self_] = chords[here].sum(axis=1) / count[here]  # the mean of the others adds no deviation
        mean = chords.mean(axis=1)
        squares = ((chords - mean[:, None]) ** 2).sum(axis=1)
        out[start : start + len(block)] = np.column_stack([mean, np.maximum(np.sqrt(squares / count), 1e-12)])
    return out


class HubSample(NamedTuple):
    """Latents (size, dim), the share of draws that were kept, and how many rounds of n draws it took."""

    latents: Array
    acceptance: float
    rounds: int


class HubSampler:
    """Draw latents and keep the hubs among them: those with N_k >= threshold among n draws.

    Source: kexue.fm/archives/9147; Liang et al. 2022, arXiv:2206.06014. Differences: a latent is not counted as its own
    neighbour. Kept latents lie nearer to the centre, so this acts like a truncation: quality rises, diversity falls.
    The threshold means something for its n and k only.

    Args:
        dim: of a latent.
        n: draws a round.
        k: neighbours.
        threshold: least N_k to keep.
        prior: ``prior(n, generator) -> (n, dim)``; None is the standard normal.
        inclusive: keep N_k >= threshold; False: only N_k > threshold.
        max_rounds: rounds before giving up.
    """

    def __init__(
        self,
        dim: int,
        *,
        n: int = 10_000,
        k: int = 5,
        threshold: int = 50,
        prior: Callable[[int, np.random.Generator], Any] | None = None,
        inclusive: bool = True,
        max_rounds: int = 100,
    ) -> None:
        if dim < 1 or not 1 <= k < n or max_rounds < 1:
            raise ValueError(f"expected dim >= 1, 1 <= k < n, max_rounds >= 1; got {dim}, {k}, {n}, {max_rounds}")
        self.dim = dim
        self.n = n
        self.k = k
        self.threshold = threshold
        self.prior = prior
        self.inclusive = inclusive
        self.max_rounds = max_rounds

    def sample(self, size: int, *, generator: Any = None) -> HubSample:
        """Draw `size` hubs.

        Raises:
            InfeasibleError: `max_rounds` rounds did not find enough; the message says what was reached.
            ValueError: a negative size, or a prior of another shape.
        """
        if size < 0:
            raise ValueError(f"size must be >= 0, got {size}")
        rng = np.random.default_rng(generator)
        kept: list[Array] = []
        found, largest = 0, 0
        least = self.threshold if self.inclusive else self.threshold + 1
        for rounds in range(1, self.max_rounds + 1):
            draws = rng.normal(size=(self.n, self.dim)) if self.prior is None else host(self.prior(self.n, rng))
            if draws.shape != (self.n, self.dim):
                raise ValueError(f"the prior must give latents ({self.n}, {self.dim}), got shape {draws.shape}")
            counts = k_occurrence(draws, self.k, generator=rng)
            largest = max(largest, int(counts.max()))
            kept.append(draws[counts >= least])
            found += len(kept[-1])
            if found >= size:
                return HubSample(np.concatenate(kept)[:size], found / (rounds * self.n), rounds)
        raise InfeasibleError(
            f"{self.max_rounds} rounds of {self.n} draws gave {found} of {size} latents with a {self.k}-occurrence of "
            f"{least}; the largest seen is {largest}.",
            remedy="Lower the threshold, or raise n or max_rounds.",
        )


def _skewness(counts: Array) -> float:
    """Population skewness; 0 where all are equal."""
    centred = counts - counts.mean()
    spread = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean()) / spread**3 if spread > 0 else 0.0


def _beyond(distance: Array, normal: Array) -> Array:
    """P(D > distance) for D normal, `normal` (..., 2) its mean and deviation."""
    return np.asarray(special.ndtr((normal[..., 0] - distance) / normal[..., 1]))


def _check_metric(metric: str) -> None:
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric must be 'euclidean' or 'cosine', got {metric!r}")
