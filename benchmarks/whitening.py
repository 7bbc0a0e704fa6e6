"""Whitening beside scikit-learn's PCA and IncrementalPCA, in one run.

    python benchmarks/whitening.py [--quick] [--rows 500000] [--dims 384] [--rounds 5] [--out FILE]

The ways take turns, so that the machine's moods fall on all of them alike; speeds are ratios of medians (and of the
fastest rounds, which is the quieter machine). Goals: streaming fit at least 8 times faster than IncrementalPCA on the
same chunks; batch fit within 0.8 of the time of PCA(whiten=True) at its default solver, with peak extra memory of at
most 15 % of the data; cosines equal to those of PCA(svd_solver="full") to 1e-8 in float64.

For float32 vectors PCA multiplies in float32 while our statistics are float64, so the time is not like for like there:
the errors of both are printed beside it, on data with directions of little variance.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA, IncrementalPCA

from _shared import take_turns, write_record
from kexue.similarity import Whitening

STREAM_GOAL, BATCH_GOAL, MEMORY_GOAL, COSINE_GOAL = 8.0, 0.8, 0.15, 1e-8
KEPT = 128  # dimensions of fit_transform


def vectors(rows: int, dims: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Rows like sentence vectors: variance of direction j falls as 1/j, the mean holds a fifth of the length."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(dims, dims)))
    spread = np.arange(1, dims + 1) ** -0.5
    mixing = spread[:, None] * turn
    mean = turn[0] * np.sqrt(0.25 * (spread**2).sum())
    out = np.empty((rows, dims), dtype=dtype)
    for start in range(0, rows, 10_000):
        chunk = out[start : start + 10_000]
        chunk[:] = random.normal(size=chunk.shape) @ mixing + mean
    return out


def stream(estimator: Any, X: np.ndarray, chunk: int) -> Any:
    for start in range(0, len(X), chunk):
        part = X[start : start + chunk]
        if len(part) >= X.shape[1]:  # IncrementalPCA refuses a shorter first chunk
            estimator.partial_fit(part)
    return estimator


def compare(title: str, ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Time ours, the first way, against the peer, the last; print and return."""
    seconds = take_turns(ways, rounds)
    ours, *_, peer = seconds.values()
    ratio = statistics.median(ours) / statistics.median(peer)
    best = min(ours) / min(peer)
    times = ", ".join(f"{name} {statistics.median(values):.3f} s" for name, values in seconds.items())
    print(f"{title:34s} {times}; time ratio {ratio:.3f} (fastest rounds {best:.3f})", flush=True)
    return {"what": title, "seconds": seconds, "ratio": ratio, "ratio_of_fastest": best}


def times(X: np.ndarray, rounds: int, chunk: int) -> list[dict[str, Any]]:
    """Fit, fit_transform and streaming fit, ours and the peer's."""
    for estimator in (Whitening(), PCA(whiten=True)):
        estimator.fit(X[: 20 * X.shape[1]])  # warm up
    return [
        compare(
            f"fit, {X.dtype}",
            {"ours": lambda: Whitening().fit(X), "PCA": lambda: PCA(whiten=True).fit(X)},
            rounds,
        ),
        compare(
            f"fit_transform to {KEPT}, {X.dtype}",
            {
                "ours": lambda: Whitening(KEPT).fit_transform(X),
                "PCA": lambda: PCA(KEPT, whiten=True).fit_transform(X),
            },
            rounds,
        ),
        compare(
            f"stream in chunks of {chunk}, {X.dtype}",
            {
                "ours": lambda: stream(Whitening(), X, chunk).kernel_,
                "IncrementalPCA": lambda: stream(IncrementalPCA(whiten=True), X, chunk),
            },
            1,  # the peer takes a minute
        ),
    ]


def cosine_error(Y: np.ndarray, exact: np.ndarray) -> float:
    """Largest difference between the two cosine matrices of the first rows."""
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (Y[:1500].astype(float), exact[:1500])]
    return float(np.abs(unit[0] @ unit[0].T - unit[1] @ unit[1].T).max())


def accuracy(dims: int) -> dict[str, float]:
    """Cosines after full whitening against PCA by singular values in float64."""
    X = vectors(20_000, dims, "float64")
    X[:, 1::2] = X[:, ::2] + 1e-2 * X[:, 1::2]  # half the directions carry 1e-4 of the variance of the others
    exact = PCA(whiten=True, svd_solver="full").fit_transform(X)
    short = X.astype(np.float32)
    exact_short = PCA(whiten=True, svd_solver="full").fit_transform(short.astype(np.float64))
    found = {
        "ours float64": cosine_error(Whitening().fit_transform(X), exact),
        "PCA float64": cosine_error(PCA(whiten=True, svd_solver="covariance_eigh").fit_transform(X), exact),
        "ours float32": cosine_error(Whitening().fit_transform(short), exact_short),
        "PCA float32": cosine_error(PCA(whiten=True, svd_solver="covariance_eigh").fit_transform(short), exact_short),
    }
    print("largest cosine error: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()), flush=True)
    return found


def peak(way: str, rows: int, dims: int, dtype: str) -> float:
    """Peak extra memory of one fit in a process of its own, as a share of the data."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (way, rows, dims, dtype))


def _peak(way: str, rows: int, dims: int, dtype: str) -> float:
    estimator = Whitening() if way == "ours" else PCA(whiten=True)
    estimator.fit(vectors(20 * dims, dims, dtype))  # libraries and their buffers are in place
    X = vectors(rows, dims, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _status("VmRSS")
    estimator.fit(X)
    return 1024 * (_status("VmHWM") - before) / X.nbytes


def _status(field: str) -> int:
    """A figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few rows, few rounds")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    rows, dims = (40_000 if arguments.quick else arguments.rows), arguments.dims
    rounds = 2 if arguments.quick else arguments.rounds
    chunk = 5 * dims  # the default batch of IncrementalPCA
    print(f"{rows:,} x {dims}, {os.cpu_count()} cores", flush=True)

    timings = [row for dtype in ("float64", "float32") for row in times(vectors(rows, dims, dtype), rounds, chunk)]
    memory = {
        f"{way} {dtype}": peak(way, rows, dims, dtype) for dtype in ("float64", "float32") for way in ("ours", "PCA")
    }
    print("peak extra memory of fit: " + ", ".join(f"{k} {v:.1%}" for k, v in memory.items()), flush=True)
    errors = accuracy(dims)

    by_name = {row["what"]: row["ratio"] for row in timings}
    goals = {
        f"stream >= {STREAM_GOAL:g} x IncrementalPCA": {
            t: 1 / by_name[f"stream in chunks of {chunk}, {t}"] for t in ("float64", "float32")
        },
        f"fit <= {BATCH_GOAL} of PCA": {t: by_name[f"fit, {t}"] for t in ("float64", "float32")},
        f"memory <= {MEMORY_GOAL:.0%} of the data": {t: memory[f"ours {t}"] for t in ("float64", "float32")},
        f"cosines within {COSINE_GOAL:g}": {"float64": errors["ours float64"]},
    }
    tests = (
        lambda v: v >= STREAM_GOAL,
        lambda v: v <= BATCH_GOAL,
        lambda v: v <= MEMORY_GOAL,
        lambda v: v <= COSINE_GOAL,
    )
    verdicts = {}
    for (goal, values), test in zip(goals.items(), tests, strict=True):
        for dtype, value in values.items():
            verdicts[f"{goal}, {dtype}"] = {"value": value, "met": bool(test(value))}
            print(f"goal {goal}, {dtype}: {value:.3g} {'met' if test(value) else 'MISSED'}", flush=True)
    record = {
        "rows": rows,
        "dims": dims,
        "rounds": rounds,
        "timings": timings,
        "peak_extra_memory": memory,
        "largest_cosine_error": errors,
        "goals": verdicts,
    }
    write_record(arguments.out, record, "scipy", "scikit-learn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
