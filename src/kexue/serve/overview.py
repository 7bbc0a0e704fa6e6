"""An index seen as a whole, for the page: a map in two dimensions, and what other whitenings would do."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response

from kexue.search import Index
from kexue.serve import examples
from kexue.serve.state import Served
from kexue.serve.wire import Here, reply
from kexue.similarity import Whitening, known_item

router = APIRouter(tags=["kexue"])
_MAP = 2000
_TRIED = 1000  # documents a whitening is fitted and tried on
_WORDS = 8  # fewer are too few to cut in halves
_GRID = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 1.0))
_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024)


@router.get("/v1/indexes/{name}/map", responses=examples.MAP)
async def corpus_map(name: str, service: Here, sample: Annotated[int, Query(ge=1, le=10 * _MAP)] = _MAP) -> Response:
    """Documents in the plane of the two directions in which their vectors vary most."""
    served = service.served(name)
    return reply(await service.cached(served, ("map", sample), lambda: _map(served.index, sample)))


def _map(index: Index, sample: int) -> dict[str, Any]:
    rows, vectors = index.sample(sample)
    if not rows:
        return {"points": []}
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    plane = centred @ directions[:, -1:-3:-1]
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    return {
        "points": [
            {"id": row.id, "x": x, "y": y, "text": row.text}
            for row, (x, y) in zip(rows, plane.round(5).tolist(), strict=True)
        ]
    }


@router.get("/v1/indexes/{name}/whitening", responses=examples.WHITENING)
async def whitenings(name: str, service: Here) -> Response:
    """Quality and memory of whitenings with other beta, gamma and k, measured on the documents themselves.

    The metric needs no labels: the first half of a document asks for its second half. Texts of fewer than eight words
    cannot be cut; `rows` is empty when there are not enough others.
    """
    served = service.served(name)
    return reply(await service.cached(served, ("whitening",), lambda: {"rows": _whitenings(served)}))


def _whitenings(served: Served) -> list[dict[str, Any]]:
    rows, _ = served.index.sample(_TRIED)
    halves = [cut for row in rows if (cut := _halves(row.text)) is not None]
    if len(halves) < 50:
        return []
    encoder = served.model.encoder
    asked, given = (encoder.encode([pair[side] for pair in halves]) for side in (0, 1))
    fitted = Whitening(beta=1.0, gamma=0.0).fit(np.concatenate([asked, given]))
    sizes = [k for k in _SIZES if k < fitted.rank_]
    found = [_measured(None, 0.0, 0.0, encoder.dim, asked, given, len(served.index))]
    for beta, gamma in _GRID:
        for k in sizes:
            whitening = fitted.with_params(beta=beta, gamma=gamma, n_components=k)
            found.append(_measured(whitening, beta, gamma, k, asked, given, len(served.index)))
    return found


def _measured(
    whitening: Whitening | None, beta: float, gamma: float, k: int, asked: Any, given: Any, documents: int
) -> dict[str, Any]:
    questions, answers = (x if whitening is None else whitening.transform(x) for x in (asked, given))
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (questions, answers)]
    scores = unit[0] @ unit[1].T
    own = scores[np.arange(len(scores)), np.arange(len(scores))]
    ranks = 1 + (scores > own[:, None]).sum(axis=1)
    return {
        "beta": beta,
        "gamma": gamma,
        "k": k,
        "score": known_item(ranks, k=10)["mrr"],
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
