"""Who may come in, and what is refused at the door."""

from __future__ import annotations

import logging
import os

import pytest
from starlette.testclient import TestClient

from kexue.errors import DataError, KexueError
from kexue.serve import Settings, create_app
from kexue.serve.settings import keys_from_environment

KEYS = {"reader-key": "read", "writer-key": "write"}


@pytest.fixture
def guarded(indexes):
    with TestClient(create_app(Settings(indexes=indexes, api_keys=KEYS)), raise_server_exceptions=False) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_and_scopes(guarded) -> None:
    search, write = ("/v1/search", {"query": "dog"}), ("/v1/indexes/plain/documents", {"documents": [{"text": "x"}]})
    for headers in (
        {},
        bearer("wrong"),
        bearer(""),
        {"Authorization": "Basic reader-key"},
    ):
        answer = guarded.post(search[0], json=search[1], headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert guarded.post(write[0], json=write[1], headers=headers).status_code == 401
    assert guarded.post(search[0], json=search[1], headers=bearer("reader-key")).status_code == 200
    assert guarded.post(write[0], json=write[1], headers=bearer("reader-key")).status_code == 403
    assert guarded.request("DELETE", write[0], json={"filter": {}}, headers=bearer("reader-key")).status_code == 403
    assert guarded.post(write[0], json=write[1], headers=bearer("writer-key")).status_code == 200
    assert guarded.get("/metrics").status_code == 401
    for path in ("/health", "/ready", "/openapi.json"):
        assert guarded.get(path).status_code == 200


def test_tei_routes_answer_401_in_their_own_shape(guarded) -> None:
    assert set(guarded.post("/embed", json={"inputs": "a"}).json()) == {"error", "error_type"}


SOURCES = ("KEXUE_API_KEY", "KEXUE_API_KEY_READ", "KEXUE_API_KEY_FILE")


@pytest.fixture
def source(monkeypatch, tmp_path):
    """Set a key, as it is written, in one of the places where keys are looked for."""
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)

    def put(name: str, text: str, *, scope: str = "write", mode: int = 0o600) -> str:
        if name != "KEXUE_API_KEY_FILE":
            monkeypatch.setenv(name, text)
            return name
        file = tmp_path / "keys"
        file.unlink(missing_ok=True)
        file.write_bytes(f"{scope}:{text}".encode())
        file.chmod(mode)
        monkeypatch.setenv(name, str(file))
        return str(file)

    return put


def test_keys_come_from_environment_and_file(source) -> None:
    source("KEXUE_API_KEY", "w1")
    source("KEXUE_API_KEY_READ", "r1")
    file = source("KEXUE_API_KEY_FILE", "r2\n# comment\n  # another\n\nwrite:w2\n\n", scope="read")
    wanted = {"w1": "write", "r1": "read", "r2": "read", "w2": "write"}
    assert keys_from_environment() == keys_from_environment(file) == wanted
    assert Settings(models=["x"]).keys == wanted
    assert "w1" not in repr(Settings(models=["x"]))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n", " ", "\t\n", "\n\n"])
@pytest.mark.parametrize("beginning", ["", " "])
def test_what_stands_around_a_key_is_no_part_of_it(source, indexes, name, beginning, ending) -> None:
    source(name, f"{beginning}secret:with=signs/+{ending}")
    [key] = keys_from_environment()
    assert key == "secret:with=signs/+"
    with TestClient(create_app(Settings(indexes=indexes))) as client:
        assert client.get("/v1/indexes", headers=bearer(key)).status_code == 200
        assert client.get("/v1/indexes", headers=bearer("")).status_code == 401


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("text", ["", " ", "\n", "\r\n", "\t", "\u00a0", "\u3000\n"])
def test_a_source_without_a_key_opens_nothing(source, name, text) -> None:
    source(name, text)
    with pytest.raises(DataError, match=r"key .*(empty|holds what a header cannot)") as caught:
        Settings(models=["x"])
    assert caught.value.path is not None


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("text", ["\u043a\u043b\u044e\u0447", "a\x01b", "a\x7f", "caf\xe9"])
def test_keys_that_no_header_holds_are_refused(source, name, text) -> None:
    source(name, text)
    with pytest.raises(DataError, match="printable ASCII") as caught:
        keys_from_environment()
    assert text not in str(caught.value)


@pytest.mark.parametrize("key", ["", " ", "a ", "\n", "caf\xe9", "a\tb"])
def test_settings_take_no_such_key_either(key) -> None:
    with pytest.raises(ValueError, match="API key"):
        Settings(models=["x"], api_keys={key: "write"})


FILES = {
    "nothing": b"",
    "a mark only": b"\xef\xbb\xbf",
    "line ends": b"\n\r\n\n",
    "comments": b"# write:a\n  # keys will follow\n",
    "no scope": b"secret-value\n",
    "no key": b"write:\n",
    "a blank key": b"read: \t\n",
    "another scope": b"admin:secret-value\n",
    "a scope in capitals": b"WRITE:secret-value\n",
    "Latin-1": b"write:caf\xe9\n",
    "one key for two things": b"read:secret-value\nwrite:secret-value\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_files_of_keys_that_are_none(source, tmp_path, content) -> None:
    path = source("KEXUE_API_KEY_FILE", "x")
    (tmp_path / "keys").write_bytes(content)
    for read in (keys_from_environment, lambda: keys_from_environment(path), lambda: Settings(models=["x"])):
        with pytest.raises(DataError) as caught:
            read()
        assert caught.value.path == path
        assert "secret" not in str(caught.value)
        assert caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfwrite:k\n",
        b"write:k\r\n",
        b"write:k\r#\r",
        b"write:k",
        b"\n\nwrite: k \r\n#\n",
        "write:k\n".encode("utf-16"),
    ],
)
def test_files_of_keys_as_editors_write_them(source, tmp_path, content) -> None:
    source("KEXUE_API_KEY_FILE", "x")
    (tmp_path / "keys").write_bytes(content)
    assert keys_from_environment() == {"k": "write"}


def test_an_empty_name_of_a_file_and_a_file_that_is_not_there(monkeypatch, source, tmp_path) -> None:
    monkeypatch.setenv("KEXUE_API_KEY_FILE", "")
    with pytest.raises(DataError, match="set and empty"):
        Settings(models=["x"])
    monkeypatch.setenv("KEXUE_API_KEY_FILE", str(tmp_path / "nosuch"))
    with pytest.raises(FileNotFoundError):
        Settings(models=["x"])


def test_one_key_in_two_places_for_two_things_is_refused(source) -> None:
    source("KEXUE_API_KEY", "same")
    source("KEXUE_API_KEY_READ", "same\n")
    with pytest.raises(DataError, match="twice"):
        keys_from_environment()


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700, 0o440, 0o444, 0o404])
def test_files_of_keys_nobody_else_can_change(source, mode) -> None:
    """0440 is how systemd shows the access list of a credential; 0444 and 0440 are how containers mount secrets."""
    source("KEXUE_API_KEY_FILE", "k", mode=mode)
    assert keys_from_environment() == {"k": "write"}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610, 0o601, 0o620, 0o602, 0o660, 0o666, 0o422, 0o464, 0o777])
def test_files_of_keys_others_may_change_or_need_not_read(source, mode) -> None:
    path = source("KEXUE_API_KEY_FILE", "secret-value", mode=mode)
    with pytest.raises(DataError, match=f"mode {mode:04o}") as caught:
        keys_from_environment()
    assert (caught.value.path, "chmod 600" in str(caught.value)) == (path, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_door_to_the_world_is_refused(host, monkeypatch) -> None:
    for name in ("KEXUE_API_KEY", "KEXUE_API_KEY_READ", "KEXUE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KexueError, match="can be reached from other machines"):
        Settings(models=["x"], host=host)
    assert Settings(models=["x"], host=host, allow_public=True)
    assert Settings(models=["x"], host=host, api_keys={"k": "read"})
    for near in ("127.0.0.1", "localhost", "::1"):
        assert Settings(models=["x"], host=near, api_keys={})


def test_bodies_have_a_limit_declared_or_not(indexes) -> None:
    with TestClient(create_app(Settings(indexes=indexes, api_keys={}, max_body=2000))) as client:
        assert client.post("/v1/search", json={"query": "dog"}).status_code == 200
        big = b'{"query": "' + b"x" * 3000 + b'"}'
        for content in (big, iter([big[:1500], big[1500:]])):  # with and without Content-Length
            answer = client.post("/v1/search", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 413


def test_browsers_are_told_what_is_allowed(client) -> None:
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (
        "access-control-allow-origin" not in client.get("/health", headers={"Origin": "https://evil.example"}).headers
    )


@pytest.mark.parametrize(
    "origin", ["https://good.example/", "good.example", "https://good.example/page", "HTTPS://good.example", "", "null"]
)
def test_an_origin_no_browser_sends_is_refused(origin) -> None:
    with pytest.raises(ValueError, match="cors must hold origins such as"):
        Settings(indexes=["x.kx"], cors=[origin])


@pytest.mark.parametrize("origin", ["*", "https://good.example", "http://localhost:3000", "http://[::1]:8080"])
def test_an_origin_as_browsers_write_it_is_taken(origin) -> None:
    assert Settings(indexes=["x.kx"], cors=[origin]).cors == [origin]


def test_cors_only_where_it_is_wanted(indexes) -> None:
    settings = Settings(indexes=indexes, api_keys=KEYS, cors=["https://good.example"])
    with TestClient(create_app(settings)) as client:
        headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/search", headers=headers).headers["access-control-allow-origin"] == headers["Origin"]
        headers["Origin"] = "https://evil.example"
        assert "access-control-allow-origin" not in client.options("/v1/search", headers=headers).headers


@pytest.mark.parametrize(
    "path", ["/web/../settings.py", "/web/%2e%2e/settings.py", "/v1/indexes/..%2Fplain", "/web/nosuch.js"]
)
def test_paths_lead_nowhere_else(client, path) -> None:
    assert client.get(path).status_code == 404


def test_texts_and_keys_stay_out_of_the_log(indexes, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="kexue.serve")  # the command line quietens it, in other tests too
    for log_texts in (False, True):
        caplog.clear()
        settings = Settings(indexes=indexes, api_keys=KEYS, log_texts=log_texts)
        with TestClient(create_app(settings)) as client:
            client.post("/v1/search", json={"query": "confidential dog"}, headers=bearer("reader-key"))
        ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("kexue"))
        assert ("confidential" in ours) is log_texts
        assert "reader-key" not in caplog.text


def test_strict_servers_refuse_fields_they_do_not_know(indexes) -> None:
    with TestClient(create_app(Settings(indexes=indexes, api_keys={}, strict=True))) as client:
        answer = client.post("/v1/search", json={"query": "dog", "topk": 3})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "topk"


def test_metrics_count_without_naming_users(client) -> None:
    client.post("/v1/search", json={"query": "secret dog"})
    client.get("/v1/indexes/nosuch-user-text")
    client.get("/nosuch-user-text")
    page = client.get("/metrics").text
    for name in (
        "kexue_requests_total", "kexue_request_duration_seconds", "kexue_queue_duration_seconds", "kexue_batch_size",
        "kexue_tokenize_duration_seconds", "kexue_inference_duration_seconds", "kexue_batch_tokens", "kexue_queue_size",
        "kexue_tokens_total", "kexue_index_vectors", "kexue_build_info",
    ):  # fmt: skip
        assert f"\n{name}" in page
    assert "nosuch-user-text" not in page
    assert 'endpoint="/v1/search",outcome="ok"} 1.0' in page
    assert os.sep + "tmp" not in page


@pytest.mark.parametrize("bad", [{"port": 70000}, {"max_queue": 0}, {"indexes": ()}, {"api_keys": {"k": "admin"}}])
def test_bad_settings_are_named(bad) -> None:
    with pytest.raises(ValueError):
        Settings(**{"indexes": ["x.kx"], "api_keys": {}, **bad})
