"""Correction of scores for hubness: CSLS, centring, NICDM, local scaling, mutual proximity.

Sources: kexue.fm/archives/9147 (the phenomenon); Schnitzer et al. 2012, JMLR 13 (mutual proximity); Conneau et al.
2018, arXiv:1710.04087 (CSLS); Zelnik-Manor and Perona 2004 (local scaling); Jegou et al. 2007 (NICDM).
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import numpy as np
from scipy import special

from kexue._arrays import Array, as_float64, as_matrix, finite_rows, host, like, raise_non_finite
from kexue.errors import NotFittedError, NotSupported
from kexue.similarity._choices import check_choice
from kexue.similarity._vectors import centred_unit_rows, mean_row, unit_rows
from kexue.similarity.neighbours.knn import nearest_neighbours

Method = Literal["csls", "center", "nicdm", "local_scaling", "mutual_proximity"]
_METHODS = ("csls", "center", "nicdm", "local_scaling", "mutual_proximity")
_SAMPLE = 10_000  # rows behind the means and deviations of mutual proximity
_BLOCK = 1024  # rows compared with them at a time


class HubnessReducer:
    """Correction of scores that makes hubs rank lower; in every method a larger score is nearer.

    With c the cosine of query q and vector y, d = sqrt(2 - 2c) the chord between them:

    - ``"csls"``: 2 c - r(q) - r(y), r the mean cosine to the k nearest vectors of the corpus.
    - ``"center"``: the cosine of q - mu and y - mu, mu the mean of the corpus (beta = 1 of whitening).
    - ``"nicdm"``: -d / sqrt(m(q) m(y)), m the mean distance to the k nearest.
    - ``"local_scaling"``: exp(-d^2 / (s(q) s(y))), s the distance to the k-th nearest.
    - ``"mutual_proximity"``: P(D_q > d) P(D_y > d), D normal with the mean and deviation of distances to the corpus.

    A vector is never its own neighbour. A zero vector has the cosine 0, the chord sqrt(2), to every vector; so has, for
    ``"center"``, one that equals mu up to rounding.

    ``"csls"`` and ``"center"`` are inner products of other vectors (`augment`), so any index of inner products can rank
    by them.

    Args:
        method: name of the correction.
        k: number of neighbours that the method uses, >= 1; ``"center"`` and ``"mutual_proximity"`` use none.
    """

    def __init__(self, method: Method = "csls", k: int = 10) -> None:
        check_choice("method", method, _METHODS)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.method = method
        self.k = k
        self._unit: Array | None = None

    def fit(self, X: Any) -> Self:
        """Compute the statistics of the corpus, (n, d) with n > k.

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
            self.local_ = self._local_statistics(self._unit, own=True)
        return self

    def rescore(self, queries: Any, scores: Any, ids: Any) -> Array:
        """Correct the scores of candidates.

        Args:
            queries: (m, d).
            scores: (m, c) cosines of each query with its candidates.
            ids: (m, c), rows of the fitted corpus.

        Returns:
            (m, c) float64; larger is nearer.

        Raises:
            ValueError: shapes that do not fit, NaN or infinity, an id that is no row of the corpus.
        """
        vectors = self._read_queries(queries)
        cosines, rows = as_float64(scores), host(ids)
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
        of_queries, of_corpus = self._local_statistics(unit_rows(vectors), own=False), self.local_
        if self.method == "csls":
            return np.asarray(2 * cosines - of_queries[:, None] - of_corpus[rows])  # CSLS: 2 c - r(q) - r(y)
        chord = np.sqrt(np.maximum(0.0, 2 - 2 * cosines))
        if self.method == "mutual_proximity":
            return np.asarray(_tail_probability(chord, of_queries[:, None]) * _tail_probability(chord, of_corpus[rows]))
        scale = of_queries[:, None] * of_corpus[rows]
        if self.method == "nicdm":
            return np.asarray(-chord / np.sqrt(np.maximum(scale, 1e-300)))
        return np.asarray(np.exp(-(chord**2) / np.maximum(scale, 1e-300)))

    def augment(self, X: Any) -> Any:
        """Return corpus vectors for a plain index of inner products.

        ``"csls"``: (n, d + 1), rows (2 y, -r(y)) with y of length 1; with `augment_queries` the product is
        2 cos(q, y) - r(y), which orders documents as CSLS does, r(q) being the same for all of them.
        ``"center"``: (n, d), y - mu of length 1.

        Args:
            X: (n, d), the fitted corpus in its order, where no vector counts as its own neighbour; or other vectors.

        Raises:
            NotSupported: another method, which is no inner product.
        """
        matrix = as_matrix(X, "X")
        vectors = self._read_queries(matrix)
        if self.method == "center":
            return like(centred_unit_rows(vectors, self.mean_), matrix)
        self._require_csls()
        unit = unit_rows(vectors)
        own = self._unit is not None and np.array_equal(unit, self._unit)
        local = self.local_ if own else self._local_statistics(unit, own=False)
        return like(np.hstack([2 * unit, -local[:, None]]), matrix)  # CSLS offset: the coordinate -r(y)

    def augment_queries(self, Q: Any) -> Any:
        """Return query vectors for an index of `augment`: (m, d + 1), rows (q, 1); for ``"center"`` (m, d), q - mu."""
        matrix = as_matrix(Q, "Q")
        vectors = self._read_queries(matrix)
        if self.method == "center":
            return like(centred_unit_rows(vectors, self.mean_), matrix)
        self._require_csls()
        return like(np.hstack([unit_rows(vectors), np.ones((len(vectors), 1))]), matrix)

    def _require_csls(self) -> None:
        """Raise NotSupported for a method that is no inner product."""
        if self.method != "csls":
            raise NotSupported(
                f"{self.method} is not an inner product, so it cannot be written as vectors.",
                remedy="Use csls or center in an index; rescore() corrects candidates with any method.",
            )

    def _read_queries(self, queries: Any) -> Array:
        """Return queries as float64; NotFittedError before `fit`, ValueError on another dimension."""
        if self._unit is None:
            raise NotFittedError("this reducer has no corpus yet.", remedy="Call fit(X) first.")
        vectors = finite_rows(queries, "queries")
        if vectors.shape[1] != self._unit.shape[1]:
            raise ValueError(f"the corpus has {self._unit.shape[1]} dimensions, got {vectors.shape[1]}")
        return vectors

    def _local_statistics(self, unit: Array, *, own: bool) -> Array:
        """Return the statistic of each vector's neighbourhood in the corpus: (n,), or (n, 2) mean and deviation."""
        corpus = self._unit
        assert corpus is not None  # `fit` has set it
        if self.method == "mutual_proximity":
            return _chord_moments(unit, corpus, own)
        chords = _nearest_chords(unit, corpus, self.k, own)
        if self.method == "csls":
            return np.asarray((1 - chords**2 / 2).mean(axis=1))  # CSLS offset r: mean cosine with the k nearest
        return np.asarray(chords.mean(axis=1) if self.method == "nicdm" else chords[:, -1])


def _nearest_chords(unit: Array, corpus: Array, k: int, own: bool) -> Array:
    """Return chords (m, k) to the k nearest vectors of the corpus, ascending; to and from a zero vector sqrt(2)."""
    chords = np.full((len(unit), k), math.sqrt(2.0))
    here, there = unit.any(axis=1), corpus.any(axis=1)
    near = min(k, int(there.sum()) - own)
    if near > 0 and here.any():
        known = nearest_neighbours(corpus[there], near, queries=None if own else unit[here], cosine=True)[1]
        if (absent := min(k, int((~there).sum()))) > 0:
            known = np.sort(np.hstack([known, np.full((len(known), absent), math.sqrt(2.0))]), axis=1)
        chords[here] = known[:, :k]
    return chords


def _chord_moments(unit: Array, corpus: Array, own: bool) -> Array:
    """Return mean and deviation (m, 2) of the chords to a sample of the corpus, without the vector itself."""
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


def _tail_probability(distance: Array, normal: Array) -> Array:
    """Return P(D > distance) for D normal; `normal` (..., 2) holds its mean and deviation."""
    return np.asarray(special.ndtr((normal[..., 0] - distance) / normal[..., 1]))
