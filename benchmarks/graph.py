"""`knn_graph` through the inverted file: seconds for 50,000 points, and how many of the true neighbours it finds.

    python benchmarks/graph.py [--quick] [--points 50000] [--out FILE]

Points: a mixture of 100 Gaussians in 128 dimensions, centres and spread both standard normal; where KEXUE_DATA names a
data folder, distinct English sentences as the packaged encoder's vectors; and one Gaussian, which has no cells to find.
Recall@10 is taken on 1,000 rows: a neighbour counts if it is no farther than the true tenth. On a fifth of the points
the inverted file and the comparison of all pairs take turns. The goal: under a minute for 50,000, at a recall of at
least 0.95, the one Gaussian apart.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from _shared import take_turns, write_record
from kexue.similarity import knn_graph, load_pairs
from kexue.similarity.neighbours.knn import nearest_neighbours

GOAL_SECONDS, GOAL_RECALL = 60.0, 0.95
K, SAMPLE = 10, 1_000
PAIRS = ("stsb_en", "sts12", "sts13", "sts14", "sts15", "sts16", "sick")
PARALLEL = ("tatoeba", "django_docs")  # their English side
SLACK = 1e-9  # rounding of float64


def mixture(n: int, clusters: int) -> np.ndarray:
    """Points of so many Gaussian clusters."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((clusters, 128))
    return centres[generator.integers(clusters, size=n)] + generator.standard_normal((n, 128))


def sentences(n: int, folder: Path) -> np.ndarray:
    """Vectors of `n` sentences of the data folder that differ in more than case, drawn with one seed."""
    from kexue.text import Encoder

    texts: list[str] = []
    for name in PAIRS:
        pairs = load_pairs(name)
        texts += [*pairs.texts_a, *pairs.texts_b]
    for name in PARALLEL:
        with gzip.open(folder / "parallel_en_zh" / f"{name}.tsv.gz", "rt", encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            texts += [row["en"] for row in rows]
    some = list({text.lower(): text for text in texts}.values())
    order = np.random.default_rng(0).permutation(len(some))[:n]
    return Encoder().encode([some[i] for i in order])


def recall(points: np.ndarray) -> float:
    """Share of the true K nearest that the inverted file finds for SAMPLE rows, each row itself left out."""
    rows = np.random.default_rng(1).choice(len(points), min(SAMPLE, len(points)), replace=False)
    asked = points[rows]
    true, found = (
        nearest_neighbours(points, K + 1, queries=asked, cosine=True, backend=backend)[1][:, 1:]
        for backend in ("exact", "approx")
    )
    return float((found <= true[:, -1:] + SLACK).mean())


def measure(label: str, points: np.ndarray, rounds: int) -> dict[str, Any]:
    """Time the graph, take its recall, and let both ways take turns on a fifth of the points."""
    points = np.unique(points, axis=0)  # copies would be merged anyway
    start = time.perf_counter()
    graph = knn_graph(points, K, approx=True)
    seconds = time.perf_counter() - start
    few = points[::5]
    turns = take_turns(
        {"inverted file": lambda: knn_graph(few, K, approx=True), "all pairs": lambda: knn_graph(few, K, approx=False)},
        rounds,
        warmup=1,
    )
    medians = {name: statistics.median(values) for name, values in turns.items()}
    row = {
        "label": label,
        "points": len(points),
        "dims": points.shape[1],
        "k": K,
        "edges": graph.nnz // 2,
        "seconds": seconds,
        "recall": recall(points),
        "few_points": len(few),
        "few_seconds": medians,
        "few_ratio": medians["all pairs"] / medians["inverted file"],
    }
    print(
        f"{label}: {len(points)} x {points.shape[1]} in {seconds:.1f} s, recall@{K} {row['recall']:.3f}; "
        f"{len(few)} points: {medians['inverted file']:.2f} s, all pairs {medians['all pairs']:.2f} s",
        flush=True,
    )
    return row


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int)
    parser.add_argument("--quick", action="store_true", help="5,000 points, 1 round")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    n = arguments.points or (5_000 if arguments.quick else 50_000)
    rounds = 1 if arguments.quick else 5
    rows = [measure("100 Gaussians", mixture(n, 100), rounds)]
    if os.environ.get("KEXUE_DATA"):
        rows.append(measure("sentences", sentences(n, Path(os.environ["KEXUE_DATA"])), rounds))
    met = all(row["seconds"] < GOAL_SECONDS and row["recall"] >= GOAL_RECALL for row in rows)
    print(f"goal of {GOAL_SECONDS:.0f} s at a recall of {GOAL_RECALL}: {'met' if met else 'MISSED'}")
    rows.append(measure("one Gaussian", mixture(n, 1), rounds))
    record = {"rows": rows, "goal_seconds": GOAL_SECONDS, "goal_recall": GOAL_RECALL, "goal_met": met}
    write_record(arguments.out, record, "faiss-cpu", "scipy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
