"""Writing of documents into a store: split, encode, whiten, correct for hubs, write in batches."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from kexue._progress import Progress
from kexue._text import same_json
from kexue.errors import SpaceMismatchError
from kexue.search.documents import check_documents, match_vectors
from kexue.search.encoding import IndexEncoder
from kexue.search.hubs import NEIGHBOURS, append_offsets, extend_queries, find_distinct, local_means, neighbour_scores
from kexue.search.products import Keys, Scores, Vectors
from kexue.search.sample import share_vectors, stack_vectors
from kexue.search.space import Space, as_vectors
from kexue.search.splitting import Splitting
from kexue.search.store.base import Row, Span, Store, Value
from kexue.similarity import Whitening
from kexue.text.identity import identify
from kexue.text.models import MULTILINGUAL

BATCH = 512  # documents that are encoded, and made durable, at a time
_SAME = 1e-6  # numbers of unit vectors that differ by less are equal, up to rounding of float32


@dataclass(frozen=True)
class AddReport:
    """Numbers of documents added, replaced, and skipped because nothing in them had changed.

    `truncated` texts are longer than the encoder reads, and were neither split nor read to their end.
    """

    added: int
    updated: int
    skipped: int
    truncated: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Ingest:
    """Writer of documents into the store of an index.

    Args:
        store: the store of the index.
        encoder: the space that the store records, and its encoder.
    """

    def __init__(self, store: Store, encoder: IndexEncoder) -> None:
        self._store = store
        self._encoder = encoder

    def batch_size(self, n: int) -> int:
        """Number of `n` documents to add at once: all, where a whitening or the first offsets are fitted on them."""
        space = self._encoder.space
        return n if space.unfitted is not None or (space.dehub == "csls" and space.token is None) else BATCH

    def add_texts(
        self,
        texts: str | Iterable[str],
        ids: Iterable[str | int] | None,
        metadata: Iterable[Mapping[str, Any] | None] | None,
        vectors: Any,
        progress: Progress | None,
    ) -> AddReport:
        """Check and write texts; see `kexue.search.Index.add`."""
        checked = check_documents(texts, ids, metadata)
        if not checked.rows:
            return AddReport(0, 0, checked.duplicates)
        raw = None if vectors is None else match_vectors(vectors, checked, dim=self._encoder.space.model.dim)
        rows = checked.rows
        if raw is None or self._encoder.encoder is not None:
            self._encoder.choose_model([row.text for row in rows])
        size = self.batch_size(len(rows))
        parts = (slice(start, start + size) for start in range(0, len(rows), size))
        batches = ((rows[part], None if raw is None else raw[part]) for part in parts)
        return self.add_batches(batches, len(rows), progress) + AddReport(0, 0, checked.duplicates)

    def add_encoded(
        self,
        texts: Sequence[str],
        ids: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any] | None],
        spans: Sequence[Sequence[Span]],
        vectors: Vectors,
    ) -> AddReport:
        """Write texts whose passages have been encoded, in one transaction.

        Args:
            texts, ids, metadata: n each, as in `kexue.search.Index.add`.
            spans: the passages of each text, from `split`.
            vectors: (p, dim) of the encoder, those of all passages.
        """
        checked = check_documents(texts, ids, metadata)
        parts = np.split(vectors, np.cumsum([len(some) for some in spans])[:-1])
        rows = _with_spans(checked.rows, [spans[place] for place in checked.positions])
        raw = np.concatenate([parts[place] for place in checked.positions])
        return self.add_rows(rows, raw) + AddReport(0, 0, checked.duplicates)

    def add_batches(
        self, batches: Iterable[tuple[list[Row], Vectors | None]], total: int, progress: Progress | None = None
    ) -> AddReport:
        """Write batches of documents, each durable when the next one begins.

        Args:
            batches: rows without vectors, and their vectors (n, dim) of the encoder or None to encode them. Rows with
                `spans` have one vector for each.
            total: documents in all batches.
            progress: called as progress(done, total).
        """
        report, done = AddReport(0, 0, 0), 0
        for rows, vectors in batches:
            report, done = report + self.add_rows(rows, vectors), done + len(rows)
            if progress is not None:
                progress(done, total)
        return report

    def add_rows(self, rows: list[Row], vectors: Vectors | None) -> AddReport:
        """Write the new and changed documents of one batch in one transaction; see `add_batches`."""
        space = self._encoder.space
        given = None if vectors is None else [stack_vectors([row]).vectors for row in share_vectors(rows, vectors)]
        fresh, written = self._find_changes(space, rows, given)
        skipped = len(rows) - len(fresh) - len(written)
        metadata: dict[str, Value] = {}
        truncated = 0
        if fresh:
            new = [rows[place] for place in fresh]
            if given is None:
                new = _with_spans(new, self.split([row.text for row in new]))
                raw = self._encoder.encode([text for row in new for text in passage_texts(row)], "document")
                truncated = self._encoder.truncated_count
            else:
                raw = np.concatenate([given[place] for place in fresh])
            fitted = self._fit_space(space, raw, encoded=given is None)
            metadata = {**({} if fitted is space else fitted.dump()), **self._add_drift(space, raw)}
            unit = fitted.project(raw)
            if fitted.dehub == "csls":
                sizes = np.array([len(passage_texts(row)) for row in new])
                unit = append_offsets(unit, self._mean_similarities(unit, sizes, [row.id for row in rows]))
            written += share_vectors(new, unit)
        if not written:
            return AddReport(0, 0, skipped)
        metadata["written"] = str(count_written(self._store.metadata()) + len(written))
        done = self._store.upsert(written, metadata=metadata, expect={"space": space.token})
        return AddReport(done.added, done.updated, skipped, truncated)

    def split(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return the passages into which this index splits texts; one, the whole text, where it does not."""
        splitting = Splitting.load(self._store.metadata())
        if splitting.mode == "none" or not self._store.keeps_passages:
            return [[(0, len(text))] for text in texts]
        return splitting.split(self._encoder.load(), texts)

    def _find_changes(
        self, space: Space, rows: Sequence[Row], vectors: Sequence[Vectors] | None
    ) -> tuple[list[int], list[Row]]:
        """Return the places of rows that need a vector, and the rows of which only the metadata have changed."""
        stored = {row.id: row for row in self._store.get([row.id for row in rows], vectors=True)}
        fresh: list[int] = []
        changed: list[Row] = []
        for place, row in enumerate(rows):
            old = stored.get(row.id)
            if (
                old is None
                or old.text != row.text
                or (vectors is not None and not _same(space, row, vectors[place], old))
            ):
                fresh.append(place)
            elif not same_json(old.metadata, row.metadata):
                changed.append(row._replace(vector=old.vector, spans=old.spans))
        return fresh, changed

    def _fit_space(self, space: Space, raw: Vectors, *, encoded: bool) -> Space:
        """Return the space with what its first vectors decide: identity and width of the encoder, fitted whitening."""
        model = space.model
        # vectors that are given together with an encoder are of this encoder
        if model.model_id is None and (encoded or self._encoder.encoder is not None):
            reference = None if model.reference in ("auto", MULTILINGUAL) else model.reference  # not exact names
            model = identify(self._encoder.load(), reference=reference)
        if model.dim is None:
            model = replace(model, dim=raw.shape[1])
        raw = as_vectors(raw, dim=model.dim, what="vectors")
        if model == space.model and space.unfitted is None and space.token is not None:
            return space
        whitening = space.whitening if space.unfitted is None else Whitening(**space.unfitted).fit(raw)
        return replace(
            space, model=model, whitening=whitening, unfitted=None, token=space.token or secrets.token_hex(8)
        )

    def _mean_similarities(self, unit: Vectors, sizes: Keys, ids: Sequence[str]) -> Scores:
        """Return r (p,) of the vectors of new documents, among these and the stored documents, except those with `ids`.

        `sizes` is the number of vectors of each new document.
        """
        scores = [neighbour_scores(unit, sizes=sizes)]
        if self._store.count():
            replaced = set(ids)
            firsts, which = find_distinct(unit)
            answers = self._store.search(extend_queries(unit[firsts], 0.0), NEIGHBOURS)
            there = np.full((len(firsts), max(map(len, answers))), np.nan, np.float32)
            for row, matches in zip(there, answers, strict=True):
                row[: len(matches)] = [np.nan if match.id in replaced else match.score for match in matches]
            scores.append(there[which])
        return local_means(*scores)

    def _add_drift(self, space: Space, raw: Vectors) -> dict[str, Value]:
        """Return the running sum of the vectors added since the whitening was fitted, with `raw`, as metadata."""
        if space.whitening is None:
            return {}
        n, total = drift_sum(self._store.metadata())
        return {"drift_n": str(n + len(raw)), "drift_sum": (total + raw.sum(axis=0, dtype=np.float64)).tobytes()}

    def reset_drift(self) -> None:
        """Count only the vectors added from now on as added since the whitening was fitted."""
        self._store.upsert([], metadata={"drift_n": "0", "drift_sum": ""})

    def remeasure_offsets(self) -> None:
        """Write the documents whose r has changed; one that is written meanwhile by another process is read again."""
        ids, blocks = [], []
        for rows in self._store.iterate():
            ids += [row.id for row in rows]
            blocks.append(stack_vectors(rows))
        sizes = np.concatenate([block.sizes for block in blocks])
        unit = np.concatenate([block.vectors[:, :-1] for block in blocks])
        approx = str(self._store.metadata()["approx"])
        measured = -local_means(neighbour_scores(unit, sizes=sizes, approx=approx)) / 2
        offsets = dict(zip(ids, np.split(measured, np.cumsum(sizes)[:-1]), strict=True))
        for start in range(0, len(ids), BATCH):
            while not self._write_offsets(ids[start : start + BATCH], offsets):
                pass

    def _write_offsets(self, ids: Sequence[str], offsets: Mapping[str, Any]) -> bool:
        """Write documents with their new offsets; False where another process has written meanwhile."""
        updated = self._store.metadata()["updated"]
        fresh = []
        for row in self._store.get(ids, vectors=True):
            vectors = stack_vectors([row]).vectors.copy()
            if len(vectors) == len(offsets[row.id]) and np.abs(vectors[:, -1] - offsets[row.id]).max() > _SAME:
                vectors[:, -1] = offsets[row.id]
                fresh += share_vectors([row], vectors)
        try:
            if fresh:
                self._store.upsert(fresh, expect={"updated": updated})
        except SpaceMismatchError:
            return False
        return True


def passage_texts(row: Row) -> list[str]:
    """Return the texts that are encoded for a document: its passages, or all of it where it is not split."""
    return [row.text[start:end] for start, end in row.spans] or [row.text]


def _with_spans(rows: Sequence[Row], spans: Sequence[Sequence[Span]]) -> list[Row]:
    """Return documents with their passages; none for one that is whole."""
    return [row._replace(spans=tuple(some) if len(some) > 1 else ()) for row, some in zip(rows, spans, strict=True)]


def count_written(metadata: Mapping[str, Value]) -> int:
    """Return the number of documents written, new and changed, since the index was made."""
    return int(metadata.get("written", 0))


def drift_sum(metadata: Mapping[str, Value]) -> tuple[int, Any]:
    """Return number and sum of the vectors added since the whitening was fitted."""
    blob = metadata.get("drift_sum")
    return int(metadata.get("drift_n", 0)), np.frombuffer(blob) if isinstance(blob, bytes) else 0.0


def _same(space: Space, new: Row, raw: Vectors, old: Row) -> bool:
    """Return whether the new vectors (m, dim) of the encoder equal the stored ones."""
    if old.vector is None or new.spans != old.spans:
        return False
    unit = space.project(raw)
    return bool(np.allclose(unit, np.atleast_2d(old.vector)[:, : unit.shape[1]], atol=_SAME))
