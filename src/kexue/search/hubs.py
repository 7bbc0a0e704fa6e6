"""Correction for hubs (CSLS): with one more coordinate, a search by inner product ranks as CSLS does.

With c the cosine of query q and document y, and r(y) the mean cosine of y with its nearest documents, CSLS orders by
2 c - r(q) - r(y); for one query this is the order of c - r(y) / 2 = <(q, 1), (y, -r(y) / 2)>. Each passage of a split
document has its own r: its mean cosine with the nearest other documents, each by the nearest of its passages.

Sources: kexue.fm/archives/9147; Conneau et al. 2018, arXiv:1710.04087. `kexue.similarity.HubnessReducer` is the same
for vectors in memory.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import numpy as np

from kexue.errors import NotSupported
from kexue.search.engine import build_engine
from kexue.search.grouping import group_rows, search_documents
from kexue.search.products import Keys, Scores, Vectors
from kexue.similarity import Whitening

Dehub = Literal["csls", "center"]
NEIGHBOURS = 50  # of a document, for r: with 10, antihubs become the new hubs (docs/howto/scores.md has the figures)
_BLOCK = 512  # queries at a time


def check_dehub(dehub: str | None) -> None:
    """Raise ValueError for an unknown correction."""
    if dehub not in (None, "csls", "center"):
        raise ValueError(f"dehub must be 'csls', 'center' or None, got {dehub!r}")


def centre_whitening(dehub: str | None, whitening: Whitening | None) -> Whitening | None:
    """Return the whitening that subtracts the mean for ``dehub="center"``; without a whitening, centring alone.

    Raises:
        ValueError: the whitening does not subtract the mean.
    """
    if dehub != "center":
        return whitening
    if whitening is None:
        return Whitening(beta=1.0, gamma=0.0)
    if whitening.beta != 1:
        raise ValueError(f"dehub='center' subtracts the whole mean, the whitening has beta={whitening.beta}, not 1")
    return whitening


def check_search_dehub(dehub: str, built: str | None) -> None:
    """Raise an error if an index that was built with the correction `built` cannot search with `dehub`."""
    if dehub not in ("none", "csls", "center"):
        raise ValueError(f"dehub must be 'none', 'csls' or 'center', got {dehub!r}")
    if dehub == "center" != built or (dehub == "none" and built == "center"):
        raise NotSupported(
            f"centring is done when an index is built, and this one was built with dehub={built!r}.",
            remedy="Build it again with the dehub you want (kexue index build --dehub), or search with dehub='csls'.",
        )


def append_offsets(unit: Vectors, local: Scores) -> Vectors:
    """Return vectors to store, (n, d + 1): y and -r(y) / 2."""
    return np.column_stack([unit, -local / 2]).astype(np.float32)


def extend_queries(unit: Vectors, weight: float) -> Vectors:
    """Return queries for stored vectors with offsets, (m, d + 1): weight 1 ranks by CSLS, 0 by cosine."""
    query = np.empty((unit.shape[0], unit.shape[1] + 1), np.float32)
    query[:, :-1] = unit
    query[:, -1] = weight
    return query


def neighbour_scores(unit: Vectors, k: int = NEIGHBOURS, *, sizes: Keys | None = None, approx: str = "exact") -> Scores:
    """Return cosines (p, min(k, n - 1)) of each vector with its nearest documents but its own; NaN for missing ones.

    Args:
        unit: (p, d), the vectors of n documents one after the other.
        k: documents; of one that was split the nearest passage counts.
        sizes: (n,) vectors of each document; None: one.
        approx: as in `Index.create`.
    """
    p = len(unit)
    sizes = np.ones(p, np.int64) if sizes is None else sizes
    groups = group_rows(sizes)
    k = min(k, len(sizes) - 1)
    firsts, which = find_distinct(unit)
    cosines = np.empty((len(firsts), k), np.float32)
    if k < 1:
        return cosines[which]
    engine = build_engine(
        [(np.arange(p), unit)],
        lambda size: unit[np.random.default_rng(0).permutation(p)[:size]],
        n=p,
        dims=unit.shape[1],
        approx=approx,
    )
    for start in range(0, len(firsts), _BLOCK):
        some = firsts[start : start + _BLOCK]
        scores, places = search_documents(engine.search, groups, unit[some], k + 1, None, total=p)
        own = places == groups.documents(some)[:, None]
        own[~own.any(axis=1), -1] = True  # a duplicate took the place of the document itself: the last hit is dropped
        cosines[start : start + _BLOCK] = np.where(places < 0, np.nan, scores)[~own].reshape(-1, k)
    return cosines[which]


def find_distinct(rows: Vectors) -> tuple[Keys, Keys]:
    """Return the first index of each distinct row of (n, d), and (n,) the number of its distinct row for each row.

    Equal rows are compared once, because rounding in a matrix product depends on the position of a row.

    >>> find_distinct(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    (array([0, 1]), array([0, 1, 0]))
    """
    seen: dict[bytes, int] = {}
    which = np.empty(len(rows), np.int64)
    firsts: list[int] = []
    for at, row in enumerate(rows + rows.dtype.type(0)):  # -0 becomes 0
        name = blake2b(row.tobytes(), digest_size=16).digest()
        which[at] = seen.setdefault(name, len(seen))
        if len(seen) > len(firsts):
            firsts.append(at)
    return np.array(firsts, np.int64), which


def local_means(*scores: Scores) -> Scores:
    """Return r (n,): the mean of the largest 50 scores of each row, NaN ignored; 0 where there are none."""
    every = -np.sort(-np.concatenate(scores, axis=1), axis=1)[:, :NEIGHBOURS]  # NaN come last
    there = np.isfinite(every)
    means: Scores = np.where(there, every, 0).sum(axis=1) / np.maximum(1, there.sum(axis=1))
    return means
