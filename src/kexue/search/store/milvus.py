"""Documents, metadata and vectors in a Milvus server, or in a file of Milvus Lite; addresses, and how they are opened.

An address is one of::

    milvus://host:19530/collection          a server
    milvus+https://host:19530/collection    the same over TLS
    milvus:///folder/file.db#collection     Milvus Lite, in this process, in a file

The token of a server ("user:password", or an API key) comes from the environment variable KEXUE_MILVUS_TOKEN alone.

An index is two collections. ``collection`` holds the head, one row that says everything about the store, and the large
values of its metadata in pieces; ``collection_documents_<16 hex>``, which the head names, holds a row a document. A row
is replaced whole by Milvus, so the head changes whole or not at all. Milvus has no transactions beyond a row. What that
costs against the embedded store, and what is done about it:

- A write puts the pieces, then the head, then the documents, some MiB a request. One that is cut off leaves metadata
  ahead of the documents and some of the documents in; never vectors of a space the head does not know. Repeating the
  call completes it.
- `expect` is compared before the head is written, and the head is read again after. Two writers can still cross
  between the head and the documents: let one process write at a time.
- Readers follow at once (consistency level Strong), but may see a write in progress.
- What a server has acknowledged is in its log. Milvus Lite hands its log to the operating system: what was
  acknowledged survives the end of the process, not always that of the machine.
- A text, a document's metadata as JSON, and an id have at most 65,535 bytes each.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from kexue._optional import import_optional
from kexue.errors import DataError, IndexFormatError, KexueError, SpaceMismatchError
from kexue.search.nearest import Vectors, nearest
from kexue.search.store.base import (
    CompactReport,
    Filter,
    Found,
    IndexExistsError,
    IndexMissingError,
    Row,
    Upserted,
    Value,
)
from kexue.search.store.database import now
from kexue.search.store.expressions import NOTHING, literal, searchable, to_expression
from kexue.search.store.tables import dump

T = TypeVar("T")
TOKEN = "KEXUE_MILVUS_TOKEN"
_FORMAT = 1
_LONGEST = 65_535  # bytes of a string in Milvus
_PIECE = _LONGEST // 4 * 3  # bytes that base64 makes as long
_INLINE = 1_024  # characters of a value kept in the head itself
_BATCH = 1_024  # documents named in a request
_BYTES = 16 << 20  # of documents in a request; servers take 64 MiB
_LIMIT = 16_384  # answers Milvus gives to one query
_QUERIES = 128  # at a time
_PATIENCE = 120.0  # seconds for one request
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_FORMS = "milvus://host:19530/collection, milvus+https://host:19530/collection or milvus:///folder/file.db#collection"
_HEAD = 'name in ["head"]'
_serving: Counter[str] = Counter()  # stores open on each file of Milvus Lite
_serving_lock = threading.Lock()


class Address(NamedTuple):
    """Where an index is: `server` as pymilvus takes it, or the `file` of Milvus Lite."""

    uri: str
    server: str | None
    file: Path | None
    collection: str

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read one of the three forms.

        Raises:
            ValueError: another form, or one with a password in it, which is not repeated.
        """
        parts = urlsplit(uri)
        if "@" in parts.netloc:
            raise ValueError(f"an address holds no user and no password: set {TOKEN} instead")
        secure = parts.scheme == "milvus+https"
        if parts.netloc:
            server, file, collection = f"http{'s' * secure}://{parts.netloc}", None, parts.path[1:]
        else:
            server, file, collection = None, Path(unquote(parts.path)), parts.fragment
        if (
            not _COLLECTION.fullmatch(collection)
            or parts.query
            or (file is not None and (secure or file.suffix != ".db"))
            or (file is None and parts.fragment)
        ):
            raise ValueError(
                f"{uri!r} is no address of an index; write {_FORMS}, "
                "the name of a collection being letters, digits and _"
            )
        return cls(uri, server, file, collection)


class Head(NamedTuple):
    """What the head says: the next key to give, where the documents are and how long their vectors, the metadata.

    A value of `values` is a string, or (kind, digest, pieces) of one that is kept in pieces.
    """

    raw: str
    next: int = 1
    documents: str | None = None
    dims: int | None = None
    values: Mapping[str, Any] = {}


class MilvusError(KexueError):
    """Milvus refused a request or cannot be reached."""


class MilvusStore:
    """The store in Milvus; see `kexue.search.Store` for what it does, and the top of this file for what it cannot.

    An index made with ``approx="approx"`` has Milvus's AUTOINDEX, every other one FLAT, which looks at every vector.
    """

    def __init__(self, address: Address, *, readonly: bool = False) -> None:
        self.address = address
        self.readonly = readonly
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self._seen: Head | None = None
        self._pieces: dict[str, Value] = {}
        self._metadata: tuple[str, dict[str, Value]] | None = None
        self._milvus = import_optional("pymilvus", extra="milvus")
        self._client: Any = self._connect()

    # Opening and closing

    @classmethod
    def create(cls, uri: str, metadata: Mapping[str, Value], *, overwrite: bool = False) -> MilvusStore:
        """Make an empty store; an index that is there stays unless `overwrite`, and anything else stays always.

        An index is replaced at once, also while others have it open: Milvus cannot tell.
        """
        store = cls(Address.parse(uri))
        try:
            old = None
            if store._call("has_collection", store._name):
                old = store._old_head()
                if old is not None and not overwrite:
                    raise IndexExistsError(
                        f"{uri} exists already.", remedy="Choose another name, or pass overwrite=True (--overwrite)."
                    )
            else:
                store._make(store._name, {"name": 512, "value": _LONGEST}, 2)
            store._write_head(old or Head(""), {"created": now(), **metadata}, Head("", values={}))
            if old is not None and old.documents is not None:
                store._call("drop_collection", old.documents)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, uri: str, *, readonly: bool = False) -> MilvusStore:
        """Open a store that exists.

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
            if not store._call("has_collection", store._name) or store._old_head() is None:
                raise missing
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """End the connection, and Milvus Lite when nobody else in this process uses the file; again does nothing."""
        with self._lock:
            if self._client is None:
                return
            client, self._client = self._client, None
            client.close()
            _stop_serving(self.address.file)

    def _connect(self) -> Any:
        file, options = self.address.file, {}
        if file is not None:
            import_optional("milvus_lite", extra="milvus")
            if not file.parent.is_dir():
                raise MilvusError(f"{file} cannot be made: there is no folder {file.parent}.", remedy="Make it first.")
            with _serving_lock:
                _serving[str(file)] += 1
        elif os.environ.get(TOKEN):
            options = {"token": os.environ[TOKEN]}
        try:
            # of its own, since pymilvus keeps shared connections beyond the end of a server
            return self._milvus.MilvusClient(
                self.address.server or str(file), timeout=_PATIENCE / 4, dedicated=True, **options
            )
        except self._milvus.MilvusException as error:
            _stop_serving(file)
            remedy = (
                f"Is Milvus running there, does the address say http or https rightly, and is {TOKEN} set if needed?"
            )
            if file is not None:
                remedy = (
                    "Close it elsewhere: one process at a time can use a file of Milvus Lite; share a server instead."
                )
            raise MilvusError(f"{self.address.uri} cannot be opened: {error.message}.", remedy=remedy) from error

    def _old_head(self) -> Head | None:
        """The head of what is there; None when its making was cut off before it had one."""
        fields = self._call("describe_collection", self._name)["fields"]
        if {field["name"] for field in fields} != {"name", "value", "vector"}:
            raise IndexFormatError(
                f"{self.address.uri} is a collection of Milvus, but not a kexue index.", remedy="Name another one."
            )
        return self._look()

    # Writing

    def upsert(
        self,
        rows: Sequence[Row],
        *,
        metadata: Mapping[str, Value] | None = None,
        expect: Mapping[str, Value | None] | None = None,
    ) -> Upserted:
        """Write `metadata`, then `rows`, in requests of some MiB; a row that is there is replaced in one step.

        Raises:
            DataError: an id, a text or metadata of more than 65,535 bytes; nothing was written.
        """
        if len({row.id for row in rows}) < len(rows):
            raise ValueError("an id comes twice among the rows of one upsert.")
        with self._writing() as head:
            self._check_expected(head, expect)
            if not rows:
                self._write_head(head, metadata or {}, head)
                return Upserted(0, 0)
            entities = [_entity(row, key) for key, row in enumerate(rows, start=head.next)]
            dims = self._checked_dims(head, rows)
            after = head._replace(next=head.next + len(rows), dims=dims)
            if after.documents is None or dims != head.dims:
                after = after._replace(documents=f"{self._name}_documents_{secrets.token_hex(8)}")
                approx = (metadata or {}).get("approx", self._value(head, "approx"))
                self._make(str(after.documents), {"id": _LONGEST, "text": _LONGEST, "metadata": _LONGEST}, dims, approx)
            replaced = 0 if after.documents != head.documents else len(self._there(head, [row.id for row in rows]))
            written = self._write_head(head, metadata or {}, after)
            if expect and self._fetch().raw != written:
                raise _changed(self.address.uri, "head", None, None)
            for some in _parts(entities):
                self._call("upsert", after.documents, some)
            if head.documents not in (None, after.documents):  # it is empty
                self._call("drop_collection", head.documents)
        return Upserted(len(rows) - replaced, replaced)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Filter | None = None) -> int:
        """Remove documents by id or by filter, exactly one of them; those of one request of 1,024 at once."""
        if (ids is None) == (filter is None):
            raise ValueError("delete wants either ids or a filter")
        expression = None if filter is None else to_expression(filter)
        with self._writing() as head:
            if expression is None:
                found = self._there(head, list(dict.fromkeys(ids or ())))
            else:
                found = [row["id"] for rows in self._windows(head, ["id"], expression) for row in rows]
            if found:
                self._write_head(head, {}, head)
            for some in _batches(found):
                self._call("delete", head.documents, filter=_named(some))
        return len(found)

    def compact(self) -> CompactReport:
        """Give the room of removed documents back; only while nobody else writes.

        A server merges its segments, and removes their remains when it pleases. Milvus Lite merges nothing on request:
        the documents are written again, and the old ones dropped.
        """
        before = self.size()
        with self._writing() as head:
            if head.documents is not None and self.address.file is None:
                self._call("flush", head.documents)
                job = self._call("compact", head.documents)
                while self._call("get_compaction_state", job) != "Completed":
                    time.sleep(0.5)
            elif head.documents is not None:
                self._rewrite(head)
            self._call("flush", self._name)
        return CompactReport(before, self.size())

    def _rewrite(self, head: Head) -> None:
        fields = ["id", "key", "text", "metadata", "fields", "vector"]
        fresh = f"{self._name}_documents_{secrets.token_hex(8)}"
        strings = {"id": _LONGEST, "text": _LONGEST, "metadata": _LONGEST}
        self._make(fresh, strings, int(head.dims or 0), self._value(head, "approx"))
        for rows in self._windows(head, fields, width=_BATCH):
            for some in _parts([{field: row[field] for field in fields} for row in rows]):
                self._call("upsert", fresh, some)
        self._call("flush", fresh)
        self._write_head(head, {}, head._replace(documents=fresh))
        self._call("drop_collection", head.documents)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Head]:
        """The head as it is now, with the other threads of this store kept out."""
        if self.readonly:
            raise KexueError(f"{self.address.uri} was opened with readonly=True.", remedy="Open it without, to write.")
        with self._lock:
            yield self._fetch()

    def _write_head(self, old: Head, values: Mapping[str, Value], after: Head) -> str:
        """Put the pieces of large values, then a head like `after` with these values; then drop what it left behind."""
        kept, pieces = dict(after.values), {}
        for key, value in {"updated": now(), **values}.items():
            if isinstance(value, str) and len(value) <= _INLINE:
                kept[key] = value
                continue
            data = value.encode() if isinstance(value, str) else value
            digest, count = hashlib.sha256(data).hexdigest(), -(-len(data) // _PIECE)
            kept[key] = ["text" if isinstance(value, str) else "bytes", digest, count]
            self._pieces[digest + kept[key][0]] = value
            for at in range(count):
                pieces[f"{digest}-{at}"] = base64.b64encode(data[at * _PIECE : (at + 1) * _PIECE]).decode()
        record = {"format": _FORMAT, "next": after.next, "documents": after.documents, "dims": after.dims}
        raw = json.dumps({**record, "values": kept}, ensure_ascii=False)
        if len(raw.encode()) > _LONGEST:
            raise DataError(f"metadata of {self.address.uri} have too many keys for Milvus.", remedy="Keep fewer.")
        rows = [{"name": name, "value": value, "vector": [0.0, 0.0]} for name, value in pieces.items()]
        for some in _parts(rows):
            self._call("upsert", self._name, some)
        self._call("upsert", self._name, [{"name": "head", "value": raw, "vector": [0.0, 0.0]}])
        left = sorted(_piece_names(old.values) - _piece_names(kept))
        for part in _batches(left):
            self._call("delete", self._name, filter=_named(part, "name"))
        return raw

    def _make(self, name: str, strings: Mapping[str, int], dims: int, approx: Value | None = None) -> None:
        """A collection of strings, the first of them its primary key, and vectors; documents have two fields more."""
        client, types = self._milvus.MilvusClient, self._milvus.DataType
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description="a kexue index")
        for at, (field, longest) in enumerate(strings.items()):
            schema.add_field(field, types.VARCHAR, max_length=longest, is_primary=at == 0)
        if name != self._name:
            schema.add_field("key", types.INT64)
            schema.add_field("fields", types.JSON)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dims)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX" if approx == "approx" else "FLAT", metric_type="IP")
        self._call("create_collection", name, schema=schema, index_params=index, consistency_level="Strong")

    def _checked_dims(self, head: Head, rows: Sequence[Row]) -> int:
        """How long the vectors are; SpaceMismatchError when they differ, or those held are of another length."""
        lengths = [0 if row.vector is None else len(row.vector) for row in rows]
        expected = lengths[0] if head.dims is None else head.dims
        if set(lengths) == {lengths[0]} != {expected} and not self._count(head, ""):
            expected = lengths[0]
        for row, length in zip(rows, lengths, strict=True):
            if length != expected:
                raise SpaceMismatchError(
                    f"the vector of {row.id!r} has {length} numbers, the index holds vectors of {expected}.",
                    expected=expected,
                    received=length,
                )
        return expected

    # Reading

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Row]:
        """The documents with these ids that exist, in the order asked for."""
        fields = ["id", "text", "metadata", *(["vector"] if vectors else [])]

        def ask(head: Head) -> list[dict[str, Any]]:
            return [
                row for some in _batches(list(dict.fromkeys(ids))) for row in self._query(head, _named(some), fields)
            ]

        found = {row["id"]: Row(*_document(row), *_vector(row)) for row in self._read(ask)[0]}
        return [found[one] for one in ids if one in found]

    def count(self, *, filter: Filter | None = None) -> int:
        """How many documents there are, or match."""
        expression = "" if filter is None else to_expression(filter)
        return self._read(lambda head: self._count(head, expression))[0]

    def iterate(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[list[Row]]:
        """All documents in batches, oldest first."""
        waiting: list[str] = []
        for rows in self._windows(self._fetch(), ["id"]):
            waiting += [row["id"] for row in rows]
            while len(waiting) >= batch_size:
                yield self.get(waiting[:batch_size], vectors=vectors)
                del waiting[:batch_size]
        if waiting:
            yield self.get(waiting, vectors=vectors)

    def metadata(self) -> Mapping[str, Value]:
        """What is recorded about the whole store; large values are fetched when they have changed."""
        while True:
            head = self._fetch()
            if self._metadata is not None and self._metadata[0] == head.raw:
                return self._metadata[1]
            try:
                values = {key: self._value(head, key) for key in head.values}
            except IndexFormatError:
                if self._fetch().raw == head.raw:
                    raise
                continue  # someone has replaced the value between the head and its pieces
            self._metadata = head.raw, {key: value for key, value in values.items() if value is not None}
            current = {ref[1] + ref[0] for ref in head.values.values() if not isinstance(ref, str)}
            self._pieces = {name: value for name, value in self._pieces.items() if name in current}

    def size(self) -> int:
        """Bytes of the file of Milvus Lite; of a server, which does not tell, an estimate: rows held by mean length."""
        file = self.address.file
        if file is not None:
            return _bytes_below(file)
        head = self._fetch()
        if head.documents is None:
            return 0
        held = int(self._call("get_collection_stats", head.documents)["row_count"])
        some = self._call("query", head.documents, filter="key > 0", output_fields=["text", "metadata"], limit=100)
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
    ) -> list[list[Found]]:
        """The `k` documents of largest inner product for each row of `vectors` (m, d).

        An approximate search asks Milvus for `candidates` and keeps the best `k`. ``exact=True`` there, and `k` of
        16,384 or more anywhere, compare here with every vector the server sends.
        """
        expression = "" if filter is None else to_expression(filter)
        fields = ["key", "id", "text", "metadata", *(["vector"] if with_vectors else [])]

        def ask(head: Head) -> list[list[Found]]:
            if head.documents is None or not len(vectors):
                return [[] for _ in vectors]
            if vectors.shape[1] != head.dims:
                if not self._count(head, ""):
                    return [[] for _ in vectors]
                raise SpaceMismatchError(
                    f"the query has {vectors.shape[1]} numbers, the index holds vectors of {head.dims}.",
                    expected=head.dims,
                    received=vectors.shape[1],
                )
            approximate = self._value(head, "approx") == "approx"
            limit = max(k, candidates or max(4 * k, 100)) if approximate else k
            found = []
            for start in range(0, len(vectors), _QUERIES):
                some = np.ascontiguousarray(vectors[start : start + _QUERIES], np.float32)
                hits = None if exact and approximate else self._ask_milvus(head, some, k, limit, expression, fields)
                found += self._scan(head, some, k, expression, fields) if hits is None else hits
            return found

        found, head = self._read(ask)
        self._check_expected(head, expect)  # after: the head of a space is written before its vectors
        return found

    def _ask_milvus(
        self, head: Head, queries: Vectors, k: int, limit: int, expression: str, fields: list[str]
    ) -> list[list[Found]] | None:
        """The answers of Milvus, asked for more than `k` until no tie is cut; None where it gives so many no more."""
        limit += 1
        while limit <= _LIMIT:
            answers = self._call(
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
                return [[_found(hit["entity"], hit["distance"]) for hit in hits[:k]] for hits in ordered]
            limit = _LIMIT if limit < _LIMIT < 4 * limit else 4 * limit
        return None

    def _scan(self, head: Head, queries: Vectors, k: int, expression: str, fields: list[str]) -> list[list[Found]]:
        """The same from every vector the filter lets through, compared here."""
        blocks = (
            (np.array([row["key"] for row in rows], np.int64), np.array([row["vector"] for row in rows], np.float32))
            for rows in self._windows(self._fetch(), ["vector"], expression, width=_BATCH)
        )
        scores, keys = nearest(queries, blocks, k)
        documents = {}
        for some in _batches([str(key) for key in np.unique(keys)]):
            documents.update({row["key"]: row for row in self._query(head, f"key in [{', '.join(some)}]", fields)})
        return [
            [_found(documents[key], score) for key, score in zip(names, best, strict=True) if key in documents]
            for names, best in zip(keys.tolist(), scores.tolist(), strict=True)
        ]

    def _count(self, head: Head, expression: str) -> int:
        found = self._query(head, expression, ["count(*)"])
        return int(found[0]["count(*)"]) if found else 0

    def _there(self, head: Head, ids: Sequence[str]) -> list[str]:
        """Those of the ids that exist."""
        return [row["id"] for some in _batches(ids) for row in self._query(head, _named(some), ["id"])]

    def _windows(
        self, head: Head, fields: list[str], expression: str = "", *, width: int = _LIMIT
    ) -> Iterator[list[dict[str, Any]]]:
        """Fields, and keys, of the documents that match, oldest first, from `width` keys at a time."""
        low, step = 0, width
        while low < head.next - 1:
            between = f"key > {low} and key <= {low + step}"
            found = self._query(head, f"{between} and ({expression})" if expression else between, ["key", *fields])
            low, step = low + step, width if found else 2 * step
            if found:
                yield sorted(found, key=lambda row: int(row["key"]))

    def _query(self, head: Head, expression: str, fields: list[str]) -> list[dict[str, Any]]:
        if head.documents is None:
            return []
        return list(
            self._call("query", head.documents, filter=expression, output_fields=fields, consistency_level="Strong")
        )

    # The head

    @property
    def _name(self) -> str:
        return self.address.collection

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """One request, with its errors in our words."""
        client = self._client
        if client is None:
            raise KexueError(f"{self.address.uri} is closed.", remedy="Open it again with Index.open.")
        try:
            return getattr(client, name)(*arguments, timeout=_PATIENCE, **options)
        except self._milvus.MilvusException as error:
            raise MilvusError(
                f"{self.address.uri} failed to {name.replace('_', ' ')}: {error.message}.",
                remedy=f"Look at the state of the server, and at the rights that {TOKEN} gives; then repeat the call.",
            ) from error

    def _fetch(self) -> Head:
        """The head as it is now."""
        head = self._look()
        if head is None:
            raise IndexMissingError(f"the index at {self.address.uri} is gone.", remedy="Make it again: Index.create.")
        return head

    def _look(self) -> Head | None:
        self._load(self._name)
        found = self._call("query", self._name, filter=_HEAD, output_fields=["value"], consistency_level="Strong")
        raw = found[0]["value"] if found else None
        if raw is None or (self._seen is not None and self._seen.raw == raw):
            return None if raw is None else self._seen
        record = json.loads(raw)
        if record["format"] > _FORMAT:
            raise IndexFormatError(
                f"{self.address.uri} has format {record['format']}; this version of kexue reads up to {_FORMAT}.",
                remedy="Upgrade kexue: pip install -U kexue.",
            )
        head = Head(raw, record["next"], record["documents"], record["dims"], record["values"])
        if head.documents is not None:
            self._load(head.documents)
        self._seen = head
        return head

    def _load(self, name: str) -> None:
        """Have Milvus take a collection into memory, unless this store has asked for it before."""
        if name not in self._loaded:
            self._call("load_collection", name)
            self._loaded.add(name)

    def _read(self, ask: Callable[[Head], T]) -> tuple[T, Head]:
        """What `ask` finds, and the head after it; asked again where the documents have moved meanwhile."""
        head = self._seen or self._fetch()
        while True:
            try:
                answer = ask(head)
            except KexueError:
                before, head = head, self._fetch()
                if _moved(before, head):
                    continue
                raise
            before, head = head, self._fetch()
            if not _moved(before, head):
                return answer, head

    def _value(self, head: Head, key: str) -> Value | None:
        """One value of the metadata; None when it is absent."""
        ref = head.values.get(key)
        if ref is None or isinstance(ref, str):
            return ref
        kind, digest, count = ref
        if digest + kind not in self._pieces:
            names = [f"{digest}-{at}" for at in range(count)]
            found: dict[str, str] = {}
            for some in _batches(names, 128):
                rows = self._call(
                    "query",
                    self._name,
                    filter=_named(some, "name"),
                    output_fields=["name", "value"],
                    consistency_level="Strong",
                )
                found.update({row["name"]: row["value"] for row in rows})
            data = b"".join(base64.b64decode(found[name]) for name in names if name in found)
            if hashlib.sha256(data).hexdigest() != digest:
                raise IndexFormatError(
                    f"{self.address.uri} has lost a part of its {key}.", remedy="Repeat the call; else build it again."
                )
            self._pieces[digest + kind] = data.decode() if kind == "text" else data
        return self._pieces[digest + kind]

    def _check_expected(self, head: Head, expect: Mapping[str, Value | None] | None) -> None:
        for key, value in (expect or {}).items():
            recorded = self._value(head, key)
            if recorded != value:
                raise _changed(self.address.uri, key, recorded, value)


def _moved(before: Head, head: Head) -> bool:
    return (before.documents, before.dims) != (head.documents, head.dims)


def _changed(uri: str, what: str, expected: object, received: object) -> SpaceMismatchError:
    return SpaceMismatchError(
        f"{uri} was given another {what} while this was prepared.",
        expected=expected,
        received=received,
        remedy="Repeat the call.",
    )


def _entity(row: Row, key: int) -> dict[str, Any]:
    """A document as a row of Milvus."""
    if row.vector is None:
        raise ValueError(f"document {row.id!r} comes without a vector")
    metadata = dump(row.metadata)
    for what, value in {"id": row.id, "text": row.text, "metadata": metadata}.items():
        if len(value) * 4 > _LONGEST and (length := len(value.encode())) > _LONGEST:
            raise DataError(
                f"the {what} of document {row.id[:60]!r} has {length} bytes, Milvus takes {_LONGEST}.",
                remedy="Cut it into several documents, or keep the index in a file.",
            )
    return {
        "id": row.id,
        "key": key,
        "text": row.text,
        "metadata": metadata,
        "fields": searchable(row.metadata),
        "vector": np.ascontiguousarray(row.vector, np.float32),
    }


def _document(row: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    return row["id"], row["text"], json.loads(row["metadata"])


def _vector(row: Mapping[str, Any]) -> list[Vectors]:
    """The vector of a row, if it has been asked for."""
    return [np.asarray(row["vector"], np.float32)] if "vector" in row else []


def _found(row: Mapping[str, Any], score: float) -> Found:
    return Found(*_document(row), float(score), *_vector(row))


def _named(names: Sequence[str], field: str = "id") -> str:
    """The expression that holds for rows with these names."""
    return f"{field} in [{', '.join(map(literal, names))}]" if names else NOTHING


def _piece_names(values: Mapping[str, Any]) -> set[str]:
    return {f"{ref[1]}-{at}" for ref in values.values() if not isinstance(ref, str) for at in range(ref[2])}


def _batches(names: Sequence[str], size: int = _BATCH) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def _parts(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in requests of a size that servers take."""
    part: list[dict[str, Any]] = []
    room = _BYTES
    for row in rows:
        need = 4 * len(row["vector"]) + 4 * sum(len(value) for value in row.values() if isinstance(value, str))
        if part and need > room:
            yield part
            part, room = [], _BYTES
        part.append(row)
        room -= need
    if part:
        yield part


def _bytes_below(file: Path) -> int:
    total = 0
    for path in [file, *file.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # merged away meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def _stop_serving(file: Path | None) -> None:
    if file is None:
        return
    with _serving_lock:
        _serving[str(file)] -= 1
        if not _serving[str(file)]:
            manager = import_optional("milvus_lite.server_manager", extra="milvus")
            manager.server_manager_instance.release_server(str(file))
