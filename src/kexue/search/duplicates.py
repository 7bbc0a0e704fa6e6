"""Near-duplicates in an index: documents whose vectors are almost equal, in groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from kexue._progress import Progress
from kexue.search.documents import Document
from kexue.search.engine import build_engine
from kexue.search.index import Index
from kexue.search.products import Keys, Vectors
from kexue.similarity.random_pairs import null_scores

EXACT = 50_000  # documents up to which every pair is compared
NEAREST = 50  # documents that each is compared with beyond that, the nearest by the engine
# Chosen on 300 texts with one small edit each (a word left out, two letters swapped, other punctuation) among 2,000, in
# four spaces: docstrings with MiniLM, with MiniLM whitened, and with E5; Chinese headlines with E5. It finds 93, 91, 83
# and 95 % of the edits; a fixed cosine that suits one of the spaces does not suit the others.
_QUANTILE, _SHARE = 0.9, 0.1
_RANDOM_PAIRS = 100_000
_BLOCK = 512  # documents compared at a time
_TIE = 1e-6  # cosines that differ by less are equal, up to rounding of float32


@dataclass(frozen=True)
class DuplicateGroup:
    """Documents that are linked by near-duplicate pairs, oldest first.

    `scores` are the cosines with the first document; one may be below the threshold where others link the two.
    """

    documents: list[Document]
    scores: list[float]


@dataclass(frozen=True)
class DuplicateReport:
    """Groups of near-duplicates, the largest first.

    `threshold` is the least cosine of a pair, and `origin` says where it comes from: ``"given"``, or the scores of the
    ``"calibration"`` or of ``"random pairs"`` drawn without one. `exact` is False where not every pair was compared.
    `documents` counts all documents of the index.
    """

    index: str
    documents: int
    threshold: float
    origin: str
    exact: bool
    groups: list[DuplicateGroup]

    @property
    def duplicates(self) -> int:
        """Documents that could go if one of each group stayed."""
        return sum(len(group.documents) - 1 for group in self.groups)


def find_duplicates(
    index: Index, threshold: float | None = None, *, progress: Progress | None = None
) -> DuplicateReport:
    """Find groups of documents whose vectors are almost equal.

    Two documents are in one group if a chain of pairs with a cosine of at least `threshold` leads from one to the
    other. A document that was split into passages is compared by the mean of their vectors.

    Args:
        index: open index.
        threshold: least cosine of a pair, in (0, 1]; rounding of float32 is allowed for. None: a tenth of the way from
            1 down to the score that one random pair of documents in ten exceeds, by the calibration if there is one.
        progress: called as progress(done, documents).

    Raises:
        ValueError: `threshold` is outside (0, 1].

    Cost: all vectors in memory, and up to 50,000 documents all pairs; beyond that each document is compared with the
    50 nearest that an approximate engine finds, so that a group may fall into parts.

    >>> import tempfile
    >>> with Index.create(tempfile.mkdtemp() + "/a.kx", encoder=None) as colours:
    ...     _ = colours.add(["red", "red!", "green"], vectors=np.array([[1, 0], [1, 0.1], [0, 1]]))
    ...     [[document.text for document in group.documents] for group in find_duplicates(colours).groups]
    [['red', 'red!']]
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}.")
    ids, unit = _read_vectors(index)
    origin = "given"
    if threshold is None:
        null = None if index.calibrator is None else index.calibrator.null_
        origin = "random pairs" if null is None else "calibration"
        threshold = choose_threshold(_draw_scores(unit) if null is None else null)
    exact = len(ids) <= EXACT
    pairs = _all_pairs(unit, threshold) if exact else _near_pairs(unit, threshold)
    label: Keys = np.arange(len(ids))
    for done, a, b in pairs:
        links = sp.coo_array((np.ones(len(a), bool), (label[a], label[b])), shape=(len(ids), len(ids)))
        label = connected_components(links, directed=False)[1].astype(np.int64)[label]
        if progress is not None:
            progress(done, len(ids))
    return DuplicateReport(
        index.encoder.path, len(ids), threshold, origin, exact, _read_groups(index, ids, unit, label)
    )


def choose_threshold(scores: Any) -> float:
    """Return the least cosine of near-duplicates for the scores (n,) of random pairs; see `find_duplicates`.

    >>> choose_threshold([0.0, 0.2, 0.4])
    0.936
    """
    return round(1 - _SHARE * (1 - float(np.quantile(scores, _QUANTILE))), 4)


def _draw_scores(unit: Vectors) -> Any:
    """Return the cosines of random pairs of documents; of a perfect pair where there are fewer than two."""
    return null_scores(unit, _RANDOM_PAIRS, generator=0) if len(unit) > 1 else [1.0]


def _read_vectors(index: Index) -> tuple[list[str], Vectors]:
    """Return the ids of all documents, oldest first, and one vector of length 1 for each."""
    ids: list[str] = []
    blocks: list[Any] = []
    for rows in index.store.iterate():
        ids += [row.id for row in rows]
        means = [np.atleast_2d(row.vector).mean(0) for row in rows if row.vector is not None]
        blocks.append(np.stack(means)[:, : -1 if index.space.dehub == "csls" else None])
    if not ids:
        return [], np.empty((0, 1), np.float32)
    unit = np.concatenate(blocks)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    return ids, np.divide(unit, lengths, out=np.zeros_like(unit), where=lengths > 0)


def _all_pairs(unit: Vectors, threshold: float) -> Iterator[tuple[int, Keys, Keys]]:
    """Yield all pairs of rows with a cosine of at least `threshold`, and how many rows are done."""
    for start in range(0, len(unit), _BLOCK):
        some = unit[start : start + _BLOCK]
        a, b = np.nonzero(some @ unit[start:].T >= threshold - _TIE)
        later = a < b
        yield start + len(some), a[later] + start, b[later] + start


def _near_pairs(unit: Vectors, threshold: float) -> Iterator[tuple[int, Keys, Keys]]:
    """Yield the pairs of each row with those that an approximate engine finds nearest; cosines are exact."""
    n = len(unit)
    engine = build_engine(
        [(np.arange(n), unit)],
        lambda size: unit[np.random.default_rng(0).permutation(n)[:size]],
        n=n,
        dims=unit.shape[1],
        approx="approx",
    )
    for start in range(0, n, _BLOCK):
        some = unit[start : start + _BLOCK]
        _, near = engine.search(some, min(n, NEAREST + 1))
        cosines = np.einsum("md,mkd->mk", some, unit[near])
        a, column = np.nonzero((cosines >= threshold - _TIE) & (near >= 0))
        yield start + len(some), a + start, near[a, column]


def _read_groups(index: Index, ids: list[str], unit: Vectors, label: Keys) -> list[DuplicateGroup]:
    """Return the groups of two or more, the largest first, equal ones by their oldest document."""
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    members = [some for some in np.split(order, starts[1:]) if len(some) > 1] if len(order) else []
    groups = []
    for rows in sorted(members, key=lambda rows: (-len(rows), rows[0])):
        stored = {document.id: document for document in index.get([ids[row] for row in rows])}
        there = [row for row in rows if ids[row] in stored]
        cosines = np.clip(unit[there] @ unit[rows[0]], -1, 1).tolist()
        groups.append(DuplicateGroup([stored[ids[row]] for row in there], cosines))
    return groups
