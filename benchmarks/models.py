"""The default models measured: pairs in Chinese and English, speed in turns, questions about the standard library.

    python benchmarks/models.py [--only MODEL] [--quick] [--pairs 20000] [--rounds 5] [--out FILE] [--write]

Pairs: Spearman x100 of raw cosines on a random part of each set (KEXUE_DATA), with its bootstrap interval; the test
split where the folder has one, else the validation split, on which nothing was chosen here. Speed: the same 512 texts,
in turns. Questions: `stdlib_questions.tsv`, each in English and Chinese, against the docstrings of this Python's
standard library; recall@10, with Clopper and Pearson's interval. `--write` puts the figures where `kexue models` reads
them; with `--only` the pairs and questions of other models stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from _shared import take_turns, write_record
from kexue.demo import standard_library
from kexue.search.encoding import encode_texts
from kexue.similarity import PairDataset, evaluate_pairs, load_pairs
from kexue.similarity.probability import clopper_pearson
from kexue.text import Encoder, recommended
from kexue.text.models import DEFAULT_MODEL, MULTILINGUAL, TINY_CHINESE

MODELS = (DEFAULT_MODEL, MULTILINGUAL, TINY_CHINESE)
SETS = (
    ("atec", "test", "zh"),
    ("bq", "test", "zh"),
    ("lcqmc", "valid", "zh"),
    ("pawsx_zh", "valid", "zh"),
    ("stsb_zh", "valid", "zh"),
    ("stsb_en", "test", "en"),
)
QUESTIONS = Path(__file__).with_name("stdlib_questions.tsv")
TIMED = 512


def part(data: PairDataset, n: int) -> PairDataset:
    """A random part of a set."""
    if len(data) <= n:
        return data
    rows = np.sort(np.random.default_rng(0).choice(len(data), n, replace=False)).tolist()
    return PairDataset(
        data.name, data.split, [data.texts_a[i] for i in rows], [data.texts_b[i] for i in rows], data.labels[rows]
    )


def measure_pairs(encoders: dict[str, Encoder], n: int) -> list[dict[str, Any]]:
    """Spearman of each model on each set."""
    found = []
    for name, split, language in SETS:
        data = part(load_pairs(name, split), n)
        for model, encoder in encoders.items():
            (row,) = evaluate_pairs(encoder, data).rows
            interval = f"[{row.low:.2f}, {row.high:.2f}]"
            print(f"{name:10s} {split:6s} n {row.n:5d}  {model:40s} {row.spearman:6.2f} {interval}", flush=True)
            figures = {"spearman": row.spearman, "low": row.low, "high": row.high}
            found.append({"model": model, "set": name, "split": split, "language": language, "n": row.n, **figures})
    return found


def read_questions() -> list[dict[str, str]]:
    """Rows of the file: answers (names, or beginnings of names with a star, separated by spaces), en, zh."""
    with QUESTIONS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def is_answer(name: str, answers: str) -> bool:
    """Whether an object is one of the right answers."""
    return any(name.startswith(a[:-1]) if a.endswith("*") else name == a for a in answers.split())


def measure_questions(encoders: dict[str, Encoder], limit: int | None) -> list[dict[str, Any]]:
    """recall@10 of the questions in both languages."""
    entries, questions = standard_library(), read_questions()
    if limit is not None:
        asked = [entry for entry in entries if any(is_answer(entry.name, row["answers"]) for row in questions)]
        entries = [*asked, *entries[:limit]]
    found = []
    for model, encoder in encoders.items():
        documents = encode_texts(encoder, [entry.text for entry in entries], "document")
        for language in ("en", "zh"):
            queries = encode_texts(encoder, [row[language] for row in questions], "query")
            best = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
            hits = [
                any(is_answer(entries[i].name, row["answers"]) for i in ranked)
                for ranked, row in zip(best, questions, strict=True)
            ]
            n = len(hits)
            low, high = clopper_pearson(np.array([sum(hits)]), np.array([n]))
            missed = [row[language] for row, hit in zip(questions, hits, strict=True) if not hit]
            print(f"questions {language}  {model:40s} recall@10 {sum(hits)}/{n}; missed: {missed}", flush=True)
            recall = {"recall": sum(hits) / n, "low": float(low[0]), "high": float(high[0])}
            found.append({"model": model, "language": language, "n": n, "documents": len(entries), **recall})
    return found


def measure_speed(encoders: dict[str, Encoder], rounds: int) -> list[dict[str, Any]]:
    """Texts a second of each model on the same texts, in turns."""
    entries = standard_library()
    texts = [entries[i * len(entries) // TIMED].text for i in range(TIMED)]
    seconds = take_turns({name: lambda e=e: e.encode(texts) for name, e in encoders.items()}, rounds, warmup=1)
    first = statistics.median(seconds[DEFAULT_MODEL])
    found = []
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"speed      {name:40s} {TIMED / middle:.0f} texts/s, {first / middle:.2f} of the first", flush=True)
        speed = {"texts_per_second": TIMED / middle, "relative": first / middle}
        found.append({"model": name, "n": TIMED, "rounds": rounds, "dtype": encoders[name].dtype, **speed})
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, help="measure pairs and questions of one model; speed is of all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--pairs", type=int, default=20_000, help="most pairs of a set, drawn at random if it has more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--write", action="store_true", help="update the figures of `kexue models`")
    arguments = parser.parse_args()
    pairs, rounds, limit = (50, 1, 300) if arguments.quick else (arguments.pairs, arguments.rounds, None)
    encoders = {name: Encoder(name) for name in MODELS}
    chosen = {name: encoder for name, encoder in encoders.items() if arguments.only in (None, name)}
    others: dict[str, Any] = {} if arguments.only is None else json.loads(recommended.FIGURES.read_text("utf-8"))

    def keep(key: str) -> list[dict[str, Any]]:
        """Rows of the models that are not measured."""
        return [row for row in others.get(key, []) if row["model"] not in chosen]

    record = {
        "date": datetime.date.today().isoformat(),
        "speed": measure_speed(encoders, rounds),
        "questions": [*keep("questions"), *measure_questions(chosen, limit)],
        "pairs": [*keep("pairs"), *measure_pairs(chosen, pairs)],
    }
    write_record(arguments.out, record, "torch", "transformers")
    if arguments.write:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        recommended.FIGURES.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
