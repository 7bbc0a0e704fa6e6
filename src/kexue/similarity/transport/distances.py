"""Distances between sequences of token vectors by optimal transport, and what moved where.

Source: kexue.fm/archives/7388. Masses p on the tokens of x are moved onto masses q on the tokens of y at the cost D_ij
per unit:

    EMD(p, q, D) = min over plans g >= 0 of sum_ij g_ij D_ij,   sum_j g_ij = p_i,  sum_i g_ij = q_j

    WMD   p_i = 1/m,  q_j = 1/n,                      D_ij = |x_i - y_j|
    WRD   p_i = |x_i| / sum |x|,  q_j likewise,       D_ij = 1 - cos(x_i, y_j)

See also: `kexue.similarity.transport.bounds` for what is cheaper to compute and never above these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from kexue._arrays import Array, as_matrix, finite_rows, reread
from kexue.similarity._vectors import exponent_of
from kexue.similarity.transport.sequences import (
    OnEmpty,
    check_option,
    directions,
    empty_distance,
    positive_sum,
    read_masses,
    read_pair,
    read_weights,
)
from kexue.similarity.transport.solvers import SOLVERS, Solver, TransportPlan, transport_cost, transport_plan

Kind = Literal["wrd", "wmd"]
Scale = Literal["rms"] | None
_MASS_TOLERANCE = 1e-6


class ExplainedPair(NamedTuple):
    """Mass that moved from one token to another; contribution = mass x cost."""

    source: str
    target: str
    mass: float
    cost: float
    contribution: float


class Explanation(NamedTuple):
    """A distance and the moves it is made of, the heaviest first."""

    distance: float
    kind: str
    pairs: tuple[ExplainedPair, ...]


@overload
def emd(p: Any, q: Any, cost: Any, *, return_plan: Literal[False] = False, solver: Solver = "auto") -> float: ...
@overload
def emd(p: Any, q: Any, cost: Any, *, return_plan: Literal[True], solver: Solver = "auto") -> TransportPlan: ...
def emd(p: Any, q: Any, cost: Any, *, return_plan: bool = False, solver: Solver = "auto") -> float | TransportPlan:
    """The least cost of moving masses p onto masses q (earth mover's distance).

    min over g >= 0 of sum_ij g_ij D_ij with row sums p and column sums q. Source: kexue.fm/archives/7388, section EMD.
    It grows with the mass moved: masses that sum to 1 give a mean cost.

    Args:
        p: (m,), >= 0. q: (n,), >= 0, of the same sum (to 1e-6, relative; q is scaled to it).
        cost: (m, n), finite.
        return_plan: return plan and duals too.
        solver: ``"pot"`` is a network simplex (extra `transport`), tens of microseconds for two sentences;
            ``"highs"`` a general solver that comes with scipy, milliseconds; ``"auto"`` the best there is.

    Returns:
        The distance, or a `TransportPlan`. Computed in float64 on the CPU.

    Raises:
        ValueError: masses negative, not finite, of different or no sum; shapes that do not fit; a cost not finite.
        MissingDependencyError: ``"pot"`` without the extra.

    Example:
        >>> emd([0.5, 0.5], [0.25, 0.75], [[0.0, 1.0], [1.0, 0.0]])
        0.25

    Cost: about O((m + n)^3) time, O(m n) memory.
    """
    p, q, D = _problem(p, q, cost)
    check_option(solver, "solver", SOLVERS)
    return transport_plan(p, q, D, solver) if return_plan else transport_cost(p, q, D, solver)


def product_upper_bound(p: Any, q: Any, cost: Any) -> float:
    """The cost of moving without a plan, sum_ij p_i q_j D_ij / sum(p): never below `emd`.

    Args and Raises: as `emd`. Cost: O(m n).

    Example:
        >>> product_upper_bound([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]])
        0.5
    """
    p, q, D = _problem(p, q, cost)
    return float(p / p.sum() @ D @ q)


def word_movers_distance(
    x: Any,
    y: Any,
    *,
    weights_x: Any = None,
    weights_y: Any = None,
    metric: Literal["euclidean"] = "euclidean",
    scale: Scale = None,
    on_empty: OnEmpty = "inf",
    return_plan: bool = False,
    solver: Solver = "auto",
) -> Any:
    """Word mover's distance: `emd` between equally weighted tokens under the distance of their vectors.

    D_ij = |x_i - y_j|, p_i = 1/m, q_j = 1/n. Source: kexue.fm/archives/7388, section WMD; Kusner et al. 2015.
    Unchanged by a common rotation or translation; a metric on bags of vectors. It is not bounded.

    Args:
        x: (m, d). y: (n, d). Token vectors.
        weights_x: (m,), >= 0, brought to sum 1; None weighs tokens equally. A text as distinct words with their counts
            is the same distance from a smaller problem. weights_y: (n,), likewise.
        metric: of the vectors.
        scale: ``"rms"`` divides by sqrt(d): root mean square differences, as the article's code takes them (its
            formula does not).
        on_empty: the distance to a sequence without tokens, ``"inf"``, or ``"raise"``.
        return_plan: return a `TransportPlan`; to an empty sequence its plan is 0 and its duals are NaN.
        solver: see `emd`.

    Returns:
        The distance, or a `TransportPlan`.

    Raises:
        ValueError: vectors of different dimensions, NaN or infinity, weights that do not fit; an empty sequence under
            ``"raise"``.

    Example:
        >>> word_movers_distance([[0.0, 0.0], [3.0, 4.0]], [[3.0, 4.0], [0.0, 0.0]])
        0.0
    """
    x, y = reread(x), reread(y)
    problem = wmd_problem(x, y, weights_x, weights_y, metric, scale, on_empty)
    return _solve(problem, x, y, return_plan, solver)


def word_rotators_distance(
    x: Any, y: Any, *, on_empty: OnEmpty = "inf", return_plan: bool = False, solver: Solver = "auto"
) -> Any:
    """Word rotator's distance: length is importance, direction is meaning.

    D_ij = 1 - cos(x_i, y_j), p_i = |x_i| / sum |x|, q_j = |y_j| / sum |y|. Source: kexue.fm/archives/7388, section
    WRD; Yokoi et al. 2020, arXiv:2004.15003. In [0, 2]. Unchanged by a common rotation and by scaling a whole
    sequence. sqrt(2 WRD) is a metric between distributions of directions; WRD itself breaks the triangle inequality.
    It needs vectors whose lengths mean something: unit vectors, or the nearly equal lengths that layer normalisation
    leaves, make all tokens weigh alike.

    Args:
        x: (m, d). y: (n, d). A zero vector has no direction and no weight: it is left out.
        on_empty: the distance to a sequence without tokens (or of zero vectors only), ``"inf"``, or ``"raise"``.
        return_plan: return a `TransportPlan`; rows and columns of zero vectors are 0 in the plan, NaN in the duals.
        solver: see `emd`.

    Returns:
        The distance, or a `TransportPlan`.

    Raises:
        ValueError: vectors of different dimensions, NaN or infinity; an empty sequence under ``"raise"``.

    Example:
        >>> word_rotators_distance([[1.0, 0.0]], [[5.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
        0.5
    """
    x, y = reread(x), reread(y)
    problem = wrd_problem(x, y, on_empty)
    return _solve(problem, x, y, return_plan, solver)


def word_rotators_similarity(x: Any, y: Any, *, on_empty: OnEmpty = "inf", solver: Solver = "auto") -> float:
    """1 - WRD, in [-1, 1]: for one token each it is their cosine. Not a probability.

    Args and Raises: as `word_rotators_distance`; an empty sequence gives -inf under ``"inf"``.

    Example:
        >>> word_rotators_similarity([[1.0, 0.0]], [[0.0, 2.0]])
        0.0
    """
    return 1.0 - float(word_rotators_distance(x, y, on_empty=on_empty, solver=solver))


def explain(
    x: Any, y: Any, tokens_x: Sequence[str], tokens_y: Sequence[str], *, kind: Kind = "wrd", top: int | None = None
) -> Explanation:
    """Say which token moved to which: the distance as a sum of mass x cost.

    Args:
        x: (m, d). y: (n, d). tokens_x: m names. tokens_y: n names.
        kind: ``"wrd"`` or ``"wmd"``.
        top: keep the heaviest moves only; None keeps all, whose contributions then sum to the distance.

    Returns:
        Pairs by falling mass. An empty sequence gives the distance infinity and no pairs.

    Raises:
        ValueError: as many names as vectors are needed; what the distances raise.

    Example:
        >>> explain([[1.0, 0.0]], [[0.0, 1.0]], ["cat"], ["dog"]).pairs
        (ExplainedPair(source='cat', target='dog', mass=1.0, cost=1.0, contribution=1.0),)
    """
    check_option(kind, "kind", ("wrd", "wmd"))
    if top is not None and (isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1):
        raise ValueError(f"top must be a number of pairs >= 1 or None, got {top!r}")
    x, y, tokens_x, tokens_y = (reread(given) for given in (x, y, tokens_x, tokens_y))
    for names, vectors, which in ((tokens_x, x, "x"), (tokens_y, y, "y")):
        if isinstance(names, str) or len(names) != len(vectors):
            got = "one string" if isinstance(names, str) else f"{len(names)} names"
            raise ValueError(f"tokens_{which} must name each of the {len(vectors)} vectors of {which}, got {got}")
    problem = wrd_problem(x, y) if kind == "wrd" else wmd_problem(x, y)
    if isinstance(problem, float):
        return Explanation(problem, kind, ())
    p, q, cost, rows, columns = problem
    distance, plan, _, _ = transport_plan(p, q, cost, "auto")
    pairs = [
        ExplainedPair(str(tokens_x[rows[i]]), str(tokens_y[columns[j]]), mass, c, mass * c)
        for i, j in np.argwhere(plan)
        for mass, c in [(float(plan[i, j]), float(cost[i, j]))]
    ]
    pairs.sort(key=lambda pair: (-pair.mass, pair.cost))
    return Explanation(distance, kind, tuple(pairs[:top]))


# A problem: p (m',), q (n',), cost (m', n'), and the positions of its rows in x and of its columns in y.
Problem = tuple[Array, Array, Array, Array, Array]


def wmd_problem(
    x: Any,
    y: Any,
    weights_x: Any = None,
    weights_y: Any = None,
    metric: str = "euclidean",
    scale: Scale = None,
    on_empty: OnEmpty = "inf",
) -> Problem | float:
    """The transport problem of WMD, or the distance where a sequence is empty."""
    from scipy.spatial.distance import cdist

    check_option(metric, "metric", ("euclidean",))
    check_option(scale, "scale", (None, "rms"))
    check_option(on_empty, "on_empty", ("inf", "raise"))
    X, Y = read_pair(x, y)
    p, q = read_weights(weights_x, len(X), "weights_x"), read_weights(weights_y, len(Y), "weights_y")
    if not (len(X) and len(Y)):
        return empty_distance(X, Y, on_empty, "WMD")
    # From differences: |x|^2 - 2 x.y + |y|^2 would lose the small ones. Scaled, so that squares stay in float64.
    exponent = exponent_of(np.concatenate([X, Y]))
    near, far = (np.ldexp(Z, -exponent) if exponent else Z for Z in (X, Y))
    with np.errstate(over="ignore"):
        cost: Array = np.ldexp(cdist(near, far), exponent)
    if not np.isfinite(cost).all():
        raise ValueError("distances between tokens of x and y leave float64; divide both by a constant")
    if scale == "rms":
        cost /= np.sqrt(X.shape[1])
    return p, q * (p.sum() / q.sum()), cost, np.arange(len(X)), np.arange(len(Y))


def wrd_problem(x: Any, y: Any, on_empty: OnEmpty = "inf") -> Problem | float:
    """The transport problem of WRD without zero vectors, or the distance where nothing is left."""
    check_option(on_empty, "on_empty", ("inf", "raise"))
    X, Y = read_pair(x, y)
    (kept_x, U, p), (kept_y, V, q) = directions(X), directions(Y)
    if not (len(U) and len(V)):
        return empty_distance(X, Y, on_empty, "WRD")
    cost = np.clip(1.0 - U @ V.T, 0.0, 2.0)
    return p, q * (p.sum() / q.sum()), cost, np.flatnonzero(kept_x), np.flatnonzero(kept_y)


def _solve(problem: Problem | float, x: Any, y: Any, return_plan: bool, solver: Solver) -> float | TransportPlan:
    check_option(solver, "solver", SOLVERS)
    if not return_plan:
        return problem if isinstance(problem, float) else transport_cost(*problem[:3], solver)
    m, n = len(x), len(y)
    whole = TransportPlan(np.inf, np.zeros((m, n)), np.full(m, np.nan), np.full(n, np.nan))
    if isinstance(problem, float):
        return whole
    found = transport_plan(*problem[:3], solver)
    rows, columns = problem[3:]
    whole.plan[np.ix_(rows, columns)] = found.plan
    whole.dual_p[rows], whole.dual_q[columns] = found.dual_p, found.dual_q
    return whole._replace(distance=found.distance)


def _problem(p: Any, q: Any, cost: Any) -> tuple[Array, Array, Array]:
    p, q = read_masses(p, "p"), read_masses(q, "q")
    matrix = as_matrix(cost, "cost")
    if tuple(matrix.shape) != (len(p), len(q)):
        raise ValueError(f"cost must be ({len(p)}, {len(q)}) for masses p and q, got shape {tuple(matrix.shape)}")
    here, there = positive_sum(p, "p"), positive_sum(q, "q")
    if abs(here - there) > _MASS_TOLERANCE * max(here, there):
        raise ValueError(f"p and q must have one sum, got {here} and {there}. Normalise both: p / p.sum().")
    q = q * (here / there)
    return p, q, finite_rows(matrix, "cost")
