"""kexue.fm/archives/1336: equations through the symmetry of their roots.

Measures: symmetric products of the coordinates of two, three and four roots against the coefficients; the number of
values of the resolvent for two to five roots; errors of the closed forms and of the companion matrix where roots nearly
meet; multiple roots of whole coefficients; and the time of a batch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue._optional import import_optional
from kexue.algebra import (
    express_symmetric,
    solve,
    solve_cubic,
    solve_quadratic,
    solve_quartic,
    symmetric_coordinates,
)
from kexue.experiments._data import attempt
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

SOLVERS = {2: solve_quadratic, 3: solve_cubic, 4: solve_quartic}
HARD: tuple[Sequence[float], ...] = (
    (1.0, -3.000000001, 3.000000002, -1.000000001),  # nearly triple
    (1.0, -0.3, 0.03, -0.001),  # a tenth three times, which floats do not hold
    (1.0, 1.0, 1e-20, 1e-40),  # a tiny pair
    (1e160, -6e160, 11e160, -6e160),
    (1.0, 0.0, -3e200, 2e300),
    (1.0, 0.0, -3.0, 1.0),  # casus irreducibilis
    (1.0, 0.0, -3.0, 2.0000000000000004),
    (1.0, -1e8, 1e8, -1.0),
    (1.0, 0.0, -1e4, 0.0, 1e-4),  # biquadratic
    (1.0, 0.0, -5.0, 1e-13, 4.0),
    (1.0, -6.0, 13.0, -12.0, 4.0000000000001),  # nearly a square
    (1.0, -4.0, 6.0, -4.0, 1.0000001),  # nearly quadruple
    (1.0, -1e9, 1.0),  # cancellation
)


@experiment(
    "algebra-symmetry",
    claim="Coordinates in which permutations act simply solve equations up to degree four, also in floating point.",
    effect=(
        "largest backward error {backward_error_ours_degree_4}; "
        "worst root of the hard cases {hard_cases_worst_numpy} to {hard_cases_worst_ours}"
    ),
    minutes=1,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Check identities and orbits; compare errors and times with numpy.roots; solve whole-number equations exactly."""
    generator = np.random.default_rng(seed)
    rows, trials = {"smoke": (2000, 8), "small": (50_000, 60), "full": (200_000, 300)}[budget]
    identities = max(_identity_gap(generator, n) for n in SOLVERS)
    orbits = {n: _count_orbit(generator, n) for n in (2, 3, 4, 5)}
    worst = _worst_backward_errors(generator, rows)
    figures = {
        "identity_gap": Figure(identities, n=300, expected=0.0, source="computed"),
        **{f"values_of_resolvent_{n}_roots": Figure(orbits[n], unit="values") for n in orbits},
        **worst,
        "multiple_roots_exact": Figure(
            _exact_share(generator, 4 * trials), n=4 * trials, expected=1.0, source="computed"
        ),
        "speed_cubic": Figure(_measure_speed(generator, 3, rows), unit="times a loop over numpy.roots", n=rows),
        "speed_quartic": Figure(_measure_speed(generator, 4, rows), unit="times a loop over numpy.roots", n=rows),
    }
    claims = _claims(figures, orbits)
    notes = ["the article treats two roots; three and four continue its idea"]
    reference = attempt(
        lambda: (_forward_errors(generator, trials), np.array([_errors(c) for c in HARD])),
        "accuracy against 60 digits",
        notes,
    )
    if reference is not None:
        hard = reference[1]
        figures |= {
            "hard_cases_worst_ours": Figure(float(hard[:, 0].max()), n=len(HARD)),
            "hard_cases_worst_numpy": Figure(float(hard[:, 1].max()), n=len(HARD)),
        }
        claims.append(_hard_claim(hard))
        written = str(express_symmetric("x^3 + y^3 + z^3", ["x", "y", "z"]))
        notes += [f"x^3 + y^3 + z^3 = {written}", "in the picture 1e-17 stands for a root that is rounded right"]
    curves = None if reference is None else reference[0]
    return Report(
        tuple(claims), figures, notes=tuple(notes), seeds=(seed,), draw=lambda figure: _draw(figure, curves, orbits)
    )


def _claims(figures: Mapping[str, Figure], orbits: Mapping[int, int]) -> list[Claim]:
    return [
        Claim.check(
            "Sum and product give the coordinates of two roots; products of the coordinates of three and four roots "
            "are polynomials in the coefficients in the same way.",
            figures["identity_gap"].value < 1e-12,
            rule="largest relative deviation of the identities on random complex roots below 1e-12",
            figures=["identity_gap"],
        ),
        Claim.check(
            "The resolvent takes fewer values than there are roots for n = 3 and 4, and more for n = 5.",
            orbits[2] == 1 and orbits[3] == 2 and orbits[4] == 3 and orbits[5] == 6,
            rule="distinct values of y2^2, y2^3, y2^2 and, for five roots, of the smallest resolvent: 1, 2, 3, 6",
            figures=[f"values_of_resolvent_{n}_roots" for n in orbits],
        ),
        Claim.check(
            "In floating point every root is one of coefficients next to those given, also where roots nearly meet.",
            all(figures[f"backward_error_ours_degree_{n}"].value <= 4e-16 * n for n in SOLVERS),
            rule="|f(r)| / sum |a_k| |r|^k at most 4e-16 n, random and nearly degenerate",
            figures=[f"backward_error_ours_degree_{n}" for n in SOLVERS],
        ),
        Claim.check(
            "Whole coefficients give multiple roots exactly, with their multiplicities.",
            figures["multiple_roots_exact"].value == 1,
            rule="all of the random products of powers of linear factors",
            figures=["multiple_roots_exact"],
        ),
    ]


def _hard_claim(hard: Array) -> Claim:
    return Claim.check(
        "On equations chosen to be hard no root is further off than by the companion matrix.",
        bool((hard[:, 0] <= np.maximum(hard[:, 1], 4e-16)).all()),
        rule="relative error of the worst root against 60 digits, case by case, beyond 4e-16",
        figures=["hard_cases_worst_ours", "hard_cases_worst_numpy"],
    )


def _worst_backward_errors(generator: np.random.Generator, rows: int) -> dict[str, Figure]:
    """Largest backward errors of both solvers by degree, on random and on nearly degenerate equations."""
    worst = {(n, who): 0.0 for n in SOLVERS for who in ("ours", "numpy")}
    for n, solver in SOLVERS.items():
        for c in (generator.normal(size=(rows, n + 1)), near_degenerate(generator, rows, n)):
            worst[n, "ours"] = max(worst[n, "ours"], float(backward_errors(c, solver(c)).max()))
            some = c[: rows // 25]
            peer = np.array([np.roots(row) for row in some])
            worst[n, "numpy"] = max(worst[n, "numpy"], float(backward_errors(some, peer).max()))
    return {
        f"backward_error_{who}_degree_{n}": Figure(value, n=2 * (rows if who == "ours" else rows // 25))
        for (n, who), value in worst.items()
    }


def near_degenerate(generator: np.random.Generator, count: int, n: int) -> Any:
    """Coefficients (count, n + 1) whose first two roots lie 1e-14 to 1e-2 apart, or all of them in every third row."""
    roots = generator.normal(size=(count, n))
    gaps = 10 ** generator.uniform(-14, -2, (count, 1)) * generator.normal(size=(count, n - 1))
    together = np.arange(count) % 3 == 0
    roots[:, 1] = roots[:, 0] * (1 + gaps[:, 0])
    roots[together, 1:] = roots[together, :1] * (1 + gaps[together])
    c = np.ones((count, 1))
    for k in range(n):
        c = np.pad(c, ((0, 0), (0, 1))) - roots[:, k : k + 1] * np.pad(c, ((0, 0), (1, 0)))
    return c


def backward_errors(c: Any, roots: Any) -> Any:
    """(m, n): |f(r)| / sum |a_k| |r|^k in extended precision."""
    f, size = np.zeros(roots.shape, np.clongdouble), np.zeros(roots.shape, np.longdouble)
    z = roots.astype(np.clongdouble)
    for k in range(c.shape[1]):
        f = f * z + c[:, k : k + 1]
        size = size * abs(z) + abs(c[:, k : k + 1])
    return (abs(f) / size).astype(float)


def _identity_gap(generator: np.random.Generator, n: int) -> float:
    """Largest relative deviation of the identities of n roots."""
    x = generator.normal(size=(100, n)) + 1j * generator.normal(size=(100, n))
    y = symmetric_coordinates(x).T
    e1, e2 = x.sum(1), (x.sum(1) ** 2 - (x**2).sum(1)) / 2
    e3 = (x.sum(1) ** 3 - 3 * x.sum(1) * (x**2).sum(1) + 2 * (x**3).sum(1)) / 6
    pairs = {2: [(2 * y[0], e1), (y[0] ** 2 - y[1] ** 2, e2)]}
    if n == 3:
        P = y[0] ** 2 - e2 / 3
        pairs[3] = [(3 * y[0], e1), (y[1] * y[2], P), (y[1] ** 3 + y[2] ** 3, e3 - y[0] ** 3 + 3 * y[0] * P)]
    if n == 4:
        p, q = e2 - 6 * y[0] ** 2, 2 * y[0] * (e2 - 4 * y[0] ** 2) - e3
        pairs[4] = [(4 * y[0], e1), ((y[1:] ** 2).sum(0), -p / 2), (y[1] * y[2] * y[3], -q / 8)]
    return max(float((abs(a - b) / (abs(x) ** 3).sum(1)).max()) for a, b in pairs[n])


def _count_orbit(generator: np.random.Generator, n: int) -> int:
    """Number of values of the resolvent under all permutations of n random roots."""
    x = generator.normal(size=n)
    values = set()
    for order in itertools.permutations(range(n)):
        z = x[list(order)]
        if n == 5:  # Cayley: (x1 x2 + x2 x3 + ... + x5 x1 - x1 x3 - x3 x5 - ... - x4 x1)^2
            step = [z[i] * z[(i + 1) % 5] - z[i] * z[(i + 2) % 5] for i in range(5)]
            value = complex(sum(step) ** 2)
        else:
            value = complex(symmetric_coordinates(z)[1] ** (3 if n == 3 else 2))
        values.add((round(value.real, 9) + 0.0, round(value.imag, 9) + 0.0))
    return len(values)


def _exact_share(generator: np.random.Generator, count: int) -> float:
    """Share of random products of powers of linear factors whose roots and multiplicities come back exactly."""
    good = 0
    for _ in range(count):
        roots = generator.integers(-9, 10, size=generator.integers(2, 7)).tolist()
        p = [int(generator.integers(1, 5))]
        for r in roots:
            p = [a - r * b for a, b in zip([*p, 0], [0, *p], strict=True)]
        good += {root.exact: root.multiplicity for root in solve(p)} == {r: roots.count(r) for r in roots}
    return good / count


def _measure_speed(generator: np.random.Generator, n: int, rows: int) -> float:
    """Time of a loop over numpy.roots over that of one batch, the median of three."""
    c = generator.normal(size=(rows, n + 1))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        SOLVERS[n](c)
        middle = time.perf_counter()
        for row in c[: rows // 50]:
            np.roots(row)
        times.append(50 * (time.perf_counter() - middle) / (middle - start))
    return float(np.median(times))


def _truth(c: Sequence[float]) -> Any:
    """The roots from 60 digits."""
    mpmath = import_optional("mpmath")
    with mpmath.workdps(60):
        roots = mpmath.polyroots([mpmath.mpf(v) for v in c], maxsteps=2000, extraprec=600)
        return np.array([complex(z) for z in roots])


def _errors(c: Sequence[float]) -> tuple[float, float]:
    """Relative error of the worst root, ours and numpy's, each under the best matching."""
    truth = _truth(c)

    def error(roots: Any) -> float:
        if len(roots) != len(truth) or not np.isfinite(roots).all():
            return 1.0
        return min(float((abs(np.array(o) - truth) / abs(truth)).max()) for o in itertools.permutations(roots))

    with np.errstate(all="ignore"):
        return error(SOLVERS[len(c) - 1](c)), error(np.roots(c))


def _forward_errors(generator: np.random.Generator, trials: int) -> tuple[Any, dict[int, Any]]:
    """Gaps, and per degree the worst errors (gaps, 2) of equations two of whose roots differ by that gap."""
    gaps = np.logspace(-14, 0, 8 if trials < 20 else 15)
    errors: dict[int, list[Any]] = {3: [], 4: []}
    for gap, n in itertools.product(gaps, errors):
        trial_errors = []
        for _ in range(max(3, trials // 4)):
            roots = generator.uniform(1, 3, n) * generator.choice([-1, 1], n)
            roots[1] = roots[0] * (1 + gap)
            trial_errors.append(_errors(np.poly(roots).tolist()))
        errors[n].append(np.max(trial_errors, 0))
    return gaps, {n: np.array(rows) for n, rows in errors.items()}


def _draw(figure: Any, curves: tuple[Any, dict[int, Any]] | None, orbits: dict[int, int]) -> None:
    figure.set_size_inches(11, 4.6)
    right = figure.add_subplot(1, 2, 2)
    if curves is not None:
        left = figure.add_subplot(1, 2, 1)
        gaps, errors = curves
        for n, marker in ((3, "o"), (4, "s")):
            for who, (name, color) in enumerate((("kexue", "tab:blue"), ("numpy.roots", "tab:orange"))):
                left.loglog(
                    gaps, np.maximum(errors[n][:, who], 1e-17), f"{marker}-", color=color, label=f"{name}, degree {n}"
                )
        left.axhline(1.1e-16, color="0.5", lw=0.8, ls="--")
        left.set(xlabel="relative gap between two roots", ylabel="relative error of the worst root", ylim=(5e-18, 1e-3))
        left.set_title("accuracy where roots nearly meet")
        left.legend(fontsize=8)
    counts = list(orbits)
    bars = right.bar(counts, list(orbits.values()), 0.55, color="tab:blue", label="values of the resolvent")
    right.bar_label(bars)
    right.plot([1.6, 5.4], [1.6, 5.4], "k--", lw=1, label="number of roots")
    right.set(
        xlabel="number of roots",
        ylabel="number of values",
        xticks=counts,
        ylim=(0, 7),
        title="the resolvent under all permutations",
    )
    right.legend(loc="upper left")
