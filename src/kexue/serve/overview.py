"""An index seen as a whole, for the page: a map in two dimensions, and what other whitenings would do."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response

from kexue.search import Document, Index
from kexue.serve import examples
from kexue.serve.state import Served
from kexue.serve.wire import Here, Route, Warnings, reply, shortened
from kexue.similarity import Whitening, known_item
from kexue.similarity.probability import clopper_pearson

router = APIRouter(tags=["kexue"], route_class=Route)
_MAP = 2000
_MOST_PLACED = 100  # documents placed by id at a time
_FEWEST = 50  # texts that a whitening is tried on
_RANKS = 10
_TRIED = 1000  # documents a whitening is fitted and tried on
_WORDS = 8  # fewer are too few to cut in halves
_GRID = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 1.0))
_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)


class Plane(NamedTuple):
    """A sample of an index in two dimensions, and what places others among it.

    Attributes:
        points: `{id, x, y, text}` of the sample.
        mean: (d,). directions: (d, 2).
        documents: how many the index holds.
        explained: share of the variance of the sample that lies in the plane.
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
    id: Annotated[list[str] | None, Query(max_length=_MOST_PLACED, description="Place these instead.")] = None,
) -> Response:
    """Documents in the plane of the two directions in which the vectors of a sample vary most.

    `points` are the sample; with `id`, the documents with these ids, in the same plane, whether the sample has them or
    not. `explained` is the share of the variance that lies in the plane: the rest of what tells documents apart is
    not to be seen.
    """
    served = service.served(name)
    plane = await service.cached(served, ("map", sample), lambda: _plane(served.index, sample))
    points = plane.points if id is None else await service.work(_placed, served.index, plane, id)
    content = {"points": points, "sample": len(plane.points), "documents": plane.documents}
    return reply({**content, "explained": plane.explained}, warnings=warnings)


def _plane(index: Index, sample: int) -> Plane:
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


def _placed(index: Index, plane: Plane, ids: list[str]) -> list[dict[str, Any]]:
    rows, vectors = index.vectors(ids)
    return _points(rows, (vectors - plane.mean) @ plane.directions) if rows else []


def _points(rows: list[Document], places: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    return [
        {"id": row.id, "x": x, "y": y, "text": shortened(row.text)}
        for row, (x, y) in zip(rows, places.round(5).tolist(), strict=True)
    ]


@router.get("/v1/indexes/{name}/whitening", responses=examples.WHITENING)
async def whitenings(name: str, service: Here, warnings: Warnings) -> Response:
    """Quality and memory of whitenings with other beta, gamma and k, measured on the documents themselves.

    The metric needs no labels: the first half of a document asks for its second half. Texts of fewer than eight words
    cannot be cut; `rows` is empty when there are not enough others. The whitenings are fitted on the texts that they
    are tried on. `low` and `high` hold the score of more texts of the same kind with 95 % (Clopper and Pearson's
    interval, which is wide enough for any score between 0 and 1); `chance` is the score of answers in random order.
    """
    served = service.served(name)
    content = await service.cached(served, ("whitening",), lambda: _whitenings(served))
    return reply(content, warnings=warnings)


def _whitenings(served: Served) -> dict[str, Any]:
    rows, _ = served.index.sample(_TRIED)
    halves = [cut for row in rows if (cut := _halves(row.text)) is not None]
    content = {"rows": [], "texts": len(halves), "sample": len(rows), "documents": len(served.index)}
    content["chance"] = sum(1 / rank for rank in range(1, 1 + min(_RANKS, len(halves)))) / max(1, len(halves))
    if len(halves) < _FEWEST:
        return content
    encoder = served.model.encoder
    asked, given = (encoder.encode([pair[side] for pair in halves]) for side in (0, 1))
    fitted = Whitening(beta=1.0, gamma=0.0).fit(np.concatenate([asked, given]))
    sizes = [k for k in _SIZES if k < fitted.rank_]
    found = [_measured(None, 0.0, 0.0, encoder.dim, asked, given, len(served.index))]
    for beta, gamma in _GRID:
        for k in sizes:
            whitening = fitted.with_params(beta=beta, gamma=gamma, n_components=k)
            found.append(_measured(whitening, beta, gamma, k, asked, given, len(served.index)))
    return {**content, "rows": found}


def _measured(
    whitening: Whitening | None, beta: float, gamma: float, k: int, asked: Any, given: Any, documents: int
) -> dict[str, Any]:
    questions, answers = (x if whitening is None else whitening.transform(x) for x in (asked, given))
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (questions, answers)]
    scores = unit[0] @ unit[1].T
    own = scores[np.arange(len(scores)), np.arange(len(scores))]
    ranks = 1 + (scores > own[:, None]).sum(axis=1)
    score = known_item(ranks, k=_RANKS)["mrr"]
    # Numbers in [0, 1] vary no more than zeros and ones of the same mean: their interval is wide enough for any.
    low, high = clopper_pearson(np.array([score * len(ranks)]), np.array([len(ranks)]))
    return {
        "beta": beta,
        "gamma": gamma,
        "k": k,
        "score": score,
        "low": float(low[0]),
        "high": float(high[0]),
        "metric": "MRR@10 of finding a text's second half by its first",
        "memory_bytes": 4 * k * documents,
    }


def _halves(text: str) -> tuple[str, str] | None:
    """A text cut in the middle: between words, or between characters where there are no spaces."""
    words = text.split()
    if len(words) >= _WORDS:
        middle = math.ceil(len(words) / 2)
        return " ".join(words[:middle]), " ".join(words[middle:])
    if len(words) <= 2 and len(text) >= 2 * _WORDS:
        return text[: len(text) // 2], text[len(text) // 2 :]
    return None
