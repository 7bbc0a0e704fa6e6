"""Writing of documents into a store: encode, whiten, correct for hubs, write in batches."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kexue._progress import Progress
from kexue._text import same_json
from kexue.errors import SpaceMismatchError
from kexue.search.encoding import IndexEncoder
from kexue.search.hubs import NEIGHBOURS, append_offsets, extend_queries, find_distinct, local_means, neighbour_scores
from kexue.search.products import Scores, Vectors
from kexue.search.sample import stack_vectors
from kexue.search.space import Space, as_vectors
from kexue.search.store.base import Row, Store, Value
from kexue.similarity import Whitening
from kexue.text.identity import identify
from kexue.text.models import MULTILINGUAL

BATCH = 512  # documents that are encoded, and made durable, at a time
_SAME = 1e-6  # numbers of unit vectors that differ by less are equal, up to rounding of float32


@dataclass(frozen=True)
class AddReport:
    """Numbers of documents added, replaced, and skipped because nothing in them had changed."""

    added: int
    updated: int
    skipped: int

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(self.added + other.added, self.updated + other.updated, self.skipped + other.skipped)


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

    def add_batches(
        self, batches: Iterable[tuple[list[Row], Vectors | None]], total: int, progress: Progress | None = None
    ) -> tuple[AddReport, int]:
        """Write batches of documents, each durable when the next one begins.

        Args:
            batches: rows without vectors, and their vectors (n, dim) of the encoder or None to encode them.
            total: documents in all batches.
            progress: called as progress(done, total).

        Returns:
            What was written, and how many texts the encoder cut.
        """
        report, truncated, done = AddReport(0, 0, 0), 0, 0
        for rows, vectors in batches:
            added, cut = self.add_rows(rows, vectors)
            report, truncated, done = report + added, truncated + cut, done + len(rows)
            if progress is not None:
                progress(done, total)
        return report, truncated

    def add_rows(self, rows: list[Row], vectors: Vectors | None) -> tuple[AddReport, int]:
        """Write the new and changed documents of one batch in one transaction; see `add_batches`."""
        space = self._encoder.space
        fresh, written = self._find_changes(space, rows, vectors)
        skipped = len(rows) - len(fresh) - len(written)
        metadata: dict[str, Value] = {}
        truncated = 0
        if fresh:
            if vectors is None:
                raw = self._encoder.encode([rows[place].text for place in fresh], "document")
                truncated = self._encoder.truncated_count
            else:
                raw = vectors[fresh]
            fitted = self._fit_space(space, raw, encoded=vectors is None)
            metadata = {**({} if fitted is space else fitted.dump()), **self._add_drift(space, raw)}
            unit = fitted.project(raw)
            if fitted.dehub == "csls":
                unit = append_offsets(unit, self._mean_similarities(unit, [row.id for row in rows]))
            written += [rows[at]._replace(vector=v) for at, v in zip(fresh, unit, strict=True)]
        if not written:
            return AddReport(0, 0, skipped), 0
        done = self._store.upsert(written, metadata=metadata, expect={"space": space.token})
        return AddReport(done.added, done.updated, skipped), truncated

    def _find_changes(self, space: Space, rows: Sequence[Row], vectors: Vectors | None) -> tuple[list[int], list[Row]]:
        """Return the places of rows that need a vector, and the rows of which only the metadata have changed."""
        stored = {row.id: row for row in self._store.get([row.id for row in rows], vectors=True)}
        fresh: list[int] = []
        changed: list[Row] = []
        for place, row in enumerate(rows):
            old = stored.get(row.id)
            if old is None or old.text != row.text or (vectors is not None and not _same(space, vectors[place], old)):
                fresh.append(place)
            elif not same_json(old.metadata, row.metadata):
                changed.append(row._replace(vector=old.vector))
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

    def _mean_similarities(self, unit: Vectors, ids: Sequence[str]) -> Scores:
        """Return r (n,) of new documents among themselves and the stored ones, except those with `ids`."""
        scores = [neighbour_scores(unit)]
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
            blocks.append(stack_vectors(rows)[:, :-1])
        unit = np.concatenate(blocks)
        approx = str(self._store.metadata()["approx"])
        offsets = dict(zip(ids, -local_means(neighbour_scores(unit, approx=approx)) / 2, strict=True))
        for start in range(0, len(ids), BATCH):
            while not self._write_offsets(ids[start : start + BATCH], offsets):
                pass

    def _write_offsets(self, ids: Sequence[str], offsets: Mapping[str, Any]) -> bool:
        """Write documents with their new offsets; False where another process has written meanwhile."""
        updated = self._store.metadata()["updated"]
        rows = self._store.get(ids, vectors=True)
        changed = [row for row in rows if abs(stack_vectors([row])[0, -1] - offsets[row.id]) > _SAME]
        fresh = [row._replace(vector=np.append(stack_vectors([row])[0, :-1], offsets[row.id])) for row in changed]
        try:
            if fresh:
                self._store.upsert(fresh, expect={"updated": updated})
        except SpaceMismatchError:
            return False
        return True


def drift_sum(metadata: Mapping[str, Value]) -> tuple[int, Any]:
    """Return number and sum of the vectors added since the whitening was fitted."""
    blob = metadata.get("drift_sum")
    return int(metadata.get("drift_n", 0)), np.frombuffer(blob) if isinstance(blob, bytes) else 0.0


def _same(space: Space, raw: Vectors, old: Row) -> bool:
    """Return whether a new vector of the encoder equals the stored one."""
    unit = space.project(raw[None])[0]
    return old.vector is not None and bool(np.allclose(unit, old.vector[: len(unit)], atol=_SAME))
