"""JSON records of answers, for the command line and the HTTP service, and a stopwatch for the stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kexue.search.encoding import encode_texts
from kexue.search.ranking import Hit
from kexue.search.rerank import TransportReranker
from kexue.similarity import Explanation, HubnessReport, hubness_report, k_occurrence, pair_cosine

if TYPE_CHECKING:
    from kexue.search.index import Index


class Stopwatch:
    """Seconds of each stage of a call, from the moment it is made.

    >>> watch = Stopwatch()
    >>> watch.lap("search")
    >>> sorted(watch.seconds())
    ['search', 'total']
    """

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage: it lasted since the previous one ended."""
        now = time.perf_counter()
        self._stages[stage], self._last = now - self._last, now

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, and ``total`` from the start until now."""
        return {**self._stages, "total": time.perf_counter() - self._start}


def index_name(uri: str) -> str:
    """Return the name of an index: its file without ending, or its name in a database.

    >>> [index_name(uri) for uri in ("texts/faq.kx", "milvus:///texts/all.db#faq", "milvus://host:19530/faq")]
    ['faq', 'faq', 'faq']
    """
    return Path(uri.rpartition("#")[2]).stem


def usage_record(tokens: int) -> dict[str, int]:
    """OpenAI's record of the tokens of a request."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def explanation_record(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON values."""
    return explanation._asdict() | {"pairs": [pair._asdict() for pair in explanation.pairs]}


def hit_record(hit: Hit, index: str, *, sparse: bool = False) -> dict[str, Any]:
    """A hit as JSON values.

    Args:
        hit: one answer of a search.
        index: name of the index it comes from.
        sparse: leave out `probability`, `passage` and `explanation` where the hit has none, instead of null.
    """
    record = {
        "id": hit.id,
        "index": index,
        "score": hit.score,
        "percentile": hit.percentile,
        "chance": hit.chance,
        "probability": None if hit.probability is None else hit.probability._asdict(),
        "passage": None if hit.passage is None else hit.passage._asdict(),
        "document": {"text": hit.text, "metadata": hit.metadata},
        "explanation": None if hit.explanation is None else explanation_record(hit.explanation),
    }
    optional = ("probability", "passage", "explanation") if sparse else ()
    return {name: value for name, value in record.items() if name not in optional or value is not None}


def search_record(
    hits: Sequence[Hit],
    index: str,
    *,
    mode: str,
    tokens: int,
    seconds: dict[str, float],
    match: Literal["good", "weak"] | None = None,
    warnings: Sequence[str] = (),
    sparse: bool = False,
) -> dict[str, Any]:
    """The hits of one query as JSON values.

    Args:
        hits, index, sparse: see `hit_record`.
        mode: ``"dense"``, ``"lexical"`` or ``"hybrid"``, see `kexue.search.modes`.
        tokens: of the query, as the encoder read it: with its prompt; 0 where it was not encoded.
        seconds: of each stage, see `Stopwatch.seconds`.
        match: see `kexue.search.warnings.judge_match`. warnings: see `collect_warnings` there.
    """
    return {
        "mode": mode,
        "match": match,
        "results": [hit_record(hit, index, sparse=sparse) for hit in hits],
        "warnings": list(warnings),
        "usage": usage_record(tokens),
        "timings": seconds,
    }


class Comparison(NamedTuple):
    """The result of comparing two texts.

    `cosine` is that of their vectors, `percentile` its rank among random pairs of a calibrated index (None without
    one). `similarity` is the score of `TransportReranker` between their words, and `explanation` the transport behind
    it; None where a text has no tokens.
    """

    texts: tuple[str, str]
    cosine: float
    percentile: float | None
    similarity: float
    kind: Literal["wrd", "wmd"]
    explanation: Explanation | None


def compare_texts(
    a: str, b: str, encoder: Any, *, kind: Literal["wrd", "wmd"] = "wrd", index: Index | None = None
) -> Comparison:
    """Compare two texts by their vectors and by their words.

    Args:
        a, b: texts.
        encoder: `kexue.text.Encoder`, or another with ``encode(texts)`` and ``encode_tokens(texts)``.
        kind: distance between the words.
        index: compares in its vector space and by its calibration; `encoder` is then the encoder of the index.
    """
    percentile = None
    if index is None:
        cosine = float(pair_cosine(*(vector[None] for vector in encode_texts(encoder, [a, b], "pair")))[0])
    else:
        cosine = index.compare(a, b)
        if (calibrator := index.calibrator) is not None:
            percentile = float(calibrator.percentile(cosine))
    scores, [explanation] = TransportReranker(encoder, kind).rerank(a, [b])
    return Comparison((a, b), cosine, percentile, float(scores[0]), kind, explanation)


def comparison_record(comparison: Comparison, *, explain: bool = False, figure: str | None = None) -> dict[str, Any]:
    """A comparison as JSON values, with its explanation if wanted and the path of its figure if one was drawn."""
    transport = comparison.explanation
    return {
        "texts": list(comparison.texts),
        "cosine": comparison.cosine,
        "distance": None if transport is None else transport.distance,
        "similarity": comparison.similarity,
        "kind": comparison.kind,
        "percentile": comparison.percentile,
        "explanation": explanation_record(transport) if explain and transport is not None else None,
        "figure": figure,
    }


class MeasuredHubness(NamedTuple):
    """How unevenly documents are found.

    `counts` (n,) says how often each document counted is among the nearest of another, `documents` how many there are
    in all, and `hubs` lists those found most often, each as ``{"id", "count", "text"}``.
    """

    report: HubnessReport
    counts: np.ndarray[Any, Any]
    documents: int
    hubs: list[dict[str, Any]]


def measure_hubness(index: Index, k: int, *, top: int, generator: Any = 0) -> MeasuredHubness:
    """Measure the hubness of an index, and look up the `top` documents found most often; see `Index.k_occurrence`."""
    counts, ids = index.k_occurrence(k, generator=generator)
    report = hubness_report(counts, k, top=top)
    texts = {document.id: document.text for document in index.get([ids[row] for row, _ in report.top])}
    hubs = [{"id": ids[row], "count": count, "text": texts.get(ids[row], "")} for row, count in report.top]
    return MeasuredHubness(report, counts, len(index), hubs)


def measure_vector_hubness(vectors: Any, k: int, *, top: int, generator: Any = 0) -> MeasuredHubness:
    """Measure the hubness of vectors (n, d) without an index; a hub's id is its row."""
    counts = k_occurrence(vectors, k, metric="cosine", generator=generator)
    report = hubness_report(counts, k, top=top)
    hubs = [{"id": str(row), "count": count, "text": ""} for row, count in report.top]
    return MeasuredHubness(report, counts, len(counts), hubs)


def hubness_record(measured: MeasuredHubness) -> dict[str, Any]:
    """Hubness as JSON values."""
    return measured.report._asdict() | {
        "documents": measured.documents,
        "metric": "cosine",
        "top": measured.hubs,
    }
