"""`Index.search` beside the bare engine and brute force, in one run.

    python benchmarks/search.py [--quick] [--documents 10000] [--out FILE]

Three ways take turns on the same queries, so that the machine's moods fall on all of them alike:
the index; FAISS on the same vectors (after encoding, where queries are texts); numpy. Figures are medians; `overhead`
is the median of index / bare - 1. The goal: one text query in 10,000 documents costs at most 10 % more than encoding
and the bare engine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _shared import take_turns, write_record
from kexue.search import Index

GOAL = 0.10
QUESTIONS = """how long does a refund take
where is my order right now
how do I change the password of my account
can I pay the bill by bank transfer
do you ship books to other countries
how to open a file and read its lines
what is the difference between a list and a tuple
sort a dictionary by its values""".splitlines()


def compare(label: str, ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Time the ways, print and return the figures; the first is ours, the second the one it is held against."""
    seconds = take_turns(ways, rounds, warmup=2)
    ours, bare = list(ways)[:2]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    overhead = statistics.median(a / b for a, b in zip(seconds[ours], seconds[bare], strict=True)) - 1
    shown = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in medians.items())
    print(f"{label}: {shown}; overhead {100 * overhead:+.1f} %", flush=True)
    return {"label": label, "rounds": rounds, "median_seconds": medians, "overhead": overhead}


def brute(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """The best `k` rows for each query, by one matrix product."""
    scores = queries @ vectors.T
    some = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return np.take_along_axis(some, np.argsort(-np.take_along_axis(scores, some, 1), axis=1), 1)


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--model", default="auto", help="encoder of the text queries")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    import faiss

    from kexue.text import Encoder

    rounds, k = (20 if arguments.quick else 300), 10
    encoder = Encoder(arguments.model)
    n, dim = arguments.documents, encoder.dim
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"document {i}: " + "what it says goes on for a line or two, as documents do. " * 2 for i in range(n)]
    bare = faiss.IndexFlatIP(dim)
    bare.add(vectors)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder, "bench.kx"), encoder) as index:
        metadata = [{"lang": ("en", "de", "zh")[i % 3], "year": 2000 + i % 25} for i in range(n)]
        index.add(texts, vectors=vectors, metadata=metadata)
        print(f"{n} documents x {dim}, k = {k}, encoder {encoder.model_id}")
        turn = iter(range(1 << 40))

        def question() -> str:
            return QUESTIONS[next(turn) // 2 % len(QUESTIONS)]

        ways: dict[str, Callable[[], object]] = {
            "index": lambda: index.search(question(), k),
            "encode + faiss": lambda: bare.search(encoder.encode([question()]), k),
        }
        rows.append(compare("one text", ways, rounds))
        goal_met = rows[0]["overhead"] <= GOAL
        for m in (1, 100):
            queries = generator.standard_normal((m, dim), dtype=np.float32)
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            ways = {
                "index": lambda queries=queries: index.search(queries, k),
                "faiss": lambda queries=queries: bare.search(queries, k),
                "numpy": lambda queries=queries: brute(queries, vectors, k),
            }
            found = [[texts.index(hit.text) for hit in hits] for hits in index.search(queries[:2], k)]
            assert found == bare.search(queries[:2], k)[1].tolist() == brute(queries[:2], vectors, k).tolist()
            rows.append(compare(f"{m} vector{'s' * (m > 1)}", ways, rounds if m == 1 else max(5, rounds // 10)))
        wanted = {"lang": "zh", "year": {"ge": 2010}}
        places = np.array([i for i, one in enumerate(metadata) if one["lang"] == "zh" and one["year"] >= 2010])
        sub = faiss.IndexFlatIP(dim)
        sub.add(vectors[places])
        query = queries[:1]
        ways = {
            "index": lambda: index.search(query, k, filter=wanted),
            "faiss on the matching ones": lambda: sub.search(query, k),
        }
        rows.append(compare("one vector, filtered", ways, rounds))
    print(f"goal of at most {GOAL:.0%} over encoding and the bare engine: {'met' if goal_met else 'MISSED'}")
    record = {
        "rows": rows,
        "goal": GOAL,
        "goal_met": goal_met,
        "documents": n,
        "dims": dim,
        "k": k,
    }
    write_record(arguments.out, record, "faiss-cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
