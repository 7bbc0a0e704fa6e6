"""Indexes as tools of an assistant that speaks MCP: search, get and list. None of them writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

import kexue
from kexue.errors import KexueError
from kexue.search import Index
from kexue.search.answers import answer_queries

MAX_HITS = 100
MAX_DOCUMENTS = 1000
_READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

# Arguments of the tools; the bounds are in the schema for the assistant, and checked with a message it can act on.
IndexName = Annotated[str | None, Field(description="Name of the index; may be left out if there is only one.")]
Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description="Condition on the metadata, such as {'lang': 'zh', 'year': {'ge': 2020}}. Operators: eq ne lt le "
        "gt ge in nin exists. Combine with {'or': [...]}, {'and': [...]}, {'not': {...}}."
    ),
]


MaxCharacters = Annotated[
    int, Field(description="Longest text to return; longer ones are cut.", json_schema_extra={"minimum": 1})
]


def _bounded(what: str, most: int) -> Any:
    return Field(description=f"{what}, 1 to {most}.", json_schema_extra={"minimum": 1, "maximum": most})


class Record(BaseModel):
    """A record of `kexue.search.records`; fields that are not named here are passed on."""

    model_config = ConfigDict(extra="allow")


class StoredText(Record):
    """A document."""

    text: str
    metadata: dict[str, Any]


class IdentifiedText(StoredText):
    """A document with its id."""

    id: str


class SearchHit(Record):
    """A document that was found; `score` is its cosine with the query."""

    id: str
    index: str
    score: float
    document: StoredText


class SearchAnswer(Record):
    """The documents nearest to a query, best first; `warnings` say what to doubt."""

    results: list[SearchHit]
    warnings: list[str]


class DocumentsAnswer(Record):
    """Documents by id; `missing` are the ids that the index does not have."""

    documents: list[IdentifiedText]
    missing: list[str]


class PageAnswer(Record):
    """A page of documents by id.

    `next` is the value of `after` for the page that follows, null on the last; `total` counts the documents that match
    the filter, on all pages; `warnings` say what to doubt.
    """

    documents: list[IdentifiedText]
    next: str | None
    total: int
    warnings: list[str]


class IndexTools:
    """The tools, over open indexes.

    Args:
        indexes: open indexes by name, at least one.
    """

    def __init__(self, indexes: Mapping[str, Index]) -> None:
        self._indexes = dict(indexes)
        self._turn = threading.Lock()  # calls come in threads; encoding in several at once is no faster

    def search(
        self,
        query: Annotated[str, Field(description="A question or a phrase, in words; its meaning is searched for.")],
        index: IndexName = None,
        k: Annotated[int, _bounded("Number of documents", MAX_HITS)] = 5,
        filter: Filter = None,
        max_characters: MaxCharacters = 2000,
    ) -> SearchAnswer:
        """Find the documents of an index that are nearest in meaning to a query."""
        with self._explained():
            _check_range("k", k, MAX_HITS)
            _check_range("max_characters", max_characters)
            opened = self._find(index)
            [record] = answer_queries(opened, [query], k, filter=filter)
            record["index"] = next(name for name, one in self._indexes.items() if one is opened)  # not its path
            hits = record["results"]
            holders = [[one for one in (hit["document"], hit["passage"]) if one is not None] for hit in hits]
            record["warnings"] += _cut_texts(holders, max_characters)
            return SearchAnswer.model_validate(record)

    def get(
        self,
        ids: Annotated[list[str], Field(description=f"Ids of documents, as search returns them; 1 to {MAX_HITS}.")],
        index: IndexName = None,
    ) -> DocumentsAnswer:
        """Return documents by id, with their whole text and their metadata."""
        with self._explained():
            _check_range("the number of ids", len(ids), MAX_HITS)
            documents = self._find(index).get(ids)
            missing = set(ids) - {document.id for document in documents}
            return DocumentsAnswer(
                documents=[IdentifiedText(**document._asdict()) for document in documents],
                missing=[one for one in dict.fromkeys(ids) if one in missing],
            )

    def list(
        self,
        index: IndexName = None,
        filter: Filter = None,
        limit: Annotated[int, _bounded("Documents of a page", MAX_DOCUMENTS)] = 20,
        after: Annotated[str | None, Field(description="The field next of the page before; null begins.")] = None,
        max_characters: MaxCharacters = 2000,
    ) -> PageAnswer:
        """List the documents of an index in the order of their ids, page by page."""
        with self._explained():
            _check_range("limit", limit, MAX_DOCUMENTS)
            _check_range("max_characters", max_characters)
            opened = self._find(index)
            page = opened.list(filter=filter, limit=limit + 1, after=after)
            more = len(page) > limit
            shown = [document._asdict() for document in page[:limit]]
            warnings = _cut_texts([[one] for one in shown], max_characters)
            return PageAnswer(
                documents=[IdentifiedText(**one) for one in shown],
                next=shown[-1]["id"] if more else None,
                total=opened.store.count(filter=filter),
                warnings=warnings,
            )

    def _find(self, name: str | None) -> Index:
        """Return the index of a name; the only one for None."""
        if name is None and len(self._indexes) == 1:
            return next(iter(self._indexes.values()))
        if name not in self._indexes:
            asked = "name an index" if name is None else f"there is no index {name!r}"
            raise ToolError(f"{asked}; there are: {', '.join(self._indexes)}.")
        return self._indexes[name]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Let one call in at a time, and tell the assistant what was wrong with it."""
        with self._turn:
            try:
                yield
            except (KexueError, ValueError, TypeError, OSError) as error:
                raise ToolError(str(error)) from error


def create_mcp_server(indexes: Mapping[str, Index]) -> MCPServer[Any]:
    """Return a server of the Model Context Protocol with the tools ``search``, ``get`` and ``list``; none writes.

    Args:
        indexes: open indexes by the names that the assistant uses.

    Example:
        >>> import anyio, tempfile, numpy as np
        >>> with Index.create(tempfile.mkdtemp() + "/colours.kx", encoder=None) as index:
        ...     _ = index.add(["red", "green"], vectors=np.eye(2), ids=["r", "g"])
        ...     server = create_mcp_server({"colours": index})
        ...     result = anyio.run(server.call_tool, "get", {"ids": ["g"]})
        >>> result.structured_content["documents"][0]["text"]
        'green'
    """
    if not indexes:
        raise ValueError("a server needs at least one index.")
    tools = IndexTools(indexes)
    made = [Tool.from_function(function, annotations=_READS) for function in (tools.search, tools.get, tools.list)]
    for tool in made:
        tool.parameters["properties"]["index"]["enum"] = [*indexes, None]
    counted = ", ".join(f"{name} ({len(index):,} documents)" for name, index in indexes.items())
    return MCPServer(
        "kexue",
        title="kexue",
        version=kexue.__version__,
        instructions=(
            f"Texts that can be searched by meaning, in these indexes: {counted}. Read the warnings of an answer: they "
            "say what to doubt. A low score, or match = weak, means that no document may answer the query."
        ),
        tools=made,
        log_level="WARNING",
    )


def _cut_texts(documents: Sequence[Sequence[dict[str, Any]]], most: int) -> list[str]:
    """Cut the field text of records, grouped by document, to `most` characters; return a warning where one was cut."""
    cut = 0
    for records in documents:
        cut += any(len(one["text"]) > most for one in records)
        for one in records:
            one["text"] = one["text"][:most]
    return [f"{cut} of the texts were cut to {most:,} characters; the tool get returns them whole."] if cut else []


def _check_range(name: str, value: int, most: int | None = None) -> None:
    """Raise ToolError where a number is not between 1 and `most`."""
    if value < 1 or (most is not None and value > most):
        bounds = "at least 1" if most is None else f"between 1 and {most:,}"
        raise ToolError(f"{name} must be {bounds}, got {value:,}.")
