"""An index of texts: documents with vectors of one space, searched by meaning."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar, cast

import numpy as np

import kexue
from kexue._progress import Progress
from kexue._text import same_json
from kexue.errors import DataError, IndexFormatError, ModelNotFoundError, SpaceMismatchError
from kexue.search.documents import check_documents, check_id, check_text
from kexue.search.encoding import Role, encode_texts
from kexue.search.filters import plain_filter
from kexue.search.hubs import (
    NEIGHBOURS,
    Dehub,
    as_query,
    centring,
    check_dehub,
    check_search,
    count_neighbours,
    distinct,
    local_means,
    neighbour_scores,
    with_offsets,
)
from kexue.search.meaning import SAMPLE, calibration_record, meaning, sample_rows, stack
from kexue.search.products import Vectors
from kexue.search.ranking import Hit
from kexue.search.rerank import Reranker, TransportReranker, count_candidates, rerank_hits
from kexue.search.space import (
    Space,
    SupportsEncode,
    as_vectors,
    file_bytes,
    from_file_bytes,
    is_fitted,
)
from kexue.search.store import CompactReport, Store, create_store, open_store
from kexue.search.store.base import Filter, Found, Row, Value
from kexue.search.store.sqlite.database import FORMAT_VERSION
from kexue.similarity import (
    HubnessReport,
    ScoreCalibrator,
    Whitening,
    hubness_report,
    k_occurrence,
)
from kexue.similarity.calibration import null_scores
from kexue.text.identity import ModelIdentity, identify

if TYPE_CHECKING:
    from kexue.search.backup import CheckReport, CopyReport

T = TypeVar("T")
BATCH = 512  # documents encoded, and made durable, at a time
APPROX = ("auto", "exact", "approx")
_SAME = 1e-6  # numbers of unit vectors that differ by less are the same, up to rounding of float32


class Document(NamedTuple):
    """A stored text and what is known about it."""

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class AddReport:
    """Documents new, replaced, and left alone because nothing in them had changed."""

    added: int
    updated: int
    skipped: int


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds; the fields of ``kexue index info``.

    `dims` is the length of the vectors compared, None while there are none. `bytes` are those on disk. `drift` is how
    far the mean of the vectors added since the whitening was fitted lies from the mean it was fitted on, in units of
    the root of the total variance; None without whitening or without such vectors.
    """

    index: str
    documents: int
    dims: int | None
    model: dict[str, Any]
    whitening: dict[str, Any] | None
    calibration: dict[str, Any] | None
    hubness: dict[str, Any] | None
    dehub: str | None
    approx: str
    bytes: int
    format_version: int
    created: str
    updated: str
    drift: float | None


class Index:
    """Texts in a file, found by meaning; made by `Index.create`, `Index.open` or `build_index`.

    Every write is durable when the call returns. Several threads may use one object; several processes may read while
    one writes, and see its changes at their next call.

    >>> import tempfile, numpy as np
    >>> index = Index.create(tempfile.mkdtemp() + "/colours.kx", encoder=None)
    >>> index.add(["red", "green"], vectors=np.eye(2))
    AddReport(added=2, updated=0, skipped=0)
    >>> [hit.text for hit in index.search(np.array([[0.1, 0.9]]), k=1)[0]]
    ['green']
    >>> index.close()
    """

    def __init__(
        self, store: Store, path: str, encoder: SupportsEncode | None = None, *, readonly: bool = False
    ) -> None:
        self._store = store
        self._path = path
        self._encoder = encoder
        self._space: Space | None = None
        self._space_key: tuple[Value | None, Value] | None = None
        self._readonly = readonly
        self._calibrator: tuple[bytes, ScoreCalibrator] | None = None

    # Opening and closing

    @classmethod
    def create(
        cls,
        path_or_uri: str | PathLike[str],
        encoder: SupportsEncode | str | PathLike[str] | None = "auto",
        *,
        whitening: Whitening | None = None,
        dehub: Dehub | None = None,
        approx: str = "auto",
        overwrite: bool = False,
    ) -> Self:
        """Make an empty index.

        Args:
            path_or_uri: the file to make, or an address such as ``milvus://host:19530/faq`` (see `open_store`).
            encoder: a folder or hub id, ``"auto"``, an object with ``encode(texts) -> (n, dim)``, or None for an index
                that is given vectors only. Loaded when the first text comes, and recorded then.
            whitening: applied to every vector before it is stored; one that is not fitted is fitted on the first `add`.
            dehub: keep documents that are near everything from answering everything. ``"csls"`` ranks by
                2 cos(q, y) - r(q) - r(y), r the mean cosine with the 50 nearest documents, at no cost to a search; a
                document's r is measured when it is added, that of all anew by `compact`. ``"center"`` subtracts the
                mean: a whitening with beta = 1.
            approx: ``"exact"`` compares a query with every vector, ``"approx"`` with likely ones (and scores those
                exactly), ``"auto"`` does the latter from 200,000 documents on.
            overwrite: replace an index that is there.

        Raises:
            IndexExistsError: something is at `path` (FileExistsError). IndexBusyError: it is in use.
        """
        if approx not in APPROX:
            raise ValueError(f"approx must be one of {', '.join(APPROX)}, got {approx!r}")
        check_dehub(dehub)
        if isinstance(encoder, PathLike):
            encoder = fspath(encoder)
        if not (encoder is None or isinstance(encoder, str | SupportsEncode)):
            raise TypeError(f"encoder must be a name, an object with encode(texts) or None, got {encoder!r:.60}")
        if whitening is not None and not isinstance(whitening, Whitening):
            raise TypeError(f"whitening must be a kexue.similarity.Whitening or None, got {whitening!r:.60}")
        whitening = centring(dehub, whitening)
        fitted = whitening if whitening is not None and is_fitted(whitening) else None
        model = ModelIdentity(reference=encoder if isinstance(encoder, str) else None)
        unfitted = whitening.get_params() if whitening is not None and fitted is None else None
        given = None if isinstance(encoder, str) else encoder
        space = Space(model, fitted, unfitted, dehub=dehub)
        return cls._create(path_or_uri, space, given, approx=approx, overwrite=overwrite)

    @classmethod
    def _create(
        cls,
        path: str | PathLike[str],
        space: Space,
        encoder: SupportsEncode | None,
        *,
        approx: str,
        overwrite: bool = False,
        mode: int | None = None,
        more: Mapping[str, Value] | None = None,
    ) -> Self:
        metadata = {**space.dump(), "approx": approx, "kexue_version": kexue.__version__, **(more or {})}
        return cls(create_store(path, metadata, overwrite=overwrite, mode=mode), fspath(path), encoder)

    @classmethod
    def open(
        cls,
        path_or_uri: str | PathLike[str],
        *,
        readonly: bool = False,
        encoder: SupportsEncode | str | PathLike[str] | None = None,
    ) -> Self:
        """Open an index that exists.

        Args:
            path_or_uri: the file, or the address.
            readonly: refuse writes; works on files and folders that cannot be written.
            encoder: None uses the one the index records, loaded when the first text comes. Another one, or the same
                one at another place, is compared with the record at once.

        Raises:
            IndexFormatError: nothing there (also a FileNotFoundError), not an index, damaged, or of a newer version.
            SpaceMismatchError: the index holds vectors of another encoder.
        """
        index = cls(open_store(path_or_uri, readonly=readonly), fspath(path_or_uri), readonly=readonly)
        try:
            if index.space.raw:
                raise IndexFormatError(
                    f"{index._path} is an unfinished build.", remedy="Run the same kexue index build again: it goes on."
                )
            if encoder is not None and encoder != "auto":
                index._encoder = index._checked(encoder)
        except BaseException:
            index.close()
            raise
        return index

    def close(self) -> None:
        """Let go of the file; again does nothing."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._store.count()

    def __repr__(self) -> str:
        return f"Index({self._path!r})"

    # Writing

    def add(
        self,
        texts: str | Iterable[str],
        *,
        ids: Iterable[str | int] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        vectors: Any = None,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add texts, or replace those whose id is there; unchanged ones are neither encoded nor written.

        Everything is checked before anything is written; then batches of 512 are encoded and committed one by one.

        Args:
            texts: n texts, none of them blank.
            ids: n identifiers, each once; None takes a hash of the text, so the same text again is skipped.
            metadata: n dictionaries that JSON can hold, or None.
            vectors: (n, dim) of the encoder, before whitening, instead of encoding; finite.
            progress: called as progress(done, n).

        Raises:
            DataError: a blank text, an id twice, metadata JSON cannot hold; positions are named.
            ValueError: lengths that differ, NaN or infinity in `vectors`.
            SpaceMismatchError: vectors or an encoder of another space than the index holds.
            DiskFullError: no room; the batches before are kept, nothing of this one.
        """
        rows, places, doubles = check_documents(texts, ids, metadata)
        if not rows:
            return AddReport(0, 0, doubles)
        raw = None
        if vectors is not None:
            known = dict(zip(places, rows, strict=True))
            raw = as_vectors(
                vectors,
                dim=self.space.model.dim,
                what="vectors",
                name=lambda at: f"row {at} (id {known[at].id!r:.80})" if at in known else f"row {at}",
            )
            if len(raw) != len(rows) + doubles:
                raise ValueError(f"{len(rows) + doubles} texts came with {len(raw)} vectors.")
            raw = raw[places]
        size = self._batch(len(rows))
        added, updated, skipped = 0, 0, doubles
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            report, _ = self._add(rows[part], None if raw is None else raw[part])
            added, updated, skipped = added + report.added, updated + report.updated, skipped + report.skipped
            if progress is not None:
                progress(min(start + size, len(rows)), len(rows))
        return AddReport(added, updated, skipped)

    def _batch(self, n: int) -> int:
        """How many of `n` documents to add at once: all, where what is learnt from the first ones must fit the rest."""
        space = self.space
        return n if space.unfitted is not None or (space.dehub == "csls" and space.token is None) else BATCH

    def _add(self, rows: list[Row], vectors: Vectors | None) -> tuple[AddReport, int]:
        """Write one batch, what is new or changed, in one transaction; also tells how many texts the encoder cut."""
        space = self.space
        there = {row.id: row for row in self._store.get([row.id for row in rows], vectors=True)}
        fresh: list[int] = []  # places of texts that need a vector
        written: list[Row] = []
        for place, row in enumerate(rows):
            old = there.get(row.id)
            if old is None or old.text != row.text or (vectors is not None and not _same(space, vectors[place], old)):
                fresh.append(place)
            elif not same_json(old.metadata, row.metadata):
                written.append(row._replace(vector=old.vector))
        skipped = len(rows) - len(fresh) - len(written)
        metadata: dict[str, Value] = {}
        truncated = 0
        if fresh:
            texts = [rows[place].text for place in fresh]
            raw = self._encode(texts, "document") if vectors is None else vectors[fresh]
            truncated = 0 if vectors is not None else getattr(self._encoder, "truncated_", 0)
            settled = self._settle(space, raw, encoded=vectors is None)
            metadata = {**({} if settled is space else settled.dump()), **self._drift_with(space, raw)}
            unit = settled.project(raw)
            if settled.dehub == "csls":
                unit = with_offsets(unit, self._local_means(unit, [row.id for row in rows]))
            written += [rows[at]._replace(vector=v) for at, v in zip(fresh, unit, strict=True)]
        if not written:
            return AddReport(0, 0, skipped), 0
        done = self._store.upsert(written, metadata=metadata, expect={"space": space.token})
        return AddReport(done.added, done.updated, skipped), truncated

    def _settle(self, space: Space, raw: Vectors, *, encoded: bool) -> Space:
        """The space with what its first vectors tell: whose they are, how long, and the whitening fitted on them."""
        model = space.model
        if model.model_id is None and (
            encoded or self._encoder is not None
        ):  # vectors given beside an encoder are its own
            reference = None if model.reference == "auto" else model.reference
            model = identify(self.load_encoder(), reference=reference)
        if model.dim is None:
            model = replace(model, dim=raw.shape[1])
        raw = as_vectors(raw, dim=model.dim, what="vectors")
        if model == space.model and space.unfitted is None and space.token is not None:
            return space
        whitening = space.whitening if space.unfitted is None else Whitening(**space.unfitted).fit(raw)
        return replace(
            space, model=model, whitening=whitening, unfitted=None, token=space.token or secrets.token_hex(8)
        )

    def _local_means(self, unit: Vectors, ids: Sequence[str]) -> Any:
        """r of documents on their way in: among themselves and those stored, but for those with `ids`."""
        scores = [neighbour_scores(unit)]
        if len(self):
            replaced = set(ids)
            firsts, which = distinct(unit)
            found = self._store.search(as_query(unit[firsts], 0.0), NEIGHBOURS)
            there = np.full((len(firsts), max(map(len, found))), np.nan, np.float32)
            for row, some in zip(there, found, strict=True):
                row[: len(some)] = [np.nan if one.id in replaced else one.score for one in some]
            scores.append(there[which])
        return local_means(*scores)

    def _drift_with(self, space: Space, raw: Vectors) -> dict[str, Value]:
        """Running sum of the vectors added since the whitening was fitted: all, when it came fitted."""
        if space.whitening is None:
            return {}
        n, total = _drift_sum(self._store.metadata())
        return {"drift_n": str(n + len(raw)), "drift_sum": (total + raw.sum(axis=0, dtype=np.float64)).tobytes()}

    def delete(self, ids: str | Iterable[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id, or those a filter matches; returns how many there were.

        Raises:
            ValueError: neither or both of `ids` and `filter`, or a filter that is not legal.
        """
        if (ids is None) == (filter is None):
            raise ValueError("delete takes either ids or a filter; an empty filter {} removes everything.")
        return self._store.delete(None if ids is None else _id_list(ids), filter=filter)

    def compact(self) -> CompactReport:
        """Give the room of removed and replaced documents back to the file system.

        The file is rewritten: as much free space as it takes is needed for a moment (DiskFullError). With
        ``dehub="csls"`` the neighbourhoods of all documents are measured anew first.
        """
        if self.space.dehub == "csls" and len(self):
            self._measure_anew()
        return self._store.compact()

    def _measure_anew(self) -> None:
        """Write the documents whose r has changed; one that someone else writes meanwhile is read again."""
        ids, blocks = [], []
        for rows in self._store.iterate():
            ids += [row.id for row in rows]
            blocks.append(stack(rows)[:, :-1])
        unit = np.concatenate(blocks)
        approx = str(self._store.metadata()["approx"])
        offsets = dict(zip(ids, -local_means(neighbour_scores(unit, approx=approx)) / 2, strict=True))
        for start in range(0, len(ids), BATCH):
            while True:
                updated = self._store.metadata()["updated"]
                rows = self._store.get(ids[start : start + BATCH], vectors=True)
                changed = [row for row in rows if abs(stack([row])[0, -1] - offsets[row.id]) > _SAME]
                fresh = [row._replace(vector=np.append(stack([row])[0, :-1], offsets[row.id])) for row in changed]
                try:
                    if fresh:
                        self._store.upsert(fresh, expect={"updated": updated})
                except SpaceMismatchError:
                    continue
                break

    # Reading

    def get(self, ids: str | Iterable[str]) -> list[Document]:
        """The documents with these ids, in this order; ids that are not there are passed over."""
        return [Document(row.id, row.text, row.metadata) for row in self._store.get(_id_list(ids))]

    def sample(self, n: int, *, generator: Any = 0) -> tuple[list[Document], Vectors]:
        """`n` documents drawn at random, or all, oldest first; and their vectors (n, k) of length 1."""
        return self._with_vectors(sample_rows(self._store, n, np.random.default_rng(generator)))

    def vectors(self, ids: str | Iterable[str]) -> tuple[list[Document], Vectors]:
        """The documents with these ids, as `get` gives them, and their vectors (n, k) of length 1."""
        return self._with_vectors(self._store.get(_id_list(ids), vectors=True))

    def _with_vectors(self, rows: list[Row]) -> tuple[list[Document], Vectors]:
        if not rows:
            return [], np.empty((0, 0), np.float32)
        vectors = stack(rows)
        unit = vectors[:, :-1] if self.space.dehub == "csls" else vectors
        return [Document(row.id, row.text, row.metadata) for row in rows], unit

    def search(
        self,
        queries: str | Sequence[str] | Any,
        k: int = 10,
        *,
        filter: Filter | None = None,
        rerank: Literal["wrd", "wmd", "cross"] | Reranker | None = None,
        dehub: Literal["none", "csls", "center"] | None = None,
        explain: bool = False,
        exact: bool = False,
        candidates: int | None = None,
    ) -> list[list[Hit]]:
        """Find the `k` documents nearest to each query, best first; equal ones in order of entry.

        Args:
            queries: a text, several, or vectors (m, dim) of the encoder, before whitening.
            k: >= 1; all documents when there are fewer.
            filter: only documents whose metadata match, such as ``{"lang": "en", "year": {"ge": 2020}}``; operators
                eq ne lt le gt ge in exists, all of which must hold.
            rerank: order the nearest `candidates` again, by ``"wrd"`` or ``"wmd"`` between the tokens of query and
                document, or by an object with ``rerank(query, documents)``, such as a `CrossEncoderReranker` (which is
                what ``"cross"`` asks for). The score of a hit is then the reranker's; percentile and probability stay
                those of its cosine. Needs queries as text.
            dehub: None orders as the index was built to. ``"none"`` orders by cosine; ``"csls"``, in an index built
                without it, corrects the nearest `candidates` and looks up the neighbours of each. Either way the score
                of a hit stays its cosine.
            explain: say of every hit which token of the query went to which of the document; the contributions sum to
                the transport distance (WRD, unless `rerank` explains by itself). Needs queries as text.
            exact: look at every vector, also in an index that is searched approximately.
            candidates: how many an approximate search scores exactly, default the larger of 100 and 4 k; and how many
                are reranked or corrected, default the larger of 50 and k.

        Returns:
            One list for each query, also for a single text.

        Raises:
            ValueError: k < 1, a blank query, NaN, a filter that is not legal.
            SpaceMismatchError: vectors of another dimension, another encoder.
            NotSupported: a `dehub` that is decided when an index is built.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k must be a whole number >= 1, got {k!r}.")
        if candidates is not None and candidates < 1:
            raise ValueError(f"candidates must be >= 1, got {candidates!r}.")
        filter = None if filter is None else plain_filter(filter)
        if dehub is not None:
            check_search(dehub, self.space.dehub)
        if rerank is not None or explain:
            queries = _query_texts(queries, rerank)
            if not len(self):
                return [[] for _ in queries]
            wanted = k if rerank is None else count_candidates(k, candidates)
            reranker = None if rerank is None else self._reranker(rerank)
            options: dict[str, Any] = {"filter": filter, "exact": exact, "candidates": candidates, "dehub": dehub}
            answers = self.search(queries, wanted, **options)
            return self.rerank(queries, answers, k, rerank=reranker, explain=explain)
        if isinstance(queries, str):
            queries = [queries]
        space = self._space if self._space is not None and self._space.token is not None else self.space
        if isinstance(queries, list | tuple) and all(isinstance(query, str) for query in queries):
            for place, query in enumerate(queries):
                check_text(query, f"position {place} of the queries")
            if not queries or space.token is None:
                return [[] for _ in queries]
            raw = self.encode_queries(queries)
        else:
            raw = as_vectors(queries, dim=space.model.dim, what="query vectors")
        if space.token is None:
            return [[] for _ in raw]
        options = {"filter": filter, "exact": exact, "candidates": candidates}
        try:
            found = self._find(space, raw, int(k), dehub, options)
        except SpaceMismatchError:
            if self.space.token == space.token:
                raise
            found = self._find(self.space, raw, int(k), dehub, options)  # the stored vectors were replaced meanwhile
        calibrator = self.calibrator
        return [_hits(one, calibrator) for one in found]

    def _find(
        self, space: Space, raw: Vectors, k: int, dehub: str | None, options: Mapping[str, Any]
    ) -> list[list[Found]]:
        """The answers in their order, each with its cosine."""
        unit, expect = space.project(raw), {"space": space.token}
        dehub = dehub or space.dehub
        if space.dehub != "csls":
            if dehub != "csls":
                return self._store.search(unit, k, **options, expect=expect)
            wanted = count_candidates(k, options["candidates"])
            found = self._store.search(unit, wanted, **options, with_vectors=True, expect=expect)
            return [self._corrected(some)[:k] for some in found]
        if dehub != "csls":
            return self._store.search(as_query(unit, 0.0), k, **options, expect=expect)
        found = self._store.search(as_query(unit, 1.0), k, **options, with_vectors=True, expect=expect)
        return [
            [Found(one.id, one.text, one.metadata, one.score - float(one.vector[-1])) for one in some]  # type: ignore[index]
            for some in found
        ]

    def _corrected(self, found: list[Found]) -> list[Found]:
        """Answers of an index without offsets, in the order of CSLS."""
        if not found:
            return found
        vectors = np.stack([one.vector for one in found if one.vector is not None])
        scores = np.full((len(found), NEIGHBOURS), np.nan, np.float32)
        near = self._store.search(vectors, NEIGHBOURS + 1)
        for row, one, others in zip(scores, found, near, strict=True):
            best = [other.score for other in others if other.id != one.id][:NEIGHBOURS]
            row[: len(best)] = best
        corrected = np.array([one.score for one in found]) - local_means(scores) / 2
        return [found[at] for at in np.argsort(-corrected, kind="stable")]

    def compare(self, a: str, b: str) -> float:
        """Cosine of two texts in the space of this index: what the score would be if one of them were in it."""
        unit = self.space.project(self._encode([a, b], "document"))
        return float(np.clip(unit[0].astype(np.float64) @ unit[1], -1, 1))

    def rerank(
        self,
        queries: Sequence[str],
        answers: Sequence[Sequence[Hit]],
        k: int,
        *,
        rerank: Literal["wrd", "wmd", "cross"] | Reranker | None = None,
        explain: bool = False,
    ) -> list[list[Hit]]:
        """Rerank hits that `search` has found, or explain them; nothing is encoded as a whole or searched again.

        Args:
            queries: m texts.
            answers: the hits of each, from `search`.
            k: hits to keep of each query, the best by the reranker.
            rerank, explain: as in `search`.
        """
        reranker = None if rerank is None else self._reranker(rerank)
        explainer = (lambda: TransportReranker(self.load_encoder())) if explain else None
        return [
            rerank_hits(query, hits, k, reranker=reranker, explainer=explainer)
            for query, hits in zip(queries, answers, strict=True)
        ]

    def _reranker(self, rerank: Literal["wrd", "wmd", "cross"] | Reranker | None) -> Reranker:
        if rerank == "cross":
            raise ModelNotFoundError(
                "rerank='cross' does not say which cross-encoder.",
                remedy="Pass rerank=CrossEncoderReranker(folder), or --cross-encoder FOLDER on the command line.",
            )
        if rerank is None or isinstance(rerank, str):
            return TransportReranker(self.load_encoder(), rerank or "wrd")
        if not isinstance(rerank, Reranker):
            raise TypeError(
                f"rerank must be 'wrd', 'wmd' or an object with rerank(query, documents), got {rerank!r:.60}"
            )
        return rerank

    # What scores mean

    def calibrate(
        self,
        *,
        pairs: Iterable[tuple[str, str]] | None = None,
        labels: Iterable[int] | None = None,
        n: int = 100_000,
        method: Literal["isotonic", "platt"] = "isotonic",
        generator: Any = 0,
    ) -> ScoreCalibrator:
        """Learn what a score means here, and keep it with the index; from then on every hit carries a percentile.

        Args:
            pairs: texts (a, b) that were judged; with them hits carry a probability too.
            labels: one for each pair, 1 where they belong together, 0 where not; both must occur.
            n: random pairs of documents behind the percentiles; every pair once where there are no more. No percentile
                is above 100 n/(n + 1).
            method: see `kexue.similarity.ScoreCalibrator`.
            generator: draws the random pairs; int or numpy Generator.

        Raises:
            DataError: fewer than two documents. ValueError: pairs without labels, or labels of one kind only.
        """
        if (pairs is None) != (labels is None):
            raise ValueError("pairs come with labels, one each: 1 where the two texts belong together, 0 where not.")
        judged = None if pairs is None else list(pairs)  # once: both may be iterators
        given = None if labels is None else list(labels)
        self._need(2, "random pairs")
        random = np.random.default_rng(generator)
        _, vectors = self.sample(SAMPLE, generator=random)
        calibrator = ScoreCalibrator(method).fit(null_scores(vectors, n, generator=random))
        if judged is not None and given is not None:
            sides = [self.space.project(self._encode([pair[i] for pair in judged], "pair")) for i in (0, 1)]
            calibrator.fit_labels(np.einsum("ij,ij->i", *sides, dtype=np.float64), given)
        blob = file_bytes(calibrator.save)
        self._store.upsert([], metadata={"calibration": blob}, expect={"space": self.space.token})
        return calibrator

    @property
    def calibrator(self) -> ScoreCalibrator | None:
        """What `calibrate` learnt, here or in another process; None before."""
        blob = self._store.metadata().get("calibration")
        if not isinstance(blob, bytes):
            return None
        if self._calibrator is None or self._calibrator[0] is not blob:
            given = blob
            load = self._recorded("calibration", lambda: from_file_bytes(given, ScoreCalibrator.load))
            self._calibrator = blob, load
        return self._calibrator[1]

    def k_occurrence(self, k: int = 10, *, generator: Any = 0) -> tuple[np.ndarray[Any, Any], list[str]]:
        """How often each document is among the `k` that answer another, and the ids in the same order.

        Counted over at most 20,000 documents, drawn at random from a larger index.

        Raises:
            DataError: no more than `k` documents.
        """
        self._need(k + 1, f"k = {k} neighbours")
        rows = sample_rows(self._store, SAMPLE, np.random.default_rng(generator))
        ids, vectors = [row.id for row in rows], stack(rows)
        if self.space.dehub == "csls":
            return count_neighbours(vectors, k, np.random.default_rng(generator)), ids
        return k_occurrence(vectors, k, generator=generator), ids

    def hubness(self, k: int = 10, *, top: int = 20, generator: Any = 0) -> HubnessReport:
        """Measure how unevenly documents are found; see `kexue.similarity.hubness_report` and `k_occurrence`.

        In an index that can be written, the result is kept and `info` shows it.
        """
        counts, _ = self.k_occurrence(k, generator=generator)
        report = hubness_report(counts, k, top=top)
        if not self._readonly:
            kept = {name: getattr(report, name) for name in ("n", "k", "k_skewness")}
            self._store.upsert([], metadata={"hubness": json.dumps(kept)})
        return report

    # Keeping it

    def check(self, *, progress: Progress | None = None) -> CheckReport:
        """Look at everything in the file for damage; see `kexue.search.check_index`."""
        from kexue.search.backup import check_index

        return check_index(self._path, progress=progress)

    def backup(
        self, out: str | PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
    ) -> CopyReport:
        """Copy the index to one file as it is at this moment; see `kexue.search.backup_index`."""
        from kexue.search.backup import backup_index

        return backup_index(self._path, out, overwrite=overwrite, progress=progress)

    def _need(self, least: int, what: str) -> None:
        if len(self) < least:
            raise DataError(
                f"{self._path} holds {len(self)} documents; {what} need {least} or more.", remedy="Add more first."
            )

    def info(self) -> IndexInfo:
        """What the index holds and how; see `IndexInfo`."""
        space, metadata = self.space, self._store.metadata()
        whitening, dims, drift = None, space.model.dim, None
        if space.whitening is not None:
            fitted = space.whitening
            dims = int(fitted.kernel_.shape[1])
            whitening = {"beta": fitted.beta, "gamma": fitted.gamma, "k": dims, "rank": fitted.rank_}
            n, total = _drift_sum(metadata)
            variance = float(np.trace(fitted.covariance_))
            if n and variance > 0:
                drift = float(np.linalg.norm(total / n - fitted.mean_)) / math.sqrt(variance)
        return IndexInfo(
            index=self._path,
            documents=len(self),
            dims=dims,
            model=space.model.to_record(),
            whitening=whitening,
            calibration=calibration_record(self.calibrator),
            hubness=json.loads(str(metadata["hubness"])) if "hubness" in metadata else None,
            dehub=space.dehub,
            approx=str(metadata["approx"]),
            bytes=self._store.size(),
            format_version=FORMAT_VERSION,
            created=str(metadata["created"]),
            updated=str(metadata["updated"]),
            drift=drift,
        )

    # The space

    @property
    def space(self) -> Space:
        """The vector space the index holds; read again when another process has changed it."""
        metadata = self._store.metadata()
        key = (metadata.get("space"), metadata["model"])
        if self._space is None or self._space_key != key:
            self._space, self._space_key = self._recorded("model or its whitening", lambda: Space.load(metadata)), key
        return self._space

    def _recorded(self, what: str, load: Callable[[], T]) -> T:
        """What the index records about itself; IndexFormatError where that makes no sense."""
        try:
            return load()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IndexFormatError(
                f"{self._path} is damaged: what it records as its {what} cannot be read "
                f"({type(error).__name__}: {error}).",
                remedy="Restore it from a backup (kexue index restore), or build it again (kexue index build).",
            ) from error

    def load_encoder(
        self, model: SupportsEncode | str | None = None, *, device: str = "auto", dtype: str = "auto"
    ) -> SupportsEncode:
        """The encoder of this index, loaded when it is not yet, and kept.

        Args:
            model: where it is now (a folder or hub id), or the encoder itself; None: where it was.
            device: "auto", "cpu", "cuda" or "mps".
            dtype: "auto", "float32", "bfloat16" or "float16".

        Raises:
            ModelNotFoundError: it is not there, or the index does not know how to open it.
            SpaceMismatchError: `model` is another encoder.
        """
        if self._encoder is None or model is not None:
            reference = model or self.space.model.reference
            if reference is None:
                raise ModelNotFoundError(
                    f"{self._path} does not record how to open its encoder ({self.space.model.describe()}).",
                    remedy="Pass it: Index.open(path, encoder=...), or search with vectors.",
                )
            self._encoder = self._checked(reference, device=device, dtype=dtype)
        return self._encoder

    def _checked(self, encoder: SupportsEncode | str | PathLike[str], **options: Any) -> SupportsEncode:
        """An encoder, opened when it is a name, and compared with the one recorded."""
        space = self.space
        if isinstance(encoder, str | PathLike):
            from kexue.text import Encoder

            encoder = cast(SupportsEncode, Encoder(encoder, **space.model.settings(), **options))
        space.model.check(identify(encoder), whitened=space.whitening is not None)
        return encoder

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors (m, dim) of questions, as `search` makes and takes them: with the model's query prompt, if any."""
        return self._encode(list(texts), "query")

    def _encode(self, texts: list[str], role: Role) -> Vectors:
        dim = self._space.model.dim if self._space is not None else self.space.model.dim
        return encode_texts(self.load_encoder(), texts, role, dim=dim)


def _query_texts(queries: Any, rerank: Any) -> list[str]:
    """Queries as text, which rerank and explain need."""
    texts = [queries] if isinstance(queries, str) else queries
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("rerank and explain look at words: give the queries as text, not as vectors.")
    if isinstance(rerank, str) and rerank not in ("wrd", "wmd", "cross"):
        raise ValueError(f"rerank must be 'wrd', 'wmd', 'cross', an object or None, got {rerank!r}")
    return list(texts)


def _hits(found: Sequence[Found], calibrator: ScoreCalibrator | None) -> list[Hit]:
    scores = [max(-1.0, min(1.0, one.score)) for one in found]
    percentiles, chances = meaning(calibrator, scores)
    return [
        Hit(one.id, one.text, score, percentile, chance, one.metadata, None)
        for one, score, percentile, chance in zip(found, scores, percentiles, chances, strict=True)
    ]


def _id_list(ids: str | Iterable[str]) -> list[str]:
    if isinstance(ids, bytes | bytearray | memoryview):
        raise TypeError(f"ids must be text, got {type(ids).__name__}: {bytes(ids)!r:.60}.")
    return [check_id(one, f"position {at}") for at, one in enumerate([ids] if isinstance(ids, str) else ids)]


def _same(space: Space, raw: Vectors, old: Row) -> bool:
    """Whether a vector is the one stored."""
    unit = space.project(raw[None])[0]
    return old.vector is not None and bool(np.allclose(unit, old.vector[: len(unit)], atol=_SAME))


def _drift_sum(metadata: Mapping[str, Value]) -> tuple[int, Any]:
    blob = metadata.get("drift_sum")
    return int(metadata.get("drift_n", 0)), np.frombuffer(blob) if isinstance(blob, bytes) else 0.0
