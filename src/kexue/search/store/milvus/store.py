"""The store in Milvus; see `kexue.search.store.milvus` for addresses and for what Milvus cannot do."""

from __future__ import annotations

import contextlib
import heapq
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from kexue.errors import KexueError, NotSupported
from kexue.search.products import Vectors, largest_products
from kexue.search.store.base import (
    CompactReport,
    Filter,
    IndexExistsError,
    IndexMissingError,
    Match,
    PassageCounts,
    Row,
    Upserted,
    Value,
    Words,
    check_dims,
    check_distinct,
    check_selection,
    check_spans,
    conflict_error,
    dimension_error,
    now,
    readonly_error,
    vector_length,
)
from kexue.search.store.milvus.connection import (
    BATCH,
    LONGEST,
    Address,
    Connection,
    batches,
    bytes_below,
    name_expression,
)
from kexue.search.store.milvus.expressions import to_expression
from kexue.search.store.milvus.head import FORMAT, Head, Heads
from kexue.search.store.milvus.rows import make_entity, make_match, parse_document, parse_vector

T = TypeVar("T")
_LIMIT = 16_384  # answers of Milvus to one query
_QUERIES = 128  # at a time


class MilvusStore:
    """The store in Milvus; see `kexue.search.Store` for what it does.

    An index made with ``approx="approx"`` uses AUTOINDEX of Milvus, every other one FLAT, which compares every vector.
    """

    searches_words = False
    keeps_passages = False

    def __init__(self, address: Address, *, readonly: bool = False) -> None:
        self.address = address
        self.readonly = readonly
        self._lock = threading.RLock()
        self._connection = Connection(address)
        self._heads = Heads(self._connection)

    # Opening and closing

    @classmethod
    def create(cls, uri: str, metadata: Mapping[str, Value], *, overwrite: bool = False) -> MilvusStore:
        """Create an empty store; an existing index is replaced if `overwrite`, anything else never.

        An index is replaced even while others have it open, which Milvus does not reveal.
        """
        store = cls(Address.parse(uri))
        try:
            old = None
            if store._connection.call("has_collection", store.address.collection):
                old = store._heads.read_existing(ignore_damage=overwrite)
                if old is not None and not overwrite:
                    raise IndexExistsError(
                        f"{uri} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
                    )
            else:
                store._heads.create()
            store._heads.write(old or Head(""), {"created": now(), **metadata}, Head("", values={}))
            if old is not None and old.documents is not None:
                store._connection.call("drop_collection", old.documents)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, uri: str, *, readonly: bool = False) -> MilvusStore:
        """Open an existing store.

        Raises:
            IndexMissingError: no such collection. IndexFormatError: not an index, or of a newer version.
            KexueError: the server cannot be reached.
        """
        address = Address.parse(uri)
        missing = IndexMissingError(f"there is no index at {uri}.", remedy="Make one: Index.create(address).")
        if address.file is not None and not address.file.exists():
            raise missing
        store = cls(address, readonly=readonly)
        try:
            if (
                not store._connection.call("has_collection", store.address.collection)
                or store._heads.read_existing() is None
            ):
                raise missing
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the connection, and Milvus Lite after its last user in this process; a second call does nothing."""
        with self._lock:
            self._connection.close()

    # Writing

    def upsert(
        self,
        rows: Sequence[Row],
        *,
        metadata: Mapping[str, Value] | None = None,
        expect: Mapping[str, Value | None] | None = None,
    ) -> Upserted:
        """Write `metadata`, then `rows`, in requests of up to 16 MiB; an existing row is replaced in one step.

        Raises:
            DataError: an id, a text or metadata of more than 65,535 bytes; nothing was written.
            NotSupported: a document with several vectors: a row of Milvus holds one.
        """
        check_distinct(rows)
        if check_spans(rows):
            raise NotSupported(
                f"{self.address.uri} is in Milvus, which keeps one vector for each document.",
                remedy="Keep the index in a file, or build it without passages (passages='none', --passages none).",
            )
        with self._writing() as head:
            self._heads.check(head, expect)
            if not rows:
                self._heads.write(head, metadata or {}, head)
                return Upserted(0, 0)
            entities = [make_entity(row, key) for key, row in enumerate(rows, start=head.next)]
            dims = self._match_dims(head, rows)
            after = head._replace(next=head.next + len(rows), dims=dims)
            if after.documents is None or dims != head.dims:
                approx = (metadata or {}).get("approx", self._heads.value(head, "approx"))
                after = after._replace(documents=self._make(dims, approx))
            replaced = (
                0 if after.documents != head.documents else len(self._find_existing(head, [row.id for row in rows]))
            )
            written = self._heads.write(head, metadata or {}, after)
            if expect and self._heads.require().raw != written:
                raise conflict_error(self.address.uri, "head", None, None)
            self._connection.write(str(after.documents), entities)
            if head.documents not in (None, after.documents):  # it is empty
                self._connection.call("drop_collection", head.documents)
        return Upserted(len(rows) - replaced, replaced)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id or by filter, exactly one of them, in requests of 1,024."""
        check_selection(ids, filter)
        expression = None if filter is None else to_expression(filter)
        with self._writing() as head:
            if expression is None:
                found = self._find_existing(head, list(dict.fromkeys(ids or ())))
            else:
                found = [row["id"] for rows in self._windows(head, ["id"], expression) for row in rows]
            if found:
                self._heads.write(head, {}, head)
                self._connection.remove(str(head.documents), found, "id")
        return len(found)

    def compact(self) -> CompactReport:
        """Return the space of removed documents to the system; no other process may write meanwhile.

        A server merges its segments, and removes the old ones later. Milvus Lite does not merge on request: the
        documents are written again, and the old ones dropped.
        """
        before = self.size()
        with self._writing() as head:
            if head.documents is not None and self.address.file is None:
                self._connection.call("flush", head.documents)
                job = self._connection.call("compact", head.documents)
                while self._connection.call("get_compaction_state", job) != "Completed":
                    time.sleep(0.5)
            elif head.documents is not None:
                self._rewrite(head)
            self._connection.call("flush", self.address.collection)
        return CompactReport(before, self.size())

    def _rewrite(self, head: Head) -> None:
        """Write all documents to a new collection, and drop the old one."""
        fields = ["id", "key", "text", "metadata", "fields", "vector"]
        fresh = self._make(int(head.dims or 0), self._heads.value(head, "approx"))
        for rows in self._windows(head, fields, width=BATCH):
            self._connection.write(fresh, [{field: row[field] for field in fields} for row in rows])
        self._connection.call("flush", fresh)
        self._heads.write(head, {}, head._replace(documents=fresh))
        self._connection.call("drop_collection", head.documents)

    def _make(self, dims: int, approx: Value | None) -> str:
        """Create a collection for documents, and return its name."""
        name = f"{self.address.collection}_documents_{secrets.token_hex(8)}"
        self._connection.make(name, dict.fromkeys(("id", "text", "metadata"), LONGEST), dims, approx=approx == "approx")
        return name

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Head]:
        """Yield the current head, for one thread at a time."""
        if self.readonly:
            raise readonly_error(self.address.uri)
        with self._lock:
            yield self._heads.require()

    def _match_dims(self, head: Head, rows: Sequence[Row]) -> int:
        """Return the length of the vectors; SpaceMismatchError where they differ from each other or the stored ones."""
        lengths = set(map(vector_length, rows))
        expected = vector_length(rows[0]) if head.dims is None else head.dims
        if len(lengths) == 1 and lengths != {expected} and not self._count(head, ""):
            [expected] = lengths
        check_dims(rows, expected)
        return expected

    # Reading

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """Return the documents with these ids that exist, in the order of `ids`."""
        fields = ["id", "text", "metadata", *(["vector"] if vectors else [])]

        def ask(head: Head) -> list[dict[str, Any]]:
            return [
                row
                for some in batches(list(dict.fromkeys(ids)))
                for row in self._query(head, name_expression(some), fields)
            ]

        found = {row["id"]: Row(*parse_document(row), parse_vector(row)) for row in self._read(ask)[0]}
        return [found[one] for one in ids if one in found]

    def count(self, *, filter: Filter | None = None) -> int:
        """Return the number of documents, or of those that match."""
        expression = "" if filter is None else to_expression(filter)
        return self._read(lambda head: self._count(head, expression))[0]

    def page(self, limit: int, *, after: str | None = None, filter: Filter | None = None) -> list[Row]:
        """Return the first `limit` documents whose id is above `after`, by id; the ids of all that match are read."""
        expression = "" if filter is None else to_expression(filter)
        windows = self._windows(self._heads.require(), ["id"], expression)
        names = (row["id"] for rows in windows for row in rows if after is None or row["id"] > after)
        return self.get(heapq.nsmallest(limit, names))

    def count_passages(self) -> PassageCounts:
        """Return the numbers of split documents, which are 0 here, and of vectors."""
        return PassageCounts(0, self.count())

    @property
    def format_version(self) -> int:
        """Version of the format of the collection."""
        return FORMAT

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """Yield all documents in batches, oldest first."""
        waiting: list[str] = []
        for rows in self._windows(self._heads.require(), ["id"]):
            waiting += [row["id"] for row in rows]
            while len(waiting) >= batch_size:
                yield self.get(waiting[:batch_size], vectors=vectors)
                del waiting[:batch_size]
        if waiting:
            yield self.get(waiting, vectors=vectors)

    def metadata(self) -> Mapping[str, Value]:
        """Return the metadata of the store as a whole."""
        return self._heads.metadata()

    def size(self) -> int:
        """Return the bytes of the file of Milvus Lite; for a server an estimate: number of rows times mean length."""
        file = self.address.file
        if file is not None:
            return bytes_below(file)
        head = self._heads.require()
        if head.documents is None:
            return 0
        held = int(self._connection.call("get_collection_stats", head.documents)["row_count"])
        some = self._connection.call(
            "query", head.documents, filter="key > 0", output_fields=["text", "metadata"], limit=100
        )
        length = sum(2 * len(row["metadata"]) + len(row["text"].encode()) for row in some) / max(1, len(some))
        return round(held * (length + 4 * (head.dims or 0)))

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
        """Return the `k` documents of largest inner product for each row of `vectors` (m, d).

        An approximate search asks Milvus for `candidates` and keeps the best `k`. With ``exact=True`` there, and with
        `k` of 16,384 or more anywhere, all vectors are read from the server and compared here.
        """
        if words is not None:
            raise _words_error(self.address)
        expression = "" if filter is None else to_expression(filter)
        fields = ["key", "id", "text", "metadata", *(["vector"] if with_vectors else [])]

        def ask(head: Head) -> list[list[Match]]:
            if head.documents is None or not len(vectors):
                return [[] for _ in vectors]
            if vectors.shape[1] != head.dims:
                if not self._count(head, ""):
                    return [[] for _ in vectors]
                raise dimension_error("the query", vectors.shape[1], head.dims)
            approximate = self._heads.value(head, "approx") == "approx"
            limit = max(k, candidates or max(4 * k, 100)) if approximate else k
            found = []
            for start in range(0, len(vectors), _QUERIES):
                some = np.ascontiguousarray(vectors[start : start + _QUERIES], np.float32)
                hits = None if exact and approximate else self._ask_milvus(head, some, k, limit, expression, fields)
                found += self._scan(head, some, k, expression, fields) if hits is None else hits
            return found

        found, head = self._read(ask)
        self._heads.check(head, expect)  # after: the head of a space is written before its vectors
        return found

    def search_words(self, queries: Sequence[str], k: int, *, filter: Filter | None = None) -> list[list[Match]]:
        """Raise NotSupported: Milvus does not search for words in the same way, and Milvus Lite not at all."""
        raise _words_error(self.address)

    def _ask_milvus(
        self, head: Head, queries: Vectors, k: int, limit: int, expression: str, fields: list[str]
    ) -> list[list[Match]] | None:
        """Return the answers of Milvus, asked for more than `k` until no tie is cut; None once its limit is reached."""
        limit += 1
        while limit <= _LIMIT:
            answers = self._connection.call(
                "search",
                head.documents,
                data=list(queries),
                filter=expression,
                limit=limit,
                output_fields=fields,
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
            )
            if not any(len(hits) == limit and hits[k - 1]["distance"] == hits[-1]["distance"] for hits in answers):
                ordered = [sorted(hits, key=lambda hit: (-hit["distance"], hit["entity"]["key"])) for hits in answers]
                return [[make_match(hit["entity"], hit["distance"]) for hit in hits[:k]] for hits in ordered]
            limit = _LIMIT if limit < _LIMIT < 4 * limit else 4 * limit
        return None

    def _scan(self, head: Head, queries: Vectors, k: int, expression: str, fields: list[str]) -> list[list[Match]]:
        """Return the same answers from all vectors that match the filter, compared here."""
        blocks = (
            (np.array([row["key"] for row in rows], np.int64), np.array([row["vector"] for row in rows], np.float32))
            for rows in self._windows(self._heads.require(), ["vector"], expression, width=BATCH)
        )
        scores, keys = largest_products(queries, blocks, k)
        documents = {}
        for some in batches([str(key) for key in np.unique(keys)]):
            documents.update({row["key"]: row for row in self._query(head, f"key in [{', '.join(some)}]", fields)})
        return [
            [make_match(documents[key], score) for key, score in zip(names, best, strict=True) if key in documents]
            for names, best in zip(keys.tolist(), scores.tolist(), strict=True)
        ]

    def _count(self, head: Head, expression: str) -> int:
        found = self._query(head, expression, ["count(*)"])
        return int(found[0]["count(*)"]) if found else 0

    def _find_existing(self, head: Head, ids: Sequence[str]) -> list[str]:
        """Return those of the ids that exist."""
        return [row["id"] for some in batches(ids) for row in self._query(head, name_expression(some), ["id"])]

    def _windows(
        self, head: Head, fields: list[str], expression: str = "", *, width: int = _LIMIT
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield fields and keys of the documents that match, oldest first, `width` keys at a time."""
        low, step = 0, width
        while low < head.next - 1:
            between = f"key > {low} and key <= {low + step}"
            found = self._query(head, f"{between} and ({expression})" if expression else between, ["key", *fields])
            low, step = low + step, width if found else 2 * step
            if found:
                yield sorted(found, key=lambda row: int(row["key"]))

    def _query(self, head: Head, expression: str, fields: list[str]) -> list[dict[str, Any]]:
        return [] if head.documents is None else self._connection.query(head.documents, expression, fields)

    def _read(self, ask: Callable[[Head], T]) -> tuple[T, Head]:
        """Return the answer of `ask` and the head after it; ask again if the documents moved to another collection."""
        head = self._heads.last or self._heads.require()
        while True:
            try:
                answer = ask(head)
            except KexueError:
                before, head = head, self._heads.require()
                if _documents_moved(before, head):
                    continue
                raise
            before, head = head, self._heads.require()
            if not _documents_moved(before, head):
                return answer, head


def _words_error(address: Address) -> NotSupported:
    """Return the error for a search for words."""
    return NotSupported(
        f"{address.uri} is in Milvus, where words are not searched.",
        remedy="Search by meaning (mode='dense', --mode dense), or copy the index into a file (kexue index copy).",
    )


def _documents_moved(before: Head, head: Head) -> bool:
    """Whether the documents are in another collection, or have vectors of another length."""
    return (before.documents, before.dims) != (head.documents, head.dims)
