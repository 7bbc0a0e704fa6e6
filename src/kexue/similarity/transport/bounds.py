"""Lower bounds of the transport distances, cheap to compute: a search uses them to skip the solver.

Source: kexue.fm/archives/7388, eq. 4 (WCD) and 8 (WRD); Kusner et al. 2015 for WCD and the relaxed distance.

    WCD            |sum p x - sum q y|                      <= WMD    a norm is convex (Jensen)
    WRD centroid   1/2 |sum x / Z_x - sum y / Z_y|^2        <= WRD    1 - cos = 1/2 |u - v|^2, Jensen; Z = sum |x|
    relaxed        max(sum_i p_i min_j D_ij, sum_j q_j min_i D_ij)    each side of the constraints dropped in turn

No centroid bound is always below the relaxed one: take the larger of both.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from kexue.similarity._choices import check_choice
from kexue.similarity._vectors import lengths
from kexue.similarity.transport.problems import Problem, Scale, wmd_problem, wrd_problem
from kexue.similarity.transport.sequences import (
    OnEmpty,
    directions,
    empty_distance,
    read_pair,
    read_weights,
)


def wcd(
    x: Any,
    y: Any,
    *,
    weights_x: Any = None,
    weights_y: Any = None,
    scale: Scale = None,
    on_empty: OnEmpty = "inf",
) -> float:
    """Compute the word centroid distance, |sum_i p_i x_i - sum_j q_j y_j| <= WMD.

    Args and Raises: as `word_movers_distance`. Cost: O((m + n) d).

    Example:
        >>> wcd([[0.0, 0.0], [2.0, 0.0]], [[1.0, 3.0]])
        3.0
    """
    check_choice("scale", scale, (None, "rms"))
    check_choice("on_empty", on_empty, ("inf", "raise"))
    X, Y = read_pair(x, y)
    p, q = read_weights(weights_x, len(X), "weights_x"), read_weights(weights_y, len(Y), "weights_y")
    if not (len(X) and len(Y)):
        return empty_distance(X, Y, on_empty, "WCD")
    distance = float(lengths((p @ X - q @ Y)[None])[0])  # eq. 4 (7388)
    return distance / np.sqrt(X.shape[1]) if scale == "rms" else distance


def relaxed_wmd(
    x: Any,
    y: Any,
    *,
    weights_x: Any = None,
    weights_y: Any = None,
    metric: Literal["euclidean"] = "euclidean",
    scale: Scale = None,
    on_empty: OnEmpty = "inf",
) -> float:
    """Compute the relaxed word mover's distance: every token goes to its nearest; larger of two directions; <= WMD.

    Args and Raises: as `word_movers_distance`. Cost: O(m n d), without a solver.

    Example:
        >>> relaxed_wmd([[0.0], [4.0]], [[1.0]])
        2.0
    """
    problem = wmd_problem(x, y, weights_x, weights_y, metric, scale, on_empty)
    return problem if isinstance(problem, float) else _relaxed_distance(problem)


def wrd_centroid_bound(x: Any, y: Any, *, on_empty: OnEmpty = "inf") -> float:
    """Compute 1/2 |sum x / Z_x - sum y / Z_y|^2 <= WRD, Z the sum of lengths. Source: kexue.fm/archives/7388, eq. 8.

    Equality for one token each: 1/2 |u - v|^2 = 1 - cos(u, v).

    Args and Raises: as `word_rotators_distance`. Cost: O((m + n) d).

    Example:
        >>> wrd_centroid_bound([[2.0, 0.0]], [[-1.0, 0.0]])
        2.0
    """
    check_choice("on_empty", on_empty, ("inf", "raise"))
    X, Y = read_pair(x, y)
    (_, U, p), (_, V, q) = directions(X), directions(Y)
    if not (len(U) and len(V)):
        return empty_distance(X, Y, on_empty, "WRD")
    difference = p @ U - q @ V
    return float(difference @ difference) / 2  # eq. 8 (7388)


def relaxed_wrd(x: Any, y: Any, *, on_empty: OnEmpty = "inf") -> float:
    """Compute the relaxed word rotator's distance: every token goes to its nearest, larger of both directions; <= WRD.

    Args and Raises: as `word_rotators_distance`. Cost: O(m n d), without a solver.

    Example:
        >>> relaxed_wrd([[1.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]])
        0.75
    """
    problem = wrd_problem(x, y, on_empty)
    return problem if isinstance(problem, float) else _relaxed_distance(problem)


def _relaxed_distance(problem: Problem) -> float:
    """Return the larger of the two costs without the constraints of the other side."""
    return float(max(problem.p @ problem.cost.min(axis=1), problem.q @ problem.cost.min(axis=0)))
