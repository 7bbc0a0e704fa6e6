"""Encoding short sentences beside plain sentence-transformers, in one run.

    python benchmarks/encoding.py [--quick] [--sentences 4000] [--model auto] [--out FILE]

Sentences of 6 to 15 words from the docstrings of the standard library. The ways take turns, so that the machine's moods
fall on all of them alike; speeds are ratios of medians. The goal: 1.7 times sentence-transformers in float32 at its
defaults (batches of 32), at a mean cosine of at least 0.999 to its vectors. Also: one query at a time, against the
transformer's forward pass alone, and the time from starting Python to the first vector.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _shared import take_turns, write_record
from kexue.text import Encoder, find_model

GOAL, LEAST_COSINE = 1.7, 0.999
PEER = "sentence-transformers float32, batch 32"


def docstring_sentences(n: int, seed: int = 0) -> list[str]:
    """`n` different sentences of 6 to 15 words from the docstrings of the standard library."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py")):
        if {"site-packages", "test", "tests", "lib2to3"} & set(path.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
                    if 6 <= len(sentence.split()) <= 15:
                        found[sentence] = None
    sentences = list(found)
    random.Random(seed).shuffle(sentences)
    return sentences[:n]


def throughput(encoder: Encoder, folder: Path, sentences: list[str], rounds: int) -> list[dict[str, Any]]:
    """Sentences a second of every way, and how close its vectors are to the peer's."""
    from sentence_transformers import SentenceTransformer

    exact = Encoder(folder, dtype="float32")
    plain = SentenceTransformer(str(folder), device=str(encoder.device))
    half = SentenceTransformer(str(folder), device=str(encoder.device), model_kwargs={"dtype": torch.bfloat16})
    ways: dict[str, Callable[[], np.ndarray]] = {
        f"kexue {encoder.dtype}": lambda: encoder.encode(sentences),
        "kexue float32": lambda: exact.encode(sentences),
        PEER: lambda: plain.encode(sentences, show_progress_bar=False),
        "sentence-transformers float32, batch 64": lambda: plain.encode(
            sentences, batch_size=64, show_progress_bar=False
        ),
        "sentence-transformers bfloat16, batch 32": lambda: half.encode(sentences, show_progress_bar=False),
    }
    vectors = {name: np.asarray(way(), dtype=np.float32) for name, way in ways.items()}  # also warms up
    seconds = take_turns(ways, rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name in ways:
        cosines = (vectors[name] * vectors[PEER]).sum(axis=1) / np.linalg.norm(vectors[name], axis=1)
        row = {
            "way": name,
            "sentences_per_second": len(sentences) / medians[name],
            "speedup": medians[PEER] / medians[name],
            "mean_cosine": float(cosines.mean()),
            "least_cosine": float(cosines.min()),
            "seconds": seconds[name],
        }
        rows.append(row)
        print(
            f"{name:42s} {row['sentences_per_second']:8.0f} /s  {row['speedup']:5.2f} x  "
            f"cosine mean {row['mean_cosine']:.5f} least {row['least_cosine']:.5f}",
            flush=True,
        )
    return rows


def one_query(encoder: Encoder, folder: Path, sentences: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds for one sentence: `encode`, the bare forward pass on ready-made ids, and the peer."""
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(folder), device=str(encoder.device))
    query = sentences[0]
    tokens = encoder._model.tokenizer.encode([query])
    batch = tokens.pad(np.arange(1), encoder._model.tokenizer.pad_id)

    @torch.inference_mode()
    def forward() -> np.ndarray:
        states, _ = encoder._model.network.states(batch)
        return states[-1].float().numpy(force=True)

    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: encoder.encode([query]),
        "forward": forward,
        "sentence-transformers": lambda: plain.encode([query], show_progress_bar=False),
    }
    take_turns(ways, 5)
    result = {name: 1e3 * statistics.median(values) for name, values in take_turns(ways, rounds).items()}
    print("one query: " + ", ".join(f"{name} {value:.2f} ms" for name, value in result.items()), flush=True)
    return result


def cold_start(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds from starting Python to the first vector."""
    ours = f"from kexue.text import Encoder; Encoder({str(folder)!r}).encode('hello')"
    theirs = (
        "from sentence_transformers import SentenceTransformer; "
        f"SentenceTransformer({str(folder)!r}, device='cpu').encode('hello', show_progress_bar=False)"
    )

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    seconds = take_turns({"kexue": run(ours), "sentence-transformers": run(theirs)}, rounds)
    result = {name: statistics.median(values) for name, values in seconds.items()}
    print("start to first vector: " + ", ".join(f"{name} {value:.1f} s" for name, value in result.items()), flush=True)
    return result


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=4000)
    parser.add_argument("--quick", action="store_true", help="few sentences, few rounds")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    sentences = docstring_sentences(300 if arguments.quick else arguments.sentences)
    rounds = 2 if arguments.quick else 3
    folder = find_model(arguments.model)
    encoder = Encoder(folder)
    print(f"{len(sentences)} sentences, {encoder.model_id}, {encoder.device}, {torch.get_num_threads()} threads")
    rows = throughput(encoder, folder, sentences, rounds)
    query = one_query(encoder, folder, sentences, 30 if arguments.quick else 200)
    start = cold_start(folder, 1 if arguments.quick else 3)
    met = rows[0]["speedup"] >= GOAL and rows[0]["mean_cosine"] >= LEAST_COSINE
    verdict = "met" if met else "MISSED"
    print(f"goal of {GOAL} x at a mean cosine of {LEAST_COSINE}: {verdict} ({rows[0]['speedup']:.2f} x)")
    record = {
        "rows": rows,
        "one_query_milliseconds": query,
        "start_seconds": start,
        "goal": GOAL,
        "goal_met": met,
        "sentences": len(sentences),
        "words": float(np.mean([len(sentence.split()) for sentence in sentences])),
        "model": encoder.model_id,
    }
    write_record(arguments.out, record, "torch", "sentence-transformers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
