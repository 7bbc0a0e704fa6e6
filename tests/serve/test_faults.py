"""What happens to a server in a process of its own when something goes wrong around it."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("faiss")

import httpx

from kexue.search import Index

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "service_faults.py"
pytestmark = [
    pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks are not here"),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL"),
]
TEXT = " ".join(["the dog eats"] * 20)  # a pass of its own where a pass has 64 tokens
SLOW = ("--max-batch-tokens", "64")


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    """The benchmark that kills servers."""
    spec = importlib.util.spec_from_file_location("service_faults", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["service_faults"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["service_faults"]


def make(folder: Path, encoder: Any, texts: list[str]) -> Path:
    with Index.create(folder / "plain.kx", encoder) as index:
        index.add(texts, ids=[f"t{i}" for i in range(len(texts))])
    return folder / "plain.kx"


@pytest.fixture(scope="module")
def small(faults, tmp_path_factory, encoder, texts) -> Iterator[SimpleNamespace]:
    """A server whose passes are short and whose queue is full with fifty texts."""
    path = make(tmp_path_factory.mktemp("small"), encoder, texts)
    with faults.server(str(path), *SLOW, "--max-queue", "50") as (process, url):
        yield SimpleNamespace(process=process, url=url, port=int(url.rsplit(":", 1)[1]))


def waiting(url: str) -> int:
    """Texts in the queue."""
    [size] = re.findall(r"^kexue_queue_size\{.*\} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return int(float(size))


def count_encoded(url: str) -> int:
    """Texts in all forward passes so far."""
    sizes = re.findall(r"^kexue_batch_size_sum\{.*\} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return sum(int(float(size)) for size in sizes)  # a server without a pass has no such line


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition; give up after `seconds`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen"
        time.sleep(0.01)


def connect(port: int, body: str, *, cut: int | None = None) -> socket.socket:
    """Send a request for embeddings, or its first characters."""
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"{head}\r\n\r\n{body}"[:cut].encode())
    return connection


def embed(url: str, count: int, answers: list[Any]) -> threading.Thread:
    """Ask for many embeddings in the background."""

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/embeddings", json={"input": [TEXT] * count}, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(faults, tiny_model, tmp_path) -> None:
    found = faults.run(3, str(tiny_model), tmp_path, seed=2)
    assert found.failures == []
    assert found.calls > 0, "the client got to work between the kills"


@pytest.mark.slow
def test_sigterm_lets_requests_under_way_finish(faults, encoder, texts, tmp_path) -> None:
    path = make(tmp_path, encoder, texts)
    answers: list[Any] = []
    with faults.server(str(path), *SLOW, "--max-queue", "100000") as (process, url):
        count = 600  # seconds of work, and fewer than the server waits for
        threads = [embed(url, count, answers) for _ in range(2)]
        until(lambda: waiting(url) > count)  # both are in the queue
        process.send_signal(signal.SIGTERM)
        until(lambda: refuses(url))
        assert process.poll() is None, "it still works on what it has"
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(len(answer.json()["data"]) == count for answer in answers)


def refuses(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 503
    except httpx.TransportError:
        return True


def test_slow_clients_hold_up_nobody(small) -> None:
    body = '{"input": "the dog"}'
    stalled = [connect(small.port, body, cut=cut) for cut in (10, 40, 110, 120) for _ in range(10)]
    trickling = connect(small.port, body, cut=-len(body))
    try:
        for character in body:
            trickling.sendall(character.encode())
            # Answered before the slow requests are complete.
            answer = httpx.post(f"{small.url}/v1/search", json={"query": "the dog runs"}, timeout=60)
            assert answer.status_code == 200
        assert trickling.recv(100).startswith(b"HTTP/1.1 200 OK")
    finally:
        for connection in [*stalled, trickling]:
            connection.close()
    until(lambda: waiting(small.url) == 0)


def test_clients_that_go_away_take_their_work_with_them(small) -> None:
    before = count_encoded(small.url)
    gone = connect(small.port, '{"input": [' + ", ".join([f'"{TEXT}"'] * 2000) + "]}")
    until(lambda: waiting(small.url) > 0)
    gone.close()
    until(lambda: waiting(small.url) == 0)
    assert count_encoded(small.url) - before < 1000, "at least half of the work was dropped"
    assert 'endpoint="/v1/embeddings",outcome="499"' in httpx.get(f"{small.url}/metrics").text


def test_too_much_at_a_time_is_refused_with_a_time_to_come_back(small) -> None:
    answers: list[Any] = []
    thread = embed(small.url, 1500, answers)  # taken, for nobody waits
    until(lambda: waiting(small.url) > 50)
    for path, body in (("/v1/embeddings", {"input": "a"}), ("/embed", {"inputs": "a"}), ("/v1/search", {"query": "a"})):
        answer = httpx.post(small.url + path, json=body)
        assert answer.status_code == 429
        assert re.fullmatch("[1-9][0-9]*", answer.headers["Retry-After"])
    assert httpx.get(f"{small.url}/ready").status_code == 200
    thread.join()
    assert answers[0].status_code == 200
    assert httpx.post(f"{small.url}/embed", json={"inputs": "a"}).status_code == 200


def test_two_servers_of_one_index_agree(faults, encoder, texts, tmp_path) -> None:
    path = make(tmp_path, encoder, texts)
    with faults.server(str(path)) as (_, one), faults.server(str(path)) as (_, two):

        def hits(url: str, query: str) -> list[Any]:
            return faults.ask(f"{url}/v1/search", {"query": query, "top_k": 20})["results"]

        for query in texts[::20]:
            assert hits(one, query) == hits(two, query)
        for number, (writer, reader) in enumerate([(one, two), (two, one)] * 3):
            document = {"id": f"new{number}", "text": f"a bank account and card {number}"}
            faults.ask(f"{writer}/v1/indexes/plain/documents", {"documents": [document]})
            found = hits(reader, document["text"])
            assert document["id"] in [hit["id"] for hit in found], "seen at the next request"
            assert found == hits(writer, document["text"])
            faults.ask(f"{writer}/v1/indexes/plain/documents", {"ids": [document["id"]]}, "DELETE")
            assert document["id"] not in [hit["id"] for hit in hits(reader, document["text"])]


@pytest.mark.parametrize("harm", ["cut short", "overwritten", "no index", "not there"])
def test_a_damaged_index_is_named_at_the_start(encoder, texts, tmp_path, harm) -> None:
    path = make(tmp_path, encoder, texts)
    content = path.read_bytes()
    if harm == "cut short":
        path.write_bytes(content[: len(content) // 3])
    elif harm == "overwritten":
        path.write_bytes(content[:100] + b"\xaa" * 8000 + content[8100:])
    elif harm == "no index":
        path.write_bytes(b"not an index at all")
    else:
        path.unlink()
    program = "import sys; from kexue.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_on_port_0_prints_where_it_listens(encoder, texts, tmp_path) -> None:
    path = make(tmp_path, encoder, texts[:5])
    program = "import sys; from kexue.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(path), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert not url.endswith(":0")
        assert httpx.get(f"{url}/ready", timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_full_disk_is_told_and_leaves_nothing_half_written(client, indexes, texts) -> None:
    path, metrics = "/v1/indexes/plain/documents", client.get("/metrics").text
    served = client.app.state.service.indexes["plain"].index
    before = indexes[0].read_bytes()
    connection = served.store.transactions.connection
    [[pages]] = connection.execute("PRAGMA page_count")
    served.store.transactions.connection.execute(
        f"PRAGMA max_page_count = {pages}"
    )  # SQLite then fails as it does on ENOSPC
    big = [{"id": f"big{n}", "text": f"dog {n} " + "runs " * 4000} for n in range(20)]
    answer = client.post(path, json={"documents": big})
    assert answer.status_code == 507
    assert answer.json()["error"]["message"] == "The disk of the server is full; nothing was written."
    assert client.get("/v1/indexes").json()["indexes"][0]["documents"] == len(texts)
    hits = client.post("/v1/search", json={"query": "dog", "top_k": 1000}).json()["results"]
    assert {hit["id"] for hit in hits} == {f"t{i}" for i in range(len(texts))}
    assert indexes[0].read_bytes() == before
    vectors = 'kexue_index_vectors{model="plain"}'
    assert [line for line in client.get("/metrics").text.splitlines() if vectors in line] == [
        line for line in metrics.splitlines() if vectors in line
    ]
    connection.execute("PRAGMA max_page_count = 100000")
    assert client.post(path, json={"documents": big}).json()["added"] == len(big)
