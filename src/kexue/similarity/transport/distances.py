"""Distances between sequences of token vectors by optimal transport: EMD, WMD, WRD.

Source: kexue.fm/archives/7388. Masses p on the tokens of x are moved onto masses q on the tokens of y at the cost D_ij
per unit:

    EMD(p, q, D) = min over plans g >= 0 of sum_ij g_ij D_ij,   sum_j g_ij = p_i,  sum_i g_ij = q_j     eq. 1, 2

    WMD   p_i = 1/m,  q_j = 1/n,                      D_ij = |x_i - y_j|          eq. 3
    WRD   p_i = |x_i| / sum |x|,  q_j likewise,       D_ij = 1 - cos(x_i, y_j)    eq. 5 to 7

See also: `kexue.similarity.transport.bounds`, lower bounds that are cheaper to compute.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from kexue._arrays import reread
from kexue.similarity._choices import check_choice
from kexue.similarity.transport.problems import Problem, Scale, read_problem, wmd_problem, wrd_problem
from kexue.similarity.transport.sequences import OnEmpty
from kexue.similarity.transport.solvers import SOLVERS, Solver, TransportPlan, transport_cost, transport_plan


@overload
def emd(p: Any, q: Any, cost: Any, *, return_plan: Literal[False] = False, solver: Solver = "auto") -> float: ...
@overload
def emd(p: Any, q: Any, cost: Any, *, return_plan: Literal[True], solver: Solver = "auto") -> TransportPlan: ...
def emd(p: Any, q: Any, cost: Any, *, return_plan: bool = False, solver: Solver = "auto") -> float | TransportPlan:
    """Compute the least cost of moving masses p onto masses q (earth mover's distance).

    min over g >= 0 of sum_ij g_ij D_ij with row sums p and column sums q. Source: kexue.fm/archives/7388, eq. 2.
    It grows with the mass moved: masses that sum to 1 give a mean cost.

    Args:
        p: (m,), >= 0.
        q: (n,), >= 0, of the same sum (to 1e-6, relative; q is scaled to it).
        cost: (m, n), finite.
        return_plan: return a `TransportPlan`, with plan and duals.
        solver: ``"pot"`` is a network simplex (extra `transport`), tens of microseconds for two sentences;
            ``"highs"`` a general solver that comes with scipy, milliseconds; ``"auto"`` the faster one installed.

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
    p, q, D = read_problem(p, q, cost)
    check_choice("solver", solver, SOLVERS)
    return transport_plan(p, q, D, solver) if return_plan else transport_cost(p, q, D, solver)  # eq. 2 (7388)


def product_upper_bound(p: Any, q: Any, cost: Any) -> float:
    """Compute the cost of the product plan, sum_ij p_i q_j D_ij / sum(p): never below `emd`.

    Args and Raises: as `emd`. Cost: O(m n).

    Example:
        >>> product_upper_bound([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]])
        0.5
    """
    p, q, D = read_problem(p, q, cost)
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
    """Compute the word mover's distance: `emd` of equally weighted tokens under the distance of their vectors.

    D_ij = |x_i - y_j|, p_i = 1/m, q_j = 1/n. Source: kexue.fm/archives/7388, eq. 3; Kusner et al. 2015.
    Unchanged by a common rotation or translation; a metric on bags of vectors. It is not bounded.

    Args:
        x: (m, d), token vectors.
        y: (n, d), token vectors.
        weights_x: (m,), >= 0, scaled to sum 1; None weighs tokens equally. A text as distinct words with their counts
            has the same distance and is a smaller problem.
        weights_y: (n,), likewise.
        metric: distance of the vectors.
        scale: ``"rms"`` divides by sqrt(d): root mean square differences, as in the article's code (not in its
            formula).
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
    problem = wmd_problem(x, y, weights_x, weights_y, metric, scale, on_empty)  # eq. 3 (7388)
    return _solve(problem, x, y, return_plan, solver)


def word_rotators_distance(
    x: Any, y: Any, *, on_empty: OnEmpty = "inf", return_plan: bool = False, solver: Solver = "auto"
) -> Any:
    """Compute the word rotator's distance: vector length is the weight, direction the meaning.

    D_ij = 1 - cos(x_i, y_j), p_i = |x_i| / sum |x|, q_j = |y_j| / sum |y|. Source: kexue.fm/archives/7388,
    eq. 5 to 7; Yokoi et al. 2020, arXiv:2004.15003. In [0, 2]. Unchanged by a common rotation and by scaling a whole
    sequence. sqrt(2 WRD) is a metric between distributions of directions; WRD itself breaks the triangle inequality.
    It needs vectors with informative lengths: unit vectors, or the nearly equal lengths after layer normalisation, give
    all tokens the same weight.

    Args:
        x: (m, d). A zero vector has no direction and no weight: it is left out.
        y: (n, d), likewise.
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
    problem = wrd_problem(x, y, on_empty)  # eq. 5, 6, 7 (7388)
    return _solve(problem, x, y, return_plan, solver)


def word_rotators_similarity(x: Any, y: Any, *, on_empty: OnEmpty = "inf", solver: Solver = "auto") -> float:
    """Compute 1 - WRD, in [-1, 1]: the cosine for one token each. Not a probability.

    Args and Raises: as `word_rotators_distance`; an empty sequence gives -inf under ``"inf"``.

    Example:
        >>> word_rotators_similarity([[1.0, 0.0]], [[0.0, 2.0]])
        0.0
    """
    return 1.0 - float(word_rotators_distance(x, y, on_empty=on_empty, solver=solver))


def _solve(problem: Problem | float, x: Any, y: Any, return_plan: bool, solver: Solver) -> float | TransportPlan:
    """Return the distance, or the plan over all tokens of x and y, those without mass included."""
    check_choice("solver", solver, SOLVERS)
    if not return_plan:
        return problem if isinstance(problem, float) else transport_cost(problem.p, problem.q, problem.cost, solver)
    m, n = len(x), len(y)
    whole = TransportPlan(np.inf, np.zeros((m, n)), np.full(m, np.nan), np.full(n, np.nan))
    if isinstance(problem, float):
        return whole
    part = transport_plan(problem.p, problem.q, problem.cost, solver)
    whole.plan[np.ix_(problem.rows, problem.columns)] = part.plan
    whole.dual_p[problem.rows], whole.dual_q[problem.columns] = part.dual_p, part.dual_q
    return whole._replace(distance=part.distance)
