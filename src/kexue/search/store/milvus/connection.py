"""Connections to Milvus: addresses, requests and their errors."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from kexue._optional import import_optional
from kexue.errors import KexueError
from kexue.search.store.milvus.expressions import NOTHING, literal

TOKEN = "KEXUE_MILVUS_TOKEN"
LONGEST = 65_535  # bytes of a string in Milvus
BATCH = 1_024  # rows of one request
_BYTES = 16 << 20  # bytes of rows in one request; servers accept 64 MiB
_TIMEOUT = 120.0  # seconds for one request
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_FORMS = "milvus://host:19530/collection, milvus+https://host:19530/collection or milvus:///folder/file.db#collection"
_serving: Counter[str] = Counter()  # connections to each file of Milvus Lite
_serving_lock = threading.Lock()


class Address(NamedTuple):
    """The address of an index: the `server` in the form of pymilvus, or the `file` of Milvus Lite."""

    uri: str
    server: str | None
    file: Path | None
    collection: str

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Parse an address in one of the three forms.

        Raises:
            ValueError: another form, or one with a password, which the message does not repeat.
        """
        parts = urlsplit(uri)
        if "@" in parts.netloc:
            raise ValueError(f"an address must not hold a user or a password: set {TOKEN} instead")
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
                f"{uri!r} is not the address of an index; write {_FORMS}, "
                "the name of a collection being letters, digits and _"
            )
        return cls(uri, server, file, collection)


class MilvusError(KexueError):
    """Milvus refused a request or cannot be reached."""


class Connection:
    """A client of a server, or of Milvus Lite in this process."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._milvus = import_optional("pymilvus", extra="milvus")
        self._loaded: set[str] = set()
        self._client: Any = self._connect()

    def close(self) -> None:
        """Close the connection, and stop Milvus Lite after the last connection of this process to the file."""
        if self._client is not None:
            client, self._client = self._client, None
            client.close()
            _stop_serving(self.address.file)

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Make a request; an error of Milvus is raised as `MilvusError`."""
        client = self._client
        if client is None:
            raise KexueError(f"{self.address.uri} is closed.", remedy="Open it again with Index.open.")
        try:
            return getattr(client, name)(*arguments, timeout=_TIMEOUT, **options)
        except self._milvus.MilvusException as error:
            raise MilvusError(
                f"{self.address.uri} failed to {name.replace('_', ' ')}: {error.message}.",
                remedy=f"Check the state of the server, and the permissions of {TOKEN}; then repeat the call.",
            ) from error

    def query(self, collection: str, expression: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows that match."""
        return list(
            self.call("query", collection, filter=expression, output_fields=list(fields), consistency_level="Strong")
        )

    def write(self, collection: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows in requests of up to 16 MiB; a row replaces the one of the same name."""
        for some in _parts(rows):
            self.call("upsert", collection, some)

    def remove(self, collection: str, names: Sequence[str], field: str) -> None:
        """Delete the rows with these names."""
        for some in batches(names):
            self.call("delete", collection, filter=name_expression(some, field))

    def load(self, name: str) -> None:
        """Load a collection into the memory of Milvus, unless it is loaded; its replicas stay as they are."""
        if name not in self._loaded:
            if self.call("get_load_state", name)["state"].name != "Loaded":
                self.call("load_collection", name)
            self._loaded.add(name)

    def make(
        self, name: str, strings: Mapping[str, int], dims: int, *, approx: bool = False, documents: bool = True
    ) -> None:
        """Create a collection of vectors and strings, the first one its primary key; documents have two more fields."""
        client, types = self._milvus.MilvusClient, self._milvus.DataType
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description="a kexue index")
        for at, (field, longest) in enumerate(strings.items()):
            schema.add_field(field, types.VARCHAR, max_length=longest, is_primary=at == 0)
        if documents:
            schema.add_field("key", types.INT64)
            schema.add_field("fields", types.JSON)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dims)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX" if approx else "FLAT", metric_type="IP")
        self.call("create_collection", name, schema=schema, index_params=index, consistency_level="Strong")

    def _connect(self) -> Any:
        file = self.address.file
        options: dict[str, Any] = {}
        if file is not None:
            import_optional("milvus_lite", extra="milvus")
            if not file.parent.is_dir():
                raise MilvusError(f"{file} cannot be made: there is no folder {file.parent}.", remedy="Make it first.")
            with _serving_lock:
                _serving[str(file)] += 1
        elif os.environ.get(TOKEN):
            options["token"] = os.environ[TOKEN]
        # a separate connection, requested in two ways for two versions of pymilvus: a shared one is closed by its first
        # user, or outlives the server
        options.update(dedicated=True, alias=f"kexue-{secrets.token_hex(8)}")
        try:
            return self._milvus.MilvusClient(self.address.server or str(file), timeout=_TIMEOUT / 4, **options)
        except self._milvus.MilvusException as error:
            _stop_serving(file)
            remedy = f"Is Milvus running there, is the address right about https, and is {TOKEN} set if needed?"
            if file is not None:
                remedy = (
                    "Close it elsewhere: one process at a time can use a file of Milvus Lite; share a server instead."
                )
            raise MilvusError(f"{self.address.uri} cannot be opened: {error.message}.", remedy=remedy) from error


def name_expression(names: Sequence[str], field: str = "id") -> str:
    """Return the expression for the rows with these names."""
    return f"{field} in [{', '.join(map(literal, names))}]" if names else NOTHING


def batches(names: Sequence[str], size: int = BATCH) -> Iterator[Sequence[str]]:
    """Yield names in batches of one request."""
    return (names[start : start + size] for start in range(0, len(names), size))


def _parts(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in requests of a size that servers accept."""
    part: list[dict[str, Any]] = []
    left = _BYTES
    for row in rows:
        need = 4 * len(row["vector"]) + 4 * sum(len(value) for value in row.values() if isinstance(value, str))
        if part and need > left:
            yield part
            part, left = [], _BYTES
        part.append(row)
        left -= need
    if part:
        yield part


def bytes_below(file: Path) -> int:
    """Return the bytes of a file, or of the files in a folder: Milvus Lite makes either."""
    total = 0
    for path in [file, *file.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # removed by a merge meanwhile
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
