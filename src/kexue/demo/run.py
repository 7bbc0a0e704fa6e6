"""Build a real index, measure it by known-item search at several sizes, answer five questions."""

from __future__ import annotations

import dataclasses
import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kexue.demo.docstrings import Entry, standard_library
from kexue.demo.page import write_page
from kexue.search import Hit, Index
from kexue.similarity import Whitening, known_item

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


@dataclass(frozen=True)
class DemoRow:
    """One way to shorten the vectors: quality of known-item search, memory of the vectors, time of one search."""

    setting: str
    dims: int
    mrr: float
    recall: float
    memory_bytes: int
    latency_ms: float


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
    rows = []
    with tempfile.TemporaryDirectory(prefix="kexue-demo-") as scratch:
        for number, (name, dims, whitening) in enumerate(settings):
            with _index(Path(scratch) / f"{number}.kx", encoder, entries, vectors, whitening) as index:
                rows.append(_measure(name, dims, index, query_vectors, wanted))
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


def _measure(name: str, dims: int, index: Index, queries: np.ndarray[Any, Any], wanted: Sequence[str]) -> DemoRow:
    ranks = []
    for hits, answer in zip(index.search(queries, k=10), wanted, strict=True):
        found = [hit.id for hit in hits]
        ranks.append(found.index(answer) + 1 if answer in found else np.inf)
    times = []
    for query in queries[:_TIMED]:
        start = time.perf_counter()
        index.search(query[None], k=10)
        times.append(time.perf_counter() - start)
    quality = known_item(np.array(ranks), k=10)
    memory = 4 * dims * len(index)
    return DemoRow(name, dims, quality["mrr"], quality["recall"], memory, 1000 * statistics.median(times))


def _ask(index: Index, encoder: Encoder) -> list[list[Hit]]:
    return index.search(encoder.encode(list(QUESTIONS)), k=3)


def _answer(question: str, hits: Sequence[Hit]) -> dict[str, Any]:
    return {
        "question": question,
        "results": [{"id": hit.id, "score": hit.score, "text": hit.text} for hit in hits],
    }
