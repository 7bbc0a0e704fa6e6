"""OpenAI's dialect, spoken by OpenAI's own client and by LangChain."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest

from kexue.similarity import Whitening


def test_the_openai_client_gets_the_vectors_of_the_encoder(listen, indexes, encoder) -> None:
    openai = pytest.importorskip("openai")
    server = listen(indexes=indexes[:1])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        texts = ["the dog runs", "a cat", "the dog runs"]
        found = client.embeddings.create(model=client.models.list().data[0].id, input=texts)  # asks for base64
        np.testing.assert_allclose([one.embedding for one in found.data], encoder.encode(texts), atol=1e-6)
        assert [one.index for one in found.data] == [0, 1, 2]
        assert found.usage.prompt_tokens == sum(encoder.count_tokens(texts))
        plain = client.embeddings.create(model=found.model, input=texts[0], encoding_format="float")
        np.testing.assert_allclose(plain.data[0].embedding, encoder.encode(texts[:1])[0], atol=1e-6)
        with pytest.raises(openai.NotFoundError, match="text-embedding-3-small"):
            client.embeddings.create(model="text-embedding-3-small", input="x")
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.embeddings.create(model=found.model, input="")


def test_langchain_as_it_is_configured_for_other_servers(listen, tiny_model, encoder, texts) -> None:
    langchain = pytest.importorskip("langchain_openai")
    server = listen(models=[f"text-embedding-3-small={tiny_model}"])
    with httpx.Client() as http:
        embeddings = langchain.OpenAIEmbeddings(
            model="text-embedding-3-small",
            base_url=f"{server.url}/v1",
            api_key="none",
            check_embedding_ctx_length=False,
            http_client=http,
        )
        np.testing.assert_allclose(embeddings.embed_documents(texts[:3]), encoder.encode(texts[:3]), atol=1e-6)
        np.testing.assert_allclose(embeddings.embed_query("a cat"), encoder.encode(["a cat"])[0], atol=1e-6)


def test_token_ids_are_texts(client, encoder) -> None:
    [framed] = encoder.tokenize(["the dog runs"])
    expected = encoder.encode(["the dog runs"])[0]
    for ids in (framed.tolist(), framed[1:-1].tolist()):  # with and without the special tokens
        found = client.post("/v1/embeddings", json={"input": ids}).json()
        np.testing.assert_allclose(found["data"][0]["embedding"], expected, atol=1e-6)
    several = client.post("/v1/embeddings", json={"input": [framed.tolist(), framed[1:-1].tolist()]}).json()
    assert [one["index"] for one in several["data"]] == [0, 1]


def test_base64_is_little_endian_float32(client, encoder) -> None:
    found = client.post("/embeddings", json={"input": "a cat", "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, encoder.encode(["a cat"])[0], atol=1e-6)


def test_dimensions_by_whitening_or_by_cutting(listen, indexes, tiny_model, encoder, texts) -> None:
    vectors = encoder.encode(texts)
    whitening = Whitening.preset("pca", 8).fit(vectors)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    server = listen(indexes=indexes[1:])
    ask = lambda url, **body: np.array(  # noqa: E731
        [one["embedding"] for one in httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]]
    )
    for k in (8, 4):
        found = ask(server.url, input=texts[:5], dimensions=k)
        expected = unit(whitening.with_params(n_components=k).transform(vectors[:5]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["shortened_by"] == "whitening"
    plain = listen(models=[tiny_model])
    np.testing.assert_allclose(ask(plain.url, input=texts[:5], dimensions=4), unit(vectors[:5, :4]), atol=1e-5)
    refused = httpx.post(f"{plain.url}/v1/embeddings", json={"input": "x", "dimensions": 33})
    assert refused.status_code == 400
    assert "at most 32, got 33" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ["a", " "]}, 400, "input"),
        ({"input": [[]]}, 400, "input"),
        ({"input": [10**6]}, 400, None),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "prompt_name": "nosuch"}, 400, None),
        ({"input": ["a"] * 2049}, 413, "input"),
        ({"input": "a \ud800 b"}, 422, "input"),
        ({}, 400, "input"),
    ],
)
def test_bad_requests_are_named(client, body, status, param) -> None:
    import json

    answer = client.post("/v1/embeddings", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert (error["param"] or "").startswith(param)
