"""An index of texts: documents with vectors of one space, searched by meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Self

import numpy as np

from kexue._progress import Progress
from kexue.search.calibration import StoredCalibration, fit_calibration
from kexue.search.check import CheckReport, check_index
from kexue.search.copying import CopyReport, backup_index
from kexue.search.documents import Document, check_ids
from kexue.search.encoding import IndexEncoder
from kexue.search.fields import FieldCatalogue
from kexue.search.hubness import count_occurrences, record_hubness
from kexue.search.hubs import Dehub, check_search_dehub
from kexue.search.info import IndexInfo, describe_index
from kexue.search.ingest import AddReport, Ingest
from kexue.search.meaning import Meaning, read_meaning
from kexue.search.modes import Mode
from kexue.search.opening import create_index, open_index
from kexue.search.products import Vectors
from kexue.search.ranking import Hit, check_counts, search_index
from kexue.search.rerank import Reranker, check_rerank, choose_reranker, rerank_answers, search_and_rerank
from kexue.search.sample import documents_with_vectors, sample_rows
from kexue.search.space import Space, SupportsEncode
from kexue.search.store.base import CompactReport, Filter, Store
from kexue.similarity import HubnessReport, ScoreCalibrator, Whitening, hubness_report


class Index:
    """Texts in a file, searched by meaning; made by `Index.create`, `Index.open` or `build_index`.

    Every write is durable when the call returns. Several threads may use one object; several processes may read while
    one writes, and see its changes at their next call.

    Attributes:
        encoder: the recorded vector space, and the encoder that makes its vectors.
        ingest: writes rows into the store.

    >>> import tempfile, numpy as np
    >>> index = Index.create(tempfile.mkdtemp() + "/colours.kx", encoder=None)
    >>> index.add(["red", "green"], vectors=np.eye(2))
    AddReport(added=2, updated=0, skipped=0, truncated=0)
    >>> [hit.text for hit in index.search(np.array([[0.1, 0.9]]), k=1)[0]]
    ['green']
    >>> index.close()
    """

    def __init__(self, store: Store, encoder: IndexEncoder, *, readonly: bool = False) -> None:
        self._store, self.encoder = store, encoder
        self.ingest = Ingest(store, encoder)
        self._readonly, self._path = readonly, encoder.path
        self._calibration = StoredCalibration(store, encoder.path)
        self._fields = FieldCatalogue(store)

    @classmethod
    def create(
        cls,
        path_or_uri: str | PathLike[str],
        encoder: SupportsEncode | str | PathLike[str] | None = "auto",
        *,
        whitening: Whitening | None = None,
        dehub: Dehub | None = None,
        approx: str = "auto",
        passages: str | int | None = "auto",
        overwrite: bool = False,
    ) -> Self:
        """Create an empty index.

        Args:
            path_or_uri: the file to make, or an address such as ``milvus://host:19530/faq`` (see `open_store`).
            encoder: a folder, a model's name or hub id, ``"auto"``, an object with ``encode(texts) -> (n, dim)``, or
                None for vectors only. It is loaded, and recorded, when the first texts come; these decide on "auto".
            whitening: applied to every vector before it is stored; one that is not fitted is fitted on the first `add`.
            dehub: correction for hubs, documents near everything. ``"csls"`` ranks by 2 cos(q, y) - r(q) - r(y), r the
                mean cosine with the 50 nearest documents, at no cost to a search; r is measured when a document is
                added, and of all again by `compact`. ``"center"`` subtracts the mean: a whitening with beta = 1.
            approx: ``"exact"`` compares a query with every vector, ``"approx"`` with likely ones (and scores those
                exactly), ``"auto"`` does the latter from 200,000 documents on.
            passages: ``"auto"`` splits texts longer than the encoder reads into passages, and finds a document by its
                best one; 200 or ``"200:20"``: of 200 tokens, of which 20 are repeated; ``"none"``: long texts are cut.
            overwrite: replace an existing index.

        Raises:
            IndexExistsError: something is at `path` (FileExistsError). IndexBusyError: it is in use.
            NotSupported: `passages` of a size in Milvus, or with an encoder that does not tell its tokens.
        """
        options: dict[str, Any] = {"whitening": whitening, "dehub": dehub, "approx": approx, "passages": passages}
        return cls(*create_index(path_or_uri, encoder, **options, overwrite=overwrite))

    @classmethod
    def open(
        cls,
        path_or_uri: str | PathLike[str],
        *,
        readonly: bool = False,
        encoder: SupportsEncode | str | PathLike[str] | None = None,
    ) -> Self:
        """Open an existing index.

        Args:
            path_or_uri: the file, or the address.
            readonly: refuse writes; works on files and folders that cannot be written.
            encoder: None uses the recorded one, loaded when the first text comes. Another one, or the same one at
                another place, is compared with the record at once.

        Raises:
            IndexFormatError: nothing there (also a FileNotFoundError), not an index, damaged, or of a newer version.
            SpaceMismatchError: the index holds vectors of another encoder.
        """
        return cls(*open_index(path_or_uri, readonly=readonly, encoder=encoder), readonly=readonly)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._store.count()

    @property
    def store(self) -> Store:
        """Documents and vectors."""
        return self._store

    def __repr__(self) -> str:
        return f"Index({self._path!r})"

    def add(
        self,
        texts: str | Iterable[str],
        *,
        ids: Iterable[str | int] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        vectors: Any = None,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add texts, or replace those whose id exists; unchanged ones are neither encoded nor written.

        Everything is checked before anything is written; then batches of 512 are encoded and committed one by one.

        Args:
            texts: n texts, none of them blank.
            ids: n distinct identifiers; None takes a hash of the text, so the same text again is skipped.
            metadata: n dictionaries that JSON can hold, or None.
            vectors: (n, dim) of the encoder, before whitening, instead of encoding; finite.
            progress: called as progress(done, n).

        Raises:
            DataError: a blank text, an id twice, metadata JSON cannot hold; positions are named.
            ValueError: lengths that differ, NaN or infinity in `vectors`.
            SpaceMismatchError: vectors or an encoder of another space than the index holds.
            DiskFullError: the disk is full; the batches before are kept, nothing of this one.
        """
        return self.ingest.add_texts(texts, ids, metadata, vectors, progress)

    def delete(self, ids: str | Iterable[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id, or those a filter matches (exactly one of both); returns how many were removed."""
        filter = self._fields.check(filter)
        return self._store.delete(None if ids is None else check_ids(ids), filter=filter)

    def compact(self) -> CompactReport:
        """Return the space of removed and replaced documents to the file system.

        The file is rewritten: as much free space as it takes is needed for a moment (DiskFullError). With
        ``dehub="csls"`` the neighbourhoods of all documents are measured again first.
        """
        if self.space.dehub == "csls" and len(self):
            self.ingest.remeasure_offsets()
        return self._store.compact()

    def get(self, ids: str | Iterable[str]) -> list[Document]:
        """Return the documents with these ids, in this order; missing ids are skipped."""
        return [Document(row.id, row.text, row.metadata) for row in self._store.get(check_ids(ids))]

    def sample(self, n: int, *, generator: Any = 0) -> tuple[list[Document], Vectors]:
        """Return `n` documents drawn at random, or all, oldest first; and their vectors (n, k) of length 1."""
        return documents_with_vectors(sample_rows(self._store, n, np.random.default_rng(generator)), self.space)

    def vectors(self, ids: str | Iterable[str]) -> tuple[list[Document], Vectors]:
        """Return the documents with these ids, as `get` does, and their vectors (n, k) of length 1."""
        return documents_with_vectors(self._store.get(check_ids(ids), vectors=True), self.space)

    def search(
        self,
        queries: str | Sequence[str] | Any,
        k: int = 10,
        *,
        mode: Mode = "auto",
        weight: float | None = None,
        vectors: Any = None,
        filter: Filter | None = None,
        rerank: Literal["wrd", "wmd", "cross"] | Reranker | None = None,
        dehub: Literal["none", "csls", "center"] | None = None,
        explain: bool = False,
        exact: bool = False,
        candidates: int | None = None,
    ) -> list[list[Hit]]:
        """Return the `k` documents nearest to each query, best first; ties in order of entry.

        Args:
            queries: a text, several, or vectors (m, dim) of the encoder, before whitening.
            k: >= 1; all documents when there are fewer.
            mode: ``"dense"`` searches by meaning; ``"lexical"`` by words, without the encoder, and scores are BM25;
                ``"hybrid"`` by both, and scores are cosines. ``"auto"`` is hybrid for texts, dense for vectors and in
                Milvus.
            weight: of the words in a hybrid search, 0 to 1; None: 0.55, chosen by measurement.
            vectors: (m, dim) of queries given as texts, if they are known already (`encode_queries`).
            filter: only documents whose metadata match, such as ``{"lang": "en", "year": {"ge": 2020}}``; operators
                eq ne lt le gt ge in nin exists, all of which must hold; ``{"or": [filter, ...]}``, ``and``, ``not``.
            rerank: reorder the nearest `candidates` by ``"wrd"`` or ``"wmd"`` between tokens, or by an object with
                ``rerank(query, documents)``, such as `CrossEncoderReranker`. The score of a hit is then that of the
                reranker; percentile and probability are still those of its cosine. Needs queries as text.
            dehub: None orders as chosen when the index was built. ``"none"`` orders by cosine; ``"csls"``, in an index
                built without it, corrects the nearest `candidates` and looks up the neighbours of each. Either way the
                score of a hit stays its cosine.
            explain: add to each hit which token of the query was matched with which of the document; the contributions
                sum to the transport distance (WRD, unless `rerank` explains by itself). Needs queries as text.
            exact: compare with every vector, also in an index that is searched approximately.
            candidates: number that an approximate search scores exactly, default the larger of 100 and 4 k; and that
                is reranked or corrected, default the larger of 50 and k.

        Returns:
            One list for each query, also for a single text.

        Raises:
            ValueError: k < 1, a blank query, NaN, a filter that is not legal, a mode that the queries exclude.
            SpaceMismatchError: vectors of another dimension, another encoder.
            NotSupported: a `dehub` that is decided when an index is built; words in Milvus.
        """
        check_counts(k, candidates)
        if dehub is not None:
            check_search_dehub(dehub, self.space.dehub)
        options: dict[str, Any] = {"exact": exact, "candidates": candidates, "dehub": dehub}
        options |= {"mode": mode, "weight": weight, "vectors": vectors}
        options["filter"] = self._fields.check(filter)

        def search(wanted: int) -> list[list[Hit]]:
            return search_index(self._store, self.encoder, queries, wanted, self.meaning, **options)

        if rerank is None and not explain:
            return search(int(k))
        texts = check_rerank(queries, rerank)
        if not len(self):
            return [[] for _ in texts]
        how: dict[str, Any] = {"rerank": rerank, "explain": explain, "candidates": candidates}
        return search_and_rerank(search, texts, k, **how, load_encoder=self.load_encoder)

    def rerank(
        self,
        queries: Sequence[str],
        answers: Sequence[Sequence[Hit]],
        k: int,
        *,
        rerank: Literal["wrd", "wmd", "cross"] | Reranker | None = None,
        explain: bool = False,
    ) -> list[list[Hit]]:
        """Rerank or explain hits of `search`; the index is not searched again.

        Args:
            queries: m texts.
            answers: the hits of each, from `search`.
            k: hits to keep of each query, the best by the reranker.
            rerank, explain: as in `search`.
        """
        reranker = choose_reranker(rerank, self.load_encoder)
        return rerank_answers(queries, answers, k, reranker=reranker, explain=explain, load_encoder=self.load_encoder)

    def compare(self, a: str, b: str) -> float:
        """Return the cosine of two texts in the space of this index, both encoded as documents."""
        unit = self.space.project(self.encoder.encode([a, b], "document"))
        return float(np.clip(unit[0].astype(np.float64) @ unit[1], -1, 1))

    def calibrate(
        self,
        *,
        pairs: Iterable[tuple[str, str]] | None = None,
        labels: Iterable[int] | None = None,
        n: int = 100_000,
        method: Literal["isotonic", "platt"] = "isotonic",
        generator: Any = 0,
        progress: Progress | None = None,
    ) -> ScoreCalibrator:
        """Calibrate the scores of this index, and record the result: percentile and chance of every hit from then on.

        About 500 unrelated sample queries are searched for; without an encoder there is no chance.

        Args:
            pairs: judged texts (a, b); with them hits have a probability too.
            labels: one for each pair, 1 where they belong together, 0 where not; both must occur.
            n: random pairs of documents; every pair once where there are fewer. No percentile is above 100 n/(n + 1).
            method: see `kexue.similarity.ScoreCalibrator`. generator: draws the pairs; int or numpy Generator.
            progress: called as progress(done, n), for n unrelated queries.

        Raises:
            DataError: fewer than 50 documents. ValueError: pairs without labels, or labels of one kind only.
        """
        options: dict[str, Any] = {"pairs": pairs, "labels": labels, "n": n, "method": method, "generator": generator}
        calibrator, facts = fit_calibration(self._store, self.encoder, self.search, **options, progress=progress)
        self._calibration.save(calibrator, facts, expect={"space": self.space.token})
        return calibrator

    @property
    def calibrator(self) -> ScoreCalibrator | None:
        """The calibration that `calibrate` recorded, here or in another process; None before."""
        return self._calibration.load()

    @property
    def meaning(self) -> Meaning:
        """What scores mean at present, and the reasons to doubt them."""
        return read_meaning(self._store, self._calibration, self.space)

    def k_occurrence(self, k: int = 10, *, generator: Any = 0) -> tuple[np.ndarray[Any, Any], list[str]]:
        """Count how often each of at most 20,000 random documents is among the `k` nearest of another.

        Returns counts (n,) and ids. Raises DataError where there are no more than `k` documents.
        """
        return count_occurrences(self._store, self.encoder, k, generator)

    def hubness(self, k: int = 10, *, top: int = 20, generator: Any = 0) -> HubnessReport:
        """Measure how unevenly documents are found (see `hubness_report`); recorded where the index can be written."""
        counts, _ = self.k_occurrence(k, generator=generator)
        report = hubness_report(counts, k, top=top)
        if not self._readonly:
            record_hubness(self._store, report)
        return report

    def check(self, *, progress: Progress | None = None) -> CheckReport:
        """Check everything in the file for damage; see `kexue.search.check_index`."""
        return check_index(self._path, progress=progress)

    def backup(
        self, out: str | PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
    ) -> CopyReport:
        """Copy the current state of the index to one file; see `kexue.search.backup_index`."""
        return backup_index(self._path, out, overwrite=overwrite, progress=progress)

    def info(self) -> IndexInfo:
        """Return what the index holds; see `IndexInfo`."""
        return describe_index(self._path, self._store, self.space, self._calibration)

    @property
    def space(self) -> Space:
        """The vector space of the index; read again when another process has changed it."""
        return self.encoder.space

    def load_encoder(
        self, model: SupportsEncode | str | None = None, *, device: str = "auto", dtype: str = "auto"
    ) -> SupportsEncode:
        """Return the encoder of this index, loaded if necessary; see `IndexEncoder.load`."""
        return self.encoder.load(model, device=device, dtype=dtype)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors (m, dim) of queries that `search` takes; with the query prompt of the model, if any."""
        return self.encoder.encode(list(texts), "query")

    @property
    def schema(self) -> dict[str, Any]:
        """The columns that the index was built from, and the fields of its metadata; see `FieldCatalogue.schema`."""
        return self._fields.schema()

    def list(self, *, filter: Filter | None = None, limit: int = 100, after: str | None = None) -> list[Document]:
        """Return one page of the documents, in the order of their ids.

        Args:
            filter: only documents whose metadata match; see `search`.
            limit: documents of a page, >= 1.
            after: id of the last document of the page before; None begins. It need not exist any more: what others
                write meanwhile neither repeats nor hides the rest.
        """
        return self._fields.page(limit, after=after, filter=filter)
