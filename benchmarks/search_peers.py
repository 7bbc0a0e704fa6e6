"""Known items among Chinese and English texts, beside txtai and Chroma with the same model, in one run.

    python benchmarks/search_peers.py [--quick] [--texts 20000] [--queries 300] [--out FILE]

Half of the texts are Chinese questions about insurance (these need KEXUE_DATA), half are English docstrings of the
standard library; all of them go into one index. A query has one right answer (`_known_items.py`). Every library gets
the same folder of multilingual-e5-small, with its prompts (the others in float32, since the weights are float16), and
works as its documentation says: txtai with its content stored and its own hybrid, Chroma with a persistent client.
MRR counts the first 10 hits and comes with the 95 % interval of a bootstrap over the queries; seconds are those from
the texts to a stored index, and of one query, as ratios to ours. Libraries that are not installed are left out and
named.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from _known_items import KnownItems, read_set
from _shared import write_record
from kexue.search import Index
from kexue.text import Encoder, find_model

K = 10
Search = Callable[[str], list[str]]
Way = Callable[[Path, Path, list[str]], dict[str, Search]]


def index_with_kexue(model: Path, folder: Path, texts: list[str]) -> dict[str, Search]:
    """Index the texts with kexue; search by meaning, and as by default."""
    index = Index.create(folder / "x.kx", Encoder(model))
    index.add(texts, ids=map(str, range(len(texts))))

    def search(mode: Any) -> Search:
        return lambda query: [hit.id for hit in index.search(query, K, mode=mode)[0]]

    return {"kexue dense": search("dense"), "kexue": search("auto")}


def index_with_txtai(model: Path, folder: Path, texts: list[str]) -> dict[str, Search]:
    """Index the texts with txtai; search by meaning (weight 1 of 1), and by its hybrid (equal weights)."""
    from txtai import Embeddings

    instructions = {"query": "query: ", "data": "passage: "}
    index = Embeddings(
        path=str(model), instructions=instructions, content=True, hybrid=True, vectors={"dtype": "float32"}
    )
    index.index((str(at), text, None) for at, text in enumerate(texts))
    index.save(str(folder / "txtai"))

    def search(weights: float | None) -> Search:
        return lambda query: [hit["id"] for hit in index.search(query, K, weights=weights)]

    return {"txtai dense": search(1.0), "txtai hybrid": search(None)}


def index_with_chroma(model: Path, folder: Path, texts: list[str]) -> dict[str, Search]:
    """Index the texts with Chroma; search by meaning."""
    import chromadb
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": "float32"})
    client = chromadb.PersistentClient(str(folder / "chroma"))
    collection = client.create_collection("texts", metadata={"hnsw:space": "cosine"}, embedding_function=None)
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        vectors = encoder.encode(part, prompt_name="document", normalize_embeddings=True, show_progress_bar=False)
        ids = [str(at) for at in range(start, start + len(part))]
        collection.add(ids=ids, documents=part, embeddings=vectors.tolist())

    def search(query: str) -> list[str]:
        vector = encoder.encode([query], prompt_name="query", normalize_embeddings=True, show_progress_bar=False)
        return list(collection.query(query_embeddings=vector.tolist(), n_results=K)["ids"][0])

    return {"chroma dense": search}


WAYS: dict[str, tuple[str, Way]] = {
    "kexue": ("kexue", index_with_kexue),
    "txtai": ("txtai", index_with_txtai),
    "chroma": ("chromadb", index_with_chroma),
}


def mix(sets: Iterable[KnownItems], texts: int, queries: int) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Return texts of all sets in turn, and queries as (language, query, id of the answer)."""
    stored: dict[str, None] = {}
    asked: list[tuple[str, str, str]] = []
    for one in sets:
        wanted = [one.texts[at] for at in one.wanted[:queries]]
        others = (text for text in one.texts if text not in set(wanted))
        stored |= dict.fromkeys(_first(wanted, others, texts))
        asked += [(one.language, *pair) for pair in zip(one.queries[:queries], wanted, strict=True)]
    places = {text: str(at) for at, text in enumerate(stored)}
    return list(stored), [(language, query, places[answer]) for language, query, answer in asked]


def _first(wanted: list[str], others: Iterable[str], n: int) -> Iterator[str]:
    """Yield the wanted texts, then others up to `n`."""
    yield from wanted
    for _, text in zip(range(n - len(wanted)), others, strict=False):
        yield text


def mrr(answers: list[list[str]], wanted: list[str], generator: np.random.Generator) -> dict[str, float]:
    """Return the mean reciprocal rank and its interval."""
    ranks = np.array(
        [1 / (ids.index(one) + 1) if one in ids else 0.0 for ids, one in zip(answers, wanted, strict=True)]
    )
    means = ranks[generator.integers(0, len(ranks), (10_000, len(ranks)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(ranks.mean()), "low": float(low), "high": float(high), "n": len(ranks)}


def measure(way: Way, model: Path, texts: list[str], asked: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Return seconds to index, seconds of a query, and MRR by language, of each kind of search of a library."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        searches = way(model, Path(folder), texts)
        indexing = time.perf_counter() - start
        for name, search in searches.items():
            search(asked[0][1])
            seconds, answers = [], []
            for _, query, _ in asked:
                start = time.perf_counter()
                answers.append(search(query))
                seconds.append(time.perf_counter() - start)
            row: dict[str, Any] = {"index_seconds": indexing, "query_seconds": statistics.median(seconds)}
            for language in dict.fromkeys(one[0] for one in asked):
                some = [at for at, one in enumerate(asked) if one[0] == language]
                wanted = [asked[at][2] for at in some]
                row[f"mrr_{language}"] = mrr([answers[at] for at in some], wanted, np.random.default_rng(0))
            rows[name] = row
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 texts, 20 queries of each language")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=300, help="of each language")
    parser.add_argument("--model", default="multilingual-e5-small")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.texts, args.queries = 400, 20
    data = os.environ.get("KEXUE_DATA")
    names = ["stdlib", *(["faq_zh"] if data else [])]
    sets = [read_set(name, Path(data or "."), args.queries) for name in names]
    texts, asked = mix(sets, args.texts // len(sets), args.queries)
    model, rows, absent = find_model(args.model), {}, []
    for name, (package, way) in WAYS.items():
        if importlib.util.find_spec(package) is None:
            absent.append(name)
            continue
        rows |= measure(way, model, texts, asked)
        print(name, {key: row for key, row in rows.items() if key.startswith(name)}, flush=True)
    ours = rows["kexue"]
    for row in rows.values():
        row["index_ratio"] = row["index_seconds"] / ours["index_seconds"]
        row["query_ratio"] = row["query_seconds"] / ours["query_seconds"]
    for name, row in rows.items():
        scores = ", ".join(f"{key} {row[key]['value']:.3f}" for key in row if key.startswith("mrr"))
        index = f"index {row['index_seconds']:.1f} s ({row['index_ratio']:.2f})"
        print(f"{name}: {scores}; {index}, query ratio {row['query_ratio']:.2f}", flush=True)
    packages = [package for name, (package, _) in WAYS.items() if name != "kexue" and name not in absent]
    write_record(args.out, {"texts": len(texts), "queries": len(asked), "rows": rows, "absent": absent}, *packages)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
