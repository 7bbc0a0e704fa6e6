"""Table of the tokens of many documents, and lower bounds of their transport distances to a query.

The cost of a pair follows from a product s of rows: WRD 1 - s with s = u.v; WMD sqrt(-2 s) with
s = x.y - |x|^2/2 - |y|^2/2. The relaxed distance needs only the largest s of a token, so an upper
bound of s gives a lower bound of the cost. Rows may therefore be truncated: with an orthonormal basis, P the leading
coordinates and r the length of the rest,

    u.v <= Pu.Pv + r(u) r(v)        (Cauchy-Schwarz)

so one more coordinate, r, keeps the bound valid. The rounding of float32 is added to s as slack. Tokens far
from 1 in size are scaled by a power of two first: each sequence separately for WRD, which ignores scale, all by one
power for WMD.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kexue._arrays import Array
from kexue.similarity._vectors import exponent_of, lengths, unit_rows

_ENERGY = 0.85  # share of squared length in the leading coordinates
_FIT_TOKENS = 50_000  # tokens behind the basis
_SHORT = 64  # dimensions up to which vectors are not truncated
_PRODUCTS = 1 << 18  # products of one block, which stay in the cache between the matrix product and its reduction
_EPS = float(np.finfo(np.float32).eps)
_FAR = 2.0**40  # in units of the table: squares of larger numbers leave float32
_FAINT = 1e-15  # length relative to the longest of a sequence, below which float32 may lose products


class TokenTable:
    """Tokens of documents that are not empty, appended in blocks; without zero vectors for WRD.

    Attributes:
        raw: (N, d), tokens as given.
        starts: (n + 1,), first token of each document.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.raw = np.empty((0, 0), np.float32)
        self.starts = np.zeros(1, np.int64)
        self._table = np.empty((0, 0), np.float32)  # (N, r + 1 or more) rows
        self._length = np.empty(0)  # (N,)
        self._exponent = 0  # of the unit of the table
        self._basis_tokens = 0  # number of tokens when the basis was computed

    def __len__(self) -> int:
        return len(self.starts) - 1

    def tokens(self, document: int) -> Array:
        """Return the tokens of a document as given."""
        return self.raw[self.starts[document] : self.starts[document + 1]]

    def extend(self, sequences: list[Array]) -> None:
        """Append documents; the basis is computed again whenever the number of tokens has doubled."""
        if self.kind == "wrd":
            sequences = [_scale_to_moderate(sequence) for sequence in sequences]
        before = len(self.raw)
        self.raw = np.concatenate([*([self.raw] if before else []), *sequences])
        ends = self.starts[-1] + np.cumsum([len(s) for s in sequences])
        self.starts = np.concatenate([self.starts, ends])
        if len(self.raw) >= 2 * self._basis_tokens or np.abs(self._scale(self.raw[before:])).max() > _FAR:
            before, self._basis_tokens = 0, len(self.raw)
            self._compute_basis()
        blocks = [slice(s, s + (1 << 14)) for s in range(before, len(self.raw), 1 << 14)]
        rows = [self._table_rows(self.raw[block]) for block in blocks]
        sizes = [lengths(self._scale(self.raw[block])) for block in blocks]
        self._table = np.concatenate([*([self._table] if before else []), *rows])
        self._length = np.concatenate([*([self._length] if before else []), *sizes])
        self._largest = float(self._length.max()) if self.kind == "wmd" else 1.0

        first, counts = self.starts[:-1], np.diff(self.starts)
        masses = self._length if self.kind == "wrd" else np.ones(len(self.raw))
        totals = np.add.reduceat(masses, first)
        self._weights = masses / np.repeat(totals, counts)
        sums = [self._scale(self.raw[a:b]).sum(axis=0) for a, b in pairwise(self.starts)]
        self._centroids = (np.array(sums) / totals[:, None] - self._centre).astype(np.float32)
        self._centroid_squares = np.einsum("ij,ij->i", self._centroids, self._centroids)

    def _compute_basis(self) -> None:
        """Compute the centre and the leading coordinates; no truncation where it would save little."""
        d = self.raw.shape[1]
        self._basis: Array | None = None
        self._exponent = exponent_of(self.raw) if self.kind == "wmd" else 0
        self._centre = self._scale(self.raw).mean(axis=0) if self.kind == "wmd" else np.zeros(d)
        V = self._vectors(self.raw[:: max(1, len(self.raw) // _FIT_TOKENS)])
        energy, basis = np.linalg.eigh(V.T @ V)
        share = np.cumsum(energy[::-1]) / max(float(energy.sum()), 1e-300)
        r = int(np.searchsorted(share, _ENERGY)) + 1
        if d > _SHORT and 4 * r <= 3 * d:
            self._basis = basis[:, ::-1][:, :r].copy()

    @property
    def is_truncated(self) -> bool:
        """Whether rows are truncated, so that their bounds are weaker than the full ones."""
        return self._basis is not None

    def _vectors(self, X: Array) -> Array:
        """Return the float64 vectors behind the costs: directions for WRD, differences to the centre for WMD."""
        return self._scale(X) - self._centre if self.kind == "wmd" else unit_rows(X)

    def _scale(self, X: Array) -> Array:
        """Return vectors in float64, in the unit of the table."""
        X = X.astype(np.float64)
        return np.asarray(np.ldexp(X, -self._exponent)) if self._exponent else X

    def _table_rows(self, X: Array, *, query: bool = False) -> Array:
        """Return rows whose products with those of a query are at least s, up to slack."""
        V = self._vectors(X)
        squares = np.einsum("ij,ij->i", V, V)[:, None]
        if self._basis is not None:
            V = V @ self._basis
            rest = squares - np.einsum("ij,ij->i", V, V)[:, None]
            V = np.hstack([V, np.sqrt(np.maximum(rest, 0.0))])
        if self.kind == "wmd":
            ends = (np.ones_like(squares), -squares / 2)
            V = np.hstack([V, *(ends if query else ends[::-1])])
        return V.astype(np.float32)

    def _products(self, query: Array, tokens: slice | Array) -> Array:
        """Return s (m, tokens) from whole vectors, up to slack."""
        raw, length = self.raw[tokens], self._length[tokens]
        raw = (self._scale(raw) if self._exponent else raw).astype(np.float32, copy=False)
        if self.kind == "wrd":
            products: Array = (
                unit_rows(query).astype(np.float32) @ raw.T / np.maximum(length, _FAINT).astype(np.float32)
            )
            products[:, length < _FAINT] = 1.0  # never too small
            return products
        X = self._scale(query)
        squares = np.einsum("ij,ij->i", X, X)[:, None]
        products = X.astype(np.float32) @ raw.T - (length**2 / 2).astype(np.float32)
        return np.asarray(products - (squares / 2).astype(np.float32))

    def _slack(self, query: Array, width: int) -> float:
        """Return a bound of the rounding of a float32 product of rows of that width."""
        largest = max(self._largest, float(lengths(self._scale(query)).max())) if self.kind == "wmd" else 1.0
        reach = largest + float(np.linalg.norm(self._centre))
        return float((width + 16) * _EPS * 2.0 * reach**2)

    def _cost(self, products: Array, slack: float) -> Array:
        """Return costs, never too large, from products s."""
        if self.kind == "wrd":
            return np.asarray(np.maximum(1.0 - slack - products, 0.0))
        return np.asarray(np.sqrt(np.maximum(-2.0 * (products + slack), 0.0)))

    def _overflows(self, query: Array) -> bool:
        """Return whether squares of a query overflow float32: then all bounds are 0, and every document is solved."""
        return self.kind == "wmd" and float(np.abs(self._scale(query)).max()) > _FAR

    def centroid_bounds(self, query: Array) -> Array:
        """Return the centroid bounds (n,): 1/2 |c - c'|^2 for WRD, |c - c'| for WMD."""
        if self._overflows(query):
            return np.zeros(len(self.starts) - 1)
        c = (self.weights_of(query) @ self._vectors(query)).astype(np.float32)
        half = (self._centroid_squares + c @ c) / 2 - self._centroids @ c  # eq. 4, 8 (7388): half of |c - c'|^2
        half = np.maximum(half - self._slack(query, len(c)), 0.0).astype(np.float64)
        return np.asarray(half if self.kind == "wrd" else np.ldexp(np.sqrt(2 * half), self._exponent))

    def weights_of(self, query: Array) -> Array:
        """Return the masses (m,) of the tokens of a query."""
        masses = lengths(_scale_to_moderate(query).astype(np.float64)) if self.kind == "wrd" else np.ones(len(query))
        return np.asarray(masses / masses.sum())

    def relaxed_bounds(self, query: Array, documents: Array, *, full: bool = False) -> Array:
        """Return relaxed distances (len(documents),), from truncated rows unless `full`; `documents` ascending."""
        if self._overflows(query):
            return np.zeros(len(documents))
        query_rows, weights = self._table_rows(query, query=True), self.weights_of(query)
        slack = self._slack(query, query.shape[1])
        bounds = np.empty(len(documents))
        for part in self._blocks(documents, max(1, _PRODUCTS // len(query))):
            some = documents[part]
            counts = self.starts[some + 1] - self.starts[some]
            first = np.concatenate([[0], np.cumsum(counts)[:-1]])
            whole = some[-1] - some[0] + 1 == len(some)
            tokens: slice | Array = slice(self.starts[some[0]], self.starts[some[-1] + 1])
            if not whole:
                tokens = np.repeat(self.starts[some] - first, counts) + np.arange(counts.sum())
            products = self._products(query, tokens) if full else query_rows @ self._table[tokens].T
            theirs = np.add.reduceat(self._cost(products.max(axis=0), slack) * self._weights[tokens], first)
            ours = weights @ self._cost(np.maximum.reduceat(products, first, axis=1), slack)
            bounds[part] = np.maximum(theirs, ours)
        return np.asarray(np.ldexp(bounds, self._exponent)) if self._exponent else bounds

    def _blocks(self, documents: Array, tokens: int) -> Iterator[slice]:
        """Yield consecutive parts of `documents` with about `tokens` tokens each."""
        ends = np.cumsum(self.starts[documents + 1] - self.starts[documents])
        begin = 0
        while begin < len(documents):
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + tokens, side="right")))
            yield slice(begin, end)
            begin = end


def _scale_to_moderate(sequence: Array) -> Array:
    """Return the sequence, times a power of two where its numbers are very large or very small."""
    exponent = exponent_of(sequence)
    return np.asarray(np.ldexp(sequence.astype(np.float64), -exponent)) if exponent else sequence
