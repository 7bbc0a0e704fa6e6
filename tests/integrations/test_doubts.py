"""Every way to ask shows the same doubts: the chance of a hit, whether the match is good, and the warnings."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("mcp")
pytest.importorskip("langchain_core")

from mcp import Client

from kexue.cli import main
from kexue.integrations import KexueVectorStore, create_mcp_server
from kexue.search import Index
from kexue.search.answers import answer_queries
from kexue.text import Encoder

TEXTS = [
    f"the {size} dog {act} {n}" for n in range(10) for size in ("big", "small") for act in ("eats", "runs", "plays")
]
QUERIES = ["xyzzy plugh", "small dog plays 7"]


@pytest.fixture
def index(tiny_model, tmp_path, monkeypatch):
    """An index with an old calibration, so that there is something to doubt."""
    monkeypatch.chdir(tmp_path)
    for name in ("KEXUE_API_KEY", "KEXUE_API_KEY_READ", "KEXUE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    with Index.create("faq.kx", Encoder(tiny_model, device="cpu", dtype="float32")) as index:
        index.add(TEXTS)
        index.calibrate(n=500)
        index.add([f"a cat sleeps {n}" for n in range(30)])
        yield index


def chances(record):
    return [hit["chance"] for hit in record["results"]]


def near(record):
    """The chances of a record, but for one place more or less among the unrelated queries: a rounded score."""
    return pytest.approx(chances(record), abs=1.5 / 150)


@pytest.mark.slow
def test_every_channel_shows_the_same_doubts(index, start_server, capsys, monkeypatch):
    expected = answer_queries(index, QUERIES, k=3)
    assert {record["match"] for record in expected} == {"weak", "good"}
    assert all(any("too old" in sentence for sentence in record["warnings"]) for record in expected)

    def same(record, query):
        [wanted] = [one for one in expected if one["query"] == query]
        assert (record["match"], record["warnings"]) == (wanted["match"], wanted["warnings"])
        assert chances(record) == near(wanted)

    def run(*arguments, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        capsys.readouterr()
        assert main(["search", *arguments, "-k", "3"]) == 0
        return capsys.readouterr()

    served = start_server(indexes=["faq.kx"])
    try:
        for query, wanted in zip(QUERIES, expected, strict=True):
            body = {"query": query, "top_k": 3}
            same(httpx.post(f"{served.url}/v1/search", json=body, timeout=60).raise_for_status().json(), query)
            for place in (["faq.kx"], ["faq", "--server", served.url]):
                same(json.loads(run(*place, query, "--json").out), query)
                shown = run(*place, query)
                rows = list(csv.DictReader(io.StringIO(shown.out), delimiter="\t", quoting=csv.QUOTE_NONE))
                assert [float(row["chance"]) for row in rows] == near(wanted)
                assert {row["match"] for row in rows} == {wanted["match"]}
                assert all(sentence in shown.err for sentence in wanted["warnings"])
                asked = run(*place, "-i", typed=f"{query}\n")
                assert all(sentence in asked.err for sentence in wanted["warnings"])
                assert f"\t{wanted['match']}\t" in asked.out
    finally:
        served.stop()

    with monkeypatch.context() as terminal:
        terminal.setattr("sys.stdout.isatty", lambda: True, raising=False)
        for query, wanted in zip(QUERIES, expected, strict=True):
            table = run("faq.kx", query)
            assert ("no good match" in table.out) == (wanted["match"] == "weak")
            assert [float(one) / 100 for one in re.findall(r"(\d+\.\d)%", table.out)] == near(wanted)
            assert all(sentence in table.err for sentence in wanted["warnings"])

    store = KexueVectorStore(index)

    async def ask(query):
        async with Client(create_mcp_server({"faq": index})) as client:
            return (await client.call_tool("search", {"query": query, "k": 3})).structured_content

    for query in QUERIES:
        same(store.answer(query, k=3), query)
        same(asyncio.run(ask(query)), query)
