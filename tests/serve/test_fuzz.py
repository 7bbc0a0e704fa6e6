"""Whatever a client sends, the answer is of a documented kind, and never blames the server for it.

`KEXUE_FUZZ_EXAMPLES=5000` tries that many requests for each route instead of a few dozen.
"""

from __future__ import annotations

import gzip
import json
import os
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

import hypothesis
import requests
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kexue.search import Index
from kexue.serve import Settings, create_app

WANTED = int(os.environ.get("KEXUE_FUZZ_EXAMPLES", "0"))
OPENAPI = create_app(Settings(indexes=["any.kx"], api_keys={})).openapi()
ROUTES = [(method, path) for path, methods in OPENAPI["paths"].items() for method in methods]
WITH_BODY = [(method, path) for method, path in ROUTES if "requestBody" in OPENAPI["paths"][path][method]]
TEI = ("/embed", "/similarity", "/info")
NAMES = ("model", "index", "prompt_name", "dimensions", "filter")  # what is drawn for them is seldom there
SECOND = ("vector", "k")  # refused beside the field they stand for
KINDS = ("as drawn", "names left out", "mostly right", "as shown")  # the last is the example of the schema
pytestmark = pytest.mark.filterwarnings("ignore:.*of the tokens are unknown")
JSON = {"content-type": "application/json"}
DOCUMENTS = "/v1/indexes/plain/documents"


def check_refusal(answer: Any, *statuses: int) -> str:
    """The answer is the client's fault, in the shape of the route's dialect; its message."""
    assert answer.status_code in (statuses or (400, 404, 405, 413, 422)), (answer.status_code, answer.text[:300])
    error = answer.json()
    if answer.url.path in TEI or (answer.url.path == "/rerank" and "error_type" in error):
        assert set(error) == {"error", "error_type"}
        return error["error"]
    assert set(error) == {"error"}
    assert set(error["error"]) == {"message", "type", "param", "code"}
    return error["error"]["message"]


# Requests made from the schema


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method}-{path}" for method, path in ROUTES])
def test_requests_drawn_from_the_schema(client, method, path) -> None:
    route = OPENAPI["paths"][path][method]
    operation = schemathesis.openapi.from_dict(OPENAPI)[path][method]
    modes = strategies.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode])
    seen: dict[int, int] = {}
    known = client.get("/v1/models").json()["data"][0]["id"] if path.startswith("/v1/models/") else "plain"

    @hypothesis.given(case=modes, kind=strategies.sampled_from(KINDS))
    @hypothesis.settings(
        max_examples=WANTED or 25,
        derandomize=not WANTED,
        database=None,
        deadline=None,  # a busy machine may take any time
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    def ask(case: schemathesis.Case, kind: str) -> None:
        if kind != "as drawn":
            if "{name}" in path:
                case.path_parameters["name"] = known
            if kind == "as shown" and "requestBody" in route:
                case.body = example_of(route["requestBody"]["content"]["application/json"]["schema"])
            elif isinstance(case.body, dict):
                dropped = (*NAMES, *SECOND)
                case.body = {field: value for field, value in case.body.items() if field not in dropped}
                if kind == "mostly right":
                    case.body |= example_of(route["requestBody"]["content"]["application/json"]["schema"])
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
        answer = client.request(sent.method, sent.url, content=sent.body, headers=dict(sent.headers))
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        if answer.status_code != 200:
            check_refusal(answer)
        if answer.status_code not in (404, 405) or "{name}" not in path:  # an odd name may make it another route
            case.validate_response(
                answer, checks=[status_code_conformance, content_type_conformance, response_schema_conformance]
            )

    ask()
    print(f"{method} {path}: {sum(seen.values())} requests, {seen}")
    assert seen.get(200), "some of what the schema allows is answered"


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method}-{path}" for method, path in ROUTES])
def test_every_route_shows_what_it_takes_and_gives(method, path) -> None:
    route = OPENAPI["paths"][path][method]
    for answer in route["responses"].values():
        assert all(content["example"] and content["schema"] for content in answer["content"].values())
    if "requestBody" in route:
        assert example_of(route["requestBody"]["content"]["application/json"]["schema"])


def example_of(schema: Any) -> Any:
    """The fields of a request for which the schema has an example."""
    if "$ref" in schema:
        return example_of(OPENAPI["components"]["schemas"][schema["$ref"].split("/")[-1]])
    if "examples" in schema:
        return schema["examples"][0]
    found = {name: example_of(field) for name, field in schema.get("properties", {}).items() if name not in NAMES}
    return {name: example for name, example in found.items() if example}


# Requests made by hand

MALFORMED = {
    "nothing": b"",
    "not JSON": b"\0",
    "cut short": b'{"query": "a',
    "invalid UTF-8": b'{"query": "\xff\xfe"}',
    "deep": b"[" * 200_000,
    "deep and whole": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a huge integer": b'{"query": ' + b"9" * 5000 + b"}",
    "a huge float": b'{"query": 1e999, "inputs": 1e999, "texts": 1e999}',
    "NaN": b"NaN",
    "infinity": b'{"query": Infinity, "inputs": -Infinity}',
    "null": b"null",
    "a number": b"3",
    "a string": b'"a"',
    "a list": b"[]",
    "the last of two keys is wrong": b'{"query": "a", "query": 1, "inputs": "a", "inputs": 1}',
    "compressed": gzip.compress(b'{"query": "a"}'),
    "half a surrogate pair": b'{"query": "\\ud800", "inputs": "\\ud800", "input": "\\udfff", "documents": ["\\ud800"]}',
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize(("method", "path"), WITH_BODY, ids=[f"{method}-{path}" for method, path in WITH_BODY])
def test_malformed_bodies(shared, method, path, content) -> None:
    check_refusal(shared.request(method, path.format(name="plain"), content=content, headers=JSON), 400, 422)


@pytest.mark.parametrize("name", ["invalid UTF-8", "a huge integer"])
def test_what_json_cannot_read_is_told_in_words(shared, name) -> None:
    answer = shared.post("/v1/search", content=MALFORMED[name], headers=JSON)
    assert answer.json()["error"]["message"].startswith("the body is not JSON in UTF-8")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, encoder):
    """One application for requests that change nothing."""
    from starlette.testclient import TestClient
    from tests.serve.conftest import TEXTS

    path = tmp_path_factory.mktemp("shared") / "plain.kx"
    with Index.create(path, encoder) as index:
        index.add(TEXTS, metadata=[{"n": n} for n in range(len(TEXTS))])
    with TestClient(create_app(Settings(indexes=[path], api_keys={})), raise_server_exceptions=False) as client:
        yield client
        hits = client.post("/v1/search", json={"query": "dog", "top_k": 1000}).json()["results"]
        assert len(hits) == len(TEXTS), "what was refused changed nothing"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/xml", "multipart/form-data; boundary=x", "", "application/x-www-form-urlencoded"],
)
@pytest.mark.parametrize(("method", "path"), WITH_BODY, ids=[f"{method}-{path}" for method, path in WITH_BODY])
def test_other_content_types(shared, method, path, kind) -> None:
    content = b'{"input": "a", "inputs": "a", "query": "a", "documents": ["a"]}'
    check_refusal(
        shared.request(method, path.format(name="plain"), content=content, headers={"content-type": kind}), 400
    )


@pytest.mark.parametrize("path", [path for _, path in ROUTES])
def test_other_methods(shared, path) -> None:
    for method in {"GET", "PUT", "PATCH", "TRACE", "BREW"} - {name.upper() for name in OPENAPI["paths"][path]}:
        check_refusal(shared.request(method, path.format(name="plain")), 405)


@pytest.mark.parametrize(
    "path",
    [
        "/" + "a" * 60_000,
        "/v1/indexes/" + "a" * 60_000,
        "/v1/indexes/%00",
        "/v1/indexes/%ff",
        "/v1/indexes/a%0d%0aSet-Cookie:%20a=b",
        "/v1/indexes/%2e%2e%2fplain.kx",
        "/web/%00",
        "/web/" + "a" * 5000,
        "//v1/indexes",
        "/v1/hubness?index=%00",
        "/v1/hubness?k=" + "9" * 5000,
        "/v1/hubness?k=1000",
        "/v1/hubness?k=nan",
        "/v1/hubness?k=1&top=0",
        "/v1/indexes/plain/map?sample=1e3",
        "/v1/indexes/plain/map?sample=-1",
    ],
    ids=lambda path: path[:40],
)
def test_odd_paths_and_queries(shared, path) -> None:
    message = check_refusal(shared.get(path), 400, 404)
    assert "/shared" not in message, "where files lie is nobody's business"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("content-length", "-1", 413),
        ("content-length", "1e3", 413),
        ("content-length", "", 413),
        ("content-length", "\u0663".encode(), 413),
        ("content-length", "9" * 400, 413),
        ("content-length", "9" * 5000, 413),
        ("authorization", b"Bearer \xff", 400),
        ("host", b"\xff b:99999999", 400),
        ("accept", "text/html", 400),
        ("transfer-encoding", "chunked", 400),
        ("x-odd", "a" * 60_000, 400),
        ("cookie", b"\xff=;;;==", 400),
    ],
)
def test_odd_headers(shared, name, value, status) -> None:
    value = value if isinstance(value, bytes) else value.encode()
    headers = [(b"content-type", b"application/json"), (name.encode(), value)]
    check_refusal(shared.post("/v1/search", content=b'{"query": ""}', headers=headers), status)


FILTERS = {
    "half a surrogate pair as field": r'{"\ud800": 1}',
    "half a surrogate pair as value": r'{"n": "\ud800"}',
    "NaN": '{"n": NaN}',
    "infinity": '{"n": {"in": [1e400]}}',
    "a number beyond float64": '{"n": {"lt": ' + "9" * 400 + "}}",
    "a list with one": '{"n": {"in": [-' + "9" * 400 + "]}}",
    "a nested list": '{"n": {"in": [[1]]}}',
    "no operator": '{"n": {}}',
    "nothing asked": '{"n": []}',
    "nothing asked twice": '{"n": [[]]}',
    "an operator of another language": '{"n": {"$gt": 1}}',
    "an operator in SQL": '{"n": {"= 1 OR 1": 1}}',
    "a string where a list is wanted": '{"n": {"in": "abc"}}',
    "a number where a boolean is wanted": '{"n": {"exists": 1}}',
    "too many conditions": json.dumps({f"f{n}": 1 for n in range(3000)}),
    "no dictionary": "[]",
    "deep": '{"n": ' + "[" * 500 + "]" * 500 + "}",
}


@pytest.mark.parametrize("text", FILTERS.values(), ids=FILTERS)
def test_filters_that_make_no_sense(shared, text) -> None:
    for method, path, more in (("POST", "/v1/search", '"query": "dog", '), ("DELETE", DOCUMENTS, "")):
        content = f'{{{more}"filter": {text}}}'
        message = check_refusal(shared.request(method, path, content=content, headers=JSON), 400)
        assert "damaged" not in message


@pytest.mark.parametrize(
    "filter",
    [
        {"n') OR 1=1 --": 1},
        {"n": "0' OR '1'='1"},
        {"n": {"eq": "x'; DROP TABLE documents; --"}},
        {"$.n": 0},
        {"": 0},
        {"n": {"in": ["0) OR (1=1"]}},
    ],
)
def test_filters_in_sql_match_nothing(shared, filter) -> None:
    found = shared.post("/v1/search", json={"query": "dog", "filter": filter})
    gone = shared.request("DELETE", DOCUMENTS, json={"filter": filter})
    if "n" in filter:
        assert (found.status_code, found.json()["results"], gone.json()["deleted"]) == (200, [], 0)
    else:
        assert "which no document has" in check_refusal(found, 400)
        assert "which no document has" in check_refusal(gone, 400)


def test_a_filter_with_nul_matches_nothing_or_is_refused_by_name(shared) -> None:
    """Older SQLites take NUL for the end of a string: compared wrongly it would match what it does not name."""
    answer = shared.post("/v1/search", json={"query": "dog", "filter": {"n\0": 0}})
    if answer.status_code == 200:
        assert answer.json()["results"] == []
    else:
        assert "NUL" in check_refusal(answer, 400)


VECTORS = {
    "NaN": "NaN",
    "infinity": "1e400",
    "beyond float32": "1e39",
    "squares beyond float32": "1e38",
    "a huge integer": "9" * 400,
    "a string": '"a"',
    "null": "null",
}


@pytest.mark.parametrize("number", VECTORS.values(), ids=VECTORS)
def test_vectors_that_are_none(shared, number) -> None:
    content = '{"vector": [' + ", ".join([number] * 32) + "]}"
    check_refusal(shared.post("/v1/search", content=content, headers=JSON), 400)


@pytest.mark.parametrize("number", [0.0, 1e-45, 1e15])
def test_vectors_that_are_odd_but_legal(shared, number) -> None:
    hits = shared.post("/v1/search", json={"vector": [number] * 32}).json()["results"]
    usual = shared.post("/v1/search", json={"vector": [1.0] * 32}).json()["results"]
    if number == 1e15:
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in usual]
    assert len(hits) == 10


REFUSED_DOCUMENTS = {
    "NUL in the id": r'{"id": "a\u0000b", "text": "a"}',
    "half a surrogate pair in the id": r'{"id": "\ud800", "text": "a"}',
    "no id": '{"id": "", "text": "a"}',
    "a blank id": r'{"id": " \n", "text": "a"}',
    "a number as id": '{"id": 1, "text": "a"}',
    "NaN in the metadata": '{"id": "q", "text": "a", "metadata": {"x": NaN}}',
    "infinity in the metadata": '{"id": "q", "text": "a", "metadata": {"x": 1e400}}',
    "half a surrogate pair in the metadata": r'{"id": "q", "text": "a", "metadata": {"\ud800": 1}}',
    "more than 64 bits in the metadata": '{"id": "q", "text": "a", "metadata": {"x": 18446744073709551616}}',
    "deep metadata": '{"id": "q", "text": "a", "metadata": {"x": ' + "[" * 900 + "]" * 900 + "}}",
}


@pytest.mark.parametrize("document", REFUSED_DOCUMENTS.values(), ids=REFUSED_DOCUMENTS)
def test_documents_that_are_refused_with_all_others(shared, document) -> None:
    content = f'{{"documents": [{{"id": "before", "text": "a"}}, {document}]}}'
    check_refusal(shared.post(DOCUMENTS, content=content, headers=JSON), 400)


def test_odd_documents_come_back_as_they_were_given(client) -> None:
    given = [
        {"id": "bell\u0007\r\n\u001b[31m", "text": "odd one", "metadata": {"x": "\0", "": None}},
        {"id": "'; DROP TABLE documents; --", "text": "odd two", "metadata": {"x": {"y": [1, {"z": 2**63 - 1}]}}},
        {"id": "\U0001f600\u202e", "text": "odd\0three", "metadata": {}},
        {"id": "x" * 100_000, "text": "\u200b", "metadata": {"x": json.loads("[" * 60 + "]" * 60)}},
    ]
    added = client.post(DOCUMENTS, json={"documents": given})
    assert added.status_code == 200, added.text
    assert added.json()["added"] == len(given)
    hits = client.post("/v1/search", json={"query": "odd", "top_k": 1000}).json()["results"]
    found = {hit["id"]: hit["document"] for hit in hits}
    assert {one["id"]: {"text": one["text"], "metadata": one["metadata"]} for one in given}.items() <= found.items()
    ids = [one["id"] for one in given]
    assert client.request("DELETE", DOCUMENTS, json={"ids": ids}).json() == {
        "deleted": len(ids),
        "missing": [],
        "documents": len(found) - len(ids),
    }


def test_metadata_written_elsewhere_is_shown_whatever_it_is(tmp_path, encoder) -> None:
    from starlette.testclient import TestClient

    metadata = {"big": 2**70, "deep": json.loads("[" * 60 + "]" * 60)}
    with Index.create(tmp_path / "odd.kx", encoder) as index:
        index.add(["a dog"], metadata=[metadata])
    with TestClient(create_app(Settings(indexes=[tmp_path / "odd.kx"], api_keys={}))) as client:
        [hit] = client.post("/v1/search", json={"query": "dog"}).json()["results"]
    assert hit["document"]["metadata"] == metadata


BODIES = [
    ("/v1/embeddings", {"input": []}),
    ("/v1/embeddings", {"input": [[]]}),
    ("/v1/embeddings", {"input": [-1]}),
    ("/v1/embeddings", {"input": [2**31]}),
    ("/v1/embeddings", {"input": [2**31 - 1]}),
    ("/v1/embeddings", {"input": [True]}),
    ("/v1/embeddings", {"input": [1.5]}),
    ("/v1/embeddings", {"input": ["a", 1]}),
    ("/v1/embeddings", {"input": "a", "dimensions": 10**30}),
    ("/v1/embeddings", {"input": "a", "dimensions": 33}),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}),
    ("/v1/embeddings", {"input": "a", "prompt_name": "\ud800"}),
    ("/v1/embeddings", {"input": "a", "model": "\ud800"}),
    ("/embed", {"inputs": "a", "prompt_name": "no\0such"}),
    ("/embed", {"inputs": ["a", "\udfff"]}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
    ("/similarity", {"inputs": {"source_sentence": "\ud800", "sentences": ["a"]}}),
    ("/v1/rerank", {"query": "a", "documents": ["\ud800"]}),
    ("/v1/rerank", {"query": "a", "documents": [{"text": None}]}),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}),
    ("/v2/rerank", {"query": "a", "documents": ["b"], "model": "\ud800"}),
    ("/rerank", {"query": "a", "texts": [" "]}),
    ("/v1/compare", {"texts": ["a", "\ud800"]}),
    ("/v1/compare", {"texts": ["a", "b"], "index": "\ud800"}),
    ("/v1/search", {"query": "a", "top_k": 10**30}),
    ("/v1/search", {"query": "a", "candidates": 0}),
]


@pytest.mark.parametrize(("path", "body"), BODIES, ids=[f"{path}-{body!r}"[:60] for path, body in BODIES])
def test_values_out_of_range(shared, path, body) -> None:
    check_refusal(shared.post(path, content=json.dumps(body), headers=JSON), 400, 404, 422)


@pytest.mark.parametrize("text", ["\u200b", "\0", "\u0001\u0002", "\u202e", "a" * 100_000, "\U0010ffff"])
def test_texts_that_say_nothing_still_have_an_answer(shared, text) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": text}),
        ("/embed", {"inputs": [text]}),
        ("/similarity", {"inputs": {"source_sentence": text, "sentences": [text]}}),
        ("/v1/rerank", {"query": text, "documents": [text, "dog"], "top_n": 10**15}),
        ("/rerank", {"query": text, "texts": [text]}),
        ("/v1/search", {"query": text}),
        ("/v1/search", {"query": text, "rerank": "wmd", "explain": True}),
        ("/v1/compare", {"texts": [text, "dog"], "explain": True}),
    ):
        assert shared.post(path, json=body).status_code == 200, path
