"""A request is weighed before anything is made of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from kexue.serve import Settings, create_app, errors, limits, security
from kexue.serve.fields import Fields
from kexue.serve.limits import MAX_HEAD, MAX_HEADERS, JsonMeter, check_head

OPENAPI = create_app(Settings(indexes=["any.kx"], api_keys={})).openapi()
WITH_BODY = [
    (method.upper(), path)
    for path, methods in OPENAPI["paths"].items()
    for method, route in methods.items()
    if "requestBody" in route
]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, encoder, extractor_folder) -> Iterator[TestClient]:
    from kexue.search import Index

    path = tmp_path_factory.mktemp("weight") / "plain.kx"
    with Index.create(path, encoder) as index:
        index.add(["a dog eats", "a cat runs"], metadata=[{"n": 0}, {"n": 1}])
    settings = Settings(indexes=[path], runs=[extractor_folder], api_keys={})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


# Counting


def counted(value: Any) -> tuple[int, int, int, int]:
    """Commas, colons, opening brackets and depth of a value's JSON, by walking the value."""
    if not isinstance(value, dict | list):
        return 0, 0, 0, 0
    inner = [counted(one) for one in (value.values() if isinstance(value, dict) else value)]
    commas, colons, brackets, depths = zip(*inner, strict=True) if inner else ((), (), (), (0,))
    own = len(value) if isinstance(value, dict) else 0
    return sum(commas) + max(len(value) - 1, 0), sum(colons) + own, sum(brackets) + 1, max(depths) + 1


def drawn(random: random.Random, depth: int = 0) -> Any:
    text = "".join(random.choices('ab,:[]{}"\\\n\u00e9\u2028\U0001f600', k=random.randrange(12)))
    kind = random.randrange(3 if depth > 6 else 6)
    if kind < 3:
        return [text, random.randrange(-9, 10**6), random.choice([None, True, 1.5e-7])][kind]
    items = [drawn(random, depth + 1) for _ in range(random.randrange(5))]
    return items if kind < 5 else {f"{n}{text}": item for n, item in enumerate(items)}


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("ascii", [True, False])
def test_the_count_is_that_of_the_value(seed, ascii) -> None:
    chance = random.Random(seed)
    value = [drawn(chance) for _ in range(20)]
    content = json.dumps(value, ensure_ascii=ascii, indent=chance.choice([None, 1])).encode()
    meter, at = JsonMeter(), 0
    while at < len(content):  # in pieces that cut escapes and characters in two
        size = chance.choice([1, 2, 3, 50])
        assert meter.add(content[at : at + size]) is None
        at += size
    assert (*meter.counts.values(), meter.depth) == counted(value)


@pytest.mark.parametrize("size", [1, 7, 64 * 1024, 10**9])
def test_a_piece_counts_as_its_bytes_do(size) -> None:
    content = json.dumps([["\\" * n + '"' * n + "[" for n in range(400)], {"a\\": [{}] * 300}]).encode() * 3
    whole, parts = JsonMeter(), JsonMeter()
    whole.add(content)
    for at in range(0, len(content), size):
        parts.add(content[at : at + size])
    assert (whole.counts, whole.depth) == (parts.counts, parts.depth)


@pytest.mark.parametrize("what", limits.MAX_JSON)
def test_limits_are_exact(monkeypatch, what) -> None:
    monkeypatch.setattr(limits, "MAX_JSON", {what: (limits.MAX_JSON[what][0], 10)})
    inside = {"values": "{}", "fields of objects": '{{"a": {}}}', "lists and objects": "{}"}[what]
    several = {
        "values": lambda n: "[" + ",".join("1" * (n + 1)) + "]",
        "fields of objects": lambda n: "{" + ",".join(f'"{k}": 1' for k in range(n)) + "}",
        "lists and objects": lambda n: "[" * n + "]" * n,
    }[what]
    assert inside
    assert JsonMeter().add(several(10).encode()) is None
    refused = JsonMeter().add(several(11).encode())
    assert refused is not None
    assert (refused.status, what in refused.message) == (413, True)


def test_depth_is_counted_to_the_level() -> None:
    for marks in ("[]", "{}"):
        for levels, refused in ((limits.MAX_DEPTH, False), (limits.MAX_DEPTH + 1, True)):
            content = (marks[0] * levels + marks[1] * levels).encode()
            assert (JsonMeter().add(content) is not None) is refused
    assert JsonMeter().add(b"[]" * 10_000) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_only_utf_8_is_weighed_and_read(shared, encoding) -> None:
    for method, path in WITH_BODY:
        content = '{"input": "a", "inputs": "a", "query": "a"}'.encode(encoding)
        answer = shared.request(method, path.format(name="plain"), content=content, headers=JSON)
        assert answer.status_code == 400


# Routes


def lists_of(schema: Any, name: str = "") -> Iterator[str]:
    """Paths of the lists in the schema of a request: ``inputs.sentences``, ``input``, ``input[]``."""
    if "$ref" in schema:
        schema = OPENAPI["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", ()):
        yield from lists_of(one, name)
    if schema.get("type") == "array":
        yield name
        yield from lists_of(schema["items"], f"{name}[]")
    for field, inner in schema.get("properties", {}).items():
        yield from lists_of(inner, f"{name}.{field}" if name else field)


LISTS = sorted(
    {
        (method, path, name)
        for method, path in WITH_BODY
        for name in lists_of(
            OPENAPI["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]["schema"]
        )
    }
)


def body_with(name: str, values: list[Any]) -> dict[str, Any]:
    """A request whose list `name` holds `values`, with whatever else some route wants."""
    names, made = name.split("."), values
    for one in reversed(names):
        for _ in range(one.count("[]")):
            made = [made]  # type: ignore[assignment]
        made = {one.replace("[]", ""): made}  # type: ignore[assignment]
    return {"query": "a", **made} if names[0] != "query" else made  # type: ignore[dict-item, return-value]


def test_there_are_lists() -> None:
    assert {name for _, _, name in LISTS} >= {
        "input", "input[]", "inputs", "inputs.sentences", "documents", "texts", "ids", "vector", "rank_fields",
    }  # fmt: skip


@pytest.mark.parametrize(("method", "path", "name"), LISTS)
@pytest.mark.parametrize("wrong", [{}, [], None, -1, True, "1", [{}], [None]], ids=repr)
def test_a_long_list_of_wrong_items_is_one_complaint(shared, monkeypatch, method, path, name, wrong) -> None:
    seen = []
    complaint = errors._describe_invalid
    monkeypatch.setattr(
        errors, "_describe_invalid", lambda found, body: seen.append(len(found)) or complaint(found, body)
    )
    answer = shared.request(method, path.format(name="plain"), json=body_with(name, [wrong] * 20_000))
    assert answer.status_code in (200, 400, 413, 422)
    assert all(n <= 20 for n in seen), "errors are built by the thousand"


def every_body(kind: type[Fields] = Fields) -> Iterator[type[Fields]]:
    for one in kind.__subclasses__():
        yield one
        yield from every_body(one)


def test_every_list_of_every_body_stops_at_its_first_wrong_item() -> None:
    def lists(schema: Any) -> Iterator[dict[str, Any]]:
        if isinstance(schema, dict) and schema.get("type") == "list":
            yield schema
        for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ():
            yield from lists(part)

    bodies = list(every_body())
    assert len(bodies) >= 9
    found = [one for body in bodies for one in lists(body.__pydantic_core_schema__)]
    assert len(found) >= 12
    assert all(one["fail_fast"] for one in found)


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize("item", ["{}", "[]", "1", '""', '{"text":1}', "[1]", '[{"a":[]}]'])
def test_bodies_of_too_many_values_are_refused_unread(shared, monkeypatch, method, path, item) -> None:
    monkeypatch.setattr(
        limits, "MAX_JSON", {what: (marks, most // 256) for what, (marks, most) in limits.MAX_JSON.items()}
    )
    read = []
    monkeypatch.setattr(errors, "_describe_invalid", lambda *given: read.append(given))
    content = b'{"input":[' + b",".join([item.encode()] * 5000) + b"]}"
    for sent in (content, iter([content[:777], content[777:]])):  # with and without Content-Length
        answer = shared.request(method, path.format(name="plain"), content=sent, headers=JSON)
        assert answer.status_code == 413
        assert "send it in parts" in answer.text
    assert not read


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_commas_within_texts_are_no_values(shared, method, path) -> None:
    text = 'a, "b": [c], {d} \\' * 5000
    body = {"input": text, "inputs": text, "query": text, "documents": [{"text": text}], "texts": [text, "b"]}
    if path == "/similarity":
        body = {"inputs": {"source_sentence": text, "sentences": [text]}}
    if path.endswith("rerank"):
        del body["documents" if path == "/rerank" else "texts"]
    if method == "DELETE":
        body = {"ids": [text]}
    assert shared.request(method, path.format(name="plain"), json=body).status_code == 200


@pytest.mark.parametrize("filter", [{"n": {"in": list(range(21_000))}}, {"n": [{"in": list(range(11_000))}] * 2}])
def test_filters_of_very_many_values_are_refused(shared, filter) -> None:
    for method, path in (("POST", "/v1/search"), ("DELETE", "/v1/indexes/plain/documents")):
        body = {"filter": filter, **({"query": "dog"} if method == "POST" else {})}
        answer = shared.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (413, "filter")
    few = {"n": {"in": list(range(20_000))}}
    assert shared.post("/v1/search", json={"query": "dog", "filter": few}).status_code == 200


def test_large_requests_at_once_are_put_off(shared, monkeypatch) -> None:
    """The budget is of all requests together; one alone may take what a body may take."""
    import asyncio

    import httpx

    monkeypatch.setattr(security, "_MAX_TOTAL", 10_000)
    content = json.dumps({"input": "the dog " * 1200}).encode()

    async def main() -> list[int]:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def slow():
            yield content
            reached.set()
            await go_on.wait()

        transport = httpx.ASGITransport(shared.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            first = asyncio.ensure_future(client.post("/v1/embeddings", content=slow(), headers=JSON))
            await reached.wait()
            second = await client.post("/v1/embeddings", content=content, headers=JSON)
            go_on.set()
            third = await first
            fourth = await client.post("/v1/embeddings", content=content, headers=JSON)
            assert second.headers["retry-after"]
            return [second.status_code, third.status_code, fourth.status_code]

    assert shared.portal.call(main) == [429, 200, 200]


# The head


@pytest.mark.parametrize("path", [b"/" + b"a" * MAX_HEAD, b"/v1/indexes/" + b"%41" * 30_000])
@pytest.mark.parametrize("query", [b"", b"?" + b"a" * MAX_HEAD])
def test_long_addresses_are_refused(path, query) -> None:  # longer ones than a client of ours can send
    for raw, asked in ((path, query), (b"/", b"a" * MAX_HEAD)):
        refused = check_head({"path": "/a", "raw_path": raw, "query_string": asked, "headers": []})
        assert refused is not None
        assert refused.status == 414
    assert check_head({"path": "/a", "query_string": b"a" * (MAX_HEAD - 2), "headers": []}) is None


@pytest.mark.parametrize(
    "headers",
    [[("x-a", "a" * MAX_HEAD)], [("a" * MAX_HEAD, "x")], [("x-a", "")] * MAX_HEADERS, [("cookie", "a" * 40_000)] * 2],
    ids=["value", "name", "many", "several"],
)
def test_heavy_heads_are_refused(shared, headers) -> None:
    assert shared.get("/health", headers=headers).status_code == 431
    assert shared.post("/embed", json={"inputs": "a"}, headers=headers).json().keys() == {"error", "error_type"}


def test_usual_heads_are_taken(shared) -> None:
    headers = [(f"x-{n}", "a" * 500) for n in range(MAX_HEADERS - 10)]
    assert shared.get("/health?" + "a" * 60_000, headers=headers).status_code == 200
