"""Build a real index, measure it by known-item search at several sizes, answer five questions."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kexue.demo.docstrings import Entry, standard_library
from kexue.demo.page import write_page
from kexue.search import Hit, Index
from kexue.similarity import Whitening, known_item
from kexue.similarity.probability import clopper_pearson

if TYPE_CHECKING:
    from kexue._progress import Progress
    from kexue.text import Encoder

SIZES = (384, 256, 128, 64)
KEPT = ("pca", 128)  # the index that stays: a third of the memory for the smallest loss, labels unseen
QUESTIONS = (
    "How do I read a file line by line?",
    "run a function in another thread and get its result",
    "parse a date from a string",
    "Which class gives me a temporary file that deletes itself?",
    "compare two sequences and show the differences",
)
_QUERIES = 1000
_TIMED = 200
_UNCOUNTED = 5


@dataclass(frozen=True)
class DemoRow:
    """One way to shorten the vectors: quality of known-item search, memory of the vectors, time of one search.

    `mrr_low` and `mrr_high` are the ends of its 95 % interval (Clopper and Pearson's).
    `latency_ms` is the median of `timed` searches, half of which lie between `latency_low_ms` and `latency_high_ms`.
    """

    setting: str
    dims: int
    mrr: float
    mrr_low: float
    mrr_high: float
    recall: float
    memory_bytes: int
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    timed: int


@dataclass(frozen=True)
class DemoReport:
    """What the demo found; fields of `kexue demo --json`. `answers` are `{question, results: [{id, score, text}]}`."""

    index: str
    documents: int
    rows: list[DemoRow]
    answers: list[dict[str, Any]]
    report: str
    seconds: float


def run_demo(
    out: str | os.PathLike[str],
    *,
    encoder: Encoder,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DemoReport:
    """Index the standard library's docstrings, evaluate, answer, and write `report.html` and `stdlib.kx` into `out`.

    Quality is that of known-item search: a query is either the words of an object's name, or a sentence of its
    docstring that was not indexed, and the one right answer is that object.

    Args:
        out: folder to write into.
        encoder: turns texts into vectors.
        limit: index only this many entries, evenly spread; None takes all.
        seed: which entries become queries.
        progress: told how many texts are encoded.
    """
    start = time.perf_counter()
    folder = Path(out)
    entries = standard_library()
    if limit is not None and limit < len(entries):
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, limit).round().astype(int)]
    queries, wanted = known_item_queries(entries, generator=np.random.default_rng(seed))
    vectors = encoder.encode([entry.text for entry in entries], progress=progress)
    query_vectors = encoder.encode(queries)

    sizes = [size for size in SIZES if size <= min(vectors.shape)]
    settings: list[tuple[str, int, Whitening | None]] = [("raw", vectors.shape[1], None)]
    settings += [(name, size, Whitening.preset(name, size)) for name in ("pca", "whiten") for size in sizes]
    with tempfile.TemporaryDirectory(prefix="kexue-demo-") as scratch, ExitStack() as stack:
        indexes = [
            stack.enter_context(_index(Path(scratch) / f"{number}.kx", encoder, entries, vectors, whitening))
            for number, (_, _, whitening) in enumerate(settings)
        ]
        times = search_times(indexes, query_vectors[:_TIMED])
        rows = [
            _measure(name, dims, index, query_vectors, wanted, spent)
            for (name, dims, _), index, spent in zip(settings, indexes, times, strict=True)
        ]
    kept = Whitening.preset(KEPT[0], min(KEPT[1], *vectors.shape))
    path = folder / "stdlib.kx"
    with _index(path, encoder, entries, vectors, kept) as index:
        index.calibrate(generator=seed)
        answers = [_answer(question, hits) for question, hits in zip(QUESTIONS, _ask(index, encoder), strict=True)]
    report = DemoReport(str(path), len(entries), rows, answers, str(folder / "report.html"), 0.0)
    write_page(report, queries=len(queries), kept=KEPT)
    return dataclasses.replace(report, seconds=time.perf_counter() - start)


def known_item_queries(entries: Sequence[Entry], *, generator: np.random.Generator) -> tuple[list[str], list[str]]:
    """Queries and the name each must find: held-out sentences first, then names taken apart into words."""
    half = _QUERIES // 2
    tellable = [entry for entry in entries if entry.held_out]
    queries, wanted = [], []
    for entry in generator.permutation(np.array(tellable, dtype=object))[:half]:
        queries.append(entry.held_out)
        wanted.append(entry.name)
    for entry in generator.permutation(np.array(entries, dtype=object))[:half]:
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", entry.name)
        queries.append(" ".join(re.findall(r"[A-Za-z0-9]+", spaced)).lower())
        wanted.append(entry.name)
    return queries, wanted


def _index(
    path: Path, encoder: Encoder, entries: Sequence[Entry], vectors: np.ndarray[Any, Any], whitening: Whitening | None
) -> Index:
    index = Index.create(path, encoder, whitening=whitening, overwrite=True)
    index.add(
        [entry.text for entry in entries],
        ids=[entry.name for entry in entries],
        metadata=[{"kind": entry.kind, "module": entry.name.partition(".")[0]} for entry in entries],
        vectors=vectors,
    )
    return index


def search_times(indexes: Sequence[Index], queries: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Seconds (indexes, queries) of single searches: the indexes take turns, after a few that are not counted.

    The first search of an index reads its vectors, and a machine is now and then busy: taken one after the other, one
    index would pay for both.
    """
    times = np.empty((len(indexes), len(queries)))
    for index in indexes:
        for query in queries[:_UNCOUNTED]:
            index.search(query[None], k=10)
    for column, query in enumerate(queries):
        for row, index in enumerate(indexes):
            start = time.perf_counter()
            index.search(query[None], k=10)
            times[row, column] = time.perf_counter() - start
    return times


def _measure(
    name: str,
    dims: int,
    index: Index,
    queries: np.ndarray[Any, Any],
    wanted: Sequence[str],
    times: np.ndarray[Any, Any],
) -> DemoRow:
    ranks = []
    for hits, answer in zip(index.search(queries, k=10), wanted, strict=True):
        found = [hit.id for hit in hits]
        ranks.append(found.index(answer) + 1 if answer in found else np.inf)
    quality = known_item(np.array(ranks), k=10)
    low, high = clopper_pearson(np.array([quality["mrr"] * len(ranks)]), np.array([len(ranks)]))
    first, median, third = 1000 * np.quantile(times, [0.25, 0.5, 0.75])
    return DemoRow(
        setting=name,
        dims=dims,
        mrr=quality["mrr"],
        mrr_low=float(low[0]),
        mrr_high=float(high[0]),
        recall=quality["recall"],
        memory_bytes=4 * dims * len(index),
        latency_ms=float(median),
        latency_low_ms=float(first),
        latency_high_ms=float(third),
        timed=len(times),
    )


def _ask(index: Index, encoder: Encoder) -> list[list[Hit]]:
    return index.search(encoder.encode(list(QUESTIONS)), k=3)


def _answer(question: str, hits: Sequence[Hit]) -> dict[str, Any]:
    return {
        "question": question,
        "results": [{"id": hit.id, "score": hit.score, "text": hit.text} for hit in hits],
    }
