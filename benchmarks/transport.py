"""`TransportIndex` beside brute force with POT: the same hits, and how much sooner; the bounds on random pairs.

    python benchmarks/transport.py [--quick] [--documents 20000] [--queries 50] [--out FILE]

Documents are the standard library's docstrings and, where KEXUE_DATA names a data folder, STS sentences, as the
packaged encoder's token vectors. Brute force runs `ot.emd2` on every document, its unit vectors and weights ready
beforehand in float64. Both take turns on the same queries. The goal: identical ids and distances, 20 times sooner.
Where gensim is installed, WMD stands beside a loop over its `wmdistance` on a subset of the documents.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from _shared import write_record
from kexue.demo.docstrings import standard_library
from kexue.similarity import (
    TransportIndex,
    load_pairs,
    product_upper_bound,
    relaxed_wmd,
    relaxed_wrd,
    wcd,
    word_movers_distance,
    word_rotators_distance,
    wrd_centroid_bound,
)
from kexue.similarity.transport.problems import wmd_problem, wrd_problem

GOAL = 20.0
BOUND_PAIRS = 10_000
SLACK = 1e-9  # rounding of sums of float64


def sentences(wanted: int) -> list[str]:
    """Distinct sentences, the data folder's and the standard library's by turns of one seed."""
    texts = {entry.text: None for entry in standard_library()}
    if os.environ.get("KEXUE_DATA"):
        for name in ("stsb_en", "sts12", "sts13", "sts14", "sts15", "sts16"):
            pairs = load_pairs(name)
            texts |= dict.fromkeys([*pairs.texts_a, *pairs.texts_b])
    some = list(texts)
    order = np.random.default_rng(0).permutation(len(some))[:wanted]
    return [some[i] for i in order]


def token_vectors(texts: list[str]) -> list[np.ndarray]:
    """What the packaged encoder gives each token of the texts."""
    from kexue.text import Encoder

    encoder = Encoder()
    found = (encoder.encode_tokens(texts[start : start + 512]) for start in range(0, len(texts), 512))
    return [tokens.vectors for block in found for tokens in block]


class Brute:
    """The loop over all documents that the index replaces; what does not depend on the query is ready beforehand."""

    def __init__(self, kind: str, documents: list[np.ndarray]) -> None:
        self.kind = kind
        self.prepared = [self.prepare(document) for document in documents]

    def prepare(self, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X = document.astype(np.float64)
        if self.kind == "wmd":
            return X, np.full(len(X), 1 / len(X))
        lengths = np.linalg.norm(X, axis=1)
        return X / lengths[:, None], lengths / lengths.sum()

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import ot
        from scipy.spatial.distance import cdist

        U, p = self.prepare(query)
        distances = np.array(
            [ot.emd2(p, q, np.maximum(1 - U @ V.T, 0) if self.kind == "wrd" else cdist(U, V)) for V, q in self.prepared]
        )
        order = np.argsort(distances, kind="stable")[:k]
        return order, distances[order]


def race(kind: str, documents: list[np.ndarray], queries: list[np.ndarray], k: int) -> dict[str, Any]:
    """Time both on each query in turn, and hold the hits to one another."""
    start = time.perf_counter()
    index = TransportIndex(kind).add(documents)
    index.search(queries[0], k)
    built = time.perf_counter() - start
    brute = Brute(kind, documents)
    brute.search(queries[0][:2], 1)
    ours, theirs, stats = [], [], []
    same_ids, worst = True, 0.0
    for query in queries:
        start = time.perf_counter()
        hits = index.search(query, k)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        ids, distances = brute.search(query, k)
        theirs.append(time.perf_counter() - start)
        stats.append(hits.stats)
        worst = max(worst, float(np.abs(hits.distances - distances).max()))
        # Distances that differ by rounding only may come in either order.
        apart = np.diff(distances, append=np.inf) > SLACK
        ends = [0, *(np.flatnonzero(apart) + 1).tolist()]
        groups = list(pairwise(ends))
        same_ids &= all(set(hits.ids[a:b]) == set(ids[a:b].tolist()) for a, b in groups if b < k) and hits.stats.exact
    ratio = sum(theirs) / sum(ours)
    result = {
        "kind": kind,
        "documents": len(documents),
        "queries": len(queries),
        "k": k,
        "build_seconds": built,
        "median_seconds": statistics.median(ours),
        "brute_median_seconds": statistics.median(theirs),
        "ratio": ratio,
        "same_ids": same_ids,
        "largest_difference": worst,
        "median_exact": statistics.median(s.n_exact for s in stats),
        "median_pruned_centroid": statistics.median(s.n_pruned_centroid for s in stats),
        "median_pruned_relaxed": statistics.median(s.n_pruned_relaxed for s in stats),
    }
    print(
        f"{kind}: {1e3 * result['median_seconds']:.0f} ms, brute force {1e3 * result['brute_median_seconds']:.0f} ms: "
        f"{ratio:.1f} times; ids {'identical' if same_ids else 'DIFFER'}, distances to {worst:.1e}; "
        f"{result['median_exact']:.0f} solved of {len(documents)}",
        flush=True,
    )
    return result


def check_bounds(pairs: int) -> dict[str, float]:
    """Largest amount by which a bound crosses the exact distance, over random pairs with every degenerate kind."""
    generator = np.random.default_rng(0)
    over = dict.fromkeys(["wcd", "relaxed_wmd", "wrd_centroid_bound", "relaxed_wrd", "product_wmd", "product_wrd"], 0.0)
    for number in range(pairs):
        d = int(generator.integers(1, 9))
        x, y = (generator.normal(size=(int(generator.integers(1, 9)), d)) for _ in range(2))
        if number % 4 == 1:
            y = np.concatenate([x, y])[generator.permutation(len(x) + len(y))]  # shared tokens
        elif number % 4 == 2:
            x[generator.integers(len(x))] = 0.0
        elif number % 4 == 3:
            x, y = x[:1], (y if number % 8 == 3 else -3 * x[:1])  # one token; its opposite
        wmd, wrd = word_movers_distance(x, y), word_rotators_distance(x, y)
        for name, bound, exact in (
            ("wcd", wcd(x, y), wmd),
            ("relaxed_wmd", relaxed_wmd(x, y), wmd),
            ("wrd_centroid_bound", wrd_centroid_bound(x, y), wrd),
            ("relaxed_wrd", relaxed_wrd(x, y), wrd),
        ):
            if np.isfinite(exact):
                over[name] = max(over[name], bound - exact)
        for name, problem, exact in (("product_wmd", wmd_problem(x, y), wmd), ("product_wrd", wrd_problem(x, y), wrd)):
            if not isinstance(problem, float):
                over[name] = max(over[name], exact - product_upper_bound(*problem[:3]))
    print(f"{pairs} random pairs: bounds cross the exact distance by at most {max(over.values()):.1e}", flush=True)
    return over


def beside_gensim(documents: list[np.ndarray], queries: list[np.ndarray], k: int) -> dict[str, Any] | None:
    """WMD beside gensim's loop, each token vector a word of its own; None without gensim."""
    if importlib.util.find_spec("gensim") is None:
        return None
    from gensim.models import KeyedVectors

    everything = [*documents, *queries]
    starts = np.cumsum([0, *(len(document) for document in everything)])
    vectors = KeyedVectors(documents[0].shape[1])
    vectors.add_vectors([str(i) for i in range(starts[-1])], np.concatenate(everything))
    words = [[str(i) for i in range(a, b)] for a, b in pairwise(starts)]
    index = TransportIndex("wmd").add(documents)
    index.search(queries[0], k)
    ours = theirs = worst = 0.0
    for query, asked in zip(queries, words[len(documents) :], strict=True):
        start = time.perf_counter()
        hits = index.search(query, k)
        ours += time.perf_counter() - start
        start = time.perf_counter()
        loop = np.sort([vectors.wmdistance(asked, words[i], norm=False) for i in range(len(documents))])[:k]
        theirs += time.perf_counter() - start
        worst = max(worst, float(np.abs(loop - hits.distances).max()))
    print(f"wmd beside gensim on {len(documents)} documents: {theirs / ours:.0f} times; distances to {worst:.1e}")
    return {"documents": len(documents), "ratio": theirs / ours, "largest_difference": worst}


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--quick", action="store_true", help="2,000 documents, 10 queries")
    parser.add_argument("--kinds", nargs="+", default=["wrd", "wmd"])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    count = arguments.documents or (2_000 if arguments.quick else 20_000)
    asked, k = arguments.queries or (10 if arguments.quick else 50), 10
    bounds = check_bounds(BOUND_PAIRS)
    vectors = token_vectors(sentences(count + asked))
    documents, queries = vectors[:-asked], vectors[-asked:]
    tokens = sum(len(document) for document in documents)
    print(f"{len(documents)} documents, {tokens} tokens of {documents[0].shape[1]} dimensions, {asked} queries")
    rows = [race(kind, documents, queries, k) for kind in arguments.kinds]
    met = rows[0]["ratio"] >= GOAL
    right = all(row["same_ids"] and row["largest_difference"] <= SLACK for row in rows)
    right &= max(bounds.values()) <= SLACK
    gensim = beside_gensim(documents[:1000], queries[:5], k)
    print(f"goal of {GOAL:.0f} times brute force: {'met' if met else 'MISSED'}")
    record = {
        "rows": rows,
        "bounds": bounds,
        "bound_pairs": BOUND_PAIRS,
        "gensim": gensim,
        "tokens": tokens,
        "goal": GOAL,
        "goal_met": met,
    }
    write_record(arguments.out, record, "POT")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
