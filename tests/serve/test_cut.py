"""What is longer than the model reads is said to be cut, in every answer that rests on it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from kexue.search import Index
from kexue.serve import Settings, create_app

LONG = "the dog runs " * 300


@pytest.fixture(scope="module")
def client(tmp_path_factory, encoder):
    path = tmp_path_factory.mktemp("cut") / "long.kx"
    with Index.create(path, encoder, passages="none") as index:
        index.add(["a cat sleeps", LONG, f"{LONG} and a cat"])
    with TestClient(create_app(Settings(indexes=[path], api_keys={})), raise_server_exceptions=False) as client:
        yield client


FEW = "the index holds fewer than 50 documents: too few to tell a good score from a common one."
DOCUMENTS = "/v1/indexes/long/documents"
ASKED = [
    ("/v1/embeddings", {"input": ["a", LONG]}, 1),
    ("/embed", {"inputs": [LONG, "a", LONG]}, 2),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [LONG]}}, 1),
    ("/v1/rerank", {"query": "a", "documents": [LONG, "b"]}, 1),
    ("/v1/rerank", {"query": "a", "documents": [LONG, "b"], "model": "cosine"}, 1),
    ("/v1/rerank", {"query": "a", "documents": [LONG, "b"], "max_tokens_per_doc": 3}, 0),
    ("/rerank", {"query": LONG, "texts": ["b"]}, 1),
    ("/v1/search", {"query": LONG}, "the query"),
    ("/v1/search", {"query": "a cat"}, 0),
    ("/v1/search", {"query": "a cat", "explain": True}, 2),
    ("/v1/compare", {"texts": ["a", LONG]}, 1),
    (DOCUMENTS, {"documents": [{"text": LONG}]}, 1),
    (DOCUMENTS, {"documents": [{"text": "a dog"}]}, 0),
]


@pytest.mark.parametrize(("path", "body", "cut"), ASKED, ids=[f"{path} {n}" for n, (path, _, _) in enumerate(ASKED)])
def test_cut_texts_are_counted(client, encoder, path, body, cut) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    told = json.loads(answer.headers.get("x-kexue-warnings", "[]"))
    who = f"{cut} {'text' if cut == 1 else 'texts'}" if isinstance(cut, int) else cut
    expected = f"{who} {'were' if who.endswith('s') else 'was'} cut: at most {encoder.max_length} tokens are read."
    assert [sentence for sentence in told if " cut: " in sentence] == ([expected] if cut else [])
    assert [sentence for sentence in told if " cut: " not in sentence] == ([FEW] if path == "/v1/search" else [])
    if isinstance(answer.json(), dict):
        assert answer.json().get("warnings", []) == told


def test_the_command_line_says_so_too(client, tiny_model, monkeypatch, capsys, tmp_path, encoder) -> None:
    from kexue.cli import main

    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    with Index.create(tmp_path / "i.kx", encoder) as index:
        index.add(["a cat sleeps"])
    for arguments in (["compare", "a cat", LONG], ["search", str(tmp_path / "i.kx"), LONG, "a cat"]):
        assert main(arguments) == 0
        assert f"at most {encoder.max_length} tokens are read" in capsys.readouterr().err
    assert main(["search", str(tmp_path / "i.kx"), LONG, "a cat", "--json"]) == 0
    first, second = (json.loads(line)["warnings"] for line in capsys.readouterr().out.splitlines())
    assert first == [f"the query was cut: at most {encoder.max_length} tokens are read.", FEW]
    assert second == [FEW]


def test_a_text_that_its_prompt_makes_too_long_is_said_to_be_cut(tiny_model, tmp_path, capsys) -> None:
    from kexue.cli import main
    from kexue.text import Encoder

    prompts = {"document": "the dog runs in the park ", "query": "the dog "}
    encoder = Encoder(tiny_model, prompts=prompts, dtype="float32")
    text = "dog " * (encoder.max_length - 4)
    assert not encoder.tokenize([text]).truncated
    with Index.create(tmp_path / "i.kx", encoder) as index:
        index.add(["a cat sleeps"])
    with TestClient(create_app(Settings(indexes=[tmp_path / "i.kx"], api_keys={}))) as client:
        answer = client.post("/v1/compare", json={"texts": ["a", text], "index": "i"})
    assert "1 text was cut" in answer.json()["warnings"][0]
    assert main(["compare", "a cat", text, "--index", str(tmp_path / "i.kx")]) == 0
    assert "a text was cut" in capsys.readouterr().err
