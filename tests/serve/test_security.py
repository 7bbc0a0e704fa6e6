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


def test_keys_come_from_environment_and_file(monkeypatch, tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\nread:r2\nwrite:w2\n\n")
    file.chmod(0o600)
    monkeypatch.setenv("KEXUE_API_KEY", "w1")
    monkeypatch.setenv("KEXUE_API_KEY_READ", "r1")
    monkeypatch.setenv("KEXUE_API_KEY_FILE", str(file))
    assert keys_from_environment() == {"w1": "write", "r1": "read", "r2": "read", "w2": "write"}
    file.chmod(0o644)
    with pytest.raises(DataError, match="others can read"):
        keys_from_environment()
    file.chmod(0o600)
    file.write_text("admin:secret-value\n")
    with pytest.raises(DataError, match="line 1") as caught:
        keys_from_environment()
    assert "secret-value" not in str(caught.value)
    assert "secret" not in repr(Settings(models=["x"], api_keys={"secret": "read"}))


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
