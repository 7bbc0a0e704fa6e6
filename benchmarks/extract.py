"""Triples a second and their F1: an extractor of convolutions beside a BERT, in one run.

    python benchmarks/extract.py [--quick] [--run RUN ...] [--data FOLDER] [--out FILE]

Speed: `DGCNNExtractor.extract`, from strings to triples, at batch 64, beside the forward pass alone of a `BertModel` of
transformers with the shape of BERT-base (12 layers, 768 wide, random weights) on the same texts, a token a character.
The ways take turns, so that the machine's moods fall on both alike; other programs on the machine slow both down, so
seconds of the processor, of all threads together, are reported beside those of the clock. The goals: 10 times as many
sentences, and 400 a second, on two cores.

Quality: for each run of `kexue extract train` its F1 on the development file of the SKE sample, by strings and by
tokens, at the default thresholds; and the thresholds that are best on one half of it, measured on the other half. The
run was kept by its F1 on the whole file, which is therefore a little too good.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from _shared import take_turns, write_record
from kexue.extract import (
    DGCNNExtractor,
    ExtractConfig,
    TripleExample,
    open_extractor,
    read_triples,
    train_extractor,
    triple_f1,
    tune_thresholds,
)

GOAL, GOAL_RATE, BATCH = 10.0, 400.0, 64
PEER_BATCH = 8  # of fewer texts, whose lengths differ more: so it pads as little
OURS, PEER = "DGCNNExtractor.extract", "BertModel, BERT-base shape"


def build_peer() -> Any:
    """Return a BERT-base with random weights."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(), add_pooling_layer=False).eval()


def run_peer(model: Any, texts: list[str]) -> None:
    """Encode texts in batches of similar lengths: [CLS], a token a character, [SEP]."""
    ordered = sorted(texts, key=len)
    with torch.inference_mode():
        for start in range(0, len(ordered), PEER_BATCH):
            part = ordered[start : start + PEER_BATCH]
            length = 2 + len(part[-1])
            ids = torch.randint(1000, 20_000, (len(part), length), generator=torch.Generator().manual_seed(0))
            mask = torch.arange(length) < torch.tensor([[2 + len(text)] for text in part])
            model(input_ids=ids, attention_mask=mask.long())


def share_of_padding(texts: list[str], batch: int) -> float:
    """Share of the characters of a batch that are padding."""
    lengths = sorted(map(len, texts))
    parts = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return 1 - sum(lengths) / sum(part[-1] * len(part) for part in parts)


def measure_speed(model: DGCNNExtractor, texts: list[str], share: int, rounds: int) -> dict[str, Any]:
    """Sentences a second of both ways; the peer gets every `share`-th text, whose lengths are alike."""
    peer, fewer = build_peer(), texts[::share]
    ways = {OURS: lambda: model.extract(texts, batch_size=BATCH), PEER: lambda: run_peer(peer, fewer)}
    counts = {OURS: len(texts), PEER: len(fewer)}
    rates = {}
    for unit, clock in (("clock", time.perf_counter), ("processor", time.process_time)):
        seconds = take_turns(ways, rounds, warmup=1, clock=clock)
        rates[unit] = {name: [counts[name] / one for one in values] for name, values in seconds.items()}
    padding = {OURS: share_of_padding(texts, BATCH), PEER: share_of_padding(fewer, PEER_BATCH)}
    record: dict[str, Any] = {
        "threads_of_torch": torch.get_num_threads(),
        "texts": counts,
        "characters of a text": {OURS: statistics.mean(map(len, texts)), PEER: statistics.mean(map(len, fewer))},
        "share of padding": padding,
        "load": os.getloadavg(),
    }
    for unit, found in rates.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        ratios = [a / b for a, b in zip(found[OURS], found[PEER], strict=True)]
        record[f"sentences a second of the {unit}"] = {
            "sentences": medians,
            "ratio": medians[OURS] / medians[PEER],
            "ratios": ratios,
        }
    return record


def measure_quality(run: str, dev: list[TripleExample]) -> dict[str, Any]:
    """F1 on the development file, and of thresholds tuned on its first half measured on its second."""
    model, golds = open_extractor(run), [example.triples for example in dev]
    found = model.extract([example.text for example in dev])
    half = len(dev) // 2
    tuned = tune_thresholds(model, dev[:half])
    later = [example.text for example in dev[half:]]
    again = model.extract(later, head_threshold=tuned.head, tail_threshold=tuned.tail)
    return {
        "run": os.path.basename(os.path.normpath(run)),
        "kind": model.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dev": {match: triple_f1(found, golds, match=match)._asdict() for match in ("string", "tokens")},
        "second half": {
            "default thresholds": triple_f1(found[half:], golds[half:])._asdict(),
            "tuned on the first half": {
                "head": tuned.head,
                "tail": tuned.tail,
                **triple_f1(again, golds[half:])._asdict(),
            },
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--run", action="append", default=[], help="run of kexue extract train; may be repeated")
    parser.add_argument("--data", default=os.environ.get("KEXUE_DATA"), help="folder of the data sets")
    parser.add_argument("--out", type=Path, help="file for the result")
    arguments = parser.parse_args()
    folder = Path(arguments.data or "", "triples_zh", "ske2019_sample")
    known = folder.is_dir() and not arguments.quick
    dev = read_triples(folder / "dev.jsonl.gz") if known else read_triples("sample")
    texts = [example.text for example in dev]
    models = [open_extractor(run) for run in arguments.run]
    model = next((one for one in models if isinstance(one, DGCNNExtractor)), None)
    if model is None:
        with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_extractor(ExtractConfig("sample", "sample", out, epochs=30, fine_epochs=0, device="cpu"))
            model = open_extractor(out)  # type: ignore[assignment]
    speed = measure_speed(model, texts, 16 if known else 4, 1 if arguments.quick else 3)
    record = {"goal": GOAL, "goal_rate": GOAL_RATE, "speed": speed}
    record["quality"] = [measure_quality(run, dev) for run in arguments.run] if known else []
    print(json.dumps(record, ensure_ascii=False, indent=1))
    write_record(arguments.out, record, "torch", "transformers")


if __name__ == "__main__":
    main()
