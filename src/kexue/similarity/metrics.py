"""Measures of agreement and of retrieval: rank correlation with its ceiling, cosine of pairs, recall and MRR.

Source: kexue.fm/archives/8321 (Spearman between label and cosine).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kexue._arrays import Array, as_float64, as_matrix, finite_rows, host, like
from kexue.similarity._ranks import average_ranks
from kexue.similarity._vectors import unit_rows


def spearman(a: Any, b: Any) -> float:
    """Compute Spearman's rank correlation: Pearson's correlation of average ranks.

    Source: kexue.fm/archives/8321 (the metric of its tables). Compare: `scipy.stats.spearmanr`.

    Args:
        a: (n,), n >= 2, no NaN.
        b: (n,), no NaN.

    Returns:
        rho in [-1, 1]; nan, with a RuntimeWarning, where a or b is constant (0 would look like a measurement).

    Raises:
        ValueError: shapes differ, fewer than two values, or a NaN.

    Example:
        >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
        0.8
    """
    x, y = _read_vector(a, "a"), _read_vector(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"a and b must have the same length, got {len(x)} and {len(y)}.")
    if len(x) < 2:
        raise ValueError(f"a correlation needs at least 2 values, got {len(x)}.")
    p, q = (ranks - (len(x) + 1) / 2 for ranks in (average_ranks(x), average_ranks(y)))
    spread = float(np.sqrt((p @ p) * (q @ q)))
    if spread == 0:
        which = "a" if not p.any() else "b"
        warnings.warn(f"{which} is constant: its rank correlation is undefined.", RuntimeWarning, stacklevel=2)
        return float("nan")
    return float(np.clip((p @ q) / spread, -1.0, 1.0))  # section "结果汇总" (8321): the scores of its tables


def spearman_ceiling(labels: Any) -> float:
    """Compute the largest Spearman correlation that scores without ties can reach with these labels.

    sqrt(1 - sum (t^3 - t) / (n^3 - n)) over groups of t equal labels; with a share p of ones among 0/1 labels it is
    sqrt(3 n1 n0 / (n^2 - 1)), about sqrt(3 p (1 - p)): 0.866 at one half, 0.693 at one fifth.

    Args:
        labels: (n,), n >= 2.

    Returns:
        A number in [0, 1]; 0 for constant labels.

    Example:
        >>> round(spearman_ceiling([0, 1] * 500), 3)
        0.866
    """
    values = _read_vector(labels, "labels")
    n = len(values)
    if n < 2:
        raise ValueError(f"a correlation needs at least 2 values, got {n}.")
    ties = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float(np.sqrt(max(0.0, 1.0 - (ties**3 - ties).sum() / (float(n) ** 3 - n))))


def pair_cosine(u: Any, v: Any) -> Any:
    """Compute the cosine of each row of u with the same row of v; 0 where a row is zero.

    cos(u, v) = <u, v> / (|u| |v|), in float64.

    Args:
        u: (n, d), numpy or torch.
        v: (n, d).

    Returns:
        (n,), in [-1, 1]; kind and dtype of u.

    Raises:
        ValueError: the shapes differ, or a value is not finite.

    Example:
        >>> pair_cosine([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]).round(3).tolist()
        [0.707, 0.0]
    """
    x, y = as_matrix(u, "u"), as_matrix(v, "v")
    if tuple(x.shape) != tuple(y.shape):
        raise ValueError(f"u and v must have the same shape (n, d), got {tuple(x.shape)} and {tuple(y.shape)}.")
    p, q = unit_rows(finite_rows(x, "u")), unit_rows(finite_rows(y, "v"))
    return like(np.clip(np.einsum("ij,ij->i", p, q), -1.0, 1.0), x)  # eq. 1 (8069)


def retrieval_metrics(embeddings: Any, labels: Any, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Compute mean average precision and recall of a search of each row among all others, by cosine.

    A hit is right when it carries the same label.

    map = mean over queries of (1 / R) sum over right hits of (right hits so far) / (rank), R = number of right ones;
    recall_at_k = share of queries with a right hit among the first k (Recall@k of metric learning).

    Args:
        embeddings: (n, d), numpy or torch.
        labels: (n,). Rows whose label occurs once are not used as queries; they count as wrong hits of others.
        ks: ranks for the recall, each >= 1.

    Returns:
        {"map": ..., "recall_at_1": ..., ...}, fractions. Equal cosines count in the order of the rows.

    Raises:
        ValueError: lengths differ, or no label occurs twice.

    Cost: n^2 d multiplications and n sorts of n.

    Example:
        >>> retrieval_metrics([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1], ks=(1,))
        {'map': 1.0, 'recall_at_1': 1.0}
    """
    x, ks = unit_rows(finite_rows(embeddings, "embeddings")), tuple(ks)
    classes = np.unique(host(labels), return_inverse=True)[1]
    n = len(x)
    if classes.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each row of embeddings, got {classes.shape}.")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be >= 1, got {ks}.")
    queries = np.flatnonzero(np.bincount(classes)[classes] > 1)
    if not len(queries):
        raise ValueError("no label occurs twice, so there is nothing to retrieve.")
    precision, first = np.empty(len(queries)), np.empty(len(queries))
    step = max(1, (1 << 22) // n)
    for start in range(0, len(queries), step):
        batch = queries[start : start + step]
        scores = x[batch] @ x.T
        scores[np.arange(len(batch)), batch] = -np.inf  # the query itself comes last and is dropped
        order = np.argsort(-scores, axis=1, kind="stable")[:, : n - 1]
        right = classes[order] == classes[batch][:, None]
        ranks = np.arange(1, n)
        precision[start : start + step] = (np.cumsum(right, axis=1) / ranks * right).sum(axis=1) / right.sum(axis=1)
        first[start : start + step] = right.argmax(axis=1) + 1
    return {"map": float(precision.mean())} | {f"recall_at_{k}": float((first <= k).mean()) for k in ks}


def known_item(ranks: Any, *, k: int = 10) -> dict[str, float]:
    """Compute mean reciprocal rank and recall of known-item search: one right answer per query, among the first k.

    mrr = mean of 1 / rank where rank <= k, else 0;  recall = share of queries with rank <= k.

    Args:
        ranks: (n,), n >= 1, from 1; infinity or NaN where the item was not found.
        k: number of hits a user looks at, >= 1.

    Returns:
        {"mrr": ..., "recall": ...}, fractions.

    Raises:
        ValueError: no ranks, or one below 1.

    Example:
        >>> known_item([1, 2, float("inf"), 20], k=10)
        {'mrr': 0.375, 'recall': 0.5}
    """
    values = as_float64(ranks)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"ranks must be (n,) with n >= 1, got shape {values.shape}.")
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}.")
    if (values < 1).any():
        raise ValueError(f"ranks count from 1, got {values[values < 1][0]:g}.")
    hit = values <= k
    return {"mrr": float(np.where(hit, 1.0 / values, 0.0).mean()), "recall": float(hit.mean())}


def _read_vector(x: Any, name: str) -> Array:
    """Return `x` as float64 (n,); ValueError on another shape or a NaN."""
    values = as_float64(x)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {values.shape}.")
    if np.isnan(values).any():
        raise ValueError(f"{name} holds NaN at position {int(np.isnan(values).argmax())}.")
    return values
