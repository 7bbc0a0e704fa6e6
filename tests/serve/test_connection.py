"""What a client leaves unsaid or unread does not stay for ever."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

import httpx

from kexue.serve import connection
from kexue.serve.limits import MAX_HEAD, MAX_HEADERS

HOST = b"Host: localhost\r\n"
BODY = json.dumps({"input": "the dog eats"}).encode()
HEAD = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
HALVES = {
    "nothing": b"",
    "a line end": b"\r\n",
    "a method": b"GET",
    "a request line": b"GET /health HTTP/1.1\r\n",
    "an address": b"GET /" + b"a" * 1000,
    "a header": b"GET /health HTTP/1.1\r\nHost: loc",
    "headers": b"GET /health HTTP/1.1\r\n" + HOST,
    "no body": WHOLE[: -len(BODY)],
    "half a body": WHOLE[:-5],
    "a body in chunks": HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"inp\r\n',
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{",
    "a body nobody reads": HEAD.replace(b"/v1/embeddings", b"/nosuch") + b"Content-Length: 99\r\n\r\n{",
    "a body that waits": HEAD + b"Content-Length: 99\r\nExpect: 100-continue\r\n\r\n",
    "half of a second request": WHOLE + b"GET /hea",
    "half a body of a second request": WHOLE + WHOLE[:-5],
}


@pytest.fixture
def hurried(monkeypatch, listen, indexes):
    """A server whose patience is measured in tenths of seconds."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "UNREAD_SECONDS"):
        monkeypatch.setattr(connection, name, 0.3)
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.05)
    return listen(indexes=indexes)


@contextlib.contextmanager
def connect(server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        yield client


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            read += piece
    return read


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_a_request_is_given_up(hurried, half) -> None:
    with connect(hurried) as client:
        client.sendall(half)
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200") == half.count(BODY)
    assert answers.count(b"HTTP/1.1 404") == half.count(b"/nosuch")


@pytest.mark.parametrize("half", [HALVES["headers"], HEAD + b"Content-Length: 999999\r\n\r\n"])
def test_a_byte_now_and_then_does_not_help(hurried, monkeypatch, half) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(connection, "BODY_RATE", 10**9)
    done = threading.Event()
    with connect(hurried) as client:
        client.sendall(half)

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not done.wait(0.02):
                    client.sendall(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        assert b"200" not in read_all(client)
        done.set()
        thread.join()


def test_a_slow_answer_is_waited_for(hurried, monkeypatch) -> None:
    """The clock is for the client: a request that is there as a whole may take the server any time."""
    service = hurried.app.state.service
    release = threading.Event()
    search = service.indexes["plain"].index.search
    monkeypatch.setattr(service.indexes["plain"].index, "search", lambda *a, **k: release.wait(30) and search(*a, **k))
    body = json.dumps({"query": "dog"}).encode()
    head = HEAD.replace(b"/v1/embeddings", b"/v1/search") + b"Content-Length: %d\r\n\r\n" % len(body)
    with connect(hurried) as client, connect(hurried) as other:
        client.sendall(head + body + WHOLE[:-1])  # a second one that the server itself keeps from coming
        other.sendall(b"GET")
        read_all(other)  # several times the patience of the server
        client.sendall(WHOLE[-1:])
        release.set()
        answers = client.makefile("rb")
        assert answers.readline().split()[1] == b"200"


def test_an_answer_nobody_reads_is_given_up(hurried) -> None:
    many = json.dumps({"input": ["the dog eats"] * 2048}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(many) + many
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", hurried.port))
    try:
        client.sendall(request * 12)  # answers of some megabytes, more than the system keeps
        assert client.recv(1) == b"H"
        state = hurried.server.server_state
        for _ in range(600):
            if not any(
                one.transport.get_extra_info("peername") == client.getsockname() for one in list(state.connections)
            ):
                break
            threading.Event().wait(0.05)
        else:
            raise AssertionError("the connection is still held")
    finally:
        client.close()


def test_connections_beyond_the_limit_are_turned_away(hurried, monkeypatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 30)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            one = stack.enter_context(connect(hurried))
            one.sendall(WHOLE)
            assert one.recv(12) == b"HTTP/1.1 200"
        beyond = read_all(stack.enter_context(connect(hurried)))
        assert beyond.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in beyond
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 100)
    assert httpx.get(f"{hurried.url}/health").status_code == 200


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
ENDLESS = {
    "address": (b"GET /", b"a" * 4096),
    "query": (b"GET /?", b"a" * 4096),
    "value": (b"GET / HTTP/1.1\r\nx-a: ", b"a" * 4096),
    "name": (b"GET / HTTP/1.1\r\n", b"a" * 4096),
    "headers": (b"GET / HTTP/1.1\r\n", b"x-a: b\r\n" * 512),
    "a header after the body": (CHUNKED + b"x-a: ", b"a" * 4096),
    "headers after the body": (CHUNKED, b"x-a: b\r\n" * 512),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_the_parser_keeps_has_an_end(hurried, monkeypatch, kind) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 60)  # it is the size that ends it
    monkeypatch.setattr(connection, "BODY_SECONDS", 60)
    start, piece = ENDLESS[kind]
    sent = 0
    with connect(hurried) as client, contextlib.suppress(OSError):
        client.sendall(start)
        for _ in range(20_000):  # 80 MB
            client.sendall(piece)
            sent += len(piece)
    assert sent < 20 * 2**20, "what the system keeps on the way, and no more"


def test_headers_after_a_body_are_none_of_the_request(hurried) -> None:
    with connect(hurried) as client:
        client.sendall(CHUNKED + b"Host: evil.example\r\n\r\n" + WHOLE.replace(b"Host", b"Connection: close\r\nHost"))
        assert read_all(client).count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\n" + HOST, b"414"),
        (b"GET /?" + b"a" * MAX_HEAD + b" HTTP/1.1\r\n" + HOST, b"414"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"x-a: " + b"a" * MAX_HEAD + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"x-a: b\r\n" * MAX_HEADERS, b"431"),
    ],
)
def test_a_head_that_is_too_large_is_told_so(hurried, head, status) -> None:
    with connect(hurried) as client:
        client.sendall(head + b"Connection: close\r\n\r\n")
        assert read_all(client).split()[1] == status


def test_usual_clients_notice_nothing(hurried) -> None:
    with httpx.Client(base_url=hurried.url) as client:
        for _ in range(3):
            assert client.post("/v1/embeddings", json={"input": ["the dog eats"] * 100}).status_code == 200
        assert client.post("/v1/embeddings", json={"input": "the dog eats " * 100_000}).status_code == 200
    with connect(hurried) as client:
        client.sendall(WHOLE * 4 + WHOLE.replace(b"Host", b"Connection: close\r\nHost"))
        assert read_all(client).count(b"HTTP/1.1 200") == 5
