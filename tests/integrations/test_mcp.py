"""The tools of an assistant, through the SDK's own client: over a real process (stdio and HTTP) and in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

pytest.importorskip("mcp")

import anyio
import httpx2
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from kexue.integrations import create_mcp_server
from kexue.search import Index
from kexue.search.answers import answer_queries
from kexue.text import Encoder

# In bfloat16 a different order of summing, as between two processes, moves a score by 4e-4; in float32 by 1e-7.
EXACT = ("--dtype", "float32")
PROGRAM = "import sys; from kexue.cli import main; sys.exit(main())"
LONG = "refund money " * 300
ROWS = [
    ("a", "refund money", {"topic": "shop", "n": 1}),
    ("b", "lost parcel", {"topic": "post", "n": 2}),
    ("c", "new password", {"topic": "shop", "n": 3}),
]


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """A folder with the indexes faq.kx (three texts) and notes.kx (one long text)."""
    folder = tmp_path_factory.mktemp("mcp")
    encoder = Encoder(tiny_model, device="cpu", dtype="float32")
    ids, texts, metadata = zip(*ROWS, strict=True)
    with Index.create(folder / "faq.kx", encoder) as index:
        index.add(texts, ids=ids, metadata=metadata)
        expected = {text: answer_queries(index, [text], 2)[0] for text in texts}
    with Index.create(folder / "notes.kx", encoder) as index:
        index.add([LONG], ids=["long"])
    return folder, expected


@pytest.fixture
def client(folder):
    """Call tools of a server in this process: `client(names, tool, arguments)` is the result."""

    def client(names, tool, arguments):
        indexes = {name: Index.open(folder[0] / f"{name}.kx", readonly=True) for name in names}

        async def call():
            async with Client(create_mcp_server(indexes)) as session:
                return await session.call_tool(tool, arguments)

        try:
            return anyio.run(call)
        finally:
            for index in indexes.values():
                index.close()

    return client


def environment(**more):
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


async def use_every_tool(session, expected):
    """Ask for everything once; the oracle is the index itself."""
    tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    assert set(tools) == {"search", "get", "list"}
    for tool in tools.values():
        assert tool.annotations.read_only_hint
        assert tool.description
        assert tool.output_schema["type"] == "object"
        assert all("description" in one for one in tool.input_schema["properties"].values())
        assert tool.input_schema["properties"]["index"]["enum"] == ["faq", None]
    assert tools["search"].input_schema["required"] == ["query"]
    assert tools["search"].input_schema["properties"]["k"] | {"title": ""} == {
        "title": "", "type": "integer", "default": 5, "minimum": 1, "maximum": 100,
        "description": "Number of documents, 1 to 100.",
    }  # fmt: skip

    for query, record in expected.items():
        answer = (await session.call_tool("search", {"query": query, "k": 2})).structured_content
        assert set(answer) == set(record)
        assert (answer["warnings"], answer["match"]) == (record["warnings"], record["match"])
        for hit, wanted in zip(answer["results"], record["results"], strict=True):
            assert hit == wanted | {"score": pytest.approx(wanted["score"], abs=1e-5)}
        assert answer["results"][0]["document"]["text"] == query
    result = await session.call_tool("search", {"query": "money", "filter": {"topic": "shop", "n": {"ge": 2}}})
    assert [hit["id"] for hit in result.structured_content["results"]] == ["c"]
    assert json.loads(result.content[0].text) == result.structured_content

    got = (await session.call_tool("get", {"ids": ["c", "nope", "a"]})).structured_content
    assert [document["id"] for document in got["documents"]] == ["c", "a"]
    assert got["missing"] == ["nope"]
    page = (await session.call_tool("list", {"limit": 2})).structured_content
    assert [document["id"] for document in page["documents"]] == ["a", "b"]
    assert (page["next"], page["total"]) == ("b", 3)
    page = (await session.call_tool("list", {"limit": 2, "after": "b"})).structured_content
    assert ([document["id"] for document in page["documents"]], page["next"]) == (["c"], None)
    failed = await session.call_tool("search", {"query": "money", "k": 0})
    assert failed.is_error
    assert "k must be between 1 and 100, got 0." in failed.content[0].text


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_over_stdio(folder, mode, tmp_path):
    path, expected = folder
    server = StdioServerParameters(
        command=sys.executable, args=["-c", PROGRAM, "mcp", "faq.kx", *EXACT], env=environment(), cwd=path
    )

    async def run():
        async with Client(server, mode=mode, read_timeout_seconds=120) as session:
            await use_every_tool(session, expected)

    anyio.run(run)


@pytest.mark.slow
def test_stdout_of_stdio_carries_the_protocol_only(folder):
    asked = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": asked}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "mcp", "faq.kx", "-v"],
        input=json.dumps(request) + "\nno JSON\n", capture_output=True, text=True, check=False, cwd=folder[0],
        env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(answer["jsonrpc"] == "2.0" for answer in answers)
    first = next(answer for answer in answers if answer.get("id") == 1)
    assert first["result"]["serverInfo"]["name"] == "kexue"
    assert "faq (3 documents)" in first["result"]["instructions"]
    assert "stdio" in done.stderr


@pytest.fixture
def served(folder):
    """Start `kexue mcp --http` on a free port: `served(key=None)` is its address."""
    running = []

    def served(**more):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "mcp", "faq.kx", "--http", "127.0.0.1:0", "--json", *EXACT],
            stdout=subprocess.PIPE, text=True, cwd=folder[0], env=environment(**more),
        )  # fmt: skip
        running.append(process)
        return json.loads(process.stdout.readline())

    yield served
    for process in running:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


def refusal_of(url, **headers):
    """Send an empty request; return the status with which it is refused."""
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json", **headers})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as error:
        return error.code


@pytest.mark.slow
def test_over_http(folder, served):
    started = served()
    assert started == {"url": started["url"], "indexes": ["faq"], "auth": False}

    async def run():
        async with Client(started["url"], read_timeout_seconds=60) as session:
            await use_every_tool(session, folder[1])

    anyio.run(run)
    assert refusal_of(started["url"], Host="evil.example") == 421
    assert refusal_of(started["url"], Origin="https://evil.example") == 403


@pytest.mark.slow
def test_over_http_with_a_key(folder, served):
    started = served(KEXUE_API_KEY_READ="secret")
    assert started["auth"]
    assert refusal_of(started["url"]) == 401

    async def run():
        async with (
            httpx2.AsyncClient(headers={"Authorization": "Bearer secret"}, timeout=60) as http,
            Client(streamable_http_client(started["url"], http_client=http)) as session,
        ):
            await use_every_tool(session, folder[1])

    anyio.run(run)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("search", {"query": "money"}, "name an index; there are: faq, notes."),
        ("search", {"query": "money", "index": "nope"}, "there is no index 'nope'; there are: faq, notes."),
        ("search", {"query": " ", "index": "faq"}, "is empty"),
        ("search", {"query": "money", "index": "faq", "k": 101}, "k must be between 1 and 100, got 101."),
        (
            "search",
            {"query": "money", "index": "faq", "max_characters": 0},
            "max_characters must be at least 1, got 0.",
        ),
        ("search", {"query": "money", "index": "faq", "filter": {"nope": 1}}, "topic"),
        ("search", {"query": "money", "index": "faq", "filter": {"n": {"above": 1}}}, "above"),
        ("search", {"index": "faq"}, "query"),
        ("get", {"ids": [], "index": "faq"}, "the number of ids must be between 1 and 100, got 0."),
        ("get", {"ids": ["a"], "index": "other"}, "there is no index 'other'"),
        ("list", {"index": "faq", "limit": 1001}, "limit must be between 1 and 1,000, got 1,001."),
        ("add", {"index": "faq", "texts": ["more"]}, "add"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(client, tool, arguments, said):
    result = client(["faq", "notes"], tool, arguments)
    assert result.is_error
    assert said in result.content[0].text


def test_several_indexes_and_a_long_text(client):
    answer = client(["faq", "notes"], "search", {"query": "refund", "index": "notes", "max_characters": 50})
    answer = answer.structured_content
    [hit] = answer["results"]
    assert (hit["index"], hit["document"]["text"]) == ("notes", LONG[:50])
    assert any("1 of the texts" in warning and "50 characters" in warning for warning in answer["warnings"])
    whole = client(["faq", "notes"], "get", {"ids": ["long"], "index": "notes"}).structured_content
    assert whole["documents"][0]["text"] == LONG


def test_a_page_counts_what_matches_and_cuts_long_texts(client):
    page = client(["faq"], "list", {"filter": {"topic": "shop"}, "limit": 1}).structured_content
    assert ([one["id"] for one in page["documents"]], page["next"], page["total"]) == (["a"], "a", 2)
    assert page["warnings"] == []
    page = client(["faq"], "list", {"filter": {"topic": "shop"}, "after": "a"}).structured_content
    assert ([one["id"] for one in page["documents"]], page["next"], page["total"]) == (["c"], None, 2)
    page = client(["notes"], "list", {"max_characters": 50}).structured_content
    assert page["documents"][0]["text"] == LONG[:50]
    assert any("1 of the texts" in warning and "50 characters" in warning for warning in page["warnings"])
    assert client(["notes"], "list", {}).structured_content["documents"][0]["text"] == LONG[:2000]
    assert client(["faq"], "list", {"max_characters": 0}).is_error


def test_passages_are_cut_too(client):
    answer = client(["notes"], "search", {"query": "refund", "max_characters": 50}).structured_content
    [hit] = answer["results"]
    assert len(hit["document"]["text"]) == len(hit["passage"]["text"]) == 50
    assert sum("were cut" in warning for warning in answer["warnings"]) == 1


def test_a_query_that_is_cut_is_told(client):
    answer = client(["faq"], "search", {"query": "money " * 500}).structured_content
    assert any("query was cut" in warning for warning in answer["warnings"])


def test_no_index_is_no_server():
    with pytest.raises(ValueError, match="at least one"):
        create_mcp_server({})


def test_an_encoder_that_is_not_there_is_told(tmp_path):
    with Index.create(tmp_path / "v.kx", None) as index:
        index.add(["red"], vectors=np.eye(1))
        server = create_mcp_server({"v": index})

        async def call():
            async with Client(server) as session:
                return await session.call_tool("search", {"query": "red"})

        result = anyio.run(call)
    assert result.is_error
    assert "does not record how to open its encoder" in result.content[0].text


def test_wrong_usage_of_the_verb(folder, monkeypatch, capsys):
    from kexue.cli import main

    monkeypatch.chdir(folder[0])
    monkeypatch.delenv("KEXUE_API_KEY", raising=False)
    for place in ("127.0.0.1", "8001", "http://127.0.0.1:8001", "127.0.0.1:99999"):
        assert main(["mcp", "faq.kx", "--http", place]) == 2
        assert "HOST:PORT" in capsys.readouterr().err
    assert main(["mcp", "faq.kx", "--http", "0.0.0.0:8001"]) == 1
    assert "no API key is set" in capsys.readouterr().err
    assert main(["mcp", "faq.kx", "faq.kx"]) == 2
    assert "two indexes are named 'faq'" in capsys.readouterr().err
    assert main(["mcp", "nope.kx"]) == 1
    out, err = capsys.readouterr()
    assert "there is no index at" in err
    assert out == ""


def test_an_answer_names_the_index_and_not_its_path(client, folder):
    result = client(["faq", "notes"], "search", {"query": "lost parcel", "index": "faq", "k": 1})
    assert result.structured_content["index"] == "faq"
    assert str(folder[0]) not in json.dumps(result.structured_content)
