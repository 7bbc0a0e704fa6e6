"""kexue.fm/archives/9147: in high dimensions a few points are neighbours of very many.

Measures: the ball's share of the cube; skewness of the k-occurrence by dimension; the share of neighbour slots that a
fifth of the points holds; hubness on the sphere, with an offset and after centring; the same on sentence vectors,
with the effect of a correction on known-item search; and images of latents chosen by their hubness.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.experiments import _hub_latents as latents
from kexue.experiments._data import attempt
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

_SPHERES = ("sphere", "offset_cosine", "offset_centred_cosine")
_DIMENSIONS = (1, 3, 10, 30, 100, 300)
_PUBLISHED = {1: -0.14, 3: -0.45, 10: 0.91, 30: 3.23, 100: 5.00, 300: 6.12}  # means of three seeds, n = 1000, k = 10


@experiment(
    "hubness",
    claim="In high dimensions a few points are among the nearest neighbours of very many others, and most points of "
    "none.",
    effect=(
        "skewness of the 10-occurrence {skewness_gaussian_3} at d = 3, {skewness_gaussian_100} at d = 100; "
        "share of the top fifth {top20_share}; precision of a GAN from hubs {gan_precision_hubs}, from random "
        "latents {gan_precision_random}, from truncated ones {gan_precision_truncated}"
    ),
    minutes=6,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure hubness of Gaussians and of the standard library's docstrings, on the sphere, and with an offset."""
    n, count = {"smoke": (400, 2), "small": (1000, 5), "full": (1000, 20)}[budget]
    seeds = tuple(range(seed, seed + count))
    gaussians = _draw_gaussians(n, seeds)
    size, dimension = {"smoke": (1000, 64), "small": (10_000, 512), "full": (10_000, 512)}[budget]
    share = hubness_report(np.random.default_rng(seed).normal(size=(size, dimension)), 5).top20_share
    spheres = _draw_spheres(n, seeds)
    figures = _figures(gaussians, share, spheres, n=n, comparable=budget != "smoke")
    notes: list[str] = []
    sentences: _Sentences | None = None
    if budget == "smoke":
        notes.append("sentence vectors are left out at this budget")
    else:
        sentences = attempt(lambda: _search_docstrings(seed), "sentence vectors", notes)
    if sentences is not None:
        figures |= _sentence_figures(sentences)
        notes.append(_describe_sentences(sentences, figures))
    claims = _claims(figures)
    steps = {"smoke": 30, "small": 3000, "full": 5000}[budget]
    measured = attempt(lambda: latents.measure_latents(seeds, steps), "latents of generators", notes)
    if measured is not None:
        hubs = latents.make_figures(measured)
        figures |= hubs
        claims += latents.make_claims(hubs)
        notes.append(f"a GAN and a VAE of digits for each of {count} seeds, {steps} steps; the paper's are of photos")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=seeds,
        draw=lambda figure: _draw(figure, gaussians.skewness, spheres, sentences, measured),
    )


# ---- figures and claims --------------------------------------------------------------------------------------------


def _figures(
    gaussians: _Gaussians, share: float, spheres: Mapping[str, float], *, n: int, comparable: bool
) -> dict[str, Figure]:
    """All figures but those of sentences; expected values only at the sizes of the published ones."""
    source = "computed" if comparable else None
    skewness = {
        f"skewness_gaussian_{d}": dataclasses.replace(
            Figure.over_runs(values), n=n, expected=_PUBLISHED[d] if comparable else None, source=source
        )
        for d, values in gaussians.skewness.items()
    }
    return {
        "ball_to_cube_ratio_20": Figure(ball_to_cube_ratio(20), expected=2.461e-8, source="computed"),
        **skewness,
        "antihub_share_gaussian_300": Figure(gaussians.antihub_share, n=n),
        "rank_correlation_with_distance_to_mean_100": Figure(gaussians.correlation, n=n),
        "top20_share": Figure(share, expected=0.88 if comparable else None, source=source),
        **{f"skewness_{name}_100": Figure(value, n=n) for name, value in spheres.items()},
    }


def _claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    rising = [value[f"skewness_gaussian_{d}"] for d in (3, 10, 30, 100)]
    return [
        Claim.check(
            "The ball's share of the cube around it vanishes: 2.5e-8 in 20 dimensions.",
            abs(value["ball_to_cube_ratio_20"] / 2.461e-8 - 1) < 1e-3,
            rule="within 0.1 % of an independent evaluation of the formula",
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
            value["rank_correlation_with_distance_to_mean_100"] > 0.8,
            rule="rank correlation of the 10-occurrence with minus the distance to the mean above 0.8, d = 100",
            figures=["rank_correlation_with_distance_to_mean_100"],
        ),
        Claim.check(
            "A fifth of the points holds about four fifths of the neighbour slots.",
            value["top20_share"] > 0.7,
            rule="share of the most frequent 20 % above 0.7",
            figures=["top20_share"],
        ),
        Claim.check(
            "For cosines the offset matters, not the dimension alone: hubness is absent on the sphere, an offset "
            "brings it back and subtracting the mean removes it (our addition).",
            abs(value["skewness_sphere_100"]) < 0.7
            and value["skewness_offset_cosine_100"] > 1.2
            and abs(value["skewness_offset_centred_cosine_100"]) < 0.7,
            rule="skewness at d = 100 within 0.7 of 0 on the sphere and after centring, above 1.2 with the offset",
            figures=[f"skewness_{name}_100" for name in _SPHERES],
        ),
    ]


def _sentence_figures(sentences: _Sentences) -> dict[str, Figure]:
    figures = {}
    for name, counts in sentences.counts.items():
        figures[f"skewness_docstrings_{name}"] = Figure(hubness_report(counts, 10).k_skewness, n=len(counts))
        figures[f"mrr_docstrings_{name}"] = Figure(sentences.mrr[name], n=1000)
    return figures


def _describe_sentences(sentences: _Sentences, figures: Mapping[str, Figure]) -> str:
    """A note on the docstrings; the article makes no claim about search."""
    skewness = {name: f"{figures[f'skewness_docstrings_{name}'].value:.2f}" for name in sentences.counts}
    mrr = {name: f"{value:.3f}" for name, value in sentences.mrr.items()}
    return (
        f"docstrings under the packaged encoder: skewness {skewness['raw']}, with CSLS over 10 neighbours "
        f"{skewness['csls_10']} and over 50 {skewness['csls_50']}; known-item MRR@10 goes from {mrr['raw']} to "
        f"{mrr['csls_10']} and {mrr['csls_50']}: measure before correcting"
    )


# ---- measure -------------------------------------------------------------------------------------------------------


class _Gaussians(NamedTuple):
    """Skewness by dimension, one value a seed; antihub share at d = 300; rank correlation with centrality, d = 100."""

    skewness: dict[int, list[float]]
    antihub_share: float
    correlation: float


class _Sentences(NamedTuple):
    """By correction: number of times each docstring is among the 10 nearest of another, and MRR of known items."""

    counts: dict[str, Array]
    mrr: dict[str, float]


def _draw_gaussians(n: int, seeds: Sequence[int]) -> _Gaussians:
    skewness: dict[int, list[float]] = {d: [] for d in _DIMENSIONS}
    antihubs, correlations = [], []
    for s in seeds:
        for d in _DIMENSIONS:
            X = np.random.default_rng([s, d]).normal(size=(n, d))
            counts = k_occurrence(X, 10, generator=s)
            report = hubness_report(counts, 10)
            skewness[d].append(report.k_skewness)
            if d == 300:
                antihubs.append(report.antihub_occurrence)
            if d == 100:
                correlations.append(spearman(counts, -np.linalg.norm(X - X.mean(axis=0), axis=1)))
    return _Gaussians(skewness, float(np.mean(antihubs)), float(np.mean(correlations)))


def _draw_spheres(n: int, seeds: Sequence[int]) -> dict[str, float]:
    """Mean skewness under the cosine of Gaussians in 100 dimensions: as they are, with an offset, and centred again."""
    values: dict[str, list[float]] = {name: [] for name in _SPHERES}
    for s in seeds:
        X = np.random.default_rng([s, 7]).normal(size=(n, 100))
        centred = X + 1 - (X + 1).mean(axis=0)
        for name, points in zip(_SPHERES, (X, X + 1, centred), strict=True):
            values[name].append(hubness_report(points, 10, metric="cosine").k_skewness)
    return {name: float(np.mean(each)) for name, each in values.items()}


def _search_docstrings(seed: int) -> _Sentences:
    """Docstrings under the packaged encoder: counts and known-item search, raw, centred, with CSLS of 10 and 50."""
    from kexue.demo import known_item_queries, standard_library
    from kexue.text import Encoder

    entries = standard_library()
    queries, wanted = known_item_queries(entries, generator=np.random.default_rng(seed))
    encoder = Encoder()
    X = encoder.encode([entry.text for entry in entries]).astype(np.float64)
    Q = encoder.encode(queries).astype(np.float64)
    row_of = {entry.name: row for row, entry in enumerate(entries)}
    target = np.array([row_of[name] for name in wanted])
    counts, mrr = {}, {}
    for name, (documents, asked, own) in {
        "raw": (X, Q, X),
        "center": _correct("center", X, Q),
        "csls_10": _correct("csls", X, Q, 10),
        "csls_50": _correct("csls", X, Q, 50),
    }.items():
        counts[name] = _count_top(own, documents, 10)
        scores = asked @ documents.T
        ranks = 1 + (scores > scores[np.arange(len(Q)), target][:, None]).sum(axis=1)
        mrr[name] = known_item(ranks, k=10)["mrr"]
    return _Sentences(counts, mrr)


def _correct(method: Any, X: Array, Q: Array, k: int = 10) -> tuple[Array, Array, Array]:
    """Documents, queries, and documents as queries, after a correction of hubness."""
    reducer = HubnessReducer(method, k=k).fit(X)
    return reducer.augment(X), reducer.augment_queries(Q), reducer.augment_queries(X)


def _count_top(asked: Array, documents: Array, k: int) -> Array:
    """Number of times each document is among the k best of another, by inner product."""
    counts = np.zeros(len(documents), dtype=np.int64)
    for start in range(0, len(asked), 1024):
        scores = asked[start : start + 1024] @ documents.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
        counts += np.bincount(np.argpartition(-scores, k - 1, axis=1)[:, :k].ravel(), minlength=len(documents))
    return counts


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(
    figure: Any,
    skewness: Mapping[int, list[float]],
    spheres: Mapping[str, float],
    sentences: _Sentences | None,
    measured: latents.Measured | None,
) -> None:
    figure.set_size_inches(15, 4.5)
    left, right, last = figure.subplots(1, 3)
    if measured is not None:
        latents.draw_trade(last, measured)
    left.semilogx(_DIMENSIONS, [np.mean(skewness[d]) for d in _DIMENSIONS], "o-", label="measured")
    published = [_PUBLISHED[d] for d in _DIMENSIONS]
    left.semilogx(_DIMENSIONS, published, "k+", markersize=10, label="reference, n = 1000")
    left.set(xlabel="dimension of a Gaussian", ylabel="skewness of the 10-occurrence")
    left.legend()
    if sentences is None:
        right.bar(list(spheres), list(spheres.values()))
        right.tick_params(axis="x", labelrotation=20)
        right.set(xlabel="points in 100 dimensions", ylabel="skewness of the 10-occurrence, cosine")
        return
    for name, counts in sentences.counts.items():
        at = np.arange(counts.max() + 1)
        right.step(at, [(counts >= x).mean() for x in at], where="post", label=name)
    right.set(
        yscale="log", xlabel="x, times among the 10 nearest", ylabel="share of docstrings reached x times or more"
    )
    right.legend()
