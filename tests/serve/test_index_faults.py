"""An index that is damaged, replaced or not to be written is named as the cause; no client is blamed for it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from kexue.errors import DiskFullError, IndexFormatError
from kexue.search import Index, IndexBusyError, IndexReadOnlyError, IndexReplacedError
from kexue.search.store.sqlite.wal import SNAPSHOTS
from kexue.serve import Settings, create_app
from kexue.serve.errors import to_api_error

DOCUMENTS = "/v1/indexes/plain/documents"
WRITES = [
    ("POST", DOCUMENTS, {"documents": [{"id": "t3", "text": "another text"}]}),
    ("DELETE", DOCUMENTS, {"ids": ["t3"]}),
    ("DELETE", DOCUMENTS, {"filter": {"n": 3}}),
]
READS = [
    ("POST", "/v1/search", {"query": "dog", "top_k": 200}),
    ("POST", "/v1/search", {"query": "dog", "top_k": 200, "filter": {"n": {"ge": 0}}}),
    ("POST", "/v1/search", {"query": "dog", "top_k": 200, "explain": True}),
    ("POST", "/v1/search", {"query": "dog", "top_k": 200, "rerank": "wrd"}),
    ("POST", "/v1/search", {"vector": [0.5] * 32, "top_k": 200, "dehub": "csls"}),
    ("GET", "/v1/indexes/plain/map", None),
    ("GET", "/v1/indexes/plain/whitening", None),
    ("GET", "/v1/hubness", None),
]
LOOKS = [
    ("GET", "/v1/indexes", None),
    ("GET", "/v1/indexes/plain", None),
    ("POST", "/v1/compare", {"texts": ["dog", "cat"]}),
]
ROWS = {
    "a vector cut short": "UPDATE vectors SET vector = x'0102030405' WHERE key = 4",
    "a vector that is text": "UPDATE vectors SET vector = 'abc' WHERE key = 4",
    "a vector changed": "UPDATE vectors SET vector = zeroblob(length(vector)) WHERE key = 4",
    "a text changed": "UPDATE documents SET text = 'another' WHERE key = 4",
    "a text that is bytes": "UPDATE documents SET text = x'ff00fe' WHERE key = 4",
    "a text not UTF-8": "UPDATE documents SET text = CAST(x'ff41' AS TEXT) WHERE key = 4",
    "metadata that is no JSON": "UPDATE documents SET metadata = '{' WHERE key = 4",
    "metadata that is a list": "UPDATE documents SET metadata = '[1]' WHERE key = 4",
    "an id changed": "UPDATE documents SET id = 'xx' WHERE key = 4",
}
META = ("calibration", "space", "model", "whitening", "approx")


def ask(client: TestClient, method: str, path: str, body: object):
    return client.request(method, path, json=body) if body is not None else client.request(method, path)


def spoil(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    for ending in SNAPSHOTS:
        Path(f"{path}{ending}").unlink(missing_ok=True)


@pytest.fixture
def plain(indexes) -> Path:
    return indexes[0]


def serve(path: Path, **options: object) -> TestClient:
    app = create_app(Settings(indexes=[path], api_keys={}, **options))  # type: ignore[arg-type]
    return TestClient(app, raise_server_exceptions=False)


def check_blame(answer, status: int, path: Path) -> None:
    """The answer has this status and names the index, by its name and not by its place."""
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()["error"]
    assert "plain" in error["message"]
    assert str(path.parent) not in answer.text
    assert error["type"] == ("server_error" if status >= 500 else "permission_error")


@pytest.mark.parametrize("statement", ROWS.values(), ids=ROWS)
def test_a_damaged_row_is_the_fault_of_the_index(plain, statement) -> None:
    spoil(plain, statement)
    with serve(plain) as client:
        for method, path, body in READS:
            check_blame(ask(client, method, path, body), 500, plain)
        for method, path, body in LOOKS:
            assert ask(client, method, path, body).status_code == 200
        for method, path, body in WRITES:
            answer = ask(client, method, path, body)
            if answer.status_code != 200:  # writes that do not look at the row are done
                check_blame(answer, 500, plain)


@pytest.mark.parametrize("name", META)
def test_a_damaged_record_is_found_at_the_start_or_named(plain, name) -> None:
    with serve(plain) as client:
        assert client.post("/v1/search", json={"query": "dog"}).status_code == 200
        spoil(plain, f"UPDATE meta SET value = 'garbage' WHERE key = '{name}'")
        for method, path, body in READS:
            check_blame(ask(client, method, path, body), 500, plain)
    with pytest.raises(IndexFormatError, match=name), serve(plain):
        pass


def test_a_damaged_file_below_a_link_is_named_by_its_name(plain, tmp_path) -> None:
    spoil(plain, ROWS["a text changed"])
    place = tmp_path / "elsewhere" / "stored.kx"
    place.parent.mkdir()
    shutil.move(plain, place)
    plain.symlink_to(place)
    with serve(plain) as client:
        check_blame(client.post("/v1/search", json={"query": "dog", "top_k": 200}), 500, place)


@pytest.mark.parametrize("how", ["replaced", "deleted", "moved"])
def test_what_is_written_does_not_go_to_a_file_that_is_gone(plain, tmp_path, encoder, how) -> None:
    with serve(plain) as client:
        assert client.post("/v1/search", json={"query": "dog"}).status_code == 200
        if how == "deleted":
            plain.unlink()
        else:
            os.replace(plain, tmp_path / "old.kx")
        if how == "replaced":
            with Index.create(tmp_path / "new.kx", encoder) as index:
                index.add(["only this"], ids=["one"])
            os.replace(tmp_path / "new.kx", plain)
        for method, path, body in WRITES + READS:
            check_blame(ask(client, method, path, body), 503, plain)
    if how == "replaced":
        with Index.open(plain, readonly=True) as index:
            assert [document.id for document in index.get(["one", "t3"])] == ["one"]


@pytest.mark.parametrize("how", ["asked for", "the system"])
def test_an_index_that_cannot_be_written_is_read(plain, monkeypatch, how) -> None:
    before = plain.read_bytes()
    options = {"readonly": True} if how == "asked for" else {}
    if how == "the system":
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    with serve(plain, **options) as client:
        for method, path, body in READS + LOOKS:
            assert ask(client, method, path, body).status_code == 200, path
        for method, path, body in WRITES:
            answer = ask(client, method, path, body)
            assert answer.status_code == 403
            said = answer.json()["error"]["message"]
            assert ("--readonly" if how == "asked for" else "'plain' is served for reading only") in said
        assert client.get("/ready").status_code == 200
    assert plain.read_bytes() == before


def test_readonly_servers_ask_for_the_key_first(plain) -> None:
    app = create_app(Settings(indexes=[plain], api_keys={"r": "read", "w": "write"}, readonly=True))
    with TestClient(app) as client:
        for headers, status in (({}, 401), ({"Authorization": "Bearer r"}, 403), ({"Authorization": "Bearer w"}, 403)):
            assert client.post(DOCUMENTS, json=WRITES[0][2], headers=headers).status_code == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (IndexFormatError("x is damaged."), 500),
        (sqlite3.DatabaseError("malformed"), 500),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), 500),
        (IndexReplacedError("x is gone."), 503),
        (IndexReadOnlyError("x cannot be written."), 403),
        (IndexBusyError("x is held."), 429),
        (DiskFullError("x", needed=1, free=0), 507),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_the_store_as_answers(error, status) -> None:
    assert to_api_error(error).status == status


def test_device_and_dtype_reach_the_models(plain, tiny_model) -> None:
    with serve(plain, models=[f"other={tiny_model}"], device="cpu", dtype="bfloat16") as client:
        models = client.app.state.service.models
        assert {model.encoder.dtype for model in models.values()} == {"bfloat16"}
        assert {model.encoder.device.type for model in models.values()} == {"cpu"}
    with pytest.raises(ValueError, match="dtype"), serve(plain, dtype="int3"):
        pass
