"""The dialects of text-embeddings-inference, Cohere and Jina."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import transformers
from starlette.testclient import TestClient

from kexue.search import CrossEncoderReranker, TransportReranker
from kexue.serve import Settings, create_app
from kexue.similarity import pair_cosine

DOCUMENTS = ["a cat sleeps", "the dog runs in the park", "money and a bank"]


@pytest.fixture
def judge(tiny_model, tmp_path) -> Path:
    """A random cross-encoder with the tokenizer of the tiny encoder."""
    folder = tmp_path / "judge"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    options = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**{**options, "num_labels": 1}))
    model.save_pretrained(folder)
    return folder


def test_embed(client, encoder) -> None:
    found = client.post("/embed", json={"inputs": DOCUMENTS, "truncate": False})
    np.testing.assert_allclose(found.json(), encoder.encode(DOCUMENTS), atol=1e-6)
    one = client.post("/embed", json={"inputs": DOCUMENTS[0], "normalize": True}).json()
    np.testing.assert_allclose(one, encoder.encode(DOCUMENTS[:1]), atol=1e-6)
    for name in ("compute", "tokenization", "queue", "inference", "total"):
        assert float(found.headers[f"x-{name}-time"]) >= 0
    assert int(found.headers["x-compute-tokens"]) == sum(encoder.count_tokens(DOCUMENTS))
    assert found.headers["x-compute-characters"] == str(sum(map(len, DOCUMENTS)))


def test_too_long_texts_are_cut_or_refused(client, encoder) -> None:
    long = "dog " * 500
    assert client.post("/embed", json={"inputs": long}).status_code == 200
    refused = client.post("/embed", json={"inputs": long, "truncate": False})
    assert refused.status_code == 413
    assert set(refused.json()) == {"error", "error_type"}
    left = {"inputs": long, "truncate": True, "truncation_direction": "Left"}
    assert client.post("/embed", json=left).status_code == 413  # not offered, so not pretended


def test_similarity(client, encoder) -> None:
    body = {"inputs": {"source_sentence": "the dog runs", "sentences": DOCUMENTS}}
    vectors = encoder.encode(["the dog runs", *DOCUMENTS])
    expected = pair_cosine(np.broadcast_to(vectors[0], vectors[1:].shape), vectors[1:])
    np.testing.assert_allclose(client.post("/similarity", json=body).json(), expected, atol=1e-6)


def test_info_has_the_fields_of_tei(client, encoder) -> None:
    record = client.get("/info").json()
    assert record["max_input_length"] == encoder.max_length
    assert record["model_sha"] == encoder.fingerprint
    assert {"model_dtype", "max_client_batch_size", "auto_truncate", "version", "docker_label"} <= set(record)


def test_rerank_in_both_shapes(client, encoder) -> None:
    scores = TransportReranker(encoder).rerank("the dog runs", DOCUMENTS).scores
    order = np.argsort(-scores).tolist()
    body = {"query": "the dog runs", "documents": [{"text": DOCUMENTS[0]}, *DOCUMENTS[1:]], "return_documents": True}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found = client.post(path, json={**body, "top_n": 2}).json()
        assert [one["index"] for one in found["results"]] == order[:2]
        np.testing.assert_allclose([one["relevance_score"] for one in found["results"]], scores[order[:2]], atol=1e-6)
        assert found["results"][0]["document"] == {"text": DOCUMENTS[order[0]]}
        assert found["model"] == "wrd"
        assert {"id", "meta", "usage"} <= set(found)
    tei = client.post("/rerank", json={"query": "the dog runs", "texts": DOCUMENTS, "return_text": True}).json()
    assert [one["index"] for one in tei] == order
    assert tei[0]["text"] == DOCUMENTS[order[0]]
    cosine = client.post("/v1/rerank", json={**body, "model": "cosine"}).json()
    assert cosine["results"][0]["relevance_score"] <= 1


@pytest.mark.parametrize("with_encoder", [False, True])
def test_cross_is_the_cross_encoder(judge, tiny_model, with_encoder) -> None:
    settings = Settings(models=[judge, *([tiny_model] if with_encoder else [])], api_keys={})
    expected = CrossEncoderReranker(judge, device="cpu").rerank("the dog runs", DOCUMENTS).scores
    order = np.argsort(-expected).tolist()
    body = {"query": "the dog runs", "documents": DOCUMENTS}
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for model in (None, "judge", "cross"):
            found = client.post("/v1/rerank", json={**body, "model": model}).json()
            assert [one["index"] for one in found["results"]] == order, model
            np.testing.assert_allclose([one["relevance_score"] for one in found["results"]], expected[order], atol=1e-5)
            raw = client.post("/v1/rerank", json={**body, "model": model, "raw_scores": True}).json()
            log_odds = [one["relevance_score"] for one in raw["results"]]
            np.testing.assert_allclose(log_odds, np.log(expected / (1 - expected))[order], atol=1e-4)
        refused = client.post("/v1/rerank", json={**body, "model": "wrd", "raw_scores": True})
        assert refused.status_code == (400 if with_encoder else 404)
        missing = client.post("/v1/rerank", json={**body, "model": "nosuch", "raw_scores": True})
        assert missing.status_code == 404
        named = "wrd, wmd, cosine, judge" if with_encoder else "judge"
        assert missing.json()["error"]["message"] == f"no reranker 'nosuch'; there are: {named}."


def test_the_cohere_client(listen, tiny_model, encoder) -> None:
    cohere = pytest.importorskip("cohere")
    server = listen(models=[tiny_model])
    with httpx.Client() as http:
        client = cohere.ClientV2("none", base_url=server.url, httpx_client=http)
        found = client.rerank(model="wrd", query="the dog runs", documents=DOCUMENTS, top_n=1)
    scores = TransportReranker(encoder).rerank("the dog runs", DOCUMENTS).scores
    assert found.results[0].index == int(scores.argmax())
    assert found.results[0].relevance_score == pytest.approx(scores.max(), abs=1e-6)


def test_bad_requests_speak_the_dialect_of_the_route(client) -> None:
    tei = client.post("/rerank", json={"query": "", "texts": ["a"]})
    assert (tei.status_code, set(tei.json())) == (400, {"error", "error_type"})
    openai = client.post("/v1/rerank", json={"query": "a"})
    assert (openai.status_code, set(openai.json())) == (400, {"error"})
    assert client.post("/v1/rerank", json={"query": "a", "documents": ["b"], "model": "nosuch"}).status_code == 404
    assert client.post("/embed", json={"inputs": []}).json()["error_type"] == "validation"
