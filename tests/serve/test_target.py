"""What a request is aimed at decides who may make it, whatever its headers say of the address."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.testclient import TestClient

from kexue.serve import Settings, create_app, security
from kexue.serve.target import is_loopback, parse_host, routed_path

KEYS = {"reader-key": "read", "writer-key": "write"}
OPENAPI = create_app(Settings(indexes=["any.kx"], api_keys={})).openapi()
CLOSED = [
    (method.upper(), path.format(name="plain"))
    for path, methods in OPENAPI["paths"].items()
    for method in methods
    if path not in security.OPEN
]
WRITES = [(method, path) for method, path in CLOSED if path.startswith("/v1/indexes") and method != "GET"]
DOCUMENTS = "/v1/indexes/plain/documents"
NEW = {"documents": [{"id": "new", "text": "a new dog"}]}


@pytest.fixture(scope="module")
def keyless(tmp_path_factory, encoder) -> Iterator[TestClient]:
    """A server without keys on loopback, asked by its own name."""
    with TestClient(_app(tmp_path_factory, encoder), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="module")
def keyed(tmp_path_factory, encoder) -> Iterator[TestClient]:
    """A server with keys."""
    app = _app(tmp_path_factory, encoder, api_keys=KEYS)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def _app(tmp_path_factory, encoder, **options):
    from kexue.search import Index

    path = tmp_path_factory.mktemp("target") / "plain.kx"
    with Index.create(path, encoder) as index:
        index.add(["a dog eats", "a cat runs"], ids=["a", "b"])
    return create_app(Settings(indexes=[path], **{"api_keys": {}, **options}))


def ids_of(client: TestClient, **headers: str) -> set[str]:
    answer = client.post("/v1/search", json={"query": "dog", "top_k": 100}, headers=headers)
    return {hit["id"] for hit in answer.json()["results"]}


# The path


@pytest.mark.parametrize(("method", "path"), CLOSED, ids=[f"{method}-{path}" for method, path in CLOSED])
@pytest.mark.parametrize("host", ["x/web/?", "x/web/", "x/health?", "x#", "x/web/..;/?", "/web/"])
def test_no_host_opens_a_route(keyed, monkeypatch, method, path, host) -> None:
    assert keyed.request(method, path, json={}, headers={"Host": host}).status_code == 400
    # And were such a host taken, as by a server in front, the key would still be asked for.
    monkeypatch.setattr(security, "parse_host", lambda text: ("x", None))
    for url in ("http://x/web/?", "http://x/health", "http://x/"):
        monkeypatch.setattr(HTTPConnection, "url", URL(url))
        assert keyed.request(method, path, json={}, headers={"Host": host}).status_code == 401


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_no_host_lets_a_reader_write(keyed, monkeypatch, method, path) -> None:
    monkeypatch.setattr(HTTPConnection, "url", URL("http://x/web/"))
    headers = {"Authorization": "Bearer reader-key"}
    assert keyed.request(method, path, json={"filter": {}}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "//v1/indexes", "/v1//indexes", "/v1/indexes/", "/V1/indexes", "/web/../v1/indexes", "/web/%2e%2e/v1/indexes",
        "/./v1/indexes", "/health/../v1/indexes", "/health/", "/health%2f..%2fv1/indexes", "/%76%31/indexes", "/web",
        "/v1/indexes;/web/", "/v1/indexes%00", "/v1/indexes?/web/", "/openapi.json/",
    ],
)  # fmt: skip
def test_spellings_of_a_path_open_nothing(keyed, path) -> None:
    answer = keyed.get(path, follow_redirects=False)
    assert answer.status_code in (401, 404)
    assert b"plain" not in answer.content


@pytest.mark.parametrize("method", ["get", "Get", "GETT", "PUT", "PATCH", "TRACE", "QUERY", "PROPFIND"])
def test_odd_methods_need_a_key_too(keyed, method) -> None:
    assert keyed.request(method, DOCUMENTS, json=NEW).status_code in (400, 401)
    reads = method.upper() == "GET"
    answer = keyed.request(method, DOCUMENTS, json=NEW, headers={"Authorization": "Bearer reader-key"})
    assert answer.status_code in ((200, 400) if reads else (400, 403, 405))


@pytest.mark.parametrize("below", ["/web", "/api", "/v1/indexes"])
def test_keys_count_below_another_application_too(tmp_path_factory, encoder, below) -> None:
    inner = _app(tmp_path_factory, encoder, api_keys=KEYS)
    with TestClient(inner), TestClient(Starlette(routes=[Mount(below, inner)])) as client:
        assert client.get(f"{below}/health").status_code == 200
        assert client.get(f"{below}/v1/indexes").status_code == 401
        reader = {"Authorization": "Bearer reader-key"}
        assert client.get(f"{below}/v1/indexes", headers=reader).status_code == 200
        assert client.request("DELETE", below + DOCUMENTS, json={"filter": {}}, headers=reader).status_code == 403


def test_routed_path_is_what_is_below_the_root() -> None:
    for path, root, wanted in (
        ("/a/b", "", "/a/b"),
        ("/a/b", "/a", "/b"),
        ("/ab", "/a", "/ab"),
        ("/a", "/a", "/a"),
        ("/a/", "/a", "/"),
    ):
        assert routed_path({"path": path, "root_path": root}) == wanted


# The host


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("localhost", ("localhost", None)), ("LOCALHOST.:80", ("localhost", 80)), ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:8000", ("::1", 8000)), ("[0:0:0:0:0:0:0:1]", ("::1", None)),
        ("[::ffff:127.0.0.1]", ("127.0.0.1", None)),
        ("a_b.example", ("a_b.example", None)), ("", None), (".", None), (":80", None), ("a:", None), ("a:70000", None),
        ("a:8a", None), ("a b", None), ("a/b", None), ("a?b", None), ("a#b", None), ("a@b", None), ("::1", None),
        ("[::1", None), ("[a]", None), ("[:::]", None), ("a\\b", None), ("a,b", None), ("\xe9", None), ("a\n", None),
    ],
)  # fmt: skip
def test_hosts_are_read(text, wanted) -> None:
    assert parse_host(text) == wanted


HERE = ["127.0.0.1:8000", "127.0.0.1", "localhost:8000", "LocalHost", "localhost.", "[::1]:8000", "127.8.9.1:9"]
ELSEWHERE = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost",
    "93.184.216.34", "[2001:db8::1]:8000", "0.0.0.0", "127.0.0.1.nip.io", "2130706433", "0x7f000001",
]  # fmt: skip
READS = [("GET", path) for path in ("/", "/health", "/ready", "/openapi.json", "/metrics", "/web/app.js")]


@pytest.mark.parametrize("host", HERE)
def test_a_server_without_keys_answers_to_its_own_names(keyless, host) -> None:
    for method, path in READS:
        assert keyless.request(method, path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ELSEWHERE)
def test_and_to_no_others(keyless, host) -> None:
    forwarded = {"X-Forwarded-Host": "127.0.0.1", "Forwarded": "host=127.0.0.1", "X-Original-Host": "localhost"}
    for method, path in [*READS, *CLOSED, ("OPTIONS", "/v1/search"), ("HEAD", "/health")]:
        answer = keyless.request(method, path, json={}, headers={"Host": host, **forwarded})
        assert answer.status_code == 421, path
    assert "--allow-host" in keyless.get("/metrics", headers={"Host": host}).json()["error"]["message"]
    assert ids_of(keyless) >= {"a", "b"}


def test_a_forwarded_host_is_not_believed_either_way(keyless) -> None:
    assert keyless.get("/health", headers={"X-Forwarded-Host": "evil.example"}).status_code == 200


@pytest.mark.parametrize("hosts", [("127.0.0.1", "evil.example"), ("127.0.0.1", "127.0.0.1")])
def test_two_hosts_are_none(keyless, hosts) -> None:
    assert keyless.get("/health", headers=[("Host", host) for host in hosts]).status_code == 400


def test_allowed_hosts_and_the_address_listened_on(tmp_path_factory, encoder) -> None:
    for options, taken, refused in (
        ({"allow_hosts": ["Search.Example."]}, ["search.example:80"], ["a.search.example", "example", "10.0.0.7"]),
        ({"host": "10.0.0.7", "allow_public": True}, ["10.0.0.7:8000", "localhost"], ["10.0.0.8", "evil.example"]),
        ({"host": "fd00::7", "allow_public": True}, ["[FD00:0::7]"], ["[fd00::8]"]),
        ({"host": "box.lan", "allow_public": True}, ["box.lan"], ["evil.example"]),
        ({"host": "0.0.0.0", "allow_public": True}, ["10.0.0.9", "[fd00::9]"], ["evil.example", "box.lan"]),
        ({"host": "::", "allow_public": True}, ["10.0.0.9", "[fd00::9]"], ["evil.example", "box.lan"]),
        ({"api_keys": KEYS}, ["any.example"], []),
    ):
        client = TestClient(_app(tmp_path_factory, encoder, **options))
        for host in taken:
            assert client.get("/health", headers={"Host": host}).status_code == 200, (options, host)
        for host in refused:
            assert client.get("/health", headers={"Host": host}).status_code == 421, (options, host)


@pytest.mark.parametrize("host", ["http://a.example", "a.example:80", "", "a/b", "*"])
def test_allowed_hosts_are_names(host) -> None:
    with pytest.raises(ValueError, match="allow_hosts"):
        Settings(models=["x"], api_keys={}, allow_hosts=[host])


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.255.0.1", "::1", "LOCALHOST.", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "1")))


def test_an_address_in_the_request_line_speaks_for_its_host(listen, indexes) -> None:
    server = listen(indexes=indexes)

    def ask(target: str, *headers: str) -> int:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = "\r\n".join([f"GET {target} HTTP/1.1", *headers, "Connection: close", "", ""])
            connection.sendall(head.encode())
            return int(connection.makefile("rb").readline().split()[1])

    here = "Host: 127.0.0.1"
    assert ask("/health", here) == 200
    assert ask("/health", "Host: evil.example") == 421
    assert ask("http://evil.example/health", here) == 421
    assert ask("http://127.0.0.1/health", "Host: evil.example") == 200
    assert ask("http://[::1]:80/health", here) == 200
    assert ask("http://127.0.0.1@evil.example/health", here) == 421
    assert ask("http:///health", here) == 400
    assert ask("health", here) == 400
    assert ask("*", here) == 400
    assert ask("/health") == 400
    assert ask("/health", here, here) == 400
    assert ask("/health", here, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13") in (200, 400)


def test_web_sockets_are_refused(keyless) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), keyless.websocket_connect("/web/app.js"):
        pass


# The page


OTHERS = [
    {"Origin": "http://evil.example"}, {"Origin": "https://127.0.0.1.evil.example"}, {"Origin": "null"},
    {"Origin": "http://127.0.0.1:3000"}, {"Origin": "http://127.0.0.1"}, {"Origin": "http://localhost:8000"},
    {"Origin": "chrome-extension://abc"}, {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
]  # fmt: skip
OWN = [
    {}, {"Origin": "http://127.0.0.1:8000"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"},
    {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_pages_of_others_change_nothing(keyless, headers, kind) -> None:
    sent = headers | ({"Content-Type": kind} if kind else {})
    for method, path in WRITES:
        for content in (b'{"filter": {}}', b'{"documents": [{"id": "evil", "text": "evil"}]}'):
            assert keyless.request(method, path, content=content, headers=sent).status_code == 403
    assert ids_of(keyless) >= {"a", "b"}
    assert "evil" not in ids_of(keyless)


@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_and_read_nothing_where_no_key_is_set(keyless, headers) -> None:
    for method, path in [*CLOSED, ("OPTIONS", "/v1/search")]:
        assert keyless.request(method, path, json={}, headers=headers).status_code == 403, path


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_the_own_page_and_programs_may(keyless, headers) -> None:
    assert keyless.post(DOCUMENTS, json=NEW, headers=headers).status_code == 200
    assert keyless.post("/v1/search", json={"query": "dog"}, headers=headers).status_code == 200
    assert keyless.request("DELETE", DOCUMENTS, json={"ids": ["new"]}, headers=headers).status_code == 200


def test_a_link_may_be_followed(keyless) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert keyless.get("/", headers=headers).status_code == 200
    assert keyless.post(DOCUMENTS, json=NEW, headers=headers).status_code == 403


def test_where_keys_are_set_pages_of_others_may_not_write_either(keyed) -> None:
    headers = {"Authorization": "Bearer writer-key", "Origin": "https://evil.example"}
    assert keyed.post(DOCUMENTS, json=NEW, headers=headers).status_code == 403
    assert keyed.post("/v1/search", json={"query": "dog"}, headers=headers).status_code == 200


def test_an_origin_beside_one_that_is_let_in_is_not(tmp_path_factory, encoder) -> None:
    with TestClient(_app(tmp_path_factory, encoder, cors=["https://good.example"])) as client:
        headers = [("Origin", "https://good.example"), ("Origin", "https://evil.example")]
        assert client.post(DOCUMENTS, json=NEW, headers=headers).status_code == 403


@pytest.mark.parametrize("cors", [["https://good.example"], ["*"]])
def test_pages_that_are_let_in_may(tmp_path_factory, encoder, cors) -> None:
    with TestClient(_app(tmp_path_factory, encoder, cors=cors)) as client:
        for headers in (
            {"Origin": "https://good.example"},
            {"Origin": "https://good.example", "Sec-Fetch-Site": "cross-site"},
        ):
            assert client.post(DOCUMENTS, json=NEW, headers=headers).status_code == 200
        bad = client.post(DOCUMENTS, json=NEW, headers={"Origin": "https://good.example.evil.example"})
        assert bad.status_code == (200 if cors == ["*"] else 403)


def test_a_body_without_a_type_is_not_read(keyless) -> None:
    for method, path in WRITES:
        for headers in ({}, {"Content-Type": ""}, {"Content-Type": "text/plain"}):
            answer = keyless.request(method, path, content=b'{"filter": {}}', headers=headers)
            assert answer.status_code == 400
            assert "Content-Type" in answer.json()["error"]["message"]
    assert ids_of(keyless) >= {"a", "b"}
