"""Every field of every route: null is not given, what is accepted is obeyed or refused, what is unknown is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from kexue.search import Index
from kexue.serve import Settings, create_app

OPENAPI = create_app(Settings(indexes=["any.kx"], api_keys={})).openapi()
ROUTES = [(method, path) for path, methods in OPENAPI["paths"].items() for method in methods]
DOCUMENTS = "/v1/indexes/{name}/documents"
LONG = "dog " * 500
# A request of each route that has a body, with everything that can hold fields of its own.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/embeddings"): {"input": ["the dog runs", "a cat"]},
    ("post", "/v1/rerank"): {"query": "the dog runs", "documents": [{"text": "a cat sleeps"}, "the dog plays"]},
    ("post", "/v2/rerank"): {"query": "the dog runs", "documents": [{"text": "a cat sleeps"}, "the dog plays"]},
    ("post", "/rerank"): {"query": "the dog runs", "texts": ["a cat sleeps", "the dog plays"]},
    ("post", "/embed"): {"inputs": ["the dog runs", "a cat"]},
    ("post", "/similarity"): {"inputs": {"source_sentence": "a dog", "sentences": ["a cat"]}, "parameters": {}},
    ("post", "/v1/search"): {"query": "the dog runs", "index": "plain"},
    ("post", DOCUMENTS): {"documents": [{"text": "the big dog eats in the park", "id": "t0"}]},
    ("delete", DOCUMENTS): {"ids": ["nosuch"]},
    ("post", "/v1/compare"): {"texts": ["the dog runs", "a cat runs"]},
    ("post", "/v1/extract"): {"texts": ["《红楼梦》的作者是曹雪芹"], "head_threshold": 0.0, "tail_threshold": 0.0},
}


def choices(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a value may be, one schema each."""
    return [
        OPENAPI["components"]["schemas"][one["$ref"].split("/")[-1]] if "$ref" in one else one
        for one in schema.get("anyOf", [schema])
    ]


def optional_fields(schema: dict[str, Any], body: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the optional fields of a body are, those of the objects it holds included."""
    for one in choices(schema):
        if "items" in one and isinstance(body, list):
            for place, item in enumerate(body):
                yield from optional_fields(one["items"], item, (*at, place))
        if "properties" not in one or not isinstance(body, dict):
            continue
        for name, field in one["properties"].items():
            if name not in one.get("required", ()):
                yield (*at, name)
            yield from optional_fields(field, body.get(name), (*at, name))


def body_schema(method: str, path: str) -> dict[str, Any]:
    schema: dict[str, Any] = OPENAPI["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    return schema


FIELDS = [
    (*route, at) for route, body in BODIES.items() for at in dict.fromkeys(optional_fields(body_schema(*route), body))
]


def names_of(value: Any) -> str:
    return ".".join(map(str, value)) if isinstance(value, tuple) else str(value)


def put(body: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The body with another value at a place; Ellipsis takes what is there away."""
    body = copy.deepcopy(body)
    here: Any = body
    for part in at[:-1]:
        here = here[part]
    if value is not ...:
        here[at[-1]] = value
    elif isinstance(here, dict):
        here.pop(at[-1], None)
    return body


def ask(client: TestClient, method: str, path: str, body: Any) -> Any:
    return client.request(method.upper(), path.format(name="plain"), json=body)


def content(answer: Any) -> Any:
    """What an answer says, without what no two answers share."""
    found = answer.json()
    return {k: v for k, v in found.items() if k not in ("id", "timings")} if isinstance(found, dict) else found


@pytest.fixture(scope="module")
def client(tmp_path_factory, encoder, extractor_folder) -> Iterator[TestClient]:
    """An index that requests may change, and an extraction model."""
    from tests.serve.conftest import TEXTS

    path = tmp_path_factory.mktemp("fields") / "plain.kx"
    with Index.create(path, encoder, passages="none") as index:
        index.add(TEXTS, ids=[f"t{n}" for n in range(len(TEXTS))], metadata=[{"n": n} for n in range(len(TEXTS))])
    with TestClient(
        create_app(Settings(indexes=[path], runs=[extractor_folder], api_keys={})), raise_server_exceptions=False
    ) as client:
        yield client


def test_every_route_with_a_body_is_here() -> None:
    assert set(BODIES) == {route for route in ROUTES if "requestBody" in OPENAPI["paths"][route[1]][route[0]]}
    assert len(FIELDS) > 60


# Null


@pytest.mark.parametrize(("method", "path", "at"), FIELDS, ids=names_of)
def test_null_is_a_field_left_out(client, method, path, at) -> None:
    left_out = put(BODIES[method, path], at, ...)
    first = ask(client, method, path, left_out)
    with_null = ask(client, method, path, put(left_out, at, None))
    again = ask(client, method, path, left_out)
    assert first.status_code == with_null.status_code == again.status_code, with_null.text
    assert content(with_null) == content(again)
    assert with_null.headers.get("x-kexue-warnings") == again.headers.get("x-kexue-warnings")
    if at[-1] not in ("query", "documents", "texts", "text", "ids"):  # of which one or another is needed
        assert with_null.status_code == 200, with_null.text


@pytest.mark.parametrize(("method", "path"), BODIES, ids=names_of)
def test_the_schema_says_that_null_is_taken(method, path) -> None:
    for at in dict.fromkeys(optional_fields(body_schema(method, path), BODIES[method, path])):
        assert {"type": "null"} in schema_at(body_schema(method, path), at)["anyOf"], at


def schema_at(schema: dict[str, Any], at: tuple[Any, ...]) -> dict[str, Any]:
    for part in at:
        if isinstance(part, int):
            schema = next(one["items"] for one in choices(schema) if "items" in one)
        else:
            schema = next(one["properties"][part] for one in choices(schema) if part in one.get("properties", ()))
    return schema


# Obeyed or refused

_TRUNCATION = {"truncate": (False, {"texts": [LONG]}), "truncation_direction": ("Left", {"texts": [LONG]})}
_COHERE: dict[str, Any] = {
    "documents": [["x"]],
    "texts": ["x"],
    "model": "cosine",
    "top_n": 1,
    "return_documents": True,
    "return_text": True,
    "raw_scores": True,
    "max_tokens_per_doc": 2,
    "max_chunks_per_doc": 2,
    "rank_fields": (["title"], {"documents": [{"text": "a cat", "title": "the dog runs"}]}),
    "truncate": (False, {"documents": [LONG]}),
    "truncation_direction": ("Left", {"documents": [LONG]}),
    "documents.0.text": "the dog runs",
}
# For each field another value, and what else to change in the body first.
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/embeddings"): {
        "model": "nosuch",
        "encoding_format": "base64",
        "dimensions": 4,
        "normalize": False,
        "prompt_name": "query",
        "input_type": "query",
        "truncate": (False, {"input": LONG}),
    },
    ("post", "/v1/rerank"): _COHERE,
    ("post", "/v2/rerank"): _COHERE,
    ("post", "/rerank"): {**_COHERE, **_TRUNCATION, "rank_fields": ["title"]},
    ("post", "/embed"): {
        "truncate": (False, {"inputs": [LONG]}),
        "truncation_direction": ("Left", {"inputs": [LONG]}),
        "prompt_name": "query",
        "normalize": False,
        "dimensions": 4,
    },
    ("post", "/similarity"): {
        "parameters": {"truncate": True, "prompt_name": "query"},
        "parameters.prompt_name": "query",
        "parameters.truncate": (False, {"inputs": {"source_sentence": LONG, "sentences": ["a"]}}),
        "parameters.truncation_direction": ("Left", {"inputs": {"source_sentence": LONG, "sentences": ["a"]}}),
    },
    ("post", "/v1/search"): {
        "query": "a cat sleeps",
        "vector": [1.0] * 32,
        "index": "nosuch",
        "top_k": 3,
        "k": 3,
        "filter": {"n": {"lt": 2}},
        "mode": "lexical",
        "rerank": "wrd",
        "dehub": "csls",
        "explain": True,
        "candidates": 5,
    },
    ("post", DOCUMENTS): {
        "documents.0.id": "t1",
        "documents.0.metadata": {"n": 17},
        "truncate": (False, {"documents": [{"text": LONG, "id": "t0"}]}),
    },
    ("delete", DOCUMENTS): {"ids": ["other"], "filter": {"n": -1}},
    ("post", "/v1/compare"): {"explain": True, "kind": "wmd", "index": "nosuch"},
    ("post", "/v1/extract"): {"model": "nosuch", "head_threshold": 0.99, "tail_threshold": 0.99},
}
KEPT_NOWHERE = {"user"}  # OpenAI's name for who asks


@pytest.mark.parametrize(("method", "path", "at"), FIELDS, ids=names_of)
def test_a_field_changes_the_answer_or_is_refused(client, method, path, at) -> None:
    if at[-1] in KEPT_NOWHERE:
        return
    change = CHANGES[method, path][names_of(at)]
    value, base = change if isinstance(change, tuple) else (change, {})
    body = {**BODIES[method, path], **base}
    ask(client, method, path, body)
    without = ask(client, method, path, body)
    assert without.status_code == 200, without.text
    changed = ask(client, method, path, put(body, at, value))
    assert changed.status_code in (200, 400, 404, 413), changed.text
    assert changed.status_code != 200 or content(changed) != content(without)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("/v1/hubness", {"index": "nosuch", "k": 3, "top": 2}),
        ("/v1/indexes/plain/map", {"sample": 7, "id": "t3"}),
    ],
)
def test_a_parameter_changes_the_answer_or_is_refused(client, path, changes) -> None:
    declared = OPENAPI["paths"][path.replace("plain", "{name}")]["get"]["parameters"]
    assert set(changes) == {one["name"] for one in declared if one["in"] == "query"}
    without = client.get(path).json()
    for name, value in changes.items():
        changed = client.get(path, params={name: value})
        assert changed.status_code == 404 or changed.json() != without


def test_rank_fields_and_max_tokens_say_what_is_read(client) -> None:
    scores = lambda **body: client.post("/v1/rerank", json={"query": "the dog runs", **body}).json()["results"]  # noqa: E731
    plain = scores(documents=["the dog runs"])
    assert scores(documents=[{"a": "the dog", "b": "runs", "text": "a cat"}], rank_fields=["a", "b"]) == plain
    assert scores(documents=["the dog runs a bank"], max_tokens_per_doc=3) == plain
    assert scores(documents=["the dog runs"], max_tokens_per_doc=300) == plain


def test_normalize_false_keeps_the_lengths_of_the_model(client, encoder) -> None:
    import numpy as np

    texts = ["the dog runs", "a cat"]
    expected = encoder.encode(texts, normalize=False)
    assert abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.01, "lengths that tell the two apart"
    np.testing.assert_allclose(
        client.post("/embed", json={"inputs": texts, "normalize": False}).json(), expected, atol=1e-5
    )


def test_k_is_another_name_for_top_k(client) -> None:
    hits = lambda **body: client.post("/v1/search", json={"query": "the dog runs", **body})  # noqa: E731
    assert len(hits(k=3).json()["results"]) == len(hits(top_k=3).json()["results"]) == 3
    assert len(hits(k=3, top_k=3).json()["results"]) == 3
    assert len(hits().json()["results"]) == 10
    refused = hits(k=3, top_k=4)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "k")


# Unknown


@pytest.mark.parametrize(("method", "path"), BODIES, ids=names_of)
def test_unknown_fields_are_named(client, method, path) -> None:
    body = {**BODIES[method, path], "no_such\nfield": [1], "other": 2}
    answer = ask(client, method, path, body)
    assert answer.status_code == 200, answer.text
    told = json.loads(answer.headers["x-kexue-warnings"])
    assert ["'no_such\\nfield'" in told[0], "'other'" in told[1]] == [True, True]
    if isinstance(answer.json(), dict):
        assert answer.json()["warnings"] == told
    many = {**BODIES[method, path], **{f"x{n}" + "y" * 1000: n for n in range(1000)}}
    assert len(ask(client, method, path, many).headers["x-kexue-warnings"]) < 2000


@pytest.mark.parametrize(
    ("method", "path", "at", "named"),
    [
        ("post", "/similarity", ("inputs", "other"), "inputs.other"),
        ("post", "/similarity", ("parameters", "other"), "parameters.other"),
        ("post", DOCUMENTS, ("documents", 0, "meta"), "documents[0].meta"),
    ],
)
def test_unknown_fields_of_what_a_body_holds_are_named(client, method, path, at, named) -> None:
    answer = ask(client, method, path, put(BODIES[method, path], at, 1))
    assert f"'{named}'" in json.loads(answer.headers["x-kexue-warnings"])[0]


def test_unknown_parameters_are_named(client) -> None:
    for path in ("/v1/hubness", "/v1/indexes", "/v1/indexes/plain", "/v1/indexes/plain/map", "/v1/models", "/info"):
        answer = client.get(path, params={"topk": 3})
        assert "'topk'" in answer.headers["x-kexue-warnings"], path
        assert "'topk'" in answer.json()["warnings"][0]


def test_a_strict_server_refuses_what_it_does_not_know(tmp_path, encoder) -> None:
    with Index.create(tmp_path / "plain.kx", encoder) as index:
        index.add(["a dog", "a cat"])
    settings = Settings(indexes=[tmp_path / "plain.kx"], api_keys={}, strict=True)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for (method, path), body in BODIES.items():
            answer = ask(client, method, path, {**body, "other": 2})
            assert answer.status_code == 400, path
            assert "'other'" in answer.text
        nested = ask(client, "post", DOCUMENTS, {"documents": [{"text": "a", "meta": 1}]})
        assert (nested.status_code, "meta" in nested.text) == (400, True)
        assert client.get("/v1/hubness", params={"kk": 3}).status_code == 400
        assert ask(client, "post", "/v1/search", {"query": "a", "other": None}).status_code == 200


# Where a request is wrong

WRONG: list[tuple[str, Any, str, str | None]] = [
    ("/v1/embeddings", {"input": ["a", None]}, "input[1] must be a string, got null.", "input"),
    ("/v1/embeddings", {"input": [-1]}, "input[0] must be greater than or equal to 0, got -1.", "input"),
    ("/v1/embeddings", {"input": [1, "a"]}, 'input[1] must be a whole number, got "a".', "input"),
    ("/v1/embeddings", {"input": [[1, 2], [3, "x"]]}, 'input[1][1] must be a whole number, got "x".', "input"),
    ("/v1/embeddings", {"input": ["a", ["b"]]}, "input[1] must be a string, got a list.", "input"),
    ("/v1/embeddings", {"input": {"a": 1}}, "input must be a string or a list, got an object.", "input"),
    ("/v1/embeddings", {"input": None}, "input must be a string or a list, got null.", "input"),
    ("/v1/embeddings", {}, "input is missing.", "input"),
    ("/v1/embeddings", [1], "the body must be an object, got a list.", None),
    ("/v1/embeddings", {"input": ["a", " "]}, "input[1] is empty.", "input"),
    (
        "/v1/embeddings",
        {"input": "a", "encoding_format": "hex"},
        "encoding_format must be 'float' or 'base64'",
        "encoding_format",
    ),
    (
        "/v1/rerank",
        {"query": "a", "documents": ["b", 3]},
        "documents[1] must be a string or an object, got 3.",
        "documents",
    ),
    (
        "/v1/rerank",
        {"query": "a", "documents": [{"text": 3}]},
        "documents[0].text must be a string, got 3.",
        "documents",
    ),
    (
        "/v1/rerank",
        {"query": "a", "documents": [{"title": "b"}]},
        "documents[0] must be a string, or an object",
        "documents",
    ),
    ("/v1/search", {"query": "a", "top_k": 0}, "top_k must be greater than or equal to 1, got 0.", "top_k"),
    ("/v1/search", {"vector": [0, True]}, "vector[1] must be a number, got true.", "vector"),
    ("/v1/search", {"query": "a", "top_k": True}, "top_k must be a whole number, got true.", "top_k"),
    (
        "/v1/rerank",
        {"query": "a", "documents": ["b"], "top_n": True},
        "top_n must be a whole number, got true.",
        "top_n",
    ),
    (
        "/v1/embeddings",
        {"input": "a", "dimensions": True},
        "dimensions must be a whole number, got true.",
        "dimensions",
    ),
    ("/v1/search", {"query": "a", "top_k": "x"}, 'top_k must be a whole number, got "x".', "top_k"),
    ("/v1/search", {"vector": [0.1, None]}, "vector[1] must be a number, got null.", "vector"),
    ("/v1/search", {"query": "\ud800" * 99, "k": "\ud800"}, "k must be a string of valid Unicode", "k"),
    (DOCUMENTS, {"documents": [{"text": "a"}, {"id": "x"}]}, "documents[1].text is missing.", "documents"),
    ("/embed", {"inputs": ["a", 1]}, "inputs[1] must be a string, got 1.", None),
    ("/similarity", {"inputs": {"sentences": ["a"]}}, "inputs.source_sentence is missing.", None),
]


@pytest.mark.parametrize(("path", "body", "said", "param"), WRONG, ids=[f"{w[0]} {w[1]!s:.40}" for w in WRONG])
def test_a_message_names_the_place_and_what_was_sent(client, path, body, said, param) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post(path.format(name="plain"), content=json.dumps(body), headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    if isinstance(error, str):
        assert error.startswith(said)
        return
    assert error["message"].startswith(said)
    assert error["param"] == param


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "json", "application/jsonp"])
@pytest.mark.parametrize(("method", "path"), BODIES, ids=names_of)
def test_a_content_type_that_is_not_json_is_named(client, method, path, kind) -> None:
    headers = {} if kind is None else {"content-type": kind}
    data = json.dumps(BODIES[method, path]).encode()
    answer = client.request(method.upper(), path.format(name="plain"), content=data, headers=headers)
    assert answer.status_code == 400
    assert "Content-Type must be application/json" in answer.text
    assert (kind or "got none") in answer.text
    for good in ("application/json; charset=utf-8", "Application/vnd.api+JSON"):
        headers = {"content-type": good}
        answer = client.request(method.upper(), path.format(name="plain"), content=data, headers=headers)
        assert answer.status_code == 200, answer.text


# Addresses


def test_head_answers_wherever_get_does(client) -> None:
    paths = [path.format(name="plain") for method, path in ROUTES if method == "get"]
    for path in [*paths, "/", "/openapi.json", "/web/app.js", "/nosuch"]:
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code, path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head("/v1/search").status_code == 405


def test_a_model_is_asked_for_by_name(listen, tiny_model) -> None:
    import httpx

    server = listen(models=[f"org/team/model={tiny_model}"])
    [listed] = httpx.get(f"{server.url}/v1/models").json()["data"]
    for name in ("org/team/model", "org%2Fteam%2Fmodel"):
        assert httpx.get(f"{server.url}/v1/models/{name}").json() == listed
    missing = httpx.get(f"{server.url}/v1/models/org/other")
    assert missing.status_code == 404
    error = missing.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], "'org/other'" in error["message"]) == ("model", True)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1/embedding"])
def test_what_is_not_there_points_to_the_description(client, path) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert path in answer.json()["error"]["message"]
    assert "/openapi.json" in answer.json()["error"]["message"]
    assert "/openapi.json" in client.put("/v1/search").json()["error"]["message"]


# TEI's shape

TEI = ("/embed", "/similarity", "/info", "/rerank")


def check_tei(answer: Any, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("path", TEI)
def test_every_refusal_of_a_tei_route_has_tei_s_shape(client, tmp_path, encoder, monkeypatch, path) -> None:
    from kexue.serve.batching import QueueFullError
    from kexue.serve.service import Service

    body = BODIES.get(("post", path))
    method = "get" if body is None else "post"
    send = lambda client, **more: client.request(method.upper(), path, **({"json": body} if body else {}), **more)  # noqa: E731
    check_tei(client.request("PUT", path), 405)
    check_tei(send(client, headers={"host": "elsewhere.example"}), 421)
    check_tei(send(client, headers={"origin": "http://elsewhere.example"}), 403)
    check_tei(send(client, headers={"x-odd": "a" * 70_000}), 431)
    if body is not None:
        check_tei(client.post(path, json={}), 400)
        check_tei(client.post(path, json=[]), 400)
        check_tei(client.post(path, content=b"{"), 400)
        check_tei(client.post(path, content=b"{", headers={"content-type": "application/json"}), 400)
        first = next(iter(body))
        half = json.loads(json.dumps(body).replace("the dog runs", "\ud800").replace("a dog", "\ud800"))
        check_tei(client.post(path, content=json.dumps(half), headers={"content-type": "application/json"}), 422)
        check_tei(client.post(path, json={**body, first: 1}), 400)
        check_tei(client.post(path, json=body, headers={"content-length": "9" * 12}), 413)
    with monkeypatch.context() as patch:

        def busy(*_: object) -> None:
            raise QueueFullError(3.0)

        patch.setattr(Service, "find_model", busy)
        patch.setattr(Service, "work", busy)
        patch.setattr(Service, "find_reranker", busy)
        refused = send(client)
        check_tei(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
    with Index.create(tmp_path / "kept.kx", encoder) as index:
        index.add(["a dog"])
    settings = Settings(indexes=[tmp_path / "kept.kx"], api_keys={"secret": "read"})
    with TestClient(create_app(settings), raise_server_exceptions=False) as guarded:
        check_tei(send(guarded), 401)
        assert send(guarded, headers={"authorization": "Bearer secret"}).status_code == 200
    unready = TestClient(create_app(settings), raise_server_exceptions=False)  # its models are never loaded
    check_tei(send(unready, headers={"authorization": "Bearer secret"}), 503)


@pytest.mark.parametrize("path", ["/embed_all", "/embed_sparse", "/predict", "/tokenize", "/decode"])
def test_tei_routes_that_are_not_served_are_refused_in_tei_s_shape(client, path) -> None:
    check_tei(client.post(path, json={"inputs": "a"}), 404)


def test_rerank_answers_in_the_shape_of_its_fields(client) -> None:
    for body in ({"query": 1, "texts": ["a"]}, {"query": "a", "texts": [1]}, {"query": "a", "texts": [], "top_n": 0}):
        check_tei(client.post("/rerank", json=body), 400)
    for body in ({"query": 1, "documents": ["a"]}, {"query": "a", "documents": [1]}, {"query": "", "documents": ["a"]}):
        answer = client.post("/rerank", json=body)
        assert (answer.status_code, set(answer.json()["error"])) == (400, {"message", "type", "param", "code"})
    answer = client.post("/v1/rerank", json={"query": 1, "texts": ["a"]})
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
