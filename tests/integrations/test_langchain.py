"""The vector store of LangChain: the standard tests of LangChain itself, and what they leave out."""

from __future__ import annotations

import asyncio
import importlib.util

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from kexue.errors import DataError, SpaceMismatchError
from kexue.integrations import KexueVectorStore
from kexue.search import Index
from kexue.similarity import Whitening

TEXTS = ["refund money", "lost parcel", "new password", "money back", "open hours"]
DATA = [{"topic": "shop"}, {"topic": "post"}, {"topic": "shop"}, {"topic": "shop"}, {"topic": "shop", "n": 5}]


class Letters(DeterministicFakeEmbedding):
    """Counts of letters; a query also counts as three documents, which shows which of both was called."""

    size: int = 26
    model: str = "letters"

    def embed_documents(self, texts):
        return [[float(text.lower().count(chr(97 + n))) for n in range(self.size)] for text in texts]

    def embed_query(self, text):
        return [3 * number for number in self.embed_documents([text])[0]]


@pytest.fixture
def store(tmp_path):
    store = KexueVectorStore.from_texts(TEXTS, Letters(), DATA, ids=list("abcde"), path=tmp_path / "a.kx")
    yield store
    store.index.close()


def cosines(query):
    """Oracle: the cosine of the query with each text."""
    vectors = np.array(Letters().embed_documents([query, *TEXTS]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[1:] @ vectors[0]


if importlib.util.find_spec("langchain_tests") is not None:
    from langchain_tests.integration_tests import VectorStoreIntegrationTests

    @pytest.mark.anyio
    class TestStandard(VectorStoreIntegrationTests):
        @pytest.fixture(params=["embeddings of LangChain", "whitened", "hubs"])
        def vectorstore(self, request, tmp_path):
            options = {"hubs": {"dehub": "csls"}, "whitened": {"whitening": Whitening(gamma=0.0)}}
            store = KexueVectorStore.from_texts(
                [], self.get_embeddings(), path=tmp_path / "a.kx", **options.get(request.param, {})
            )
            yield store
            store.index.close()

        @pytest.fixture
        def anyio_backend(self):
            return "asyncio"


def test_search_is_that_of_the_index(store):
    for query in ("money", "hours of the parcel post"):
        expected = cosines(query)
        order = np.argsort(-expected, kind="stable")
        found = store.similarity_search_with_score(query, k=3, mode="dense")
        assert [document.id for document, _ in found] == ["abcde"[at] for at in order[:3]]
        assert [score for _, score in found] == pytest.approx(expected[order[:3]].tolist(), abs=1e-6)
        assert [document.page_content for document, _ in found] == [TEXTS[at] for at in order[:3]]
        assert [document.metadata for document, _ in found] == [DATA[at] for at in order[:3]]
        plain = store.similarity_search(query, k=3, mode="dense")
        assert plain == [document for document, _ in found]
        assert store.similarity_search_by_vector(Letters().embed_query(query), k=3) == plain
        relevance = store.similarity_search_with_relevance_scores(query, k=5, mode="dense")
        assert [score for _, score in relevance] == pytest.approx(np.sort(expected)[::-1].tolist(), abs=1e-6)
        usual = store.similarity_search_with_score(query, k=4)
        assert [(one.id, score) for one, score in usual] == [
            (hit.id, hit.score) for hit in store.index.search(query, k=4)[0]
        ]
    assert len(store.similarity_search("money")) == 4  # LangChain's default


def test_filters_and_options_reach_the_index(store):
    assert [one.id for one in store.similarity_search("lost parcel", filter={"topic": "post"})] == ["b"]
    with pytest.raises(ValueError, match="topic"):
        store.similarity_search("money", filter={"nope": 1})
    assert len(store.similarity_search("money", k=2, exact=True)) == 2
    with pytest.raises(TypeError, match="nope"):
        store.similarity_search("money", nope=1)
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"topic": "shop"}})
    assert retriever.invoke("new password")[0].id == "c"
    strict = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.999})
    assert [one.id for one in strict.invoke("new password")] == ["c"]


def test_marginal_relevance_against_its_definition(store):
    query, weight = "money refund", 0.3
    vectors = np.array(Letters().embed_documents(TEXTS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = cosines(query)
    chosen = [int(np.argmax(near))]
    while len(chosen) < 3:
        left = [at for at in range(5) if at not in chosen]
        gains = [weight * near[at] - (1 - weight) * max(vectors[at] @ vectors[one] for one in chosen) for at in left]
        chosen.append(left[int(np.argmax(gains))])
    found = store.max_marginal_relevance_search(query, k=3, fetch_k=5, lambda_mult=weight)
    assert [document.id for document in found] == ["abcde"[at] for at in chosen]
    plain = store.similarity_search(query, k=3, mode="dense")
    assert store.max_marginal_relevance_search(query, k=3, lambda_mult=1.0) == plain != found
    assert store.max_marginal_relevance_search(query, filter={"topic": "post"}) == [store.get_by_ids(["b"])[0]]
    store.delete()
    assert store.max_marginal_relevance_search(query) == []


def test_ids(store):
    named = store.add_texts(["one", "two", "one"], [{"n": 1}, {}, {"n": 2}])
    assert len(set(named)) == 3  # the same text with other metadata is another document
    assert store.add_texts(["one", "two", "one"], [{"n": 1}, {}, {"n": 2}]) == named
    assert len(store.index) == 8
    mixed = store.add_documents([Document(id="x", page_content="three"), Document(page_content="four")])
    assert mixed[0] == "x"
    assert [one.page_content for one in store.get_by_ids(mixed)] == ["three", "four"]
    assert store.add_texts(["old", "new"], ids=["y", "y"]) == ["y", "y"]
    assert store.get_by_ids(["y", "nope"])[0].page_content == "new"
    assert store.add_texts([]) == []
    assert store.delete([]) is True
    assert store.delete(["y", "nope"]) is True
    assert store.get_by_ids(["y"]) == []


def test_bad_input(store, tmp_path):
    with pytest.raises(ValueError, match="2 texts came with 1 metadatas and 2 ids"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(DataError, match="position 0 is empty"):
        store.add_texts([" "])
    with pytest.raises(DataError, match="JSON"):
        store.add_texts(["a"], [{"n": {1, 2}}])
    with pytest.raises(TypeError, match="path is missing"):
        KexueVectorStore.from_texts(["a"], Letters())
    with pytest.raises(ValueError, match="k must be"):
        store.similarity_search("a", k=0)
    assert len(store.index) == 5


@pytest.mark.parametrize(
    ("texts", "error", "said"),
    [
        (["a", "b"], ValueError, "2 texts came with 1 metadatas"),
        ([" "], DataError, "is empty"),
        ("a", TypeError, "list"),
    ],
)
def test_wrong_texts_leave_no_index_behind(texts, error, said, tmp_path):
    with pytest.raises(error, match=said):
        KexueVectorStore.from_texts(texts, Letters(), [{"n": 1}], path=tmp_path / "new.kx")
    assert not list(tmp_path.iterdir())


def test_an_index_is_opened_with_its_embeddings_only(store, tmp_path):
    store.index.close()
    again = KexueVectorStore(tmp_path / "a.kx", Letters())
    assert again.similarity_search("new password", k=1)[0].id == "c"
    again.index.close()
    with pytest.raises(SpaceMismatchError):
        KexueVectorStore(tmp_path / "a.kx", DeterministicFakeEmbedding(size=8))
    with pytest.raises(SpaceMismatchError, match="letters"):
        KexueVectorStore(tmp_path / "a.kx", Letters(model="others"))


def test_the_encoder_of_an_index_serves_langchain(tiny_model, tmp_path):
    from kexue.text import Encoder

    encoder = Encoder(tiny_model, device="cpu")
    with Index.create(tmp_path / "t.kx", encoder) as index:
        index.add(TEXTS, ids=list("abcde"))
        store = KexueVectorStore(index)
        assert store.similarity_search("money back", k=1)[0].id == "d"
        embeddings = store.embeddings
        assert embeddings.embed_documents(["dog"])[0] == pytest.approx(encoder.encode(["dog"])[0].tolist(), abs=1e-6)
        query = encoder.encode(["dog"], prompt_name="query")[0].tolist()
        assert embeddings.embed_query("dog") == pytest.approx(query, abs=1e-6)
        assert embeddings.embed_query("dog") != pytest.approx(embeddings.embed_documents(["dog"])[0], abs=1e-3)
        made = KexueVectorStore.from_documents(
            [Document(page_content="dog", id="z")], store.embeddings, path=tmp_path / "u.kx"
        )
        assert [one.id for one in made.similarity_search("dog")] == ["z"]
        made.index.close()


def test_asynchronous_twins(store):
    async def run():
        ids = await store.aadd_documents([Document(page_content="late text", metadata={"n": 9})])
        found = await store.asimilarity_search_with_score("late text", k=1)
        assert found[0][0].id == ids[0]
        assert found[0][1] == pytest.approx(1, abs=1e-6)
        assert await store.amax_marginal_relevance_search("late text", k=2) == store.max_marginal_relevance_search(
            "late text", k=2
        )
        assert await store.asimilarity_search_by_vector(Letters().embed_query("late text"), k=1) == [found[0][0]]
        await store.adelete(ids)
        assert await store.aget_by_ids(ids) == []

    asyncio.run(run())


def test_texts_that_cannot_be_stored_are_named(store):
    with pytest.raises(DataError, match="position 1"):
        store.add_texts(["good", "half \ud800"])
    with pytest.raises(TypeError, match="a list of texts"):
        store.add_texts("refund")
    assert len(store.index) == len(TEXTS)
    assert store.add_texts(["more"], iter([{"n": 1}]), ids=["m"]) == ["m"]


def test_words_alone_have_no_relevance(store):
    assert store.similarity_search_with_score("refund", k=1, mode="lexical")[0][0].id == "a"
    with pytest.raises(ValueError, match="BM25"):
        store.similarity_search_with_relevance_scores("refund", k=1, mode="lexical")
    with pytest.raises(ValueError, match="BM25"):
        asyncio.run(store.asimilarity_search_with_relevance_scores("refund", k=1, mode="lexical"))
    assert all(0 <= score <= 1 for _, score in store.similarity_search_with_relevance_scores("refund", k=5))
