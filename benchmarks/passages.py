"""Find a long text again by a sentence from its second half, with and without passages.

    python benchmarks/passages.py FILE... [--model M] [--limit 300] [--settings none,auto,128] [--out FILE]

A FILE is read as `kexue index build` reads it; ``topics`` is Python's language reference, as `help` shows it. The
longest texts are asked for, by sentences of 20 to 200 characters from their second halves, drawn at random. The
sentence itself is in the text wanted: this measures whether the end of a text can be found at all, not how well a
paraphrase is.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _shared import write_record
from kexue.corpus import read_records
from kexue.search import Index
from kexue.text import Encoder

_SENTENCE = re.compile(r"[^。！？!?.]{20,200}[。！？!?.]")
_BEST = 10


def read_texts(name: str, most: int) -> list[str]:
    """Return the texts of a file, or of the language reference; the first `most` of them."""
    if name == "topics":
        from pydoc_data.topics import topics

        return list(topics.values())[:most]
    return list(dict.fromkeys(record.text for record in read_records(name)))[:most]


def ask(texts: Sequence[str], limit: int, each: int, seed: int) -> list[tuple[int, str]]:
    """Return (place of a text, a sentence of its second half), up to `each` of the longest texts."""
    draw = np.random.default_rng(seed)
    questions: list[tuple[int, str]] = []
    for place in sorted(range(len(texts)), key=lambda at: -len(texts[at])):
        found = [" ".join(one.split()) for one in _SENTENCE.findall(texts[place], len(texts[place]) // 2)]
        found = [one for one in found if len(one) >= 20]
        questions += [(place, found[at]) for at in draw.permutation(len(found))[:each]]
        if len(questions) >= limit:
            break
    return questions[:limit]


def measure(texts: list[str], questions: list[tuple[int, str]], encoder: Encoder, passages: str) -> dict[str, Any]:
    """Build an index with a setting, and return ranks of the texts asked for, seconds and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.kx")
        start = time.perf_counter()
        with Index.create(path, encoder, passages=passages) as index:
            report = index.add(texts, ids=range(len(texts)))
        seconds = time.perf_counter() - start
        with Index.open(path, encoder=encoder) as index:
            index.compact()
            size = path.stat().st_size
            begin = time.perf_counter()
            answers = index.search([question for _, question in questions], _BEST, mode="dense")
            asked = time.perf_counter() - begin
            split, vectors = index.store.count_passages()
    ranks = []
    for (place, _), hits in zip(questions, answers, strict=True):
        names = [hit.id for hit in hits]
        ranks.append(names.index(str(place)) + 1 if str(place) in names else np.inf)
    found = {"passages": passages, "split": split, "vectors": vectors, "truncated": report.truncated}
    return found | {"build_seconds": seconds, "bytes": size, "search_seconds": asked, "ranks": np.array(ranks)}


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by the bootstrap."""
    draw = np.random.default_rng(seed)
    means = values[draw.integers(len(values), size=(5000, len(values)))].mean(axis=1)
    return float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--texts", type=int, default=1000, help="texts in an index")
    parser.add_argument("--limit", type=int, default=300, help="questions")
    parser.add_argument("--each", type=int, default=1, help="questions for one text")
    parser.add_argument("--settings", default="none,auto,128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    encoder, rows = Encoder(arguments.model), []
    for name in arguments.files:
        texts = read_texts(name, arguments.texts)
        questions = ask(texts, arguments.limit, arguments.each, arguments.seed)
        encoder.choose_model(texts)
        print(f"{Path(name).name}: {len(texts)} texts, {len(questions)} questions, {encoder.model_id}", flush=True)
        first: np.ndarray | None = None
        for setting in arguments.settings.split(","):
            row = measure(texts, questions, encoder, setting)
            ranks = row.pop("ranks")
            hits = (ranks <= _BEST).astype(float)
            first = hits if first is None else first
            row |= {"corpus": Path(name).name, "texts": len(texts), "n": len(questions), "recall": interval(hits)}
            row |= {"recall_at_1": interval((ranks == 1).astype(float)), "mrr": interval(1 / ranks)}
            row |= {"gain": interval(hits - first)}
            rows.append(row)
            cells = "  ".join(
                f"{key} {row[key][0]:.3f} [{row[key][1]:.3f}, {row[key][2]:.3f}]"
                for key in ("recall", "recall_at_1", "mrr", "gain")
            )
            costs = f"{row['build_seconds']:.0f} s, {row['bytes'] / 1e6:.2f} MB"
            numbers = f"{row['split']} split, {row['vectors']} vectors, {row['truncated']} cut, {costs}"
            print(f"  {setting:>8}  {cells}  {numbers}", flush=True)
    write_record(arguments.out, {"rows": rows})


if __name__ == "__main__":
    main()
