"""Every time that is reported is the one the clock shows: a clock that only what is timed moves."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from kexue.search import Index, TransportReranker
from kexue.serve import metrics, models
from kexue.serve.batching import Batcher, EncodingResult
from kexue.serve.models import ServedModel, Timing
from kexue.serve.wire import compute_headers

TOKENIZE, QUEUE, INFERENCE, SEARCH, RERANK = 1.0, 2.0, 4.0, 8.0, 16.0


@pytest.fixture
def clock(fake_clock: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What encodes, searches and reranks moves the clock by a known time; all clocks of the server are this one."""
    clock = fake_clock

    def moved(function: Any, seconds: float) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            clock.now += seconds
            return function(*arguments, **options)

        return timed

    tokenize = ServedModel._tokenize
    monkeypatch.setattr(ServedModel, "_tokenize", moved(tokenize, TOKENIZE))
    submit = Batcher.submit

    async def waited(self: Batcher, sequences: Any) -> EncodingResult:
        found = await submit(self, sequences)
        clock.now += QUEUE + INFERENCE
        return EncodingResult(found.vectors, QUEUE, INFERENCE)

    monkeypatch.setattr(Batcher, "submit", waited)
    monkeypatch.setattr(Index, "search", moved(Index.search, SEARCH))
    monkeypatch.setattr(Index, "encode_queries", moved(Index.encode_queries, TOKENIZE + INFERENCE))
    monkeypatch.setattr(TransportReranker, "rerank", moved(TransportReranker.rerank, RERANK))
    fake = SimpleNamespace(perf_counter=clock.perf_counter, time=time.time)
    for module in (models, metrics):
        monkeypatch.setattr(module, "time", fake)
    for name in ("kexue.search.records.time", "kexue.cli.search.time"):
        monkeypatch.setattr(name, fake)
    return clock


CASES = [
    ({}, 0.0),
    ({"explain": True}, RERANK),
    ({"rerank": "wrd"}, RERANK),
    ({"rerank": "wmd", "explain": True}, RERANK),
]


@pytest.mark.parametrize(("options", "rerank"), CASES, ids=str)
def test_timings_of_a_search(client, clock, options, rerank) -> None:
    answer = client.post("/v1/search", json={"query": "the dog runs", "top_k": 3, **options})
    encode = TOKENIZE + QUEUE + INFERENCE
    total = encode + SEARCH + rerank
    assert answer.json()["timings"] == {"encode": encode, "search": SEARCH, "rerank": rerank, "total": total}
    assert float(answer.headers["x-total-time"]) == 1000 * total
    assert float(answer.headers["x-compute-time"]) == 1000 * (TOKENIZE + INFERENCE)


def test_timings_of_a_search_by_vector(client, clock) -> None:
    answer = client.post("/v1/search", json={"vector": [1.0] * 32})
    assert answer.json()["timings"] == {"encode": 0, "search": SEARCH, "rerank": 0, "total": SEARCH}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/similarity"])
def test_timing_headers(client, clock, path) -> None:
    body = {
        "/v1/embeddings": {"input": "a dog"},
        "/embed": {"inputs": "a dog"},
        "/similarity": {"inputs": {"source_sentence": "a dog", "sentences": ["a cat"]}},
    }[path]
    headers = client.post(path, json=body).headers
    found = {
        name: float(headers[f"x-{name}-time"]) for name in ("tokenization", "queue", "inference", "compute", "total")
    }
    assert found == {
        "tokenization": 1000 * TOKENIZE,
        "queue": 1000 * QUEUE,
        "inference": 1000 * INFERENCE,
        "compute": 1000 * (TOKENIZE + INFERENCE),
        "total": 1000 * (TOKENIZE + QUEUE + INFERENCE),
    }


def test_metrics_are_of_the_same_clock(client, clock) -> None:
    client.post("/embed", json={"inputs": "a dog"})
    page = client.get("/metrics").text
    assert f'kexue_request_duration_seconds_sum{{endpoint="/embed"}} {TOKENIZE + QUEUE + INFERENCE}' in page
    assert f"}} {TOKENIZE}\n" in page[page.index("kexue_tokenize_duration_seconds_sum") :]


def test_headers_of_parts() -> None:
    headers = compute_headers("cpu", Timing(0.001, 0.002, 0.004), 7, 11)
    assert headers == {
        "x-compute-type": "cpu",
        "x-compute-tokens": "7",
        "x-compute-characters": "11",
        "x-compute-time": "5.000",
        "x-tokenization-time": "1.000",
        "x-queue-time": "2.000",
        "x-inference-time": "4.000",
    }


@pytest.mark.parametrize(("options", "rerank"), CASES, ids=str)
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_timings_of_the_command_line(indexes, tiny_model, clock, capsys, monkeypatch, options, rerank, queries) -> None:
    from kexue.cli import main

    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    arguments = ["--rerank", options["rerank"]] if "rerank" in options else []
    arguments += ["--explain"] if "explain" in options else []
    texts = [f"the dog runs {n}" for n in range(queries)]
    assert main(["search", str(indexes[0]), *texts, *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    encode, search = TOKENIZE + INFERENCE, SEARCH
    for line in captured.out.splitlines():
        # One pass and one search for all; a query's part of them, and its own time of being ranked again.
        assert json.loads(line)["timings"] == {
            "encode": pytest.approx(encode / queries),
            "search": pytest.approx(search / queries),
            "rerank": pytest.approx(rerank),
            "total": pytest.approx((encode + search) / queries + rerank),
        }
    assert f"in {1000 * (encode + search + queries * rerank):.0f} ms" in captured.err
