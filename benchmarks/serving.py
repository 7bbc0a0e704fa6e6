"""The server beside a plain FastAPI + sentence-transformers endpoint, under load, and searching a large index.

    python benchmarks/serving.py [--quick] [--seconds 20] [--long 60] [--documents 100000] [--out FILE]

Throughput: 32 clients, each with one sentence at a time, against `/v1/embeddings` of both, by turns; goal 1.5 times.
Load: 200 clients of one to four sentences for a minute against a queue of 64: nothing but 200 and 429 with Retry-After,
every answer the vectors of its own sentences, memory flat after warm-up. Search: the server's own time of a search by
vector, beside the bare index; goals p99 <= 10 ms and +15 %.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from _shared import write_record
from kexue.demo.docstrings import standard_library
from kexue.search import Index
from kexue.text import Encoder, find_model

OURS = "import sys; from kexue.cli import main; sys.exit(main(sys.argv[1:]))"
PEER = """
import sys, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
model, app = SentenceTransformer(sys.argv[1], device="cpu"), FastAPI()
class Request(BaseModel):
    input: list[str] | str
    encoding_format: str = "float"
@app.get("/ready")
def ready(): return {}
@app.post("/v1/embeddings")
def embed(request: Request):
    texts = [request.input] if isinstance(request.input, str) else request.input
    rows = model.encode(texts, normalize_embeddings=True).tolist()
    return {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


class Server:
    """A process that listens on a free port until the block ends."""

    def __init__(self, command: Callable[[int], list[str]], **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            command(self.port), env={**os.environ, **environment}, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> Server:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready")
            except OSError:
                time.sleep(0.1)
            else:
                return self
        raise RuntimeError("the server did not start")

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(40)

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


def kexue(*arguments: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, "-c", OURS, "serve", *arguments, "--port", str(port)]


class Client:
    """One connection that is kept, and as little of HTTP as it takes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: Any = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()


async def crowd(port: int, clients: int, seconds: float, act: Callable[[Client, int], Awaitable[None]]) -> list[float]:
    """Let clients act again and again; the seconds of every act."""
    end, times = time.perf_counter() + seconds, []

    async def one(number: int) -> None:
        client = Client(port)
        try:
            while (start := time.perf_counter()) < end:
                await act(client, number)
                times.append(time.perf_counter() - start)
        finally:
            client.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return times


def sentences() -> list[str]:
    """Short sentences of the standard library."""
    found = (entry.text.partition(": ")[2].split(". ")[0] for entry in standard_library())
    return [text for text in dict.fromkeys(found) if 4 <= len(text.split()) <= 20]


def throughput(seconds: float, rounds: int) -> dict[str, Any]:
    texts, model = sentences(), str(find_model("auto"))
    turn = itertools.count()

    async def act(client: Client, _: int) -> None:
        body = {"input": texts[next(turn) % len(texts)], "encoding_format": "float"}
        status, _, _ = await client.post("/v1/embeddings", body)
        assert status == 200, status

    found: dict[str, list[list[float]]] = {"kexue": [], "plain": []}
    with (
        Server(kexue("--models", model)) as ours,
        Server(lambda port: [sys.executable, "-c", PEER, model, str(port)]) as peer,
    ):
        servers = {"kexue": ours, "plain": peer}
        for server in servers.values():
            asyncio.run(crowd(server.port, 32, 2, act))
        for number in range(rounds):
            for name in list(servers)[:: 1 if number % 2 else -1]:
                found[name].append(asyncio.run(crowd(servers[name].port, 32, seconds, act)))
    record: dict[str, Any] = {}
    for name, runs in found.items():
        rates = [len(times) / seconds for times in runs]
        every = sorted(itertools.chain.from_iterable(runs))
        record[name] = {
            "requests_per_second": statistics.median(rates),
            "p50_ms": 1000 * every[len(every) // 2],
            "p99_ms": 1000 * every[int(0.99 * len(every))],
        }
        print(
            f"{name}: {record[name]['requests_per_second']:.0f} requests/s, p50 {record[name]['p50_ms']:.0f} ms, "
            f"p99 {record[name]['p99_ms']:.0f} ms",
            flush=True,
        )
    record["ratio"] = record["kexue"]["requests_per_second"] / record["plain"]["requests_per_second"]
    print(f"{record['ratio']:.2f} times; goal 1.5 {'met' if record['ratio'] >= 1.5 else 'MISSED'}", flush=True)
    return record


def load(seconds: float) -> dict[str, Any]:
    texts = sentences()[:500]
    expected = Encoder().encode(texts)
    random = np.random.default_rng(0)
    counts = {"answered": 0, "refused": 0, "wrong": 0, "errors": 0}

    async def act(client: Client, _: int) -> None:
        rows = random.integers(len(texts), size=random.integers(1, 5))
        body = {"input": [texts[row] for row in rows], "encoding_format": "base64"}
        status, headers, data = await client.post("/v1/embeddings", body)
        if status == 429 and int(headers["retry-after"]) >= 1:
            counts["refused"] += 1
            await asyncio.sleep(0.2)
            return
        if status != 200:
            counts["errors"] += 1
            return
        vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in json.loads(data)["data"]]
        cosines = (np.array(vectors) * expected[rows]).sum(axis=1)
        counts["wrong" if cosines.min() < 0.99 else "answered"] += 1

    memory: list[int] = []
    with Server(kexue("--models", "auto", "--max-queue", "64")) as server:

        async def watched() -> list[float]:
            async def watch() -> None:
                while True:
                    memory.append(server.memory())
                    await asyncio.sleep(1)

            watcher = asyncio.create_task(watch())
            times = await crowd(server.port, 200, seconds, act)
            watcher.cancel()
            return times

        asyncio.run(watched())
    third = max(1, len(memory) // 3)
    growth = max(memory[-third:]) / max(memory[third : 2 * third]) - 1 if len(memory) > 3 else 0.0
    record = {**counts, "seconds": seconds, "memory_growth": growth, "memory_bytes": memory[-1]}
    good = not counts["errors"] and not counts["wrong"] and abs(growth) <= 0.05
    print(
        f"200 clients, {seconds:.0f} s: {counts}, memory {growth:+.1%}; goal {'met' if good else 'MISSED'}", flush=True
    )
    return record


def search(documents: int, queries: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.kx")
        encoder = Encoder()
        from kexue.similarity import Whitening

        directions = np.linalg.qr(random.standard_normal((encoder.dim, encoder.dim)))[0].astype(np.float32)
        vectors = random.standard_normal((documents, encoder.dim)).astype(np.float32) @ directions
        with Index.create(path, encoder, whitening=Whitening.preset("pca", 128)) as index:
            texts = [f"document {i} of many" for i in range(documents)]
            index.add(texts, vectors=vectors)
        asked = random.standard_normal((queries, encoder.dim)).astype(np.float32)
        bare, served = [], []
        with Index.open(path, readonly=True) as index, Server(kexue(str(path))) as server:

            async def ask() -> None:
                client = Client(server.port)
                for number, query in enumerate(asked):
                    body = {"vector": query.tolist(), "top_k": 10}
                    start = time.perf_counter()
                    index.search(query[None], k=10)
                    between = time.perf_counter()
                    status, headers, _ = await client.post("/v1/search", body)
                    assert status == 200, status
                    if number >= 20:
                        bare.append(1000 * (between - start))
                        served.append(float(headers["x-total-time"]))
                client.close()

            asyncio.run(ask())
    record = {
        "documents": documents,
        "bare_ms": statistics.median(bare),
        "served_ms": statistics.median(served),
        "served_p99_ms": sorted(served)[int(0.99 * len(served))],
    }
    record["overhead"] = record["served_ms"] / record["bare_ms"] - 1
    good = record["served_p99_ms"] <= 10 and record["overhead"] <= 0.15
    print(
        f"search in {documents:,}: server {record['served_ms']:.2f} ms (p99 {record['served_p99_ms']:.2f}), bare index "
        f"{record['bare_ms']:.2f} ms: {record['overhead']:+.0%}; goal {'met' if good else 'MISSED'}",
        flush=True,
    )
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=float, default=60)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--only", choices=["throughput", "load", "search"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds, arguments.long, arguments.documents = 2, 1, 4, 5_000
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(arguments.seconds, arguments.rounds),
        "load": lambda: load(arguments.long),
        "search": lambda: search(arguments.documents, 100 if arguments.quick else 1000),
    }
    record = {name: part() for name, part in parts.items() if arguments.only in (None, name)}
    write_record(arguments.out, record, "fastapi", "uvicorn", "sentence-transformers", "torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
