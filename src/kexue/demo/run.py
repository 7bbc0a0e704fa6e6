"""Run of the demo: build an index, measure it by known-item search at several sizes, answer questions."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kexue.demo import chinese
from kexue.demo.chinese import answer_in_chinese
from kexue.demo.docstrings import Entry, standard_library
from kexue.demo.page import write_page
from kexue.demo.report import DemoReport, DemoRow
from kexue.search import Hit, Index
from kexue.search.calibration import LEAST
from kexue.search.encoding import encode_texts
from kexue.similarity import Whitening, known_item
from kexue.similarity.probability import mean_limits

if TYPE_CHECKING:
    from kexue._progress import Progress
    from kexue.text import Encoder

SIZES = (384, 256, 128, 64)
SAVED_SETTING = (
    "pca",
    128,
)  # a third of the memory for the smallest loss of quality, chosen without labels
QUESTIONS = (
    "How do I read a file line by line?",
    "run a function in another thread and get its result",
    "parse a date from a string",
    "Which class gives me a temporary file that deletes itself?",
    "compare two sequences and show the differences",
)
_QUERIES = 1000
_TIMED = 200  # searches that are timed
_WARM_UP = 5  # searches before them


def run_demo(
    out: str | os.PathLike[str],
    *,
    encoder: Encoder,
    limit: int | None = None,
    seed: int = 0,
    multilingual: Encoder | None = None,
    progress: Progress | None = None,
) -> DemoReport:
    """Index the docstrings of the standard library, measure the index, and answer five questions, and one in Chinese.

    Quality is measured by known-item search: a query is the words of an object's name, or a sentence of its docstring
    that was not indexed, and the only right answer is that object.

    Args:
        out: folder for ``report.html`` and ``stdlib.kx``.
        encoder: encoder of the texts.
        limit: number of indexed docstrings, evenly spread; None = all.
        seed: seed of the choice of queries.
        multilingual: encoder that answers the question in Chinese, from an index of some modules, ``stdlib-zh.kx``;
            None leaves it out.
        progress: called as ``progress(texts_done, n)``.
    """
    start = time.perf_counter()
    folder = Path(out)
    entries = standard_library()
    if limit is not None and limit < len(entries):
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, limit).round().astype(int)]
    queries, wanted = known_item_queries(entries, generator=np.random.default_rng(seed))
    vectors = encoder.encode_documents([entry.text for entry in entries], progress=progress)
    query_vectors = encode_texts(encoder, queries, "query")

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
    whitening = Whitening.preset(SAVED_SETTING[0], min(SAVED_SETTING[1], *vectors.shape))
    path = folder / "stdlib.kx"
    with _index(path, encoder, entries, vectors, whitening) as index:
        if len(index) >= LEAST:
            index.calibrate(generator=seed)
        answers = [
            _answer(question, hits) for question, hits in zip(QUESTIONS, index.search(QUESTIONS, k=3), strict=True)
        ]
    if multilingual is not None:
        hits = answer_in_chinese(folder / "stdlib-zh.kx", multilingual, entries)
        answers.append(_answer(chinese.QUESTION, hits))
    report = DemoReport(str(path), len(entries), rows, answers, str(folder / "report.html"), 0.0)
    write_page(report, queries=len(queries), saved=SAVED_SETTING)
    return dataclasses.replace(report, seconds=time.perf_counter() - start)


def known_item_queries(entries: Sequence[Entry], *, generator: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return queries and the expected answer of each, a name: first held-out sentences, then names split into words."""
    half = _QUERIES // 2
    candidates = [entry for entry in entries if entry.held_out]
    queries, wanted = [], []
    for entry in generator.permutation(np.array(candidates, dtype=object))[:half]:
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
    """Return a new index of all entries."""
    index = Index.create(path, encoder, whitening=whitening, overwrite=True)
    index.add(
        [entry.text for entry in entries],
        ids=[entry.name for entry in entries],
        metadata=[{"kind": entry.kind, "module": entry.name.partition(".")[0]} for entry in entries],
        vectors=vectors,
    )
    return index


def search_times(indexes: Sequence[Index], queries: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return seconds (indexes, queries) of single searches; the indexes take turns, after five searches each.

    The first search of an index reads its vectors, and other programs may slow down the machine for a while; without
    turns this would make one index look slower than the others.
    """
    times = np.empty((len(indexes), len(queries)))
    for index in indexes:
        for query in queries[:_WARM_UP]:
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
    """Return the measurements of an index; `times` are the seconds of its searches."""
    ranks = []
    for hits, answer in zip(index.search(queries, k=10), wanted, strict=True):
        ids = [hit.id for hit in hits]
        ranks.append(ids.index(answer) + 1 if answer in ids else np.inf)
    quality = known_item(np.array(ranks), k=10)
    low, high = mean_limits(quality["mrr"], len(ranks))
    first, median, third = 1000 * np.quantile(times, [0.25, 0.5, 0.75])
    return DemoRow(
        setting=name,
        dims=dims,
        mrr=quality["mrr"],
        mrr_low=low,
        mrr_high=high,
        recall=quality["recall"],
        memory_bytes=4 * dims * len(index),
        latency_ms=float(median),
        latency_low_ms=float(first),
        latency_high_ms=float(third),
        timed=len(times),
    )


def _answer(question: str, hits: Sequence[Hit]) -> dict[str, Any]:
    return {
        "question": question,
        "results": [{"id": hit.id, "score": hit.score, "text": hit.text} for hit in hits],
    }
