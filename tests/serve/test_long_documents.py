"""Long documents over HTTP: split as the index splits, found by a passage; what is cut is told or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from kexue.search import Index
from kexue.search.splitting import Splitting
from kexue.serve import Settings, create_app
from kexue.text import Encoder


@pytest.fixture(params=["auto", "none"])
def client(request: pytest.FixtureRequest, tmp_path: Path, encoder: Encoder) -> Iterator[TestClient]:
    Index.create(tmp_path / "long.kx", encoder.model_id, passages=request.param).close()
    with TestClient(create_app(Settings(indexes=[tmp_path / "long.kx"], api_keys={}))) as made:
        made.passages = request.param  # type: ignore[attr-defined]
        yield made


def long_text(encoder: Encoder) -> str:
    text = "the old man runs in the park. " * (2 * encoder.max_length // 6)
    return f"{text}a girl reads. {text}"


def test_an_upsert_splits_like_the_index_or_tells_what_was_cut(client: TestClient, encoder: Encoder) -> None:
    text = long_text(encoder)
    documents = [{"id": "long", "text": text, "metadata": {"n": 1}}, {"id": "short", "text": "the dog eats"}]
    answer = client.post("/v1/indexes/long/documents", json={"documents": documents}).json()
    auto = client.passages == "auto"  # type: ignore[attr-defined]
    assert (answer["added"], answer["documents"], answer["truncated"]) == (2, 2, 0 if auto else 1)
    assert ("warnings" in answer) != auto
    info = client.get("/v1/indexes/long").json()
    if not auto:
        assert "1 text was cut" in answer["warnings"][0]
        assert info["passages"] is None
        refused = client.post("/v1/indexes/long/documents", json={"documents": documents, "truncate": False})
        assert refused.status_code == 413
        assert client.get("/v1/indexes/long").json()["documents"] == 2
        return
    [spans] = Splitting("auto").split(encoder, [text])
    assert info["passages"] == {
        "mode": "auto", "tokens": None, "overlap": 0, "split": 1, "vectors": len(spans) + 1,
    }  # fmt: skip
    [hit, _] = client.post("/v1/search", json={"query": "a girl reads", "mode": "dense"}).json()["results"]
    assert [hit["passage"]["start"], hit["passage"]["end"]] in [list(span) for span in spans]
    assert hit["passage"]["text"] == text[hit["passage"]["start"] : hit["passage"]["end"]]
    assert hit["document"] == {"text": text, "metadata": {"n": 1}}
    explained = client.post("/v1/search", json={"query": "a girl reads", "explain": True}).json()
    assert not any(" cut: " in sentence for sentence in explained["warnings"]), "the passage is explained, not the text"
    again = client.post("/v1/indexes/long/documents", json={"documents": documents, "truncate": False}).json()
    assert (again["skipped"], again["updated"]) == (2, 0)


def test_an_upsert_stores_what_add_stores(
    client: TestClient, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = long_text(encoder)
    client.post("/v1/indexes/long/documents", json={"documents": [{"id": "a", "text": text}]})
    with Index.create(tmp_path / "other.kx", encoder, passages=client.passages) as index:  # type: ignore[attr-defined]
        index.add([text], ids=["a"])
        [expected] = index.store.get(["a"], vectors=True)
    with Index.open(tmp_path / "long.kx", encoder=encoder, readonly=True) as index:
        [stored] = index.store.get(["a"], vectors=True)
    assert stored.spans == expected.spans
    assert np.allclose(stored.vector, expected.vector, atol=1e-5)


@pytest.mark.parametrize("make", [long_text, lambda e: [5] * (e.max_length + 3)], ids=["text", "ids"])
def test_embeddings_tell_what_was_cut_and_refuse_it_on_request(
    client: TestClient, encoder: Encoder, make: Callable[[Encoder], object]
) -> None:
    body = {"input": make(encoder)}
    answer = client.post("/v1/embeddings", json=body).json()
    assert "1 text was cut" in answer["warnings"][0]
    refused = client.post("/v1/embeddings", json={**body, "truncate": False})
    assert refused.status_code == 413
    assert "truncate" in refused.json()["error"]["message"]
    assert "warnings" not in client.post("/v1/embeddings", json={"input": "short", "truncate": False}).json()
