"""The protocol of a store of documents and vectors; every backend passes the same contract tests."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kexue.errors import IndexFormatError, KexueError, SpaceMismatchError
from kexue.search.products import Vectors

Value = str | bytes
Filter = Mapping[str, Any]
Span = tuple[int, int]


class Row(NamedTuple):
    """A document, and its vector (d,) where one was asked for.

    A document that was split has one vector for each passage: `vector` is (m, d), and `spans` are the m passages, each
    the characters of the text from its start to its end (exclusive). `spans` is empty for every other document, and
    where no vectors were asked for.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    vector: Vectors | None = None
    spans: tuple[Span, ...] = ()


class Match(NamedTuple):
    """An answer of a store: a document, its inner product with the query, and its vector where one was asked for.

    Of a document that was split, they are those of its best passage, at the characters `span` of the text.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    vector: Vectors | None = None
    span: Span | None = None


class PassageCounts(NamedTuple):
    """Numbers of the documents that were split, and of the vectors of all documents."""

    split: int
    vectors: int


class Words(NamedTuple):
    """The texts of queries whose words count with `weight`, in [0, 1], and whose vectors with the rest."""

    texts: Sequence[str]
    weight: float


class Upserted(NamedTuple):
    """Numbers of documents that a write added, and replaced."""

    added: int
    updated: int


class CompactReport(NamedTuple):
    """Bytes on disk before and after `compact`."""

    bytes_before: int
    bytes_after: int


class IndexMissingError(IndexFormatError, FileNotFoundError):
    """There is no index at this place."""


class IndexExistsError(KexueError, FileExistsError):
    """A file or collection already exists at this path or address."""


class IndexBusyError(KexueError, TimeoutError):
    """Another process has the index locked, and did not release it in time."""


class IndexReadOnlyError(KexueError, PermissionError):
    """The index cannot be written: it was opened for reading, or the system denies it."""


class IndexReplacedError(KexueError):
    """The file that was opened is no longer the one at its path; nothing was written to the new one."""


class Store(Protocol):
    """Documents by id, each with text, metadata and one vector or more, and search among the vectors.

    A store does not encode or whiten: it gets final vectors, and a score is an inner product; of a document with
    several vectors the best one counts. A call that writes returns when its effect is durable, and writes everything or
    nothing.
    """

    @property
    def searches_words(self) -> bool:
        """Whether words can be searched; if not, a search with them raises NotSupported."""
        ...

    @property
    def format_version(self) -> int:
        """Version of the format on disk."""
        ...

    @property
    def keeps_passages(self) -> bool:
        """Whether a document can have several vectors."""
        ...

    def upsert(
        self,
        rows: Sequence[Row],
        *,
        metadata: Mapping[str, Value] | None = None,
        expect: Mapping[str, Value | None] | None = None,
    ) -> Upserted:
        """Write documents by id, and `metadata` of the store, in one step; existing documents are replaced.

        Raises:
            SpaceMismatchError: the vectors have another dimension than the stored ones, or the metadata of the store
                are not those of `expect` (None: absent), because another process has changed them.
            NotSupported: a document with several vectors, in a store that keeps one.
        """
        ...

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove the documents with these ids, or those the filter matches; returns how many were removed."""
        ...

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """Return the documents with these ids that exist, in the order of `ids`."""
        ...

    def search(
        self,
        vectors: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
        candidates: int | None = None,
        with_vectors: bool = False,
        expect: Mapping[str, Value | None] | None = None,
        words: Words | None = None,
    ) -> list[list[Match]]:
        """Return for each row of `vectors` (m, d) the `k` documents of largest inner product, best first, oldest first.

        Args:
            vectors: queries.
            k: >= 1.
            filter: only documents whose metadata match.
            exact: compare with every vector. candidates: vectors that an approximate search scores exactly.
            with_vectors: return the stored vectors of the answers, too.
            expect: as in `upsert`.
            words: the same queries as texts: order by vectors and words together, see `kexue.search.fusion`. The score
                of an answer stays its inner product.
        """
        ...

    def search_words(self, queries: Sequence[str], k: int, *, filter: Filter | None = None) -> list[list[Match]]:
        """Return for each query the `k` documents of largest BM25 that hold one of its terms, best first, oldest first.

        Terms are those of `kexue.search.lexical`; the score is that of `kexue.search.postings.Postings`.
        """
        ...

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the number of documents, or of those that match."""
        ...

    def page(self, limit: int, *, after: str | None = None, filter: Filter | None = None) -> list[Row]:
        """Return the first `limit` documents whose id is above `after`, in the order of their ids (by code point).

        A document that is there during the reading of all pages is on exactly one of them, whatever others write.
        """
        ...

    def count_passages(self) -> PassageCounts:
        """Return the numbers of split documents and of vectors."""
        ...

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """Yield all documents in batches, oldest first; documents written meanwhile may be missing."""
        ...

    def metadata(self) -> Mapping[str, Value]:
        """Return the metadata of the store as a whole; the caller must not change them."""
        ...

    def compact(self) -> CompactReport:
        """Return the space of removed documents to the system."""
        ...

    def size(self) -> int:
        """Return the bytes on disk."""
        ...

    def close(self) -> None:
        """Close files and connections; a second call does nothing."""
        ...


def now() -> str:
    """Return the time in UTC in ISO 8601, to the microsecond, so that no two writes share it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata as the JSON text that is stored."""
    return json.dumps(metadata, ensure_ascii=False, allow_nan=False) if metadata else "{}"


def check_distinct(rows: Sequence[Row]) -> None:
    """Raise ValueError where two rows of one upsert have the same id."""
    if len({row.id for row in rows}) < len(rows):
        raise ValueError("an id comes twice among the rows of one upsert.")


def check_selection(ids: Any, filter: Filter | None) -> None:
    """Raise ValueError unless `delete` was given either ids or a filter."""
    if (ids is None) == (filter is None):
        raise ValueError("delete takes either ids or a filter; an empty filter {} removes everything.")


def check_dims(rows: Sequence[Row], expected: int) -> None:
    """Raise SpaceMismatchError where the vector of a row has not the expected length."""
    for row in rows:
        if (length := vector_length(row)) != expected:
            raise dimension_error(f"the vector of {row.id!r}", length, expected)


def vector_length(row: Row) -> int:
    """Return the length of the vector, or vectors, of a document; 0 without one."""
    return 0 if row.vector is None else row.vector.shape[-1]


def check_spans(rows: Sequence[Row]) -> bool:
    """Return whether a row was split; ValueError where it has not as many vectors as passages, or a bad passage."""
    split = False
    for row in rows:
        if not row.spans:
            if row.vector is not None and row.vector.ndim != 1:
                raise ValueError(f"document {row.id!r} has {len(row.vector)} vectors, but no passages.")
            continue
        split = True
        if row.vector is None or row.vector.shape[:-1] != (len(row.spans),) or len(row.spans) < 2:
            raise ValueError(f"document {row.id!r} must have two passages or more, and as many vectors.")
        if not all(0 <= start < end <= len(row.text) for start, end in row.spans):
            raise ValueError(f"document {row.id!r} has a passage outside its text.")
    return split


def check_expected(
    place: object, recorded: Callable[[str], Value | None], expect: Mapping[str, Value | None] | None
) -> None:
    """Raise SpaceMismatchError where the metadata of the store, looked up by key, are not those expected."""
    for key, value in (expect or {}).items():
        if (found := recorded(key)) != value:
            raise conflict_error(place, key, found, value)


def readonly_error(place: object) -> IndexReadOnlyError:
    """Return the error for a write to a store that was opened for reading."""
    return IndexReadOnlyError(
        f"{place} was opened with readonly=True.", remedy="Open it without readonly=True to write."
    )


def dimension_error(what: str, received: int, expected: int | None) -> SpaceMismatchError:
    """Return the error for a vector of another length than the store holds; `what` names the vector."""
    return SpaceMismatchError(
        f"{what} has {received} numbers, the index holds vectors of {expected}.", expected=expected, received=received
    )


def conflict_error(place: object, key: str, expected: object, received: object) -> SpaceMismatchError:
    """Return the error for an entry `key` of the metadata that another process has changed meanwhile."""
    return SpaceMismatchError(
        f"the {key} of {place} was changed while the write was prepared.",
        expected=expected,
        received=received,
        remedy="Repeat the call.",
    )
