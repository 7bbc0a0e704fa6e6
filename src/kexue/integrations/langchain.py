"""An index as a vector store of LangChain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from kexue.search import Hit, Index
from kexue.search.answers import answer_queries
from kexue.search.documents import check_text, text_id

Filter = Mapping[str, Any]


class KexueVectorStore(VectorStore):
    """An index of kexue with the methods of LangChain's `VectorStore`; the asynchronous ones run in a thread.

    A search by text is that of `Index.search`: words count, too; ``mode="dense"`` uses meaning alone. A score is the
    cosine of the stored vectors, larger for nearer documents. Filters and other keywords of a search are passed on.

    Args:
        index: open index, or the path of one to open; it stays open until ``store.index.close()``.
        embedding: embeddings of LangChain that the index was made with; None: the encoder that it records.

    Attributes:
        index: the open index.

    Raises:
        SpaceMismatchError: the index holds vectors of another encoder.

    >>> import tempfile
    >>> from langchain_core.embeddings import DeterministicFakeEmbedding
    >>> path, embedding = tempfile.mkdtemp() + "/colours.kx", DeterministicFakeEmbedding(size=8)
    >>> store = KexueVectorStore.from_texts(["red", "green"], embedding, [{"n": 1}, {"n": 2}], path=path)
    >>> [document.metadata for document in store.similarity_search("green", k=1)]
    [{'n': 2}]
    >>> store.index.close()
    """

    def __init__(self, index: Index | str | PathLike[str], embedding: Embeddings | None = None) -> None:
        encoder = None if embedding is None else EmbeddingsEncoder(embedding)
        if not isinstance(index, Index):
            index = Index.open(index, encoder=encoder)
        elif encoder is not None:
            index.load_encoder(encoder)
        self.index = index

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Create an index of texts.

        Args:
            texts, metadatas, ids: as in `add_texts`.
            embedding: embeddings of LangChain; None: the encoder that ``Encoder("auto")`` finds.
            path: the file to make.
            options: further ones of `Index.create`, such as ``overwrite=True``.
        """
        if path is None:
            raise TypeError("path is missing: name the index file to make, as in from_texts(..., path='faq.kx').")
        given, about, names = _check_texts(texts, metadatas, ids)  # before the file is made
        store = cls(Index.create(path, "auto" if embedding is None else EmbeddingsEncoder(embedding), **options))
        store.add_texts(given, about, ids=names)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """The encoder of the index."""
        return IndexEmbeddings(self.index)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Add texts, or replace those whose id exists; returns the ids.

        Args:
            texts: n texts, none of them blank.
            metadatas: n dictionaries that JSON can hold.
            ids: n ids; where one is missing, the id is a hash of text and metadata. Of equal ids the last counts.
        """
        given, about, names = _check_texts(texts, metadatas, ids)
        wanted = [
            name or (text_id(json.dumps([text, data], sort_keys=True, default=str)) if data else text_id(text))
            for name, text, data in zip(names, given, about, strict=True)
        ]
        rows = dict(zip(wanted, zip(given, about, strict=True), strict=True))
        if rows:
            self.index.add([text for text, _ in rows.values()], ids=rows, metadata=[data for _, data in rows.values()])
        return wanted

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Remove documents by id, or all of them if `ids` is None; ids that are not there are ignored."""
        self.index.delete(ids) if ids is not None else self.index.delete(filter={})
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in this order; missing ids are skipped."""
        return [_as_document(one) for one in self.index.get(list(ids))]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **options: Any
    ) -> list[Document]:
        """Return the `k` documents nearest to a query."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter=filter, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return the `k` documents nearest to a query, each with its score."""
        [hits] = self.index.search([query], k, filter=filter, **options)
        return [(_as_document(hit), hit.score) for hit in hits]

    def answer(self, query: str, k: int = 4, *, filter: Filter | None = None, **options: Any) -> dict[str, Any]:
        """Return the hits of a query with what to doubt: `match`, `warnings`, and the `chance` of each hit.

        The record of `kexue search --json`; documents of LangChain have no place for these.
        """
        [record] = answer_queries(self.index, [query], k, filter=filter, **options)
        return record

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Filter | None = None, **options: Any
    ) -> list[Document]:
        """Return the `k` documents nearest to a vector of the encoder, before whitening."""
        return [_as_document(hit) for hit in self._search_vector(embedding, k, filter, options)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **options: Any
    ) -> list[Document]:
        """Return `k` documents that are near to a query and far from one another.

        Args:
            query: as text.
            k: documents to return.
            fetch_k: documents to choose from, the nearest.
            lambda_mult: 1 counts nearness to the query only, 0 distance from one another only.
            options: `filter`, and others of `Index.search`.
        """
        vector = self.embeddings.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **options: Any,
    ) -> list[Document]:
        """Return `k` documents for a vector of the encoder; see `max_marginal_relevance_search`."""
        hits = self._search_vector(embedding, max(k, fetch_k), filter, options)
        if not hits:
            return []
        documents, unit = self.index.vectors([hit.id for hit in hits])
        query = self.index.space.project(np.array([embedding], np.float32))
        chosen = maximal_marginal_relevance(query, list(unit), lambda_mult, k)
        return [_as_document(documents[at]) for at in chosen]

    def _search_vector(
        self, embedding: Sequence[float], k: int, filter: Filter | None, options: Mapping[str, Any]
    ) -> list[Hit]:
        [hits] = self.index.search(np.array([embedding], np.float32), k, filter=filter, **options)
        return hits

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return the `k` nearest documents, with their relevance; ValueError for BM25, which has no largest value."""
        if options.get("mode") == "lexical":
            raise ValueError(
                "scores of mode='lexical' (BM25) have no upper bound, so no relevance; leave out the mode."
            )
        return super()._similarity_search_with_relevance_scores(query, k, **options)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """Return the same from a thread."""
        return await asyncio.to_thread(self._similarity_search_with_relevance_scores, query, k, **options)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return the map from a score to LangChain's relevance in [0, 1]: the cosine, 0 where it is negative."""
        return lambda score: max(0.0, score)


class EmbeddingsEncoder:
    """Embeddings of LangChain as the encoder of an index.

    Args:
        embeddings: its `embed_query` encodes queries, its `embed_documents` all other texts.

    Attributes:
        model_id: class and, where it states one, model of the embeddings; an index records it.
        prompts: says that queries are encoded in their own way.
    """

    prompts: Mapping[str, str] = {"query": ""}

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings
        model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
        self.model_id = " ".join([type(embeddings).__name__, *([str(model)] if model else [])])

    def encode(self, texts: list[str], prompt_name: str | None = None) -> Any:
        """Return vectors (n, d), float32."""
        if prompt_name == "query":
            return np.array([self._embeddings.embed_query(text) for text in texts], np.float32)
        return np.array(self._embeddings.embed_documents(texts), np.float32)


class IndexEmbeddings(Embeddings):
    """The encoder of an index as embeddings of LangChain; the vectors are those before whitening.

    Args:
        index: open index.
    """

    def __init__(self, index: Index) -> None:
        self._index = index

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts, encoded as documents."""
        vectors: list[list[float]] = self._index.encoder.encode(texts, "document").tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text, encoded as a query."""
        vector: list[float] = self._index.encode_queries([text])[0].tolist()
        return vector


def _check_texts(
    texts: Iterable[str], metadatas: list[dict[str, Any]] | None, ids: Sequence[str | None] | None
) -> tuple[list[str], list[dict[str, Any]], list[str | None]]:
    """Return texts, metadatas and ids as lists of one length; an error where lengths differ or a text is blank."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of texts, got one: {texts[:40]!r}. Write [text].")
    given = list(texts)
    for place, text in enumerate(given):
        check_text(text, f"position {place}")
    about = list(metadatas or [{} for _ in given])
    names: list[str | None] = [None] * len(given) if ids is None else list(ids)
    if not len(given) == len(about) == len(names):
        raise ValueError(f"{len(given)} texts came with {len(about)} metadatas and {len(names)} ids.")
    return given, about, names


def _as_document(one: Any) -> Document:
    """Return a hit or a document of an index as a document of LangChain."""
    return Document(id=one.id, page_content=one.text, metadata=dict(one.metadata))
