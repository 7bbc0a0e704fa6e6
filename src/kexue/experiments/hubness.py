"""kexue.fm/archives/9147: in high dimension a few points are neighbours of everyone.

Shows: the ball vanishes from the cube; skewness of the k-occurrence grows with dimension; a fifth of the points holds
most neighbour slots; on the sphere the effect is gone, an offset brings it back and centring removes it; and the same
on sentence vectors, with what the correction does to known-item search.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kexue.errors import MissingDependencyError, ModelNotFoundError
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.similarity import (
    HubnessReducer,
    ball_to_cube_ratio,
    hubness_report,
    k_occurrence,
    known_item,
    spearman,
)

_DIMENSIONS = (1, 3, 10, 30, 100, 300)
_PUBLISHED = {1: -0.14, 3: -0.45, 10: 0.91, 30: 3.23, 100: 5.00, 300: 6.12}  # means of three seeds, n = 1000, k = 10


@experiment(
    "hubness",
    claim="In high dimension few points are among the nearest of very many others; most are of none.",
    effect=(
        "skewness of the 10-occurrence {skewness_gaussian_3} at d = 3, {skewness_gaussian_100} at d = 100; "
        "share of the top fifth {top20_share}"
    ),
    minutes=3,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Gaussians of growing dimension, the sphere, an offset, and the standard library's docstrings."""
    n, seeds = {"smoke": (400, 2), "small": (1000, 5), "full": (1000, 20)}[budget]
    skewness, antihubs, to_mean = _gaussians(n, seed, seeds)
    share = _eighty_twenty(*{"smoke": (1000, 64), "small": (10_000, 512), "full": (10_000, 512)}[budget], seed)
    sphere = _sphere(n, seed, seeds)
    figures = {
        "ball_to_cube_ratio_20": Figure(ball_to_cube_ratio(20), expected=2.461e-8, source="computed"),
        **{
            f"skewness_gaussian_{d}": Figure(
                float(np.mean(values)),
                low=float(min(values)),
                high=float(max(values)),
                n=n,
                expected=_PUBLISHED[d] if budget != "smoke" else None,
                source="computed" if budget != "smoke" else None,
            )
            for d, values in skewness.items()
        },
        "antihub_share_gaussian_300": Figure(antihubs, n=n),
        "rank_correlation_with_distance_to_mean_100": Figure(to_mean, n=n),
        "top20_share": Figure(
            share, expected=None if budget == "smoke" else 0.88, source=None if budget == "smoke" else "computed"
        ),
        **{f"skewness_{name}_100": Figure(value, n=n) for name, value in sphere.items()},
    }
    rising = [figures[f"skewness_gaussian_{d}"].value for d in (3, 10, 30, 100)]
    claims = [
        Claim.check(
            "The ball's share of the cube around it vanishes: 2.5e-8 in 20 dimensions.",
            abs(ball_to_cube_ratio(20) / 2.461e-8 - 1) < 1e-3,
            rule="within 0.1 % of the value of the formula evaluated elsewhere",
            figures=["ball_to_cube_ratio_20"],
        ),
        Claim.check(
            "Hubness grows with dimension.",
            all(a < b for a, b in pairwise(rising)) and rising[-1] > 2,
            rule="mean skewness of the 10-occurrence of Gaussian points rises over d = 3, 10, 30, 100 and ends above 2",
            figures=[f"skewness_gaussian_{d}" for d in _DIMENSIONS],
        ),
        Claim.check(
            "Points near the mean are the hubs.",
            to_mean > 0.8,
            rule="rank correlation of the 10-occurrence with minus the distance to the mean above 0.8, d = 100",
            figures=["rank_correlation_with_distance_to_mean_100"],
        ),
        Claim.check(
            "A fifth of the points holds about four fifths of the neighbour slots.",
            share > 0.7,
            rule="share of the most frequent 20 % above 0.7",
            figures=["top20_share"],
        ),
        Claim.check(
            "It is the offset that matters for cosines, not the dimension alone: hubness is absent on the sphere, an "
            "offset brings it back and subtracting the mean removes it (an addition of ours).",
            abs(sphere["sphere"]) < 0.7
            and sphere["offset_cosine"] > 1.2
            and abs(sphere["offset_centred_cosine"]) < 0.7,
            rule="skewness at d = 100 within 0.7 of 0 on the sphere and after centring, above 1.2 with the offset",
            figures=[f"skewness_{name}_100" for name in sphere],
        ),
    ]
    notes: list[str] = ["the article's samples from a GAN are not reproduced here: that needs the GAN"]
    real: dict[str, Any] = {}
    if budget == "smoke":
        notes.append("sentence vectors are left out at this budget")
    else:
        try:
            real = _sentences(seed)
        except (MissingDependencyError, ModelNotFoundError) as missing:
            notes.append(f"sentence vectors are left out: {missing}")
    if real:
        notes.append(_add_sentences(figures, real))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        left.semilogx(_DIMENSIONS, [np.mean(skewness[d]) for d in _DIMENSIONS], "o-", label="measured")
        left.semilogx(
            _DIMENSIONS, [_PUBLISHED[d] for d in _DIMENSIONS], "k+", markersize=10, label="reference, n = 1000"
        )
        left.set_xlabel("dimension of a Gaussian")
        left.set_ylabel("skewness of the 10-occurrence")
        left.legend()
        if real:
            for name, counts in real["counts"].items():
                at = np.arange(counts.max() + 1)
                right.step(at, [(counts >= x).mean() for x in at], where="post", label=name)
            right.set_yscale("log")
            right.set_xlabel("x, times among the 10 nearest")
            right.set_ylabel("share of docstrings reached x times or more")
            right.legend()
        else:
            right.bar(list(sphere), list(sphere.values()))
            right.tick_params(axis="x", labelrotation=20)

    return Report(tuple(claims), figures, notes=tuple(notes), draw=draw, seeds=tuple(range(seed, seed + seeds)))


def _gaussians(n: int, seed: int, seeds: int) -> tuple[dict[int, list[float]], float, float]:
    skewness: dict[int, list[float]] = {d: [] for d in _DIMENSIONS}
    antihubs, correlations = [], []
    for s in range(seed, seed + seeds):
        for d in _DIMENSIONS:
            X = np.random.default_rng([s, d]).normal(size=(n, d))
            counts = k_occurrence(X, 10, generator=s)
            report = hubness_report(counts, 10)
            skewness[d].append(report.k_skewness)
            if d == 300:
                antihubs.append(report.antihub_occurrence)
            if d == 100:
                correlations.append(spearman(counts, -np.linalg.norm(X - X.mean(axis=0), axis=1)))
    return skewness, float(np.mean(antihubs)), float(np.mean(correlations))


def _eighty_twenty(n: int, d: int, seed: int) -> float:
    return hubness_report(np.random.default_rng(seed).normal(size=(n, d)), 5).top20_share


def _sphere(n: int, seed: int, seeds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"sphere": [], "offset_cosine": [], "offset_centred_cosine": []}
    for s in range(seed, seed + seeds):
        X = np.random.default_rng([s, 7]).normal(size=(n, 100))
        found["sphere"].append(hubness_report(X, 10, metric="cosine").k_skewness)
        found["offset_cosine"].append(hubness_report(X + 1, 10, metric="cosine").k_skewness)
        centred = X + 1 - (X + 1).mean(axis=0)
        found["offset_centred_cosine"].append(hubness_report(centred, 10, metric="cosine").k_skewness)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _sentences(seed: int) -> dict[str, Any]:
    """Docstrings under the packaged encoder: counts and known-item search, raw, centred, with CSLS of 10 and 50."""
    from kexue.demo import known_item_queries, standard_library
    from kexue.text import Encoder

    entries = standard_library()
    queries, wanted = known_item_queries(entries, generator=np.random.default_rng(seed))
    encoder = Encoder()
    X = encoder.encode([entry.text for entry in entries]).astype(np.float64)
    Q = encoder.encode(queries).astype(np.float64)
    place = {entry.name: row for row, entry in enumerate(entries)}
    target = np.array([place[name] for name in wanted])
    counts, mrr, recall = {}, {}, {}
    for name, (documents, asked, own) in {
        "raw": (X, Q, X),
        "center": _augmented("center", X, Q),
        "csls_10": _augmented("csls", X, Q, 10),
        "csls_50": _augmented("csls", X, Q, 50),
    }.items():
        counts[name] = _count_top(own, documents, 10)
        scores = asked @ documents.T
        ranks = 1 + (scores > scores[np.arange(len(Q)), target][:, None]).sum(axis=1)
        quality = known_item(ranks, k=10)
        mrr[name], recall[name] = quality["mrr"], quality["recall"]
    return {"counts": counts, "mrr": mrr, "recall": recall, "n": len(X)}


def _augmented(method: Any, X: np.ndarray[Any, Any], Q: np.ndarray[Any, Any], k: int = 10) -> tuple[Any, Any, Any]:
    reducer = HubnessReducer(method, k=k).fit(X)
    return reducer.augment(X), reducer.augment_queries(Q), reducer.augment_queries(X)


def _count_top(asked: np.ndarray[Any, Any], documents: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """How often each document is among the k best of another, by inner product."""
    counts = np.zeros(len(documents), dtype=np.int64)
    for start in range(0, len(asked), 1024):
        scores = asked[start : start + 1024] @ documents.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
        counts += np.bincount(np.argpartition(-scores, k - 1, axis=1)[:, :k].ravel(), minlength=len(documents))
    return counts


def _add_sentences(figures: dict[str, Figure], real: dict[str, Any]) -> str:
    """Figures of the docstrings, and what they say; the article makes no claim about search."""
    for name, counts in real["counts"].items():
        figures[f"skewness_docstrings_{name}"] = Figure(hubness_report(counts, 10).k_skewness, n=real["n"])
        figures[f"mrr_docstrings_{name}"] = Figure(real["mrr"][name], n=1000)
    shown = {name: f"{figures[f'skewness_docstrings_{name}'].value:.2f}" for name in real["counts"]}
    return (
        f"docstrings under the packaged encoder: skewness {shown['raw']}, with CSLS over 10 neighbours "
        f"{shown['csls_10']} and over 50 {shown['csls_50']}; known-item MRR@10 goes from {real['mrr']['raw']:.3f} to "
        f"{real['mrr']['csls_10']:.3f} and {real['mrr']['csls_50']:.3f}: measure before correcting"
    )
