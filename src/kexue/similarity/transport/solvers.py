"""Solvers of one discrete transport problem: network simplex (POT) where it is installed, else HiGHS (scipy)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.errors import KexueError, MissingDependencyError

Solver = Literal["auto", "highs", "pot"]
SOLVERS = ("auto", "highs", "pot")
_Solve = Callable[[Array, Array, Array], tuple[Array, Array]]  # p, q, cost -> plan, dual of q


class TransportPlan(NamedTuple):
    """The cheapest plan to move masses p onto masses q, with the certificate that none is cheaper.

    Attributes:
        distance: sum of plan x cost.
        plan: (m, n), mass moved from i to j; rows sum to p, columns to q. Also the gradient in the cost.
        dual_p: (m,), f of the dual problem max p.f + q.g with f_i + g_j <= cost_ij; also, up to a constant, the
            gradient in p.
        dual_q: (n,), g. p.f + q.g equals the distance: a feasible pair of that value proves the plan optimal.
    """

    distance: float
    plan: Array
    dual_p: Array
    dual_q: Array


def transport_cost(p: Array, q: Array, cost: Array, solver: Solver) -> float:
    """Return the distance alone. Equal weights in equal number are an assignment, which needs no linear programme."""
    if solver == "auto" and len(p) == len(q) > 1 and p.min() == p.max() and q.min() == q.max():
        from scipy.optimize import linear_sum_assignment

        return float(cost[linear_sum_assignment(cost)].sum() * p[0])
    rows, columns = np.flatnonzero(p), np.flatnonzero(q)
    return float((_solve(p, q, cost, rows, columns, solver)[0] * cost).sum())  # eq. 2 (7388)


def transport_plan(p: Array, q: Array, cost: Array, solver: Solver) -> TransportPlan:
    """Return plan and duals; p and q are float64, >= 0 and of the same sum > 0, the cost is (m, n) and finite."""
    rows, columns = np.flatnonzero(p), np.flatnonzero(q)
    plan, g = _solve(p, q, cost, rows, columns, solver)
    # Conjugating twice only raises a dual pair. It makes the pair feasible to the last bit, and gives a value to rows
    # and columns without mass, which solvers leave open.
    f = (cost[:, columns] - g).min(axis=1)
    return TransportPlan(float((plan * cost).sum()), plan, f, (cost - f[:, None]).min(axis=0))


def _solve(p: Array, q: Array, cost: Array, rows: Array, columns: Array, solver: Solver) -> tuple[Array, Array]:
    """Return the plan (m, n), and the dual of the columns that carry mass."""
    whole = len(rows) == len(p) and len(columns) == len(q)
    if not whole:
        p, q = p[rows], q[columns]
    part = cost if whole else cost[np.ix_(rows, columns)]
    if len(p) == 1 or len(q) == 1:
        inner, g = p[:, None] * (q / q.sum()), part[0] if len(p) == 1 else np.zeros(1)
    else:
        # Solvers stop at absolute tolerances: scale costs to at most 1, and masses to about 1.
        scale, unit = float(np.abs(part).max()) or 1.0, p.sum() / max(part.shape)
        inner, g = _choose_solver(solver)(p / unit, q / unit, np.ascontiguousarray(part / scale))
        inner, g = inner * unit, g * scale
    if whole:
        return inner, g
    plan = np.zeros(cost.shape)
    plan[np.ix_(rows, columns)] = inner
    return plan, g


def _choose_solver(solver: Solver) -> _Solve:
    """Return the function behind a name; "auto" is POT where it is installed."""
    if solver == "highs":
        return _solve_by_highs
    try:
        return _pot_solver()
    except MissingDependencyError:
        if solver == "pot":
            raise
        return _solve_by_highs


@cache
def _pot_solver() -> _Solve:
    """Return POT's solver without its argument checks, which cost more than a problem of sentence size does."""
    lp = import_optional("ot.lp")

    def solve_by_public_name(p: Array, q: Array, cost: Array) -> tuple[Array, Array]:
        plan, log = lp.emd(p, q, cost, numItermax=_max_iterations(cost), log=True, center_dual=False)
        _require_optimal(log["result_code"])
        return np.asarray(plan), np.asarray(log["v"])

    try:
        emd_c: Any = import_optional("ot.lp.emd_wrap").emd_c
        half = np.full(2, 0.5)
        plan, _, _, _, code = emd_c(half, half, 1.0 - np.eye(2), 100, 1)
        if code != 1 or not np.array_equal(plan, 0.5 * np.eye(2)):
            return solve_by_public_name
    except Exception:  # a private name of POT: if it changes, the public one is used
        return solve_by_public_name

    def solve_by_private_name(p: Array, q: Array, cost: Array) -> tuple[Array, Array]:
        plan, _, _, g, code = emd_c(p, q, cost, _max_iterations(cost), 1)
        _require_optimal(code)
        return plan, g

    return solve_by_private_name


def _max_iterations(cost: Array) -> int:
    """Limit of the simplex iterations, far above what a problem of this size needs."""
    return 100_000 + 100 * cost.size


def _require_optimal(code: int) -> None:
    """Raise KexueError unless POT reports an optimum."""
    if code != 1:
        raise KexueError(f"POT's network simplex found no optimum (code {code}).", remedy='Try solver="highs".')


def _solve_by_highs(p: Array, q: Array, cost: Array) -> tuple[Array, Array]:
    """Return plan and dual of q by the linear programme of the article."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    m, n = cost.shape
    sums = vstack([kron(eye_array(m), np.ones((1, n))), kron(np.ones((1, m)), eye_array(n))], format="csr")
    masses = np.concatenate([p, q])
    # eq. 1 (7388): one of the m + n constraints follows from the others, and rounding would break it: the last is
    # left out.
    result = linprog(
        cost.ravel(),
        A_eq=sums[:-1],
        b_eq=masses[:-1],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.status != 0 or result.x is None:
        raise KexueError(f"HiGHS found no optimum: {result.message}", remedy='Try solver="pot".')
    plan = np.maximum(result.x.reshape(m, n), 0.0)
    return plan, np.append(result.eqlin.marginals[m:], 0.0)
