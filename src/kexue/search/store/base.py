"""What a place that keeps documents and vectors must be able to do; every backend passes the same contract tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kexue.errors import IndexFormatError, KexueError
from kexue.search.products import Vectors

Value = str | bytes
Filter = Mapping[str, Any]


class Row(NamedTuple):
    """One document: what it says, what is known about it, and its vector (d,) where one was asked for."""

    id: str
    text: str
    metadata: dict[str, Any]
    vector: Vectors | None = None


class Match(NamedTuple):
    """One answer of a store: a document, its inner product with the query, and its vector where it was asked for."""

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    vector: Vectors | None = None


class Upserted(NamedTuple):
    """How many documents a write added, and how many it replaced."""

    added: int
    updated: int


class CompactReport(NamedTuple):
    """Size on disk around a `compact`."""

    bytes_before: int
    bytes_after: int


class IndexMissingError(IndexFormatError, FileNotFoundError):
    """There is no index at this place."""


class IndexExistsError(KexueError, FileExistsError):
    """There is something at this place already."""


class IndexBusyError(KexueError, TimeoutError):
    """Another process kept the index locked for longer than we wait."""


class IndexReadOnlyError(KexueError, PermissionError):
    """The index cannot be written: it was opened to be read, or the system does not allow more."""


class IndexReplacedError(KexueError):
    """The file that was opened is no longer the one at its path; nothing was written to the one that is."""


class Store(Protocol):
    """Documents by id, each with text, metadata and one vector, and search among the vectors.

    A store knows nothing of encoders and whitening: vectors come to it ready, and a score is an inner product.
    A call that writes returns when its effect is durable, and has happened wholly or not at all.
    """

    def upsert(
        self,
        rows: Sequence[Row],
        *,
        metadata: Mapping[str, Value] | None = None,
        expect: Mapping[str, Value | None] | None = None,
    ) -> Upserted:
        """Write documents by id, and `metadata` of the store, in one step; a document that is there is replaced.

        SpaceMismatchError when the vectors have another dimension than those held, or when the store's metadata are
        not what `expect` says (None: absent): someone else was first.
        """
        ...

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove the documents with these ids, or those the filter matches; returns how many there were."""
        ...

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """The documents with these ids that exist, in the order asked for."""
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
    ) -> list[list[Match]]:
        """For each row of `vectors` (m, d) the `k` documents of largest inner product, best first, ties by age.

        `expect` is as in `upsert`; `with_vectors` hands out the stored vectors of the answers.
        """
        ...

    def count(self, *, filter: Filter | None = None) -> int:
        """How many documents there are, or match."""
        ...

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """All documents in batches, oldest first; what is written meanwhile may or may not be seen."""
        ...

    def metadata(self) -> Mapping[str, Value]:
        """What is recorded about the whole store; not to be changed by the caller."""
        ...

    def compact(self) -> CompactReport:
        """Give the room of removed documents back."""
        ...

    def size(self) -> int:
        """Bytes held on disk."""
        ...

    def close(self) -> None:
        """Let go of files and connections; again does nothing."""
        ...
