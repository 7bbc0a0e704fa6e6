"""Overview of an index for the page: a map in two dimensions, and the quality of other whitenings."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response

from kexue.search import Document, Index
from kexue.search.warnings import describe_sample
from kexue.serve import examples
from kexue.serve.service import ServedIndex
from kexue.serve.wire import Here, Route, Warnings, reply, shorten
from kexue.similarity import Whitening
from kexue.similarity.probability import mean_limits

router = APIRouter(tags=["kexue"], route_class=Route)
_MAP = 2000  # documents of a map
_MAX_IDS = 100  # documents placed on the map by id in one request
_MIN_TEXTS = 50  # texts that are needed to evaluate whitenings
_DEVIATIONS = 4  # by which the best setting must exceed the worst
_RANKS = 10  # k of MRR@k
_SAMPLE = 1000  # documents that whitenings are fitted and evaluated on
_WORDS = 8  # words that a text needs to be cut in halves
_GRID = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 1.0))
_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)


class Plane(NamedTuple):
    """Map of a sample of an index in two dimensions.

    Attributes:
        points: `{id, x, y, text}` of the sample.
        mean: (d,), mean vector of the sample.
        directions: (d, 2), the two directions of largest variance.
        documents: number of documents in the index.
        explained: share of the sample's variance that lies in the plane, 0 to 1.
    """

    points: list[dict[str, Any]]
    mean: np.ndarray[Any, Any]
    directions: np.ndarray[Any, Any]
    documents: int
    explained: float


@router.get("/v1/indexes/{name}/map", responses=examples.MAP)
async def corpus_map(
    name: str,
    service: Here,
    warnings: Warnings,
    sample: Annotated[int, Query(ge=1, le=10 * _MAP)] = _MAP,
    id: Annotated[
        list[str] | None, Query(max_length=_MAX_IDS, description="Ids of documents to place instead.")
    ] = None,
) -> Response:
    """Project documents onto the two directions in which the vectors of a sample vary most.

    `points` are the sample; with `id`, the documents with these ids in the same plane, in the sample or not.
    `explained` is the share of the variance that lies in the plane; the other differences between documents do not
    show.
    """
    served = service.find_index(name)
    plane = await service.compute_once(served, ("map", sample), lambda: _fit_plane(served.index, sample))
    points = plane.points if id is None else await service.work(_place, served.index, plane, id)
    content = {"points": points, "sample": len(plane.points), "documents": plane.documents}
    warnings += describe_sample(len(plane.points), plane.documents)
    return reply({**content, "explained": plane.explained}, warnings=warnings)


def _fit_plane(index: Index, sample: int) -> Plane:
    """Return the plane of a sample by principal components."""
    rows, vectors = index.sample(sample)
    if not rows:
        return Plane([], np.zeros(0), np.zeros((0, 2)), 0, 0.0)
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, -1:-3:-1]
    directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    total = float(np.trace(centred.T @ centred))
    explained = min(1.0, float(variances[-2:].sum()) / total) if total > 0 else 0.0
    return Plane(_points(rows, centred @ directions), mean, directions, len(index), explained)


def _place(index: Index, plane: Plane, ids: list[str]) -> list[dict[str, Any]]:
    """Return the points of documents by id."""
    rows, vectors = index.vectors(ids)
    return _points(rows, (vectors - plane.mean) @ plane.directions) if rows else []


def _points(rows: list[Document], places: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    return [
        {"id": row.id, "x": x, "y": y, "text": shorten(row.text)}
        for row, (x, y) in zip(rows, places.round(5).tolist(), strict=True)
    ]


@router.get("/v1/indexes/{name}/whitening", responses=examples.WHITENING)
async def whitenings(name: str, service: Here, warnings: Warnings) -> Response:
    """Evaluate whitenings with other beta, gamma and k on the documents themselves: quality and memory.

    The metric needs no labels: the first half of a document is the query for its second half. Texts of fewer than
    eight words are not cut; `rows` is empty where fewer than 50 others remain. The whitenings are fitted on the texts
    they are evaluated on. `low` and `high` are the ends of a 95 % interval for the score of more texts of the same kind
    (Clopper and Pearson's, wide enough for any score between 0 and 1); `chance` is the score of a random order.
    `decided` is false where these texts cannot tell the settings apart: none is better than chance, or the best is not
    better than the worst on the same texts. Then no setting is a recommendation.
    """
    served = service.find_index(name)
    content = await service.compute_once(served, ("whitening",), lambda: _evaluate_whitenings(served))
    warnings += describe_sample(content["sample"], content["documents"])
    return reply(content, warnings=warnings)


def _evaluate_whitenings(served: ServedIndex) -> dict[str, Any]:
    """Return the content of the answer: one row per whitening."""
    rows, _ = served.index.sample(_SAMPLE)
    halves = [pair for row in rows if (pair := _cut_in_halves(row.text)) is not None]
    content = {"rows": [], "decided": False, "texts": len(halves), "sample": len(rows), "documents": len(served.index)}
    content["chance"] = sum(1 / rank for rank in range(1, 1 + min(_RANKS, len(halves)))) / max(1, len(halves))
    if len(halves) < _MIN_TEXTS:
        return content
    encoder = served.model.encoder
    queries, answers = (encoder.encode([pair[side] for pair in halves]) for side in (0, 1))
    fitted = Whitening(beta=1.0, gamma=0.0).fit(np.concatenate([queries, answers]))
    sizes = [k for k in _SIZES if k < fitted.rank_]
    settings = [(0.0, 0.0, encoder.dim), *((beta, gamma, k) for beta, gamma in _GRID for k in sizes)]
    measured: list[dict[str, Any]] = []
    found: list[np.ndarray[Any, Any]] = []
    for beta, gamma, k in settings:
        whitening = fitted.with_params(beta=beta, gamma=gamma, n_components=k) if measured else None
        found.append(_rank_halves(whitening, queries, answers))
        measured.append(_describe(beta, gamma, k, found[-1], len(served.index)))
    decided = any(row["low"] > content["chance"] for row in measured) and tells_apart(found)
    return {**content, "rows": measured, "decided": decided}


def tells_apart(found: list[np.ndarray[Any, Any]]) -> bool:
    """Return whether the best of several settings is better than the worst beyond doubt, on the same texts.

    Args:
        found: for each setting the reciprocal rank (n,) of each text.

    The paired difference must exceed four standard errors, since best and worst are chosen among many.
    """
    means = [each.mean() for each in found]
    difference = found[int(np.argmax(means))] - found[int(np.argmin(means))]
    return bool(difference.mean() > _DEVIATIONS * difference.std(ddof=1) / math.sqrt(len(difference)))


def _rank_halves(whitening: Whitening | None, queries: Any, answers: Any) -> np.ndarray[Any, Any]:
    """Return 1 / rank (n,) of the right answer to each query, 0 beyond the tenth; row i of `answers` is right for i."""
    mapped = (x if whitening is None else whitening.transform(x) for x in (queries, answers))
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in mapped]
    scores = unit[0] @ unit[1].T
    ranks = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
    return np.where(ranks <= _RANKS, 1 / ranks, 0.0)


def _describe(beta: float, gamma: float, k: int, found: np.ndarray[Any, Any], documents: int) -> dict[str, Any]:
    """Return the row of one setting from the reciprocal ranks of `_rank_halves`."""
    score = float(found.mean())
    low, high = mean_limits(score, len(found))
    return {
        "beta": beta,
        "gamma": gamma,
        "k": k,
        "score": score,
        "low": low,
        "high": high,
        "metric": "MRR@10 of finding a text's second half by its first",
        "memory_bytes": 4 * k * documents,
    }


def _cut_in_halves(text: str) -> tuple[str, str] | None:
    """Return the halves of a text, cut between words, or between characters where there are no spaces."""
    words = text.split()
    if len(words) >= _WORDS:
        middle = math.ceil(len(words) / 2)
        return " ".join(words[:middle]), " ".join(words[middle:])
    if len(words) <= 2 and len(text) >= 2 * _WORDS:
        return text[: len(text) // 2], text[len(text) // 2 :]
    return None
