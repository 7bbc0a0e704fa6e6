"""The head of an index in Milvus: one row that says everything about it, and the pieces of its large values.

Pieces go by their content: new ones are put first, then the head that names them, then those it no longer names are
removed. So the head, and the metadata with it, changes whole or not at all, and a value that stays is not sent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import crc32

from kexue.errors import DataError, IndexFormatError, SpaceMismatchError
from kexue.search.store.base import IndexMissingError, Value
from kexue.search.store.milvus.connection import LONGEST, Connection, batches, named
from kexue.search.store.sqlite.database import now

_FORMAT = 2
_PIECE = LONGEST // 4 * 3  # bytes that base64 makes as long
_INLINE = 1_024  # characters of a value kept in the head itself
_HEAD = 'name in ["head"]'


class Head(NamedTuple):
    """What the head says: the next key to give, where the documents are and how long their vectors, the metadata.

    A value of `values` is a string, or (kind, digest, pieces) of one that is kept in pieces.
    """

    raw: str
    next: int = 1
    documents: str | None = None
    dims: int | None = None
    values: Mapping[str, Any] = {}


class Heads:
    """The head of an index, as it was seen last, and as it is now."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._name = connection.address.collection
        self._uri = connection.address.uri
        self._pieces: dict[str, Value] = {}
        self._metadata: tuple[str, dict[str, Value]] | None = None
        self.seen: Head | None = None

    def make(self) -> None:
        """The collection that holds it."""
        self._connection.make(self._name, {"name": 512, "value": LONGEST}, 2, documents=False)

    def old(self, *, to_replace: bool = False) -> Head | None:
        """The head of what is there; None when its making was cut off before it had one.

        `to_replace`: a head that cannot be read is an empty one.
        """
        fields = self._connection.call("describe_collection", self._name)["fields"]
        if {field["name"] for field in fields} != {"name", "value", "vector"}:
            raise IndexFormatError(
                f"{self._uri} is a collection of Milvus, but not a kexue index.", remedy="Name another one."
            )
        try:
            return self.look()
        except IndexFormatError:
            if not to_replace:
                raise
            return Head("")

    def fetch(self) -> Head:
        """The head as it is now."""
        head = self.look()
        if head is None:
            raise IndexMissingError(f"the index at {self._uri} is gone.", remedy="Make it again: Index.create.")
        return head

    def look(self) -> Head | None:
        """The head as it is now; None where there is none."""
        self._connection.load(self._name)
        found = self._connection.query(self._name, _HEAD, ["value"])
        raw = found[0]["value"] if found else None
        if raw is None or (self.seen is not None and self.seen.raw == raw):
            return None if raw is None else self.seen
        record = self._parse(raw)
        head = Head(raw, record["next"], record["documents"], record["dims"], record["values"])
        if head.documents is not None:
            self._connection.load(head.documents)
        self.seen = head
        return head

    def _parse(self, raw: str) -> dict[str, Any]:
        """What a head says, once it is what was written."""
        body, _, checksum = raw.rpartition(" ")
        try:
            record: dict[str, Any] = json.loads(body or raw)
            version = int(record["format"])
        except (ValueError, KeyError, TypeError, RecursionError):
            version = 0
        if version > _FORMAT:
            raise IndexFormatError(
                f"{self._uri} has format {version}; this version of kexue reads format {_FORMAT}.",
                remedy="Upgrade kexue: pip install -U kexue.",
            )
        if version != _FORMAT or checksum != f"{crc32(body.encode()):08x}":
            raise IndexFormatError(
                f"the head of {self._uri} is damaged, or of a format of before {_FORMAT}.",
                remedy="Copy the index there again (kexue index copy FILE ADDRESS --overwrite).",
            )
        return record

    def write(self, old: Head, values: Mapping[str, Value], after: Head) -> str:
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
        body = json.dumps({**record, "values": kept}, ensure_ascii=False)
        raw = f"{body} {crc32(body.encode()):08x}"
        if len(raw.encode()) > LONGEST:
            raise DataError(f"metadata of {self._uri} have too many keys for Milvus.", remedy="Keep fewer.")
        rows = [{"name": name, "value": value, "vector": [0.0, 0.0]} for name, value in pieces.items()]
        self._connection.write(self._name, rows)
        self._connection.write(self._name, [{"name": "head", "value": raw, "vector": [0.0, 0.0]}])
        self._connection.remove(self._name, sorted(_piece_names(old.values) - _piece_names(kept)), "name")
        self.seen = None
        return raw

    def metadata(self) -> Mapping[str, Value]:
        """What is recorded about the whole store; large values are fetched when they have changed."""
        while True:
            head = self.fetch()
            if self._metadata is not None and self._metadata[0] == head.raw:
                return self._metadata[1]
            try:
                values = {key: self.value(head, key) for key in head.values}
            except IndexFormatError:
                if self.fetch().raw == head.raw:
                    raise
                continue  # someone has replaced the value between the head and its pieces
            self._metadata = head.raw, {key: value for key, value in values.items() if value is not None}
            current = {ref[1] + ref[0] for ref in head.values.values() if not isinstance(ref, str)}
            self._pieces = {name: value for name, value in self._pieces.items() if name in current}

    def value(self, head: Head, key: str) -> Value | None:
        """One value of the metadata; None when it is absent."""
        ref = head.values.get(key)
        if ref is None or isinstance(ref, str):
            return ref
        kind, digest, count = ref
        if digest + kind not in self._pieces:
            names = [f"{digest}-{at}" for at in range(count)]
            found: dict[str, str] = {}
            for some in batches(names, 128):
                rows = self._connection.query(self._name, named(some, "name"), ["name", "value"])
                found.update({row["name"]: row["value"] for row in rows})
            data = b"".join(base64.b64decode(found[name]) for name in names if name in found)
            if hashlib.sha256(data).hexdigest() != digest:
                raise IndexFormatError(
                    f"{self._uri} has lost a part of its {key}.", remedy="Repeat the call; else build it again."
                )
            self._pieces[digest + kind] = data.decode() if kind == "text" else data
        return self._pieces[digest + kind]

    def check(self, head: Head, expect: Mapping[str, Value | None] | None) -> None:
        """SpaceMismatchError where the metadata are not what is expected."""
        for key, value in (expect or {}).items():
            recorded = self.value(head, key)
            if recorded != value:
                raise changed(self._uri, key, recorded, value)


def changed(uri: str, what: str, expected: object, received: object) -> SpaceMismatchError:
    """The error that says so."""
    return SpaceMismatchError(
        f"{uri} was given another {what} while this was prepared.",
        expected=expected,
        received=received,
        remedy="Repeat the call.",
    )


def _piece_names(values: Mapping[str, Any]) -> set[str]:
    return {f"{ref[1]}-{at}" for ref in values.values() if not isinstance(ref, str) for at in range(ref[2])}
