"""Records of the demo: its measurements and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DemoRow:
    """Measurements of one setting of the vectors.

    Attributes:
        setting: ``"raw"``, ``"pca"`` or ``"whiten"``.
        dims: width of a stored vector.
        mrr: mean reciprocal rank of known-item search among the first 10 hits.
        mrr_low: lower end of its 95 % interval (Clopper and Pearson's).
        mrr_high: upper end of that interval.
        recall: share of queries whose answer is among the first 10 hits.
        memory_bytes: size of the vectors.
        latency_ms: median duration of one search, without encoding.
        latency_low_ms: first quartile of the duration.
        latency_high_ms: third quartile of the duration.
        timed: number of searches that were timed.
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
    """Result of the demo; its fields are those of `kexue demo --json`.

    Attributes:
        index: path of the index.
        documents: number of indexed docstrings.
        rows: measurements, one row per way to shorten the vectors.
        answers: one ``{question, results: [{id, score, text}]}`` per question.
        report: path of the page.
        seconds: duration.
    """

    index: str
    documents: int
    rows: list[DemoRow]
    answers: list[dict[str, Any]]
    report: str
    seconds: float
