"""Search, indexes, comparison and overview over HTTP: the same answers as the library's."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest

from kexue.search import Index
from kexue.search.store import EmbeddedStore
from kexue.similarity import hubness_report


def test_search_is_that_of_the_index(client, indexes, encoder) -> None:
    with Index.open(indexes[0], readonly=True) as index:
        [expected] = index.search("the dog runs", k=4)
    found = client.post("/v1/search", json={"query": "the dog runs", "index": "plain", "top_k": 4}).json()
    assert [hit["id"] for hit in found["results"]] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in found["results"]], [hit.score for hit in expected], atol=1e-5)
    first = found["results"][0]
    assert first["document"] == {"text": expected[0].text, "metadata": expected[0].metadata}
    assert first["percentile"] == pytest.approx(expected[0].percentile, abs=0.1)
    assert first["index"] == "plain"
    assert found["usage"]["total_tokens"] == len(encoder.tokenize(["the dog runs"], prompt_name="query")[0])
    assert set(found["timings"]) == {"encode", "search", "rerank", "total"}


@pytest.mark.parametrize("mode", ["auto", "dense", "lexical", "hybrid"])
def test_the_mode_is_that_of_the_index(client, indexes, mode) -> None:
    query = "the old woman reads"
    with Index.open(indexes[0], readonly=True) as index:
        [expected] = index.search(query, k=6, mode=mode)
    found = client.post("/v1/search", json={"query": query, "index": "plain", "top_k": 6, "mode": mode}).json()
    assert found["mode"] == ("hybrid" if mode == "auto" else mode)
    assert [hit["id"] for hit in found["results"]] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in found["results"]], [hit.score for hit in expected], atol=1e-5)
    if mode == "lexical":
        assert found["usage"]["total_tokens"] == 0, "nothing was encoded"
        assert all(hit["percentile"] is None for hit in found["results"])


def test_a_mode_that_the_query_excludes_is_refused(client, encoder) -> None:
    vector = {"vector": encoder.encode(["a"])[0].tolist(), "index": "plain"}
    assert client.post("/v1/search", json=vector).json()["mode"] == "dense"
    for body in ({**vector, "mode": "hybrid"}, {"query": "a", "index": "plain", "mode": "hybrid", "dehub": "csls"}):
        answer = client.post("/v1/search", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "mode"
    answer = client.post("/v1/search", json={"query": "a", "index": "plain", "dehub": "csls"})
    assert answer.json()["mode"] == "dense"


def test_a_filter_has_a_hundred_conditions_at_most(client) -> None:
    def ask(n: int) -> int:
        body = {"query": "the dog runs", "index": "plain", "filter": {"n": [{"ne": -1 - i} for i in range(n)]}}
        return client.post("/v1/search", json=body).status_code

    assert (ask(100), ask(101)) == (200, 400)


def test_documents_are_listed_page_by_page(client, indexes) -> None:
    address = "/v1/indexes/plain/documents"
    with Index.open(indexes[0], readonly=True) as index:
        expected = [document._asdict() for document in index.list(limit=1000, filter={"size": "old"})]
    found, after = [], {}
    while True:
        page = client.get(address, params={"limit": 10, "filter": '{"size": "old"}', **after}).json()
        assert len(page["documents"]) <= 10
        found += page["documents"]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == expected
    assert len(client.get(address).json()["documents"]) == 100
    for parameters in ({"limit": 0}, {"limit": 10**9}, {"filter": "{"}, {"filter": "[1]"}, {"filter": '{"or": 5}'}):
        answer = client.get(address, params=parameters)
        assert answer.status_code == 400, parameters
        assert answer.json()["error"]["message"]
    answer = client.get(address, params={"filter": '{"sise": "old"}'})
    assert answer.status_code == 400
    assert "there are: size, n" in answer.json()["error"]["message"]
    assert client.get("/v1/indexes/none/documents").status_code == 404


def test_search_by_vector_filter_dehub_and_rerank(client, encoder, indexes) -> None:
    vector = encoder.encode(["the dog runs"])[0].tolist()
    body = {"vector": vector, "index": "plain", "filter": {"size": "old", "n": {"ge": 80}}}
    hits = client.post("/v1/search", json=body).json()["results"]
    assert hits
    assert all(hit["document"]["metadata"]["size"] == "old" and hit["document"]["metadata"]["n"] >= 80 for hit in hits)
    with Index.open(indexes[1], readonly=True) as index:
        for options in ({"dehub": "none"}, {"dehub": "csls"}, {"rerank": "wrd"}, {"rerank": "wmd", "explain": True}):
            [expected] = index.search("the dog runs", k=3, **options)
            found = client.post("/v1/search", json={"query": "the dog runs", "index": "small", "top_k": 3, **options})
            hits = found.json()["results"]
            assert [hit["id"] for hit in hits] == [hit.id for hit in expected], options
    explanation = hits[0]["explanation"]
    assert explanation["kind"] == "wmd"
    assert sum(pair["contribution"] for pair in explanation["pairs"]) == pytest.approx(explanation["distance"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"query": ""}, 400),
        ({"query": "x", "index": "nosuch"}, 404),
        ({"query": "x", "top_k": 0}, 400),
        ({"query": "x", "filter": {"n": {"like": 3}}}, 400),
        ({"vector": [1.0, 2.0]}, 400),
        ({"vector": [1.0] * 32, "explain": True}, 400),
        ({"query": "x", "dehub": "center"}, 400),
        ({"query": "x", "rerank": "cross"}, 404),
        ({"query": "x", "rerank": "bm25"}, 400),
    ],
)
def test_bad_searches_are_named(client, body, status) -> None:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_a_reranker_that_is_missing_is_found_out_before_the_search(client, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(Index, "search", fail)
    monkeypatch.setattr(Index, "rerank", fail)
    assert client.post("/v1/search", json={"query": "x", "rerank": "cross"}).status_code == 404


def test_the_event_loop_does_not_wait_for_the_file(client, monkeypatch) -> None:
    """A transaction waits for a write by another thread; on the event loop every request would wait with it."""
    reads: list[str] = []

    def watch(name: str) -> None:
        read = getattr(EmbeddedStore, name)

        def watched(*arguments: object, **options: object) -> object:
            reads.append(name)
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            return read(*arguments, **options)

        monkeypatch.setattr(EmbeddedStore, name, watched)

    for name in ("metadata", "count", "size", "search"):
        watch(name)
    assert client.get("/v1/indexes").status_code == 200
    assert client.get("/v1/hubness?index=plain").status_code == 200
    found = client.post("/v1/search", json={"query": "the dog runs", "candidates": 9, "rerank": "none"})
    assert found.status_code == 200
    assert "no effect" in found.json()["warnings"][0]
    assert {"metadata", "count", "search"} <= set(reads)


def test_documents_come_and_go(client, indexes, texts, encoder) -> None:
    path = "/v1/indexes/plain/documents"
    added = client.post(
        path, json={"documents": [{"id": "new", "text": "a bank account", "metadata": {"x": 1}}]}
    ).json()
    assert added == {
        "added": 1,
        "updated": 0,
        "skipped": 0,
        "truncated": 0,
        "ids": ["new"],
        "documents": len(texts) + 1,
    }
    again = client.post(
        path, json={"documents": [{"id": "new", "text": "a bank account", "metadata": {"x": 1}}]}
    ).json()
    assert (again["added"], again["skipped"]) == (0, 1)
    with Index.open(indexes[0], readonly=True) as other:  # durable: another reader sees it
        assert other.get(["new"])[0].text == "a bank account"
    vector = encoder.encode(["a bank account"])[0].tolist()
    hit = client.post("/v1/search", json={"vector": vector, "top_k": 1}).json()["results"][0]
    assert (hit["id"], hit["score"]) == ("new", pytest.approx(1, abs=1e-5))
    unnamed = client.post(path, json={"documents": [{"text": "food and water"}]}).json()
    assert len(unnamed["ids"][0]) > 8
    deleted = client.request("DELETE", path, json={"ids": ["new", "nosuch"]}).json()
    assert deleted == {"deleted": 1, "missing": ["nosuch"], "documents": len(texts) + 1}
    assert client.request("DELETE", path, json={"filter": {"size": "old"}}).json()["deleted"] == len(texts) // 3
    for body in ({}, {"ids": ["a"], "filter": {}}):
        assert client.request("DELETE", path, json=body).status_code == 400
    mixed = {"documents": [{"id": "a", "text": "x"}, {"text": "y"}]}
    assert client.post(path, json=mixed).status_code == 400
    twice = {"documents": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}
    assert client.post(path, json=twice).status_code == 400
    assert client.post("/v1/indexes/nosuch/documents", json=twice).status_code == 404


def test_indexes_are_listed_and_described(client, indexes, texts) -> None:
    listed = [{"name": "plain", "documents": len(texts)}, {"name": "small", "documents": len(texts)}]
    assert client.get("/v1/indexes").json()["indexes"] == listed
    record = client.get("/v1/indexes/small").json()
    assert (record["dims"], record["dehub"], record["whitening"]["k"]) == (8, "csls", 8)
    assert str(indexes[0].parent) not in client.get("/v1/indexes/plain").text  # where files lie is nobody's business


def test_compare(client, indexes) -> None:
    body = {"texts": ["the dog runs", "a cat runs"], "explain": True, "kind": "wmd", "index": "plain"}
    found = client.post("/v1/compare", json=body).json()
    with Index.open(indexes[0], readonly=True) as index:
        assert found["cosine"] == pytest.approx(index.compare(*body["texts"]), abs=1e-5)
    assert found["similarity"] == pytest.approx(1 / (1 + found["distance"]))
    assert 0 <= found["percentile"] <= 100
    assert sum(pair["mass"] for pair in found["explanation"]["pairs"]) == pytest.approx(1)
    assert client.post("/v1/compare", json={"texts": ["a"]}).status_code == 400
    assert client.post("/v1/compare", json={"texts": ["a", " "]}).status_code == 400


def test_hubness_map_and_whitening(client, indexes, texts) -> None:
    found = client.get("/v1/hubness", params={"index": "plain", "k": 3, "top": 2}).json()
    with Index.open(indexes[0], readonly=True) as index:
        counts, ids = index.k_occurrence(3)
    assert found["k_skewness"] == pytest.approx(hubness_report(counts, 3).k_skewness)
    assert found["top"][0]["id"] == ids[int(counts.argmax())]
    assert sum(documents for _, documents in found["histogram"]) == len(texts)
    assert sum(times * documents for times, documents in found["histogram"]) == 3 * len(texts)
    points = client.get("/v1/indexes/plain/map", params={"sample": 50}).json()["points"]
    assert len(points) == 50
    x, y = (np.array([point[axis] for point in points]) for axis in "xy")
    assert x.var() >= y.var() > 0
    assert abs(np.corrcoef(x, y)[0, 1]) < 1e-3  # principal directions
    rows = client.get("/v1/indexes/plain/whitening").json()["rows"]
    assert rows == []  # six words a text are too few to cut in halves
    assert client.get("/v1/hubness", params={"k": 0}).status_code == 400
    assert client.get("/v1/indexes/plain/map", params={"sample": 0}).status_code == 400


def test_looks_at_an_index_are_kept_until_it_changes_and_not_without_end(client) -> None:
    service = client.app.state.service
    first = client.get("/v1/hubness", params={"index": "plain", "k": 3}).json()
    for top in range(1, 60):
        assert client.get("/v1/hubness", params={"index": "plain", "k": 3, "top": top}).status_code == 200
    assert len(service._results) <= 32
    assert client.get("/v1/hubness", params={"index": "plain", "k": 3}).json() == first
    client.post("/v1/indexes/plain/documents", json={"documents": [{"id": "new", "text": "a bank"}]})
    assert client.get("/v1/hubness", params={"index": "plain", "k": 3}).json()["n"] == first["n"] + 1


def test_whitenings_are_measured_where_texts_are_long_enough(listen, tmp_path, encoder, texts) -> None:
    import httpx

    with Index.create(tmp_path / "long.kx", encoder) as index:
        index.add([f"{a} and then {b}" for a, b in pairwise(texts)])
    server = listen(indexes=[tmp_path / "long.kx"])
    rows = httpx.get(f"{server.url}/v1/indexes/long/whitening", timeout=60).json()["rows"]
    assert {(row["beta"], row["gamma"]) for row in rows} == {(0, 0), (1, 0), (1, 0.5), (1, 1)}
    assert all(0 < row["score"] <= 1 and row["memory_bytes"] == 4 * row["k"] * 104 for row in rows)
    raw = max(rows, key=lambda row: row["k"])
    assert (raw["k"], raw["beta"], raw["gamma"]) == (32, 0, 0)
