"""What `dehub` and `rerank` do to the order of answers, and what they cost: the figures the defaults were chosen by.

    python benchmarks/orderings.py [--quick] [--queries 300] [--out FILE]

Tasks: known-item search in the standard library's docstrings (queries of a seed used nowhere else); where KEXUE_DATA
names a data folder, finding the other half of a judged pair, in English (STS-B, packaged encoder) and in Chinese
(LCQMC, vectors of single characters). Every way answers the same queries of the same index; time is a query's median.
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from _shared import write_record
from kexue.demo.docstrings import standard_library
from kexue.demo.run import known_item_queries
from kexue.search import Index
from kexue.similarity import Whitening, known_item, load_pairs
from kexue.text import Encoder

SEED = 7
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rerank wrd": {"rerank": "wrd"},
    "rerank wmd": {"rerank": "wmd"},
}


class Characters:
    """Mean of the vectors of a text's characters."""

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            next(lines)
            rows = (line.rstrip("\n").split(" ") for line in lines)
            self.table = {row[0]: np.array(row[1:], np.float32) for row in rows if len(row[0]) == 1}
        self.dim = len(next(iter(self.table.values())))

    def encode_tokens(self, texts: list[str]) -> list[Any]:
        found = []
        for text in texts:
            places = [i for i, character in enumerate(text) if character in self.table]
            vectors = np.array([self.table[text[i]] for i in places], np.float32).reshape(-1, self.dim)
            found.append(SimpleNamespace(offsets=[(i, i + 1) for i in places], vectors=vectors))
        return found

    def encode(self, texts: list[str]) -> np.ndarray:
        means = [
            one.vectors.mean(axis=0) if len(one.vectors) else np.zeros(self.dim) for one in self.encode_tokens(texts)
        ]
        return np.array(means, np.float32)


def stdlib() -> tuple[list[str], list[str], list[str]]:
    """Documents, queries, and the text each must find."""
    entries = standard_library()
    queries, wanted = known_item_queries(entries, generator=np.random.default_rng(SEED))
    text = {entry.name: entry.text for entry in entries}
    return list(text.values()), queries, [text[name] for name in wanted]


def halves(name: str, least: float) -> tuple[list[str], list[str], list[str]]:
    """The same from judged pairs: the second texts are the documents, the first of good pairs the queries."""
    pairs = load_pairs(name)
    kept: dict[str, str] = {}
    for a, b, label in zip(pairs.texts_a, pairs.texts_b, pairs.labels, strict=True):
        if label >= least and a != b:
            kept.setdefault(a, b)
    return list(dict.fromkeys(pairs.texts_b)), list(kept), list(kept.values())


def measure(index: Index, queries: list[str], wanted: list[str], options: dict[str, Any]) -> dict[str, float]:
    ranks, seconds = [], []
    for query, right in zip(queries, wanted, strict=True):
        start = time.perf_counter()
        [hits] = index.search(query, k=10, **options)
        seconds.append(time.perf_counter() - start)
        texts = [hit.text for hit in hits]
        ranks.append(texts.index(right) + 1 if right in texts else np.inf)
    return {"mrr": float(known_item(np.array(ranks), k=10)["mrr"]), "ms": 1000 * statistics.median(seconds)}


def task(encoder: Any, documents: list[str], queries: list[str], wanted: list[str], most: int) -> list[dict[str, Any]]:
    chosen = np.random.default_rng(SEED).permutation(len(queries))[:most]
    queries, wanted = [queries[i] for i in chosen], [wanted[i] for i in chosen]
    vectors = encoder.encode(documents)
    rows = []
    for whitening in (None, "pca"):
        for dehub in (None, "csls", "center"):
            if dehub == "center" and whitening:  # it centres already
                continue
            chosen_map = Whitening.preset("pca", 128) if whitening else None
            with (
                tempfile.TemporaryDirectory() as folder,
                Index.create(f"{folder}/i.kx", encoder, whitening=chosen_map, dehub=dehub) as index,
            ):
                index.add(documents, vectors=vectors)
                skewness = index.hubness(10).k_skewness
                for way, options in WAYS.items():
                    found = measure(index, queries, wanted, options)
                    rows.append({"whitening": whitening, "dehub": dehub, "way": way, "skewness": skewness, **found})
                    print(
                        f"  {whitening or 'raw':4} dehub {dehub or 'none':7} {way:11} MRR@10 {found['mrr']:.3f}  "
                        f"{found['ms']:6.1f} ms  skewness {skewness:.2f}",
                        flush=True,
                    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    most = 10 if arguments.quick else arguments.queries
    encoder = Encoder()
    tasks: dict[str, Any] = {"standard library, known item": (encoder, *stdlib())}
    if os.environ.get("KEXUE_DATA"):
        table = Path(os.environ["KEXUE_DATA"], "vectors_zh", "tencent_char_200d.txt.gz")
        tasks["STS-B English, other half"] = (encoder, *halves("stsb_en", 4))
        tasks["LCQMC Chinese, other half"] = (Characters(table), *halves("lcqmc", 1))
    record = {}
    for name, (model, documents, queries, wanted) in tasks.items():
        print(f"{name}: {len(documents):,} documents, {min(most, len(queries))} queries", flush=True)
        rows = task(model, documents, queries, wanted, most)
        record[name] = {"documents": len(documents), "queries": min(most, len(queries)), "rows": rows}
    write_record(arguments.out, {"tasks": record, "seed": SEED})
    return 0


if __name__ == "__main__":
    sys.exit(main())
