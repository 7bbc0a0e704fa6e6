"""Sentences written with a cache beside the same without one.

    python benchmarks/generation.py [--quick] [--out FILE]

100 sentences of 32 tokens for one text of 20 tokens; 4 and 5 layers of width 256, 4,803 tokens, float32. The weights
are random, with a larger table of tokens, so that the next tokens are as unequal as those of a trained model; no
sentence ends early, which a trained model's do. Without a cache, whole rows are computed anew at every step under the
UniLM mask, 100 at a time, with the same rule and the same random numbers. The goals: under 1.5 seconds, and at least 5
times as fast as without a cache. Figures are medians, and medians of ratios within a round; the ways take turns.
Threads are those of OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _shared import take_turns, write_record
from kexue.text.roformer_sim.generation import Marks, write_sentences
from kexue.text.roformer_sim.model import RoFormerSimConfig, SentenceNetwork
from kexue.text.roformer_sim.token_sampler import TokenSampler

SECONDS_GOAL, SPEEDUP_GOAL = 1.5, 5.0
SAMPLES, LENGTH, VOCABULARY = 100, 32, 4803
PAD, UNK, CLS, SEP, MASK = range(5)
MARKS = Marks(SEP, (PAD, UNK, CLS, MASK))


def build(layers: int) -> SentenceNetwork:
    """A random network whose nucleus holds some 30 tokens and which does not end a sentence."""
    torch.manual_seed(0)
    network = SentenceNetwork(RoFormerSimConfig(VOCABULARY, hidden_size=256, num_layers=layers)).eval()
    with torch.no_grad():
        network.transformer.tokens.weight.mul_(16)
        network.head_bias[SEP] = -1e9
    return network


@torch.inference_mode()
def write_without_cache(network: SentenceNetwork, prefix: list[int], seed: int) -> list[list[int]]:
    """All sentences at once, whole rows at every step."""
    draws = torch.rand(SAMPLES, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids = torch.tensor(prefix).repeat(SAMPLES, 1)
    segments = torch.zeros_like(ids)
    for step in range(LENGTH):
        scores = network.score_tokens(network(ids, segments).states[:, -1])
        scores[:, [*MARKS.never, SEP]] = -torch.inf
        tokens = TokenSampler().draw(scores, draws[:, step])
        ids = torch.cat((ids, tokens[:, None]), 1)
        segments = torch.cat((segments, torch.ones_like(tokens)[:, None]), 1)
    return ids[:, len(prefix) :].tolist()


def compare(layers: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways, their ratio, and the share of sentences that are equal."""
    network, prefix = build(layers), [CLS, *range(100, 118), SEP]
    ours = write_sentences(network, [prefix], MARKS, n=SAMPLES, max_length=LENGTH, generator=0)[0]
    equal = sum(a == b for a, b in zip(ours, write_without_cache(network, prefix, 0), strict=True)) / SAMPLES
    ways: dict[str, Callable[[], object]] = {
        "cached": lambda: write_sentences(network, [prefix], MARKS, n=SAMPLES, max_length=LENGTH, generator=1),
        "uncached": lambda: write_without_cache(network, prefix, 1),
    }
    seconds = take_turns(ways, rounds, warmup=1)
    row = {
        "layers": layers,
        "seconds_median": statistics.median(seconds["cached"]),
        "speedup": statistics.median(a / b for a, b in zip(seconds["uncached"], seconds["cached"], strict=True)),
        "equal_sentences": equal,
        "seconds": seconds,
    }
    print(
        f"{layers} layers: {row['seconds_median']:.2f} s (fastest {min(seconds['cached']):.2f}) against "
        f"{statistics.median(seconds['uncached']):.2f} s without a cache, {row['speedup']:.1f} times as fast; "
        f"{equal:.0%} of the sentences are equal",
        flush=True,
    )
    return row


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    rows = [compare(layers, 2 if arguments.quick else 7) for layers in (4, 5)]
    met = {
        "seconds": all(row["seconds_median"] < SECONDS_GOAL for row in rows),
        "speedup": all(row["speedup"] >= SPEEDUP_GOAL for row in rows),
    }
    print(
        f"goals of {SECONDS_GOAL} s and {SPEEDUP_GOAL} times: "
        + ", ".join(f"{name} {'met' if good else 'MISSED'}" for name, good in met.items())
    )
    write_record(arguments.out, {"generation": rows, "goals_met": met}, "torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
