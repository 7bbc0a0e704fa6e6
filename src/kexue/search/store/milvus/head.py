"""The header of an index in Milvus: one row that describes the index, and the pieces of its large values.

Pieces are named by a hash of their content: new ones are written first, then the head that names them, then those it
no longer names are removed. So the head, and the metadata with it, changes atomically, and an unchanged value
is not sent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import crc32

from kexue.errors import DataError, IndexFormatError
from kexue.search.store.base import IndexMissingError, Value, check_expected, now
from kexue.search.store.milvus.connection import LONGEST, Connection, batches, name_expression

FORMAT = 2
_PIECE = LONGEST // 4 * 3  # bytes; base64 makes LONGEST characters of them
_INLINE = 1_024  # characters of a value kept in the head itself
_HEAD = 'name in ["head"]'


class Head(NamedTuple):
    """Contents of the header: the next key, the collection of the documents, the length of their vectors, the metadata.

    A value of `values` is a string, or (kind, digest, pieces) of one that is kept in pieces.
    """

    raw: str
    next: int = 1
    documents: str | None = None
    dims: int | None = None
    values: Mapping[str, Any] = {}


class Heads:
    """Reader and writer of the header of an index; `last` is the header that was read last."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._name = connection.address.collection
        self._uri = connection.address.uri
        self._pieces: dict[str, Value] = {}
        self._metadata: tuple[str, dict[str, Value]] | None = None
        self.last: Head | None = None

    def create(self) -> None:
        """Create the collection of the head."""
        self._connection.make(self._name, {"name": 512, "value": LONGEST}, 2, documents=False)

    def read_existing(self, *, ignore_damage: bool = False) -> Head | None:
        """Return the head of an existing collection; None where its creation was interrupted before it had one.

        Args:
            ignore_damage: return an empty head instead of raising IndexFormatError for one that cannot be read.
        """
        fields = self._connection.call("describe_collection", self._name)["fields"]
        if {field["name"] for field in fields} != {"name", "value", "vector"}:
            raise IndexFormatError(
                f"{self._uri} is a collection of Milvus, but not a kexue index.", remedy="Name another one."
            )
        try:
            return self.find()
        except IndexFormatError:
            if not ignore_damage:
                raise
            return Head("")

    def require(self) -> Head:
        """Return the current head; IndexMissingError where there is none."""
        head = self.find()
        if head is None:
            raise IndexMissingError(f"the index at {self._uri} is gone.", remedy="Make it again: Index.create.")
        return head

    def find(self) -> Head | None:
        """Return the current head; None where there is none."""
        self._connection.load(self._name)
        found = self._connection.query(self._name, _HEAD, ["value"])
        raw = found[0]["value"] if found else None
        if raw is None or (self.last is not None and self.last.raw == raw):
            return None if raw is None else self.last
        record = self._parse(raw)
        head = Head(raw, record["next"], record["documents"], record["dims"], record["values"])
        if head.documents is not None:
            self._connection.load(head.documents)
        self.last = head
        return head

    def _parse(self, raw: str) -> dict[str, Any]:
        """Parse a head after checking its checksum."""
        body, _, checksum = raw.rpartition(" ")
        try:
            record: dict[str, Any] = json.loads(body or raw)
            version = int(record["format"])
        except (ValueError, KeyError, TypeError, RecursionError):
            version = 0
        if version > FORMAT:
            raise IndexFormatError(
                f"{self._uri} has format {version}; this version of kexue reads format {FORMAT}.",
                remedy="Upgrade kexue: pip install -U kexue.",
            )
        if version != FORMAT or checksum != f"{crc32(body.encode()):08x}":
            raise IndexFormatError(
                f"the header of {self._uri} is damaged, or of an older format than {FORMAT}.",
                remedy="Copy the index there again (kexue index copy FILE ADDRESS --overwrite).",
            )
        return record

    def write(self, old: Head, values: Mapping[str, Value], after: Head) -> str:
        """Write the pieces of large values, then a head like `after` with these values, then remove unused pieces."""
        entries, pieces = dict(after.values), {}
        for key, value in {"updated": now(), **values}.items():
            if isinstance(value, str) and len(value) <= _INLINE:
                entries[key] = value
                continue
            data = value.encode() if isinstance(value, str) else value
            digest, count = hashlib.sha256(data).hexdigest(), -(-len(data) // _PIECE)
            entries[key] = ["text" if isinstance(value, str) else "bytes", digest, count]
            self._pieces[digest + entries[key][0]] = value
            for at in range(count):
                pieces[f"{digest}-{at}"] = base64.b64encode(data[at * _PIECE : (at + 1) * _PIECE]).decode()
        record = {"format": FORMAT, "next": after.next, "documents": after.documents, "dims": after.dims}
        body = json.dumps({**record, "values": entries}, ensure_ascii=False)
        raw = f"{body} {crc32(body.encode()):08x}"
        if len(raw.encode()) > LONGEST:
            raise DataError(f"metadata of {self._uri} have too many keys for Milvus.", remedy="Keep fewer.")
        rows = [{"name": name, "value": value, "vector": [0.0, 0.0]} for name, value in pieces.items()]
        self._connection.write(self._name, rows)
        self._connection.write(self._name, [{"name": "head", "value": raw, "vector": [0.0, 0.0]}])
        self._connection.remove(self._name, sorted(_piece_names(old.values) - _piece_names(entries)), "name")
        self.last = None
        return raw

    def metadata(self) -> Mapping[str, Value]:
        """Return the metadata of the store as a whole; large values are fetched when they have changed."""
        while True:
            head = self.require()
            if self._metadata is not None and self._metadata[0] == head.raw:
                return self._metadata[1]
            try:
                values = {key: self.value(head, key) for key in head.values}
            except IndexFormatError:
                if self.require().raw == head.raw:
                    raise
                continue  # another process has replaced the value meanwhile
            self._metadata = head.raw, {key: value for key, value in values.items() if value is not None}
            current = {ref[1] + ref[0] for ref in head.values.values() if not isinstance(ref, str)}
            self._pieces = {name: value for name, value in self._pieces.items() if name in current}

    def value(self, head: Head, key: str) -> Value | None:
        """Return one value of the metadata; None where it is absent."""
        ref = head.values.get(key)
        if ref is None or isinstance(ref, str):
            return ref
        kind, digest, count = ref
        if digest + kind not in self._pieces:
            names = [f"{digest}-{at}" for at in range(count)]
            found: dict[str, str] = {}
            for some in batches(names, 128):
                rows = self._connection.query(self._name, name_expression(some, "name"), ["name", "value"])
                found.update({row["name"]: row["value"] for row in rows})
            data = b"".join(base64.b64decode(found[name]) for name in names if name in found)
            if hashlib.sha256(data).hexdigest() != digest:
                raise IndexFormatError(
                    f"{self._uri} has lost a part of its {key}.",
                    remedy="Repeat the call; if that fails, build the index again.",
                )
            self._pieces[digest + kind] = data.decode() if kind == "text" else data
        return self._pieces[digest + kind]

    def check(self, head: Head, expect: Mapping[str, Value | None] | None) -> None:
        """Raise SpaceMismatchError where the metadata are not those expected."""
        check_expected(self._uri, lambda key: self.value(head, key), expect)


def _piece_names(values: Mapping[str, Any]) -> set[str]:
    return {f"{ref[1]}-{at}" for ref in values.values() if not isinstance(ref, str) for at in range(ref[2])}
