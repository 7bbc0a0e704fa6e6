"""Batches of quadratics, cubics and quartics beside a loop over numpy.roots, and how accurate both are.

    python benchmarks/algebra.py [--quick] [--out FILE]

Three measurements in one run: times per equation on random and on nearly degenerate rows, the ways taking turns (the
loop on 2 % of the rows); the largest backward error |f(r)| / sum |a_k| |r|^k of a million rows, random, nearly
degenerate and of wild scales, in extended precision; and the worst relative error of a root against 60 digits.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from statistics import median
from typing import Any

import mpmath
import numpy as np

from _shared import take_turns, write_record
from kexue.experiments.algebra_symmetry import HARD, SOLVERS, backward_errors, near_degenerate

GOALS = {3: 50.0, 4: 30.0}
SHARE = 50


def race(c: Any, n: int, rounds: int) -> dict[str, float]:
    some = c[: max(1, len(c) // SHARE)]
    ways = {"ours": lambda: SOLVERS[n](c), "numpy": lambda: [np.roots(row) for row in some]}
    seconds = take_turns(ways, rounds, warmup=1)
    ours, numpy = median(seconds["ours"]) / len(c), median(seconds["numpy"]) / len(some)
    ratios = [b / len(some) / (a / len(c)) for a, b in zip(seconds["ours"], seconds["numpy"], strict=True)]
    return {"ours_ns": 1e9 * ours, "numpy_ns": 1e9 * numpy, "ratio": median(ratios)}


def kinds(generator: np.random.Generator, rows: int, n: int) -> dict[str, Any]:
    wild = generator.normal(size=(rows, n + 1)) * 10 ** generator.uniform(-40, 40, (rows, n + 1))
    return {
        "random": generator.normal(size=(rows, n + 1)),
        "complex": generator.normal(size=(rows, n + 1)) + 1j * generator.normal(size=(rows, n + 1)),
        "near": near_degenerate(generator, rows, n),
        "wild": wild,
    }


def forward(rows: Any) -> tuple[float, float]:
    """Worst relative error against 60 digits, ours and numpy's, each root under the best matching."""
    worst = [0.0, 0.0]
    mpmath.mp.dps = 60
    for c in rows:
        found = mpmath.polyroots([mpmath.mpf(v) for v in c], maxsteps=2000, extraprec=600)
        truth = np.array([complex(z) for z in found])
        with np.errstate(all="ignore"):
            answers = (SOLVERS[len(c) - 1](c), np.roots(c))
        for who, roots in enumerate(answers):
            if len(roots) == len(truth):
                gaps = ((abs(np.array(o) - truth) / abs(truth)).max() for o in itertools.permutations(roots))
                worst[who] = max(worst[who], float(min(gaps)))
    return worst[0], worst[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, million, exact = (2000, 2000, 10) if arguments.quick else (100_000, 1_000_000, 300)
    generator = np.random.default_rng(0)
    record: dict[str, Any] = {"rows": rows}
    for n in SOLVERS:
        for kind, c in (
            ("random", generator.normal(size=(rows, n + 1))),
            ("near", near_degenerate(generator, rows, n)),
        ):
            found = race(c, n, 3 if kind == "near" else 9)
            record[f"time_{n}_{kind}"] = found
            print(
                f"degree {n}, {kind}: {found['ours_ns']:.0f} ns an equation, numpy.roots {found['numpy_ns']:.0f} ns: "
                f"{found['ratio']:.1f} times as fast"
            )
    worst = 0.0
    for n in SOLVERS:
        for kind, c in kinds(generator, million // 12, n).items():
            error = max(
                float(backward_errors(part, SOLVERS[n](part)).max()) for part in np.array_split(c, 1 + len(c) // 20_000)
            )
            record[f"backward_{n}_{kind}"] = error / n
            worst = max(worst, error / n)
            print(f"degree {n}, {kind}: backward error at most {error:.2e} = {error / n:.2e} n")
    record["backward_worst_over_n"] = worst
    cases = {"hard": HARD, **{f"near_{n}": near_degenerate(generator, exact, n) for n in SOLVERS}}
    for name, some in cases.items():
        ours, numpy = forward(some)
        record[f"forward_{name}"] = {"ours": ours, "numpy": numpy}
        print(f"{name}: worst relative error {ours:.1e}, numpy.roots {numpy:.1e}")
    write_record(arguments.out, record, "mpmath")
    speeds = [record[f"time_{n}_random"]["ratio"] >= goal for n, goal in GOALS.items()]
    good = worst <= 4e-16 and (arguments.quick or all(speeds))
    print("all goals met" if good else "SHORT OF A GOAL: 50 times (cubics), 30 times (quartics), 4e-16 n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
