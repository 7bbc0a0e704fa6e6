"""Calibration of an index: how common its scores are, among random pairs and as best hits of unrelated queries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from kexue._progress import Progress, ProgressCounter
from kexue.errors import InfeasibleError
from kexue.search.encoding import IndexEncoder
from kexue.search.ingest import count_written
from kexue.search.language import guess_main_language
from kexue.search.sample import require_documents, sample_rows, sample_size, stack_vectors
from kexue.search.space import Space, file_bytes, from_file_bytes, read_record
from kexue.search.store.base import Row, Store, Value, now
from kexue.search.unknown import reads_language
from kexue.search.unrelated import SHUFFLED, find_answered, sample_queries, shuffle_words
from kexue.similarity import ScoreCalibrator
from kexue.similarity.random_pairs import null_scores

Search = Callable[..., list[list[Any]]]
_GUESSED = 1000  # documents whose language is guessed
LEAST = 50  # documents; from so many on, the 95 % interval of the 90th percentile is less than 10 points wide
GOOD_CHANCE = 0.05  # a hit is good up to this chance; chosen on other queries than those of the documentation


@dataclass(frozen=True)
class CalibrationFacts:
    """What a calibration was made from.

    Attributes:
        language: of most documents; a query whose language does not show is taken for one of this language.
        documents: number in the index. written: documents written since the index was made, new and changed.
        created: time in UTC.
        space: the vector space, see `identify_space`.
        answered: sample queries that the index does answer, by language; they are not counted.
        mixed: whether unrelated queries in this language are mixed words of documents, for lack of samples.
    """

    language: str
    documents: int
    written: int
    created: str
    space: str
    answered: Mapping[str, Sequence[str]]
    mixed: bool

    @classmethod
    def load(cls, metadata: Mapping[str, Value]) -> Self | None:
        """Read the facts from the metadata of a store; None where a calibration records none."""
        text = metadata.get("calibration_facts")
        return None if text is None else cls(**json.loads(text))


_PAIRS = 10_000  # whose scores are computed at a time


class StoredCalibration:
    """The calibration that a store records.

    Args:
        store: the store of the index. path: its path, for messages.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path
        self._loaded: tuple[bytes, ScoreCalibrator] | None = None

    def load(self) -> ScoreCalibrator | None:
        """Return the calibration that `Index.calibrate` recorded, in any process; None before."""
        blob = self._store.metadata().get("calibration")
        if not isinstance(blob, bytes):
            return None
        if self._loaded is None or self._loaded[0] is not blob:
            given = blob
            loaded = read_record(self._path, "calibration", lambda: from_file_bytes(given, ScoreCalibrator.load))
            self._loaded = blob, loaded
        return self._loaded[1]

    def facts(self) -> CalibrationFacts | None:
        """Return what the calibration was made from; None where there is none, or one of an older version."""
        return read_record(self._path, "calibration", lambda: CalibrationFacts.load(self._store.metadata()))

    def save(self, calibrator: ScoreCalibrator, facts: CalibrationFacts, *, expect: Mapping[str, Value | None]) -> None:
        """Record a calibration, if the store's metadata still are those of `expect`."""
        described = json.dumps(dataclasses.asdict(facts), ensure_ascii=False)
        entries: dict[str, Value] = {"calibration": file_bytes(calibrator.save), "calibration_facts": described}
        self._store.upsert([], metadata=entries, expect=expect)


def fit_calibration(
    store: Store,
    encoder: IndexEncoder,
    search: Search,
    *,
    pairs: Iterable[tuple[str, str]] | None,
    labels: Iterable[int] | None,
    n: int,
    method: Literal["isotonic", "platt"],
    generator: Any,
    progress: Progress | None = None,
) -> tuple[ScoreCalibrator, CalibrationFacts]:
    """Fit the scores of an index on random pairs, on unrelated queries and on judged pairs; see `Index.calibrate`.

    Args:
        store, encoder, search: those of the index.
        pairs, labels, n, method, generator, progress: as in `Index.calibrate`.
    """
    if (pairs is None) != (labels is None):
        raise ValueError("pairs come with labels, one each: 1 where the two texts belong together, 0 where not.")
    judged = None if pairs is None else list(pairs)  # once: both may be iterators
    given = None if labels is None else list(labels)
    require_documents(store, encoder.path, LEAST, "meaningful percentiles")
    random = np.random.default_rng(generator)
    written = count_written(store.metadata())
    rows = sample_rows(store, sample_size(store), random)
    calibrator = ScoreCalibrator(method).fit(random_scores(rows, encoder.space, n, random))
    texts = [row.text for row in rows]
    language = guess_main_language(texts[:: max(1, len(texts) // _GUESSED)])
    queries = choose_queries(encoder, language, texts, random)
    answered, count = {}, ProgressCounter(progress, sum(map(len, queries.values())))
    for name, some in queries.items():
        answered[name] = fit_best(calibrator, encoder, search, some, name)
        count(len(some))
    if judged is not None and given is not None:
        sides = [encoder.space.project(encoder.encode([pair[i] for pair in judged], "pair")) for i in (0, 1)]
        calibrator.fit_labels(np.einsum("ij,ij->i", *sides, dtype=np.float64), given)
    facts = CalibrationFacts(
        language,
        store.count(),
        written,
        now(),
        identify_space(encoder.space),
        {name: some for name, some in answered.items() if some},
        mixed=language in queries and language not in sample_queries(),
    )
    return calibrator, facts


def random_scores(rows: Sequence[Row], space: Space, n: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return the scores of `n` random pairs of documents, as a search would score them.

    The first of a pair stands for a query: one of its passages, drawn at random. The second is scored by its best
    passage. Without split documents these are cosines, of every pair once where there are at most `n`.
    """
    stacked = stack_vectors(rows)
    unit = stacked.vectors[:, :-1] if space.dehub == "csls" else stacked.vectors
    if len(unit) == len(rows):
        return null_scores(unit, n, generator=random)
    first = random.integers(len(rows), size=n)
    second = (first + random.integers(1, len(rows), size=n)) % len(rows)
    queries = stacked.firsts[first] + random.integers(stacked.sizes[first])
    found = np.full(n, -1.0)
    for passage in range(int(stacked.sizes.max())):
        some = np.flatnonzero(stacked.sizes[second] > passage)
        for part in np.array_split(some, len(some) // _PAIRS + 1):
            pairs = unit[queries[part]], unit[stacked.firsts[second[part]] + passage]
            found[part] = np.maximum(found[part], np.einsum("ij,ij->i", *pairs, dtype=np.float64))
    scores: np.ndarray[Any, Any] = np.clip(found, -1.0, 1.0)
    return scores


def choose_queries(
    encoder: IndexEncoder, language: str, texts: Sequence[str], generator: np.random.Generator
) -> dict[str, list[str]]:
    """Return unrelated queries by language: samples, or mixed words of the texts in a language without samples.

    None for vectors without an encoder, and none in languages that the encoder does not read.
    """
    if encoder.encoder is None and encoder.space.model.reference is None:
        return {}
    model = encoder.load()
    samples = {
        name: some for name, some in sample_queries().items() if name == language or reads_language(model, name, some)
    }
    return samples if language in samples else {**samples, language: shuffle_words(texts, SHUFFLED, generator)}


def fit_best(
    calibrator: ScoreCalibrator, encoder: IndexEncoder, search: Search, queries: list[str], language: str
) -> list[str]:
    """Store the scores of the best hits of unrelated queries; returns those left out because they have an answer.

    The score is the largest cosine with any document, whatever the order of hits: no way of searching shows a larger
    one, so that a chance is never too small.
    """
    if not queries:
        return []
    dehub = "none" if encoder.space.dehub == "csls" else None
    scores = np.array([best.score for [best] in search(encoder.encode(queries, "query"), 1, dehub=dehub)], np.float64)
    out = find_answered(scores)
    calibrator.fit_best(scores[~out], language)
    return [query for query, left in zip(queries, out, strict=True) if left]


def identify_space(space: Space) -> str:
    """Return what tells one vector space from another: the fingerprint of the model, and a hash of the whitening."""
    return f"{space.model.fingerprint} {space.digest()}"


def calibration_record(calibrator: ScoreCalibrator | None, facts: CalibrationFacts | None) -> dict[str, Any] | None:
    """Return a calibration as JSON values; the threshold is that for a precision of 0.9, None if none reaches it.

    `null_queries` counts the unrelated queries in the language of the index; `answered` are those left out.
    """
    if calibrator is None or calibrator.null_ is None:
        return None
    labelled, threshold = 0, None
    if calibrator.labels_ is not None:
        labelled = len(calibrator.labels_)
        with contextlib.suppress(InfeasibleError):
            threshold = calibrator.threshold()._asdict()
    record = {"null_pairs": len(calibrator.null_), "labelled_pairs": labelled, "method": calibrator.method}
    return {**record, "threshold": threshold, **facts_record(calibrator, facts)}


def facts_record(calibrator: ScoreCalibrator, facts: CalibrationFacts | None) -> dict[str, Any]:
    """Return what a calibration was made from as JSON values; None where it is not known."""
    if facts is None:
        return dict.fromkeys(("null_queries", "language", "mixed_words", "answered", "documents", "created"))
    return {
        "null_queries": len(calibrator.best_.get(facts.language, ())),
        "language": facts.language,
        "mixed_words": facts.mixed,
        "answered": list(facts.answered.get(facts.language, ())),
        "documents": facts.documents,
        "created": facts.created,
    }
