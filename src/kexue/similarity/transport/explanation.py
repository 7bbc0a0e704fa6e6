"""Explanation of a transport distance: which token moved to which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import reread
from kexue.similarity._choices import check_choice
from kexue.similarity.transport.problems import Kind, wmd_problem, wrd_problem
from kexue.similarity.transport.solvers import transport_plan


class ExplainedPair(NamedTuple):
    """Mass that moved from one token to another; contribution = mass x cost."""

    source: str
    target: str
    mass: float
    cost: float
    contribution: float


class Explanation(NamedTuple):
    """A distance and the moves it consists of, the heaviest first."""

    distance: float
    kind: str
    pairs: tuple[ExplainedPair, ...]


def explain(
    x: Any, y: Any, tokens_x: Sequence[str], tokens_y: Sequence[str], *, kind: Kind = "wrd", top: int | None = None
) -> Explanation:
    """Decompose a distance into moves from token to token, each mass x cost.

    Args:
        x: (m, d).
        y: (n, d).
        tokens_x: m names.
        tokens_y: n names.
        kind: ``"wrd"`` or ``"wmd"``.
        top: number of heaviest moves to return, >= 1; None returns all, whose contributions sum to the distance.

    Returns:
        Explanation, pairs by descending mass. An empty sequence gives the distance infinity and no pairs.

    Raises:
        ValueError: another number of names than vectors; what the distances raise.

    Example:
        >>> explain([[1.0, 0.0]], [[0.0, 1.0]], ["cat"], ["dog"]).pairs
        (ExplainedPair(source='cat', target='dog', mass=1.0, cost=1.0, contribution=1.0),)
    """
    check_choice("kind", kind, ("wrd", "wmd"))
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
