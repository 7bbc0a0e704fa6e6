"""kexue.fm/archives/9368: far distances measured along steps between near neighbours.

Measures: paths along a half circle, a spiral and a swiss roll against the known distances; geodesic and straight
distances between far docstrings, where the article expects a difference; and a summary of real reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.experiments._data import attempt, load_character_vectors, read_lines
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.similarity import GeodesicSummarizer, geodesic_distances, knn_graph, spearman
from kexue.similarity.bootstrap import percentile_interval

_ROOTS = 40  # topics: packages with enough docstrings


@experiment(
    "geodesic",
    claim="Shortest paths over nearest neighbours measure far distances better than the straight line.",
    data=("reviews_zh", "vectors_zh"),
    effect=(
        "Spearman on far docstrings {docstrings_spearman_straight} to {docstrings_spearman_geodesic}, "
        "a gain of {docstrings_gain}: small; "
        "on a rolled-up sheet {swiss_roll_spearman_straight} to {swiss_roll_spearman_geodesic}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Measure curves with known arc length, docstrings against the hierarchy of their modules, and hotel reviews."""
    n = {"smoke": 500, "small": 2000, "full": 5000}[budget]
    roll = _unroll(n, seed)
    figures = _curve_figures() | {
        "swiss_roll_spearman_geodesic": Figure(roll.geodesic, n=n),
        "swiss_roll_spearman_straight": Figure(roll.straight, n=n),
    }
    claims = _curve_claims(figures)
    notes: list[str] = []
    if budget == "smoke":
        notes.append("docstrings are left out at this budget")
    else:
        scores = attempt(_score_docstrings, "docstrings", notes)
        if scores:
            figures |= _docstring_figures(scores)
            claims.append(_docstring_claim(figures["docstrings_gain"]))
    notes.append(_summarize_reviews(data, n) if data is not None else "reviews_zh is missing: no summary of reviews")
    return Report(tuple(claims), figures, notes=tuple(notes), draw=lambda figure: _draw(figure, roll, figures))


# ---- measure -------------------------------------------------------------------------------------------------------


class _Roll(NamedTuple):
    """Spearman of both distances with those on the flat sheet, the points (n, 3), and path lengths from one of them."""

    geodesic: float
    straight: float
    points: Array
    lengths: Array


def _half_circle() -> float:
    """Length of the path along 101 points of a half circle."""
    angles = np.linspace(0, np.pi, 101)
    return float(geodesic_distances(np.column_stack([np.cos(angles), np.sin(angles)]), [0], k=2)[0, -1])


def _spiral() -> dict[str, float]:
    """Largest error of the path along a spiral, and Spearman of path and chord with the arc."""
    theta = np.linspace(np.pi / 2, 9 * np.pi / 2, 200)
    points = np.column_stack([np.cos(theta), np.sin(theta)]) * theta[:, None] / 10
    arc = (theta * np.sqrt(1 + theta**2) + np.arcsinh(theta)) / 20
    true, path = arc - arc[0], geodesic_distances(knn_graph(points, 3, metric="euclidean"), [0])[0]
    straight = np.linalg.norm(points - points[0], axis=1)
    return {
        "error": float(np.abs(path - true).max()),
        "geodesic": spearman(path, true),
        "straight": spearman(straight, true),
    }


def _unroll(n: int, seed: int) -> _Roll:
    """A sheet of width 10 rolled along r = theta; distances on the sheet are known in closed form."""
    generator = np.random.default_rng(seed)
    theta = np.pi * 1.5 * np.sqrt(generator.uniform(1, 9, n))
    height = generator.uniform(0, 10, n)
    points = np.column_stack([theta * np.cos(theta), height, theta * np.sin(theta)])
    flat = np.column_stack([(theta * np.sqrt(1 + theta**2) + np.arcsinh(theta)) / 2, height])
    some = generator.choice(n, 50, replace=False)
    path = geodesic_distances(knn_graph(points, 10, metric="euclidean"), some)
    true, straight = (np.linalg.norm(x[some, None] - x, axis=2) for x in (flat, points))
    reached = np.isfinite(path)
    return _Roll(
        spearman(path[reached], true[reached]),
        spearman(straight.ravel(), true.ravel()),
        points,
        np.where(np.isfinite(path[0]), path[0], 0.0),
    )


def _score_docstrings() -> dict[str, Array]:
    """Spearman of both distances from a topic with the distance of modules, far docstrings only, by topic."""
    from kexue.demo import standard_library
    from kexue.similarity import GeodesicIndex
    from kexue.text import Encoder

    entries = [entry for entry in standard_library() if entry.kind == "function"]
    vectors = Encoder().encode([entry.text.partition(": ")[2] or entry.text for entry in entries])
    modules = np.array([".".join(entry.name.split(".")[:2]) for entry in entries])
    packages = np.array([name.partition(".")[0] for name in modules])
    names, counts = np.unique(modules, return_counts=True)
    topics = names[np.argsort(-counts, kind="stable")][:_ROOTS]
    index = GeodesicIndex(10, on_disconnected="bridge").fit(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores: dict[str, list[float]] = {"geodesic": [], "straight": []}
    for topic in topics:
        centre = vectors[modules == topic].mean(axis=0, keepdims=True)
        level = np.where(modules == topic, 0, np.where(packages == topic.partition(".")[0], 1, 2))
        straight = 1 - unit @ (centre[0] / np.linalg.norm(centre))
        far = straight > np.median(straight)
        if len(set(level[far])) < 2:
            continue
        scores["geodesic"].append(spearman(index.distances(centre)[0][far], level[far]))
        scores["straight"].append(spearman(straight[far], level[far]))
    return {name: np.array(values) for name, values in scores.items()}


def _summarize_reviews(data: Path, n: int) -> str:
    """A note on a summary of hotel reviews about breakfast; sentences are means of character vectors."""
    reviews, characters = data / "reviews_zh" / "chnsenticorp_hotel.tsv.gz", load_character_vectors(data)
    if not reviews.is_file() or characters is None:
        return "reviews_zh or vectors_zh is missing: no summary of reviews"
    parts = [part.strip() for line in islice(read_lines(reviews), 1, None) for part in line.split("\t")[-1].split("。")]
    sentences = [s for s in dict.fromkeys(parts) if 8 <= len(s) <= 40 and len(characters.split(s)) >= 6][:n]
    mean = np.mean(list(characters.vectors.values()), axis=0)
    summarizer = GeodesicSummarizer(10, topic="早餐", redundancy=0.9)
    summary = summarizer.summarize(sentences, lambda texts: characters.encode(texts) - mean, n=5)
    on_topic = sum("早" in sentence or "餐" in sentence for sentence in summary.sentences)
    return (
        f"{len(sentences)} sentences of hotel reviews (character vectors, no sentence encoder) summarised about "
        f"breakfast: {on_topic} of {len(summary.indices)} chosen speak of it; paths of "
        f"{min(map(len, summary.paths))} to {max(map(len, summary.paths))} sentences, "
        f"{summary.n_unreachable} unreachable"
    )


# ---- figures and claims --------------------------------------------------------------------------------------------


def _curve_figures() -> dict[str, Figure]:
    spiral = _spiral()
    return {
        "half_circle": Figure(_half_circle(), n=101, expected=3.14145, source="computed"),
        "spiral_largest_error": Figure(spiral["error"], n=200),
        "spiral_spearman_geodesic": Figure(spiral["geodesic"], n=200),
        "spiral_spearman_straight": Figure(spiral["straight"], n=200, expected=0.932, source="computed"),
    }


def _curve_claims(figures: Mapping[str, Figure]) -> list[Claim]:
    value = {name: figure.value for name, figure in figures.items()}
    return [
        Claim.check(
            "Along a half circle the path is pi long, not 2.",
            abs(value["half_circle"] - np.pi) < 1e-3,
            rule="within 0.001 of pi, 101 points, k = 2",
            figures=["half_circle"],
        ),
        Claim.check(
            "Along a spiral the path is the arc.",
            value["spiral_largest_error"] < 0.01
            and value["spiral_spearman_geodesic"] > 0.9999 > value["spiral_spearman_straight"],
            rule="largest error below 0.01 of an arc of 9.98, and ranks of distances those of the arc, k = 3",
            figures=["spiral_largest_error", "spiral_spearman_geodesic", "spiral_spearman_straight"],
        ),
        Claim.check(
            "On a rolled-up sheet shortest paths rank pairs as the flat sheet does; straight lines do not.",
            value["swiss_roll_spearman_geodesic"] > 0.99 and value["swiss_roll_spearman_straight"] < 0.8,
            rule="Spearman with distances on the sheet above 0.99 and below 0.8, k = 10",
            figures=["swiss_roll_spearman_geodesic", "swiss_roll_spearman_straight"],
        ),
    ]


def _docstring_figures(scores: Mapping[str, Array]) -> dict[str, Figure]:
    gains = scores["geodesic"] - scores["straight"]
    samples = np.random.default_rng(0).choice(gains, (2000, len(gains)))
    low, high = percentile_interval(samples.mean(axis=1))
    return {
        **{f"docstrings_spearman_{name}": Figure(float(np.mean(v)), n=len(v)) for name, v in scores.items()},
        "docstrings_gain": Figure(float(gains.mean()), low=low, high=high, n=len(gains)),
    }


def _docstring_claim(gain: Figure) -> Claim:
    assert gain.low is not None
    assert gain.high is not None
    return Claim(
        "Far sentences are ranked better by the geodesic than by the cosine.",
        "reproduced" if gain.low > 0 else "not reproduced" if gain.high < 0 or gain.value <= 0 else "partly",
        "Spearman of the distance to a module's mean docstring with the distance of modules, farther half only; the "
        "95 % interval of the mean difference over topics is above 0 (partly: only the mean is)",
        ("docstrings_spearman_geodesic", "docstrings_spearman_straight", "docstrings_gain"),
    )


# ---- draw ----------------------------------------------------------------------------------------------------------


def _draw(figure: Any, roll: _Roll, figures: Mapping[str, Figure]) -> None:
    left, right = figure.subplots(1, 2)
    marks = left.scatter(roll.points[:, 0], roll.points[:, 2], c=roll.lengths, s=6, cmap="viridis")
    figure.colorbar(marks, ax=left, label="path length from one point", shrink=0.7)
    left.set_title("a rolled-up sheet, seen along its axis", fontsize=10)
    left.set(xlabel="x", ylabel="z", aspect="equal")
    ranks = {name: value.value for name, value in figures.items() if "spearman" in name}
    labels = [name.replace("_spearman_", ", ").replace("_", " ") for name in ranks]
    right.barh(labels, list(ranks.values()))
    right.set(xlabel="Spearman with the true order", ylabel="data, distance")
    right.invert_yaxis()
